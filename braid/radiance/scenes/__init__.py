"""Cameras, scenes on disk, cells, occupied space and renders."""
