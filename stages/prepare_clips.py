"""Index the clips: the built-in moving digits, or the user's own Wan-synth shards where they lie.

Writes data/clips: manifest.json, index.npz, and the shards if they are built in. Ten seconds.
"""

from pathlib import Path

from braid.clips.decoding.transform import NAME
from braid.clips.preparation.moving_digits import LAYOUT, write_digit_shards
from braid.clips.preparation.scan import find_shards, survey_shards, write_manifest
from braid.stage.context import open_stage
from braid.training.device import make_deterministic, set_threads


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_clips") as stage:
        make_deterministic()
        set_threads(1)
        clips, out = stage.params.clips, stage.out("data/clips")
        shares = (clips.val_share, clips.test_share)
        out.mkdir()
        if clips.source == "digits":
            digits = stage.params.digits.model_dump()
            shards = write_digit_shards(out, **digits, shares=shares, seed=stage.params.seed)
            codec, layout = NAME, LAYOUT
        else:
            shards = find_shards(clips.source, outside=Path.cwd())
            codec, layout = "wan", clips.layout
        found = survey_shards(shards, layout, clips.verify)
        if found.faults and clips.faults == "fatal":
            raise ValueError(
                f"{found.faults[0]} ({len(found.faults)} faults in all; "
                "clips.faults: skip leaves such clips out)"
            )
        figures = write_manifest(
            out,
            found,
            codec=codec,
            layout=layout,
            shares=shares,
            checksums=clips.checksums,
        )
        stage.write_metrics(figures)


if __name__ == "__main__":
    main()
