"""Figures and pictures of refined clips and images."""
