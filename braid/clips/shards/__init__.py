"""Tar shards of clips and random access to them."""
