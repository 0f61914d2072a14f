"""What data sets of clips and of images share: their splits, and a cache of rows."""
