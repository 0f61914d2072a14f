"""Fill a storyboard in: a few given latent frames and a prompt become a full clip.

Reads a storyboard file, pictures or a video, or takes frames of a held-out clip. Writes the clip's
latents and what it looks like. Seconds.
"""

from safetensors.torch import save

from braid.clips.codec.codec import decoder_of
from braid.clips.preparation.storyboards import open_storyboard
from braid.clips.shards.dataset import open_clips
from braid.drifting.evaluation.clips import complete_storyboard
from braid.drifting.evaluation.pictures import draw_clip
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner
from braid.pseudo_classes.quantizer import load_quantizer
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("impute_storyboard") as stage:
        (name,) = stage.item
        config, device = stage.params.drift.storyboards[name], stage.device()
        quantizer = load_quantizer(stage.dep("models/quantizer"))
        clips = open_clips(stage.dep("data/clips"), text=quantizer.text)
        wan_vae = stage.optional_dep(stage.params.clips.wan_vae)
        own = (config.source, config.clip, config.keyframes, config.prompt)
        latents, text = open_storyboard(*own, clips, wan_vae)
        corruption = Corruption(latents.shape[2], stage.params.drift.corruption)
        refiner = load_refiner(stage.dep("models/drift")).to(device)
        board, guidance = (latents, text, config.keyframes), config.alpha
        models = corruption, quantizer.assign, refiner
        more = guidance, stage.params.seed, quantizer.encoder.of_some
        shown, given, label = complete_storyboard(*board, *models, *more)

        stage.out("data/storyboards").write_bytes(save({"latents": shown["refined"]}))
        pictures = stage.out("plots/storyboards")
        pictures.mkdir()
        title = f"{config.prompt or name}, class {label}"
        draw_clip(pictures / "clip", shown, given, title, decoder_of(clips, wan_vae))


if __name__ == "__main__":
    main()
