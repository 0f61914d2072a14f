"""Inputs of a full-size run, of the real format and size a piece; fewer pieces."""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from braid.common.torchvision import mend_torchvision
from braid.radiance.config import BricksConfig
from braid.radiance.gaussians.gaussians import Gaussians, base_coefficient, save_ply
from braid.radiance.scenes.blender import load_views, save_views
from braid.radiance.scenes.bricks import first_hits, make_bricks, model, screen_rectangles
from braid.segmentation.preparation.built_in import Annotated, write_annotated
from braid.segmentation.sam3.predictor import save_tokenizer, word_tokenizer

# ---- A scene and its teacher ---------------------------------------------------------------------

WIDTH = 800  # of a NeRF-synthetic view, pixels
GAUSSIANS = 300_000  # about as many as a 3DGS teacher of Lego has


def blender_scene(folder: Path, *, width: int = WIDTH) -> None:
    """The built-in bricks in the Blender format: 12 train, 2 val and 2 test views."""
    views = BricksConfig(width=width, supersample=1, train=12, val=2, test=2)
    for split, part in make_bricks(views, seed=0).items():
        save_views(folder, split, part)


def teacher(path: Path, *, count: int = GAUSSIANS) -> None:
    """Gaussians on the surfaces that the train views of the scene beside it see, as a .ply."""
    views = load_views(path.parent / "lego", "train")
    solids, cameras, draws = model(), views.cameras, np.random.default_rng(0)
    means, colors = [], []
    for view in range(len(cameras)):
        camera, rays = cameras[[view]], cameras.view_rays(view)
        size = camera.height, camera.width
        rectangles = screen_rectangles(
            solids.corners(),
            camera.world_to_camera()[0].double().numpy(),
            camera.focal,
            *size[::-1],
        )
        directions = rays.directions.double().numpy()
        origin = rays.origins[0].double().numpy()
        distance = first_hits(solids, origin, directions.reshape(*size, 3), rectangles).distance
        seen = np.flatnonzero(np.isfinite(distance))
        seen = draws.choice(seen, min(len(seen), math.ceil(count / len(cameras))), replace=False)
        means.append(origin + distance[seen, None] * directions[seen])
        colors.append(views.rgba[view].reshape(-1, 4)[seen, :3].numpy())
    _save(path, torch.from_numpy(np.concatenate(means)), torch.from_numpy(np.concatenate(colors)))


def _save(path: Path, means: torch.Tensor, colors: torch.Tensor) -> None:
    """Round Gaussians as large as their spacing, next to opaque, their harmonics of degree 3."""
    count = len(means)
    harmonics = torch.zeros(count, 16, 3)
    harmonics[:, 0] = base_coefficient(colors.float())
    turns = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4).contiguous()
    spacing = math.log(2.0 / math.sqrt(count))
    gaussians = Gaussians(
        means.float(), torch.full((count, 3), spacing), turns, torch.full((count,), 2.0), harmonics
    )
    save_ply(path, gaussians)


# ---- Pictures ------------------------------------------------------------------------------------


def _smooth(height: int, width: int, draws: np.random.Generator) -> NDArray[np.uint8]:
    """Soft blots of color, which a JPEG keeps as well as it does a photo, [height, width, 3]."""
    blots = Image.fromarray(draws.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC))


def image_folder(folder: Path, *, classes: int = 6, images: int = 14) -> None:
    """An ImageFolder of JPEGs as large as ImageNet's median, 500 x 375."""
    draws = np.random.default_rng(0)
    for number in range(classes):
        (folder / f"n{number:08}").mkdir(parents=True)
        for image in range(images):
            path = folder / f"n{number:08}/n{number:08}_{image}.JPEG"
            Image.fromarray(_smooth(375, 500, draws)).save(path, "JPEG", quality=90)


def sd_vae(folder: Path) -> None:
    """diffusers' AutoencoderKL in the sizes of sd-vae-ft-mse, its weights random."""
    mend_torchvision()
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )
    vae.save_pretrained(folder)


# ---- Wan-synth -----------------------------------------------------------------------------------


def wan_shards(folder: Path, *, shards: int = 2, clips: int = 12) -> None:
    """Shards of latents [16, 21, 60, 104] and umT5 rows [512, 4096] in bfloat16, 8.4 MB a clip."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"shard-{shard:06}.tar", "w") as archive:
            for number in range(shard * clips, (shard + 1) * clips):
                draws = torch.Generator().manual_seed(number)
                text = torch.zeros(512, 4096)
                text[: 8 + number % 16] = torch.randn(8 + number % 16, 4096, generator=draws)
                latent = torch.randn(16, 21, 60, 104, generator=draws)
                _add(archive, f"{number:09}.latent.pt", _saved(latent.bfloat16()))
                _add(archive, f"{number:09}.embed.pt", _saved(text.bfloat16()))
                _add(archive, f"{number:09}.prompt.txt", f"clip {number}".encode())


def _saved(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


# ---- SA-1B, SAM3 and the student's encoders ------------------------------------------------------

WORDS = [  # of the recipe's prompts
    *("objects", "in", "the", "image", "person", "car", "building", "tree", "window", "door"),
    *("sign", "flower", "chair", "table", "boat", "bicycle", "dog", "cat", "bird", "shoe"),
    *("bottle", "bag", "hat", "book", "cup", "wheel", "street", "light", "stairs"),
]


def sa1b(folder: Path, *, images: int = 8, masks: int = 60) -> None:
    """Pairs of SA-1B's size: 1500 x 2250 pixels, ellipses that overlap, no words."""
    folder.mkdir(parents=True)
    for number in range(images):
        draws = np.random.default_rng(number)
        ellipses = tuple(_ellipses(1500, 2250, masks, draws))
        pixels = _smooth(1500, 2250, draws)
        write_annotated(
            folder, number + 1, Annotated(pixels, ellipses, (None,) * masks, (), exhaustive=False)
        )


def _ellipses(
    height: int, width: int, count: int, draws: np.random.Generator
) -> Iterator[NDArray[np.bool_]]:
    y, x = np.ogrid[:height, :width]
    for _ in range(count):
        middle = draws.uniform((0, 0), (height, width))
        radii = draws.uniform(20, 300, 2)
        yield ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 < 1


def sam3(folder: Path) -> None:
    """transformers' Sam3Model in facebook/sam3's sizes, its weights random, and a tokenizer."""
    mend_torchvision()
    from transformers import Sam3Config, Sam3Model

    torch.manual_seed(0)
    sam: Any = Sam3Model(Sam3Config())
    sam.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder, word_tokenizer(WORDS, length=32))


def repvit(path: Path) -> None:
    """timm's RepViT-M2.3, a classifier with random weights."""
    mend_torchvision()
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model("repvit_m2_3.dist_450e_in1k", pretrained=False).state_dict(), path)


def tokenizer(folder: Path) -> None:
    """A tokenizer of a student."""
    save_tokenizer(folder, word_tokenizer(WORDS, length=32))
