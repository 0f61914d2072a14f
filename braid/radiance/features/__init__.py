"""Per-cell features of a teacher, and their VAE."""
