"""Training against ground truth."""
