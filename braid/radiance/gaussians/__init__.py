"""3D Gaussians: their file, rasterizer and field."""
