"""Complete a clip in one step, from a few given latent frames: `python -m braid.complete`.

python -m braid.complete --clip 1 --at 0 3 8 --out clip
python -m braid.complete --storyboard mine.safetensors --at 0 8 --out clip
python -m braid.complete --pictures a.png b.png --at 0 8 --prompt "a red seven drifts" --out clip

Writes clip.safetensors (latents), clip.gif and clip.png: interpolated beside refined.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from braid.clips.codec.codec import decoder, still_latents
from braid.clips.preparation.moving_digits import ROWS, WIDTH, embed_prompt
from braid.clips.shards.dataset import Clips, open_clips
from braid.common.progress import run_command
from braid.common.rng import generator
from braid.drifting.evaluation.pictures import draw_clip
from braid.drifting.evaluation.storyboard import (
    given_frames,
    held_out_clip,
    impute_given,
    level_of,
    load_storyboard,
)
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner, refine
from braid.pseudo_classes.quantizer import load_quantizer
from braid.stage.params import load_params
from braid.training.device import set_up


def main() -> None:
    """Complete and say where."""
    run_command("complete", __doc__, _options, _run)


def _options(parser: argparse.ArgumentParser) -> None:
    add, source = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clip", type=int, help="a held-out clip of --clips, by its number")
    source.add_argument("--storyboard", type=Path, help=".safetensors: latents, embedding")
    source.add_argument("--pictures", type=Path, nargs="+", help="one a given frame")
    add("--at", type=int, nargs="+", required=True, help="given latent frames, from 0")
    add("--prompt", help="words; without them those of the clip, the storyboard, or none")
    add("--alpha", type=float, default=1.0, help="guidance; 1: none (%(default)s)")
    add("--clips", type=Path, default=Path("data/clips"), help="(%(default)s)")
    add("--refiner", type=Path, default=Path("models/drift/drift"), help="(%(default)s)")
    add("--quantizer", type=Path, default=Path("models/quantizer"), help="(%(default)s)")
    add("--wan-vae", type=Path, help="folder of an AutoencoderKLWan, to decode Wan's latents")
    add("--out", type=Path, required=True, help="files to write, less their endings")


def _run(options: argparse.Namespace) -> None:
    if not options.alpha >= 1:
        raise ValueError(f"--alpha is {options.alpha}, expected 1 or more")
    if len(set(options.at)) < len(options.at):
        raise ValueError(f"--at is {options.at}, expected each frame once")
    params = load_params(Path("params.yaml"))
    device = set_up(params.hardware.device, params.hardware.threads, params.seed)
    clips = open_clips(options.clips)
    latents, text = _given(options, clips)
    given = given_frames(options.at, latents.shape[2])
    corruption = Corruption(latents.shape[2], params.drift.corruption)
    start = impute_given(latents, given, corruption, generator(params.seed, "storyboard"))
    classes = load_quantizer(options.quantizer).assign(text, start.latents)
    refiner = load_refiner(options.refiner).to(device)
    level = level_of(len(options.at), corruption.counts)
    (full,) = refine(refiner, start, classes, level, options.alpha, clamp=True)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"latents": full.contiguous()}, options.out.with_suffix(".safetensors"))
    decode = decoder(clips.codec, clips.latents(clips.indices("train")[:256]), options.wan_vae)
    shown = {"interpolated": start.latents[0], "refined": full}
    title = f"{options.prompt or options.out.name}, class {int(classes)}"
    draw_clip(options.out, shown, given[0], title, decode)
    print(f"{options.out}.safetensors, .gif, .png: class {int(classes)}, decoder: {decode.name}")


def _given(options: argparse.Namespace, clips: Clips) -> tuple[Tensor, Tensor | None]:
    """Latents [1, C, T, H, W] and text embedding [1, L, D] of what the options name."""
    text: Tensor | None = None
    if options.pictures:
        latents = still_latents(options.pictures, options.at, clips.codec, clips.shape)
    elif options.storyboard:
        latents, text = load_storyboard(options.storyboard)
    else:
        latents, text = held_out_clip(clips, options.clip)
    if options.prompt is None:
        return latents, text
    if clips.text_shape != (ROWS, WIDTH):
        raise ValueError("--prompt: of the built-in clips only; a storyboard has an `embedding`")
    return latents, embed_prompt(options.prompt)[None].float()


if __name__ == "__main__":
    main()
