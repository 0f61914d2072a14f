"""Clips whose frames between keyframes are known: a textured blob that moves by whole cells."""

import torch


def blob_clip(velocity, frames=5, size=12, radius=1.2):
    """One clip [1, 4, T, H, W] of a blob that moves (rows, columns) a frame."""
    grid = torch.arange(float(size))
    pictures = []
    for time in range(frames):
        y = grid[:, None] - 4 - velocity[0] * time
        x = grid[None, :] - 3 - velocity[1] * time
        blob = torch.exp(-(y**2 + x**2) / (2 * radius**2))
        texture = torch.stack([torch.ones_like(blob), y + 0 * x, x + 0 * y, y * x - 1])
        ground = torch.tensor([-1.0, 0.3, 0.3, 0.3])[:, None, None]
        pictures.append(blob * texture + (1 - blob) * ground)
    return torch.stack(pictures, 1)[None]
