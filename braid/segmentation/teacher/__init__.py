"""The tiny teacher: its architecture, its training, how good a teacher is."""
