"""Mazes and trajectories through them: built in, or of a pointmaze file."""
