"""EfficientSAM3."""
