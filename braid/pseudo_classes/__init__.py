"""K-means on condition embeddings, and how evenly it fills its classes."""
