"""The training objective of a latent MAE: rebuild hidden cells, at the end also name the class.

    loss = lambda * cross-entropy + (1 - lambda) * masked error

with lambda 0 until the last steps, then climbing to its final weight (the classification
fine-tuning of Deng et al. 2026, A.3, with K-means pseudo-classes in place of labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braid.drifting.config import MaeConfig, MaskingConfig
from braid.drifting.mae.latent_mae import LatentMae

CLIMB = 1 / 3  # of the steps that train the head, until lambda is reached


class MaeObjective(nn.Module):
    """Loss terms of one training step on a random batch of clips."""

    def __init__(
        self,
        mae: LatentMae,
        masking: Masking,
        latents: Callable[[Tensor], Tensor],  # of clips [B], int64 on the CPU: [B, C, T, H, W]
        clips: Tensor,  # [n] which clips to train on
        labels: Tensor,  # pseudo-class of every clip, for a model that has a head
        config: MaeConfig,  # steps, batch, and the head's weight and fraction of the steps
    ) -> None:
        """Wire up.

        Raises:
            ValueError: no clips, or a label that is no class of the head.
        """
        super().__init__()
        if not len(clips):
            raise ValueError("there are no clips to train the latent MAE on")
        if mae.head is not None and not 0 <= labels.min() <= labels.max() < mae.classes:
            raise ValueError(
                f"pseudo-classes run from {int(labels.min())} to {int(labels.max())},"
                f" the head has {mae.classes}"
            )
        self.mae, self.masking = mae, masking
        self.latents, self.clips, self.labels = latents, clips, labels
        self.config = config
        self.head_start = round((1 - config.head_fraction) * config.steps)
        self.diagnostics: dict[str, Tensor | float] = {}

    @property
    def outer_layers(self) -> list[str]:
        """Names of the first and last layers, which Muon is not for."""
        return [f"mae.{name}" for name in self.mae.outer_layers]

    def weight(self, step: int) -> float:
        """Lambda at a step."""
        climb = CLIMB * (self.config.steps - self.head_start)
        climbed = (step - self.head_start + 1) / max(1.0, climb)
        return self.config.head_weight * min(1.0, max(0.0, climbed))

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted terms `reconstruction` and, with a head, `classes`; the loss is their sum.

        `diagnostics` then holds the unweighted `masked_mse` and, with a head, `head_accuracy` on
        the masked batch. The head's term is there from the start, weightless, so that every
        process of several has the same gradients to exchange.
        """
        device = generator.device
        drawn = torch.randint(
            len(self.clips), (self.config.batch,), generator=generator, device=device
        )
        chosen = self.clips[drawn.cpu()]
        clips = self.latents(chosen).to(device)
        hidden = self.masking(clips.shape, generator)
        maps = self.mae.encode(hide(clips, hidden))
        error = masked_error(self.mae.decode(maps), clips, hidden).mean()
        self.diagnostics = {"masked_mse": error.detach()}
        weight = self.weight(step)
        terms = {"reconstruction": (1 - weight) * error}
        if self.mae.head is not None:
            labels, logits = self.labels[chosen].to(device), self.mae.logits(maps)
            terms["classes"] = weight * F.cross_entropy(logits, labels)
            self.diagnostics["head_accuracy"] = (logits.argmax(dim=1) == labels).float().mean()
        return terms


# ---- Masks: what is hidden from a masked autoencoder, and its loss there ------------------------
# Modes, a mask being true where a latent cell is hidden:
#
# - `patch`: cells of 1x2x2, each hidden independently (Deng et al. 2026, A.3);
# - `tube`: columns of 2x2 through all frames, a fixed number of them (VideoMAE, Tong et al. 2022);
# - `frame`: whole latent frames; both ends and a random number of others stay, which is what the
#   refinement of interpolated keyframes meets;
# - `mixed`: each clip one of these with equal chances.

CELL = 2  # latent pixels a side of a patch and of a tube
MODES = ("patch", "tube", "frame")


class Masking:
    """Draws masks of one mode or of all."""

    def __init__(self, config: MaskingConfig) -> None:
        self.config = config

    def __call__(
        self,
        shape: Sequence[int],  # of the clips: B, C, T, H, W
        generator: torch.Generator,
        mode: str | None = None,  # None: the configured one
    ) -> Tensor:
        """Masks [B, 1, T, H, W], true where hidden, on the generator's device.

        Raises:
            ValueError: clips too short or too small for the mode.
        """
        batch, _, frames, height, width = shape
        size = (batch, frames, height, width)
        draw = {
            "patch": lambda: patch_masks(size, self.config.patch_ratio, generator),
            "tube": lambda: tube_masks(size, self.config.tube_ratio, generator),
            "frame": lambda: frame_masks(size, generator),
            "mixed": lambda: self._mixed(size, generator),
        }
        return draw[mode or self.config.mode]()[:, None]

    def _mixed(self, size: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
        device = generator.device
        choice = torch.randint(len(MODES), size[:1], generator=generator, device=device)
        choice = choice[:, None, None, None]
        patches = patch_masks(size, self.config.patch_ratio, generator)
        tubes = tube_masks(size, self.config.tube_ratio, generator)
        frames = frame_masks(size, generator)
        return torch.where(choice == 0, patches, torch.where(choice == 1, tubes, frames))


def patch_masks(
    size: tuple[int, int, int, int],  # B, T, H, W
    ratio: float,
    generator: torch.Generator,
) -> Tensor:
    """Cells of 1x2x2, each hidden with probability `ratio`, [B, T, H, W]."""
    batch, frames, height, width = size
    return _pixels(_draw((batch, frames, *_cells(height, width)), generator) < ratio, size)


def tube_masks(
    size: tuple[int, int, int, int],  # B, T, H, W
    ratio: float,
    generator: torch.Generator,
) -> Tensor:
    """Columns of 2x2 through all frames, [B, T, H, W]; at least one hidden and one visible.

    Raises:
        ValueError: a frame has a single cell.
    """
    batch, _, height, width = size
    rows, columns = _cells(height, width)
    cells = rows * columns
    if cells < 2:
        raise ValueError(f"tube masks: frames of {height}x{width} have a single 2x2 cell")
    count = min(max(round(ratio * cells), 1), cells - 1)
    hidden = _ranks(_draw((batch, cells), generator)) < count
    return _pixels(hidden.view(batch, 1, rows, columns), size)


def frame_masks(
    size: tuple[int, int, int, int],  # B, T, H, W
    generator: torch.Generator,
) -> Tensor:
    """Whole frames, [B, T, H, W]; the ends and 0 to T - 3 others are visible, equally likely.

    Raises:
        ValueError: fewer than three frames.
    """
    batch, frames = size[:2]
    inner = frames - 2
    if inner < 1:
        raise ValueError(f"frame masks: clips have {frames} latent frames, expected 3 or more")
    visible = torch.randint(inner, (batch, 1), generator=generator, device=generator.device)
    hidden = _ranks(_draw((batch, inner), generator)) >= visible
    ends = hidden.new_zeros(batch, 1)
    return torch.cat([ends, hidden, ends], dim=1)[:, :, None, None].expand(size)


def hide(
    clips: Tensor,  # [B, C, T, H, W]
    hidden: Tensor,  # [B, 1, T, H, W]
) -> Tensor:
    """The clips with hidden cells set to zero, the mean of normalized latents."""
    return clips.masked_fill(hidden, 0.0)


def masked_error(
    predicted: Tensor,  # [B, C, T, H, W]
    clips: Tensor,  # [B, C, T, H, W]
    hidden: Tensor,  # [B, 1, T, H, W]
) -> Tensor:
    """Mean squared error over the hidden values of each clip, [B]; 0 where nothing is hidden.

    Each clip is divided by its own count, so that one with few hidden cells weighs as much.
    """
    squared = (predicted - clips).square().mean(dim=1, keepdim=True) * hidden
    counts = hidden.sum(dim=(1, 2, 3, 4)).clamp_min(1)
    return squared.sum(dim=(1, 2, 3, 4)) / counts


def _cells(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells that cover a frame; those at the far edges may be narrower."""
    return -(-height // CELL), -(-width // CELL)


def _pixels(cells: Tensor, size: tuple[int, int, int, int]) -> Tensor:
    """Cells [B, T or 1, h, w] enlarged to latent pixels [B, T, H, W]."""
    enlarged = cells.repeat_interleave(CELL, dim=-2).repeat_interleave(CELL, dim=-1)
    return enlarged[..., : size[2], : size[3]].expand(size)


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value in its row, a random permutation if the values are random."""
    return values.argsort(dim=-1).argsort(dim=-1)
