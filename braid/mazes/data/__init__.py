"""Mazes and trajectories on disk."""
