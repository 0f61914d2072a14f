"""The teacher's checkpoint, its outputs and their cache."""
