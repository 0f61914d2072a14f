"""Corruption, refiner, features and sampling of clips."""
