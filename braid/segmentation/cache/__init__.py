"""The teacher's predictions: made now, or read from the cache."""
