"""Labelled images: folders of one's own, the built-in digits, noise for timing."""
