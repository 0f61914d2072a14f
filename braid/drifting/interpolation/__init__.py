"""Keyframes, and what fills the frames between them."""
