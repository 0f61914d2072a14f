"""Complete a clip in one step, from a few given latent frames: `python -m braid.complete`.

python -m braid.complete --clip 1 --at 0 3 8 --out clip
python -m braid.complete --storyboard mine.safetensors --at 0 8 --out clip
python -m braid.complete --pictures a.png b.png --at 0 8 --prompt "a red seven drifts" --out clip
python -m braid.complete --video mine.gif --at 0 4 8 --out clip

Writes clip.safetensors (latents), clip.png and clip.gif (with PyAV clip.mp4): interpolated and
refined.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from braid.clips.codec.codec import decoder_of
from braid.clips.preparation.storyboards import (
    held_out_clip,
    load_storyboard,
    picture_latents,
    pictures_of,
    prompt_text,
    video_latents,
)
from braid.clips.shards.dataset import Clips, open_clips
from braid.common.progress import run_command
from braid.drifting.evaluation.clips import complete_storyboard
from braid.drifting.evaluation.pictures import draw_clip
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner
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
    source.add_argument("--pictures", type=Path, nargs="+", help="one a frame, or a folder")
    source.add_argument("--video", type=Path, help=".gif; with PyAV .mp4 and others")
    add("--at", type=int, nargs="+", required=True, help="given latent frames, from 0")
    add("--prompt", help="words; without them those of the clip, the storyboard, or none")
    add("--alpha", type=float, default=1.0, help="guidance; 1: none (%(default)s)")
    add("--clips", type=Path, default=Path("data/clips"), help="(%(default)s)")
    add("--refiner", type=Path, default=Path("models/drift/drift"), help="(%(default)s)")
    add("--quantizer", type=Path, default=Path("models/quantizer"), help="(%(default)s)")
    add("--wan-vae", type=Path, help="folder of an AutoencoderKLWan, for Wan's latents")
    add("--out", type=Path, required=True, help="files to write, less their endings")


def _run(options: argparse.Namespace) -> None:
    if not options.alpha >= 1:
        raise ValueError(f"--alpha is {options.alpha}, expected 1 or more")
    if len(set(options.at)) < len(options.at):
        raise ValueError(f"--at is {options.at}, expected each frame once")
    params = load_params(Path("params.yaml"))
    device = set_up(params.hardware.device, params.hardware.threads, params.seed)
    quantizer = load_quantizer(options.quantizer)
    clips = open_clips(options.clips, text=quantizer.text)
    latents, text = _given(options, clips)
    corruption = Corruption(latents.shape[2], params.drift.corruption)
    assign, refiner = quantizer.assign, load_refiner(options.refiner)
    board, models = (latents, text, options.at), (corruption, assign, refiner.to(device))
    more = options.alpha, params.seed, quantizer.encoder.of_some
    shown, given, label = complete_storyboard(*board, *models, *more)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"latents": shown["refined"]}, f"{options.out}.safetensors")
    decode = decoder_of(clips, options.wan_vae)
    title = f"{options.prompt or options.out.name}, class {label}"
    written = draw_clip(options.out, shown, given, title, decode, mp4=True)
    endings = ", ".join([".safetensors", *(path.suffix for path in written)])
    print(f"{options.out}{endings}: class {label}, decoder: {decode.name}")


def _given(options: argparse.Namespace, clips: Clips) -> tuple[Tensor, Tensor | None]:
    """Latents [1, C, T, H, W] and text embedding [1, L, D] of what the options name."""
    text: Tensor | None = None
    if options.pictures:
        paths = [file for path in options.pictures for file in pictures_of(path)]
        latents = picture_latents(paths, options.at, clips, options.wan_vae)
    elif options.video:
        latents = video_latents(options.video, clips, options.wan_vae)
    elif options.storyboard:
        latents, text = load_storyboard(options.storyboard)
    else:
        latents, text = held_out_clip(clips, options.clip)
    return latents, text if options.prompt is None else prompt_text(options.prompt, clips)


if __name__ == "__main__":
    main()
