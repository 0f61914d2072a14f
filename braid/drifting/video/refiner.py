"""A space-time transformer that corrects interpolated clips in one step.

Tokens are patches of one latent frame each. A block attends over space, within a frame, then over
time, at one place, then mixes channels: its cost grows with the number of tokens, not with its
square (Bertasius et al. 2021, section 3, divided attention). Class, level and guidance alpha
modulate each block by adaptive layer norms that start as the identity (Peebles and Xie 2023,
adaLN-Zero). Beside them it may be conditioned on rows: those of a text, which tokens attend to, or
the embedding of text and keyframes that classes are cells of. Missing frames are made by moving the
keyframes around them (motion.py) and by a correction of every frame; both start at zero, so an
untrained refiner returns its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.common.io import load_model, save_model
from braid.drifting.config import RefinerConfig, Target
from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.video.corruption import Corrupted, Corruption
from braid.drifting.video.motion import Decode, MovedKeyframes

if TYPE_CHECKING:
    from braid.drifting.video.wan import WanRefiner

FREQUENCIES = 16  # of the encodings of alpha


class Refiner(nn.Module):
    """x_hat = z + f(z, confidence, class, level, alpha): keyframes moved, and a correction."""

    def __init__(
        self,
        channels: int,  # of a latent
        classes: int,  # pseudo-classes
        levels: int,  # of corruption, level 0 included
        config: RefinerConfig,
        row_dim: int = 0,  # channels of what it takes beside the class
        target: Target = "clip",  # what it is trained to refine to
    ) -> None:
        """Fresh weights.

        Raises:
            ValueError: heads do not divide dim.
        """
        super().__init__()
        dim, heads, patch = config.dim, config.heads, config.patch
        if dim % heads:
            raise ValueError(f"drift.refiner.dim is {dim}, expected a multiple of heads: {heads}")
        self.shape = {"channels": channels, "classes": classes, "levels": levels}
        self.shape |= {"row_dim": row_dim}
        self.target = target
        self.config = config
        self.embed = nn.Linear(channels * patch**2 + 1, dim)
        self.class_table = nn.Embedding(classes, dim)
        self.level_table = nn.Embedding(levels, dim)
        self.alpha = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        text = config.beside == "text"
        self.blocks = nn.ModuleList(Block(dim, heads, text) for _ in range(config.depth))
        self.rows = nn.Linear(row_dim, dim) if self.takes_text else None
        self.modulate = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, channels * patch**2)
        for layer in (self.modulate, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        motion = channels, dim, patch, config.detail, config.moments
        self.moved = MovedKeyframes(*motion) if config.detail else None

    def forward(
        self,
        clips: Tensor,  # [B, C, T, H, W] corrupted
        mask: Tensor,  # [B, T] true at given keyframes
        confidence: Tensor,  # [B, T] how far each frame can be trusted, 0 to 1
        classes: Tensor,  # [B]
        level: Tensor,  # [B]
        alpha: Tensor,  # [B] guidance, 1: none
        clamp: bool | None = None,  # keep given keyframes bit for bit; None: as configured
        text: Tensor | None = None,  # [B, L, D] rows beside the class; zero rows count as none
    ) -> Tensor:
        """The refined clips, [B, C, T, H, W]."""
        tokens = patchify(clips, self.config.patch)  # [B, T, h, w, C p p]
        given = confidence[:, :, None, None, None].expand(*tokens.shape[:-1], 1)
        x = self.embed(torch.cat([tokens, given], dim=-1))
        x = x + positions(x)
        condition = self.class_table(classes) + self.level_table(level)
        condition = condition + self.alpha(guidance_waves(alpha))
        rows, present = self._read(text, len(clips))
        if rows is not None and self.config.beside == "embedding":
            condition = condition + (rows * present[..., None]).sum(1)
        condition = functional.silu(condition)
        for block in self.blocks:
            x = block(x, condition, rows, present)
        shift, scale = self.modulate(condition)[:, None, None, None].chunk(2, dim=-1)
        x = normalized(x) * (1 + scale) + shift
        refined = clips + unpatchify(self.out(x), self.config.patch, clips.shape[-2:])
        if self.moved is not None:
            refined = refined + self.moved(x, clips, mask)
        if self.config.clamp if clamp is None else clamp:
            refined = torch.where(mask[:, None, :, None, None], clips, refined)
        return refined

    def _read(self, text: Tensor | None, batch: int) -> tuple[Tensor | None, Tensor]:
        """What is taken beside the class at the width of tokens [B, L, D], and which rows count."""
        if self.rows is None:
            return None, torch.empty(0)
        if text is None:
            text = self.rows.weight.new_zeros(batch, 1, self.rows.in_features)
        return self.rows(text), (text != 0).any(-1)

    @property
    def takes_text(self) -> bool:
        """Whether there are rows beside the class."""
        return self.config.beside != "none"

    @property
    def outer_layers(self) -> list[str]:
        """The first and the last layers, which Muon leaves to AdamW."""
        heads = ["moved.of_cells", "moved.of_frame"] if self.moved is not None else []
        return ["embed", "out", *heads, *(["rows"] if self.takes_text else [])]

    @property
    def parts(self) -> list[nn.Module]:
        """What can be split over processes: blocks, which are computed one by one, then all."""
        return [*self.blocks, self]

    def fit_pictures(
        self,
        clips: Tensor,  # [n, C, T, H, W], a few
        decode: Decode,
    ) -> None:
        """Fit the pictures in which keyframes are moved to what clips decode to.

        Raises:
            ValueError: they do not show all channels, see `Picture.fit`.
        """
        if self.moved is not None:
            self.moved.picture.fit(clips, decode)


class Block(nn.Module):
    """Attention over space, over time, to the rows of a text, a two-layer network; each gated."""

    def __init__(self, dim: int, heads: int, text: bool) -> None:
        super().__init__()
        self.space = Attention(dim, heads)
        self.time = Attention(dim, heads)
        self.text = TextAttention(dim, heads) if text else None
        self.mix = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
        self.modulate = nn.Linear(dim, 9 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, condition: Tensor, text: Tensor | None, present: Tensor) -> Tensor:
        """Update tokens [B, T, h, w, D] under a condition [B, D] and rows [B, L, D] of a text."""
        batch, frames, height, width, dim = x.shape
        modulation = self.modulate(condition)[:, None, None, None].chunk(9, dim=-1)
        shift, scale, gate = modulation[:3]
        rows = (normalized(x) * (1 + scale) + shift).reshape(batch * frames, -1, dim)
        x = x + gate * self.space(rows).reshape(x.shape)
        shift, scale, gate = modulation[3:6]
        columns = (normalized(x) * (1 + scale) + shift).permute(0, 2, 3, 1, 4)
        mixed = self.time(columns.reshape(-1, frames, dim))
        mixed = mixed.reshape(batch, height, width, frames, dim).permute(0, 3, 1, 2, 4)
        x = x + gate * mixed
        if self.text is not None and text is not None:
            x = x + self.text(normalized(x).flatten(1, 3), text, present).view_as(x)
        shift, scale, gate = modulation[6:]
        mixed = self.mix(normalized(x) * (1 + scale) + shift)
        return x + gate * mixed


class Attention(nn.Module):
    """Multi-head self-attention with normalized queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.full((heads,), math.sqrt(dim / heads)))

    def forward(self, x: Tensor) -> Tensor:
        """Mix sequences [B, L, D]."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys = (functional.normalize(vectors, dim=-1) for vectors in qkv[:2])
        mixed = functional.scaled_dot_product_attention(
            queries * self.scale[:, None, None], keys, qkv[2], scale=1.0
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, length, dim))


class TextAttention(nn.Module):
    """Tokens attend to the rows of a text, and to a learned one that says nothing; starts at 0."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.pairs = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.nothing = nn.Parameter(torch.zeros(1, 1, dim))
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x: Tensor,  # [B, N, D]
        rows: Tensor,  # [B, L, D]
        present: Tensor,  # [B, L] bool
    ) -> Tensor:
        """What tokens take from the text, [B, N, D]."""
        rows = torch.cat([self.nothing.expand(len(rows), -1, -1).to(rows), rows], 1)
        present = functional.pad(present, (1, 0), value=True)
        queries, keys, values = (
            vectors.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for vectors in (self.queries(x), *self.pairs(rows).chunk(2, -1))
        )
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=present[:, None, None]
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


def guidance_waves(
    alpha: Tensor,  # [B] guidance, 1: none
) -> Tensor:
    """Sines and cosines of log alpha, [B, 2 FREQUENCIES]."""
    wave = torch.arange(FREQUENCIES, device=alpha.device) * (math.pi / 2)
    angles = alpha.log()[:, None] * wave
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def normalized(x: Tensor) -> Tensor:
    """Layer norm without weights: modulation brings them."""
    return functional.layer_norm(x, x.shape[-1:])


def patchify(
    clips: Tensor,  # [B, C, T, H, W]
    patch: int,  # latent pixels a side
) -> Tensor:
    """Patches of each frame, zero-padded to whole ones, [B, T, h, w, C p p]."""
    height, width = clips.shape[-2:]
    padded = functional.pad(clips, (0, -width % patch, 0, -height % patch))
    cut = padded.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [B, C, T, h, p, w, p]
    return cut.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)


def unpatchify(tokens: Tensor, patch: int, size: Sequence[int]) -> Tensor:
    """Put tokens [B, T, h, w, C p p] back together to [B, C, T, H, W]."""
    cut = tokens.unflatten(-1, (-1, patch, patch)).permute(0, 4, 1, 2, 5, 3, 6)
    padded = cut.flatten(5, 6).flatten(3, 4)
    return padded[..., : size[0], : size[1]]


def positions(x: Tensor) -> Tensor:
    """Sine and cosine of each token's time and place, [T, h, w, D], for clips of any size."""
    _, *extents, dim = x.shape
    count = dim // 6  # frequencies an axis
    frequencies = torch.logspace(0, -2, count, device=x.device)
    encodings = []
    for axis, extent in enumerate(extents):
        angles = torch.arange(extent, device=x.device)[:, None] * frequencies
        view = [1, 1, 1, 2 * count]
        view[axis] = extent
        encodings.append(torch.cat([angles.sin(), angles.cos()], -1).view(view))
    joint = torch.cat([encoding.expand(*extents, -1) for encoding in encodings], dim=-1)
    return functional.pad(joint, (0, dim - joint.shape[-1])).to(x.dtype)


# ---- Either backbone: made by its params, stored, read -------------------------------------------
# That of Wan is imported where it is used: diffusers takes seconds, and is an extra.

AnyRefiner = Union[Refiner, "WanRefiner"]


def make_refiner(
    channels: int,  # of a latent
    classes: int,  # pseudo-classes
    levels: int,  # of corruption, level 0 included
    config: RefinerConfig,
    row_dim: int = 0,  # channels of what it takes beside the class
    target: Target = "clip",  # what it is trained to refine to
    **stored: Any,  # of a `WanRefiner`
) -> AnyRefiner:
    """An untrained refiner with the backbone of its params.

    Raises:
        ValueError: params that do not fit one another or a base, or no diffusers.
    """
    if config.backbone == "transformer":
        return Refiner(channels, classes, levels, config, row_dim, target)
    try:
        from braid.drifting.video.wan import WanRefiner

        return WanRefiner(channels, classes, levels, config, row_dim, target, **stored)
    except ImportError as error:
        raise ValueError(
            f"drift.refiner.backbone is wan: expected the extra wan, {error.name} is missing"
        ) from None


def start_from(refiner: AnyRefiner, folder: Path) -> None:
    """Take over the weights of a saved refiner.

    Raises:
        ValueError: it cannot be read, or its shapes are others; the message names the folder.
    """
    other = load_refiner(folder)
    shapes = {name: tuple(weights.shape) for name, weights in refiner.state_dict().items()}
    if {name: tuple(weights.shape) for name, weights in other.state_dict().items()} != shapes:
        has, wanted = (
            {**each.shape, **each.config.model_dump(exclude={"heads", "clamp"})}
            for each in (other, refiner)
        )
        raise ValueError(f"{folder}: a refiner of {has} to start from, expected {wanted}")
    refiner.load_state_dict(other.state_dict())


def save_refiner(folder: Path, refiner: AnyRefiner) -> None:
    """Write `model.safetensors` and `config.json`."""
    save_model(
        folder, refiner, {**refiner.shape, "target": refiner.target, **refiner.config.model_dump()}
    )


def load_refiner(folder: Path) -> AnyRefiner:
    """Read a refiner.

    Raises:
        ValueError: a file is missing or broken; the message names the folder.
    """

    def build(
        channels: int, classes: int, levels: int, row_dim: int, target: Target, **more: Any
    ) -> AnyRefiner:
        config = RefinerConfig(**{name: more.pop(name) for name in RefinerConfig.model_fields})
        return make_refiner(channels, classes, levels, config, row_dim, target, **more)

    return load_model(folder, build, "refiner")[1].eval()


# ---- From given keyframes to a full clip: in one step, or by cold diffusion in many -------------
# Cold diffusion (Bansal et al. 2022, algorithm 2) undoes a known corruption D level by level:
# x_{s-1} = x_s - D(x_hat, s) + D(x_hat, s - 1) with x_hat = R(x_s, s). Here D interpolates between
# the keyframes of level s, so each step reveals the refiner's own idea of a few more keyframes.

CHUNK = 64  # clips at once
VALUES = 2**22  # of clips at once, at most: two of Wan's


@torch.no_grad()
def refine(
    refiner: nn.Module,  # called as `Refiner` is
    corrupted: Corrupted,  # of B clips
    classes: Tensor,  # [B]
    level: int,
    alpha: float,  # guidance, 1: none
    clamp: bool | None = None,  # keep what is given bit for bit; None: as the refiner is configured
    texts: Tensor | None = None,  # [B, L, D], for a refiner that takes them; None: none
) -> Tensor:
    """One step from corrupted clips to refined ones, [B, C, T, H, W], on the CPU."""
    device = next(refiner.parameters()).device
    texts = texts if getattr(refiner, "takes_text", False) else None
    parts = []
    chunk = max(1, min(CHUNK, VALUES // corrupted.latents[0].numel()))
    for rows in torch.arange(len(classes)).split(chunk):
        columns = [values[rows].to(device) for values in (*corrupted, classes)]
        levels = torch.full((len(rows),), level, device=device)
        guidance = torch.full((len(rows),), alpha, device=device)
        text = {} if texts is None else {"text": texts[rows].to(device)}
        parts.append(refiner(*columns, levels, guidance, clamp, **text).float().cpu())
    return torch.cat(parts)


def finish(
    refiner: nn.Module,  # called as `Refiner` is
    corruption: Corruption,
    start: Corrupted,  # B clips
    classes: Tensor,  # [B]
    level: int,  # of the start
    alpha: float,
    clamp: bool | None,
    texts: Tensor | None,
    generator: torch.Generator,  # of the corruption's noise
) -> Tensor:
    """Refine to full clips as the refiner was trained to: in one step, or from level to level.

    At each level the frames at its evenly placed keyframes are kept, the others interpolated anew.
    """
    if getattr(refiner, "target", "clip") == "clip":
        return refine(refiner, start, classes, level, alpha, clamp, texts)
    masks = nested_masks(len(classes), corruption.frames, corruption.counts)
    ids, current = torch.arange(len(classes)), start
    for number in range(level, 0, -1):
        estimate = refine(refiner, current, classes, number, alpha, clamp, texts)
        mask = masks[number - 1].to(start.mask.device) | start.mask
        current = corruption.impute(estimate, mask, ids, generator)
    return estimate


def cold_sample(
    refiner: nn.Module,  # called as `Refiner` is
    corruption: Corruption,
    keyframes: Tensor,  # [B, C, T, H, W]; only the coarsest level's keyframes are read
    masks: Tensor,  # [S + 1, B, T] nested, finest level first
    classes: Tensor,  # [B]
    alpha: float,
    generator: torch.Generator,  # of the corruption's noise
    texts: Tensor | None = None,  # [B, L, D], for a refiner that takes them; None: none
) -> Tensor:
    """Refine from the coarsest level to the finest, one network call a level: [B, C, T, H, W].

    Keyframes that are given stay bit for bit.
    """
    ids = torch.arange(len(keyframes))

    def degraded(clips: Tensor, level: int) -> Corrupted:
        return corruption.impute(clips, masks[level], ids, generator)

    coarsest = len(masks) - 1
    current = degraded(keyframes, coarsest)
    for level in range(coarsest, 0, -1):
        estimate = refine(refiner, current, classes, level, alpha, clamp=True, texts=texts)
        coarse, fine = degraded(estimate, level), degraded(estimate, level - 1)
        current = fine._replace(latents=current.latents - coarse.latents + fine.latents)
    return current.latents
