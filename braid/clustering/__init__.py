"""K-means, which makes the pseudo-classes of clips and of images."""
