"""Fill a storyboard in: a few given latent frames and a prompt become a full clip.

Reads a storyboard file, or takes frames of a held-out clip as one. Writes the clip's latents and
what it looks like. Seconds.
"""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from braid.clips.decoding.decoding import TIME_STRIDE, decoder
from braid.clips.shards.shards import Clips, open_clips
from braid.common.rng import generator
from braid.drifting.evaluation.pictures import animation, strip
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner
from braid.drifting.video.sampling import (
    given_frames,
    interpolated,
    level_of,
    load_storyboard,
    refine,
)
from braid.pseudo_classes.quantizer import load_quantizer
from braid.stage.context import open_stage
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("impute_storyboard") as stage:
        hardware, seed = stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed)
        (board,) = stage.params.storyboards.values()
        clips = open_clips(stage.dep("data/clips"))
        latents, text = _read(Path(board.source), clips, board.clip)
        mask = given_frames(board.keyframes, latents.shape[2])
        corruption = Corruption(latents.shape[2], **stage.params.corruption.model_dump())
        start = interpolated(latents, mask, corruption, generator(seed, "storyboard"))
        classes = load_quantizer(stage.dep("models/quantizer")).assign(text, start.latents)
        refiner = load_refiner(stage.dep("models/drift")).to(device)
        refiner.clamp = True
        level = level_of(len(set(board.keyframes)), corruption.counts)
        full = refine(refiner, start, classes, level, board.alpha)

        stage.out("data/storyboards").write_bytes(save({"latents": full[0].contiguous()}))
        pictures = stage.out("plots/storyboards")
        pictures.mkdir()
        examples = clips.latents(clips.indices("train")[:256])
        decode = decoder(clips.codec, examples=examples, wan_vae=stage.params.decoding.wan_vae)
        shown = {"interpolated": decode(start.latents)[0], "refined": decode(full)[0]}
        keyframes = [TIME_STRIDE * each for each in board.keyframes]
        title = f"{stage.item[0]}, class {int(classes)}   decoder: {decode.name}"
        strip(pictures / "clip.png", shown, keyframes, TIME_STRIDE, title)
        animation(pictures / "clip.gif", shown)


def _read(source: Path, clips: Clips, number: int) -> tuple[Tensor, Tensor]:
    """Latents and text of a storyboard file, or of the n-th held-out clip of a folder of clips."""
    if source.suffix == ".safetensors":
        return load_storyboard(source)
    chosen = clips.indices("test")[number : number + 1]
    if not len(chosen):
        raise ValueError(
            f"storyboards: clip is {number}, expected below {len(clips.indices('test'))}"
        )
    return clips.latents(chosen), clips.texts(chosen)


if __name__ == "__main__":
    main()
