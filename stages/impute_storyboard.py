"""Fill a storyboard in: a few given latent frames and a prompt become a full clip.

Reads a storyboard file, or takes frames of a held-out clip as one. Writes the clip's latents and
what it looks like. Seconds.
"""

from safetensors.torch import save

from braid.clips.codec.codec import decoder_of
from braid.clips.shards.dataset import open_clips
from braid.common.rng import generator
from braid.drifting.evaluation.pictures import draw_clip
from braid.drifting.evaluation.storyboard import (
    given_frames,
    impute_given,
    level_of,
    open_storyboard,
)
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner, refine
from braid.pseudo_classes.quantizer import load_quantizer
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("impute_storyboard") as stage:
        (name,) = stage.item
        config, device = stage.params.drift.storyboards[name], stage.device()
        clips = open_clips(stage.dep("data/clips"))
        latents, text = open_storyboard(config, clips)
        given = given_frames(config.keyframes, latents.shape[2])
        corruption = Corruption(latents.shape[2], stage.params.drift.corruption)
        start = impute_given(latents, given, corruption, generator(stage.params.seed, "storyboard"))
        classes = load_quantizer(stage.dep("models/quantizer")).assign(text, start.latents)
        refiner = load_refiner(stage.dep("models/drift")).to(device)
        level = level_of(len(set(config.keyframes)), corruption.counts)
        (full,) = refine(refiner, start, classes, level, config.alpha, clamp=True)

        stage.out("data/storyboards").write_bytes(save({"latents": full.contiguous()}))
        pictures = stage.out("plots/storyboards")
        pictures.mkdir()
        decode = decoder_of(clips, stage.optional_dep(stage.params.clips.wan_vae))
        shown = {"interpolated": start.latents[0], "refined": full}
        draw_clip(pictures / "clip", shown, given[0], f"{name}, class {int(classes)}", decode)


if __name__ == "__main__":
    main()
