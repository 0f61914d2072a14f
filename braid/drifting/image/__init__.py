"""Corruption, refiner and features of images."""
