"""Wan2.1's transformer as the refiner's network, for weights that were trained on real video.

diffusers' `WanTransformer3DModel` predicts a velocity v of flow matching, on the straight way from
a clip x to noise: x = z - sigma v at the time sigma. Here z are interpolated clips and sigma is a
param of their level; one call corrects. Time is per token, as in Wan2.2: 0 in given frames, sigma
in missing ones, in between in proposed ones. The clip's own text embedding is attended to. Class
and guidance alpha are an embedding that starts at 0 and is added to that of time: with untrained
adapters (LoRA, by peft) or none the network is bit for bit the one of the checkpoint.

    python -m braid.drifting.video.wan models/drift/drift merged

merges a refiner's adapters into their base: merged/ is a refiner, merged/transformer one of
diffusers, without class, alpha and what is moved.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from braid.common.config import NONE
from braid.common.progress import run_command
from braid.common.torchvision import mend_torchvision
from braid.drifting.config import RefinerConfig, Target, WanConfig
from braid.drifting.video.motion import Decode, MovedKeyframes
from braid.drifting.video.refiner import FREQUENCIES, guidance_waves, load_refiner, save_refiner
from braid.drifting.video.sparse_linear_attention import SparseLinearAttention, WanSelfAttention

mend_torchvision()
from diffusers import WanTransformer3DModel  # noqa: E402
from diffusers.models.transformers.transformer_wan import WanAttnProcessor  # noqa: E402
from peft import LoraConfig  # noqa: E402

TIMES = 1000.0  # Wan's timesteps a unit of sigma
MODEL = "WanTransformer3DModel"
FREQUENCIES_OF_TIME = 256  # of fresh weights, as in all of Wan's


class WanRefiner(nn.Module):
    """x_hat = z - sigma v(z, time, text, class, alpha), and keyframes moved as in `Refiner`."""

    sigmas: Tensor

    def __init__(
        self,
        channels: int,  # of a latent
        classes: int,  # pseudo-classes
        levels: int,  # of corruption, level 0 included
        config: RefinerConfig,
        row_dim: int = 0,  # channels of the rows that it attends to, a text's; 0: to none
        target: Target = "clip",  # what it is trained to refine to
        architecture: Mapping[str, Any] | None = None,  # of a stored network; None: by the config
        base_hash: str | None = None,  # what the base of stored adapters has to be; None: any
    ) -> None:
        """The weights of the base, or fresh ones.

        Raises:
            ValueError: the base cannot be read, is of other sizes or not the one that adapters were
                trained on, or no layer is a target; the message names it.
        """
        super().__init__()
        self.config, self.target, own = config, target, config.wan
        learns_alone = own.base == NONE or (architecture is not None and not own.rank)
        if learns_alone:
            self.model = fresh(channels, row_dim or 1, config, architecture)
        else:
            self.model = opened(Path(own.base), own.frozen if own.rank else "float32")
            require_sizes(self.model.config, channels, row_dim, config)
        self.shape: dict[str, Any] = {
            **{"channels": channels, "classes": classes, "levels": levels, "row_dim": row_dim},
            "architecture": {name: self.model.config[name] for name in architecture_names()},
            "base_hash": hash_of(Path(own.base)) if own.rank else None,
        }
        if base_hash not in (None, self.shape["base_hash"]):
            raise ValueError(f"{own.base}: other weights than those that adapters were trained on")
        self._set_attention(own)
        if own.rank:
            add_adapters(self.model, own)
        self.class_table = nn.Embedding(classes, config.dim)
        self.alpha = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        for weights in (self.class_table.weight, *self.alpha[-1].parameters()):
            nn.init.zeros_(weights)
        self.register_buffer("sigmas", torch.tensor([0.0, *own.sigmas]), persistent=False)
        motion = channels, config.dim, config.patch, config.detail, config.moments
        self.moved = MovedKeyframes(*motion) if config.detail else None
        self.register_state_dict_post_hook(_without_base)
        self.register_load_state_dict_post_hook(_base_is_there)

    def forward(
        self,
        clips: Tensor,  # [B, C, T, H, W] corrupted
        mask: Tensor,  # [B, T] true at given keyframes
        confidence: Tensor,  # [B, T] how far each frame can be trusted, 0 to 1
        classes: Tensor,  # [B]
        level: Tensor,  # [B]
        alpha: Tensor,  # [B] guidance, 1: none
        clamp: bool | None = None,  # keep given keyframes bit for bit; None: as configured
        text: Tensor | None = None,  # [B, L, D] with zero rows after the text; None: no text
    ) -> Tensor:
        """The refined clips, [B, C, T, H, W]."""
        (height, width), patch = clips.shape[-2:], self.config.patch
        padded = functional.pad(clips, (0, -width % patch, 0, -height % patch))
        sigma = self.sigmas[level][:, None]
        time = torch.where(mask, 0.0, sigma * (1 - confidence))
        if text is None:
            text = clips.new_zeros(len(clips), 1, self.model.config.text_dim)
        condition = self.class_table(classes) + self.alpha(guidance_waves(alpha))
        velocity, tokens = self.velocity(padded, time, text, condition)
        velocity = velocity[..., :height, :width]
        refined = clips - sigma[..., None, None, None] * velocity.to(clips.dtype)
        if self.moved is not None:
            refined = refined + self.moved(tokens, clips, mask)
        if self.config.clamp if clamp is None else clamp:
            refined = torch.where(mask[:, None, :, None, None], clips, refined)
        return refined

    def velocity(
        self,
        clips: Tensor,  # [B, C, T, H, W] of whole patches
        time: Tensor,  # [B, T] 0: clean, 1: noise
        text: Tensor,  # [B, L, D]
        condition: Tensor,  # [B, dim], added to the embedding of time
    ) -> tuple[Tensor, Tensor]:
        """v, [B, C, T, H, W], and the tokens that it is made of, [B, T, h, w, dim].

        The same steps as in the library's own forward pass, but that times, which differ by frame
        alone, are embedded once a frame, and conditions are added to them.
        """
        model, kind = self.model, self.model.patch_embedding.weight.dtype
        rotary = model.rope(clips)
        x = model.patch_embedding(clips.to(kind))
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2).contiguous()
        embed = model.condition_embedder
        waves = embed.timesteps_proj(TIMES * time.flatten()).unflatten(0, time.shape)
        times = embed.time_embedder(waves.to(embed.time_embedder.linear_1.weight.dtype))
        times = times + condition[:, None]
        words = embed.text_embedder(text.to(kind))
        if self.config.wan.mask_padding:
            words = torch.cat([words, text_rows(text)[..., None].to(words)], -1)
        modulation = embed.time_proj(embed.act_fn(times.to(words))).unflatten(-1, (6, -1))
        modulation = _each_token(modulation, grid)
        for block in model.blocks:
            if self.config.wan.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, words, modulation, rotary, use_reentrant=False)
            else:
                x = block(x, words, modulation, rotary)
        table = model.scale_shift_table[:, None] + _each_token(times, grid)[:, :, None]
        shift, scale = table.unbind(2)
        x = (model.norm_out(x.float()) * (1 + scale) + shift).to(x)
        cut = model.proj_out(x).unflatten(1, grid).unflatten(-1, (*model.config.patch_size, -1))
        cut = cut.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return cut.flatten(6, 7).flatten(4, 5).flatten(2, 3), x.unflatten(1, grid)

    @property
    def takes_text(self) -> bool:
        """Whether there are rows to attend to."""
        return self.config.beside != "none"

    @property
    def outer_layers(self) -> list[str]:
        """The first and the last layers, which Muon leaves to AdamW."""
        heads = ["moved.of_cells", "moved.of_frame"] if self.moved is not None else []
        return ["model.condition_embedder", "model.proj_out", *heads]

    @property
    def parts(self) -> list[nn.Module]:
        """What can be split over processes: blocks, which are computed one by one, then all."""
        return [*self.model.blocks, self]

    def fit_pictures(self, clips: Tensor, decode: Decode) -> None:
        """As `Refiner` does."""
        if self.moved is not None:
            self.moved.picture.fit(clips, decode)

    def _set_attention(self, own: WanConfig) -> None:
        channels = self.model.config.attention_head_dim
        for block in self.model.blocks:
            if own.attention == "sparse_linear":
                attention = SparseLinearAttention(channels, own.density, own.block)
                block.attn1.set_processor(WanSelfAttention(attention))
            if own.mask_padding:
                block.attn2.set_processor(TextAttention(WanAttnProcessor()))


class TextAttention:
    """A library's cross-attention to the rows that are no padding.

    Its blocks pass a text on and nothing else, and one that is recomputed has to find the same
    again: so the text brings its mask with it, as a last channel.
    """

    def __init__(self, attend: Any) -> None:
        self.attend = attend

    def __call__(self, layer: Any, tokens: Tensor, text: Tensor, *unused: None) -> Tensor:
        """Attended tokens, [B, N, D]."""
        allowed = text[:, None, None, :, -1] > 0
        return self.attend(layer, tokens, text[..., :-1], allowed, None)


def text_rows(
    text: Tensor,  # [B, L, D] with zero rows after it
) -> Tensor:
    """Which rows are not padding, [B, L] bool; the first row of a text of none is not."""
    rows = (text != 0).any(-1)
    return rows | (torch.arange(rows.shape[1], device=rows.device) == 0)


def _each_token(
    frames: Tensor,  # [B, T, ...]
    grid: torch.Size,  # T, h, w
) -> Tensor:
    """What frames have, for each of their tokens, [B, T h w, ...]."""
    return frames.repeat_interleave(grid[1] * grid[2], 1)


# ---- Weights: fresh, or a checkpoint's, frozen under adapters or not -----------------------------


def architecture_names() -> tuple[str, ...]:
    """What a network of diffusers is built from."""
    return tuple(inspect.signature(WanTransformer3DModel.__init__).parameters)[1:]


def fresh(
    channels: int,
    text_dim: int,
    config: RefinerConfig,
    architecture: Mapping[str, Any] | None,  # of a stored network; None: by the config
) -> Any:
    """A network of random weights, whose velocity is 0.

    Raises:
        ValueError: heads do not divide dim.
    """
    if config.dim % (2 * config.heads):
        raise ValueError(
            f"drift.refiner.dim is {config.dim}, expected a multiple of twice heads: {config.heads}"
        )
    by_config = {
        "patch_size": (1, config.patch, config.patch),
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": text_dim,
        "freq_dim": FREQUENCIES_OF_TIME,
        "ffn_dim": int(config.wan.widening * config.dim),
        "num_layers": config.depth,
    }
    model = WanTransformer3DModel(**(architecture or by_config))
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def opened(folder: Path, kind: str) -> Any:
    """The network of a Diffusers checkpoint, of safetensors alone; nothing is downloaded.

    Raises:
        ValueError: the folder has none, or one of another class; the message names it.
    """
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
        if named != MODEL:
            raise ValueError(f"it has a {named}")
        return WanTransformer3DModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=getattr(torch, kind)
        )
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"drift.refiner.wan.base: {folder}: expected config.json and safetensors of a {MODEL} "
            f"({reason})"
        ) from None


def require_sizes(has: Any, channels: int, row_dim: int, config: RefinerConfig) -> None:
    """Compare a checkpoint's sizes to the clips' and the params'.

    Raises:
        ValueError: one differs; the message names it.
    """
    wanted = {
        "patch": (config.patch, has["patch_size"][-1]),
        "dim": (config.dim, has["num_attention_heads"] * has["attention_head_dim"]),
        "depth": (config.depth, has["num_layers"]),
        "heads": (config.heads, has["num_attention_heads"]),
    }
    base = config.wan.base
    for name, (given, there) in wanted.items():
        if given != there:
            raise ValueError(f"drift.refiner.{name} is {given}, expected {there}, as {base} has it")
    inputs = {"in_channels": channels, "out_channels": channels}
    inputs |= {"text_dim": row_dim} if row_dim else {}
    for name, given in inputs.items():
        if has[name] != given:
            raise ValueError(f"{base}: {name} is {has[name]}, expected {given}, as clips have it")


def add_adapters(model: Any, own: WanConfig) -> None:
    """Freeze the network and add low-rank adapters that change nothing yet.

    Raises:
        ValueError: a target is no layer.
    """
    for target in own.targets:
        if not any(name.endswith(f".{target}") for name, _ in model.named_modules()):
            raise ValueError(f"drift.refiner.wan.targets: no layer of {own.base} ends in {target}")
    mixing = [part for part in model.modules() if isinstance(part, SparseLinearAttention)]
    model.requires_grad_(False)
    model.add_adapter(
        LoraConfig(r=own.rank, lora_alpha=own.adapter_scale, target_modules=list(own.targets))
    )
    for weights in (*model.parameters(), *(each.mix.weight for each in mixing)):
        if weights.requires_grad:
            weights.data = weights.data.float()
    for each in mixing:
        each.requires_grad_(True)
        each.float()


def hash_of(folder: Path) -> str:
    """SHA-256 of a checkpoint's config and weights."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _without_base(
    refiner: nn.Module, state: dict[str, Any], prefix: str, metadata: Mapping[str, Any]
) -> None:
    """A frozen base is no part of a refiner's state: it is named, and hashed, instead."""
    for name, weights in refiner.named_parameters():
        if not weights.requires_grad:
            state.pop(prefix + name, None)


def _base_is_there(refiner: nn.Module, keys: Any) -> None:
    """What is left out of a state is not missing."""
    frozen = {name for name, value in refiner.named_parameters() if not value.requires_grad}
    keys.missing_keys[:] = [
        key for key in keys.missing_keys if not any(key.endswith(name) for name in frozen)
    ]


# ---- Adapters merged into their base -------------------------------------------------------------


def merge(refiner: WanRefiner) -> WanRefiner:
    """The refiner as one whose weights all learn, in place: adapters are added to the base's."""
    if refiner.config.wan.rank:
        refiner.model.fuse_lora()
        refiner.model.unload_lora()
        refiner.float().requires_grad_(True)
        own = refiner.config.wan.model_copy(update={"rank": 0})
        refiner.config = refiner.config.model_copy(update={"wan": own})
        refiner.shape["base_hash"] = None
    return refiner


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("refiner", type=Path, help="folder of a refiner with the backbone wan")
    parser.add_argument("out", type=Path, help="folder to write")


def _run(options: argparse.Namespace) -> None:
    refiner: Any = load_refiner(options.refiner)
    if refiner.config.backbone != "wan":
        raise ValueError(f"{options.refiner}: expected a refiner with the backbone wan")
    if refiner.config.wan.attention != "full":
        raise ValueError(
            f"{options.refiner}: has sparse-linear attention, whose weights {MODEL} has no place "
            "for; expected attention: full"
        )
    merged = merge(refiner)
    save_refiner(options.out, merged)
    merged.model.save_pretrained(options.out / "transformer")
    print(f"{options.out}, {options.out / 'transformer'}")


def main() -> None:
    """Merge and say where."""
    run_command("drifting.video.wan", __doc__, _options, _run)


if __name__ == "__main__":
    main()
