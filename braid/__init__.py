"""Braid: radiance, drifting and segmentation research woven into one reproducible DAG."""
