"""Distances between sets of samples, and the feature spaces that they are measured in."""
