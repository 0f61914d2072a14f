"""Scanning shards, and the built-in moving digits."""
