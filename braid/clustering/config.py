"""The params model of K-means: units, ranges, meaning."""

from braid.common.config import Config, Count, Whole


class KMeansConfig(Config):
    """K-means of clips or images; how many classes is a param beside it."""

    seeding_rows: Count
    projection: Count  # dimensions in which seeds are chosen and most iterations run
    candidates: Count  # greedy k-means++, a step
    projected_iterations: Whole
    exact_iterations: Count
