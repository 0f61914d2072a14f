"""Scanning an SA-1B folder, and the built-in images."""
