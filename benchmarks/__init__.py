"""Ratios against an in-repo reference or a library, run by hand with `make bench`."""
