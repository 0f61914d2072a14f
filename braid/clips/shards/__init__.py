"""Random access to clips in tar shards."""
