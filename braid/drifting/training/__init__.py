"""Training objectives of refiners, memory banks, checkpoint selection."""
