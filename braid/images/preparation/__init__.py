"""Indexing a folder of images, and the built-in ones."""
