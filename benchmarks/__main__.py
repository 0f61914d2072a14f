"""Run the benchmarks that need nothing but the repository, one after the other."""

from benchmarks import (
    drift,
    grid_mlp,
    harmonic,
    image_drift,
    kmeans,
    matching,
    rasterizer,
    ray_sampler,
    sam3_flops,
    shards,
)


def main() -> None:
    """Print each ratio with what it is a ratio of."""
    rasterizer.main()
    ray_sampler.main()
    grid_mlp.main()
    kmeans.main()
    drift.main()
    harmonic.main()
    image_drift.main()
    matching.main()
    sam3_flops.main()
    shards.main()


if __name__ == "__main__":
    main()
