"""Random access to a set of images."""
