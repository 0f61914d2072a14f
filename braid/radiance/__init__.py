"""Distil a 3D Gaussian Splatting scene into a KiloNeRF grid of tiny MLPs."""
