"""Scan the clips: the built-in moving digits, or the user's own Wan-synth shards.

Writes data/clips: manifest.json, index.npz, and the shards if they are built in or read from URLs;
local ones stay where they lie. Ten seconds for those built in.
"""

from pathlib import Path

from braid.clips.codec.codec import TRANSFORM, WAN
from braid.clips.preparation.moving_digits import LAYOUT, write_digit_shards
from braid.clips.preparation.scan import find_shards, join_anchors, scan_shards, write_manifest
from braid.clips.shards.stream import expand_urls, fetch_shards, is_url
from braid.common.config import BUILT_IN, NONE
from braid.data.splits import SPLITS
from braid.stage.context import open_stage
from braid.training.device import make_deterministic, set_threads
from braid.training.distributed import working


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_clips") as stage:
        make_deterministic()
        set_threads(1)
        config, out = stage.params.clips, stage.first_out("data/clips")
        fractions = (config.val_fraction, config.test_fraction)
        scratch = stage.scratch()
        with working() as process:
            if process.is_main:
                out.mkdir()
            if config.source == BUILT_IN:
                codec, layout, seed = TRANSFORM, LAYOUT, stage.params.seed
                shards = write_digit_shards(
                    out, config.digits, fractions=fractions, seed=seed, scratch=scratch
                )
            elif is_url(config.source):
                codec, layout = WAN, config.layout
                shards = fetch_shards(expand_urls(config.source), out, layout, config.crop)
            else:
                codec, layout = WAN, config.layout
                shards = find_shards(config.source, outside=Path.cwd())
            verify, checksums = config.verify, config.checksums
            scan = scan_shards(shards, layout, verify, checksums=checksums, scratch=scratch)
            if config.anchors != NONE:
                found = find_shards(config.anchors, outside=Path.cwd(), key="clips.anchors")
                join_anchors(scan, found, layout, verify, scratch=scratch)
        if not process.is_main:  # the first puts together what all have found
            return
        if config.faults == "fatal":
            scan.require_no_faults()
        metrics = write_manifest(
            out, scan, codec=codec, layout=layout, fractions=fractions, crop=config.crop
        )
        stage.write_table("metrics/tables", [metrics])
        stage.write_metrics({name: metrics[name] for name in (*SPLITS, "faults")})


if __name__ == "__main__":
    main()
