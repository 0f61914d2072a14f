"""The training objective of a latent MAE: rebuild hidden cells, at the end also name the class.

    loss = lambda * cross-entropy + (1 - lambda) * masked error

with lambda 0 until the last steps, then climbing to its final weight (the classification
fine-tuning of Deng et al. 2026, A.3, with K-means pseudo-classes in place of labels).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braid.drifting.latent_mae import LatentMae
from braid.drifting.masking import Masking, hide, masked_error

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
        *,
        steps: int,  # in all
        batch: int,
        head_weight: float = 0.0,  # final lambda
        head_share: float = 0.0,  # of the steps, the last ones, which train the head
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
        self.batch, self.head_weight = batch, head_weight
        self.head_start, self.steps = round((1 - head_share) * steps), steps
        self.diagnostics: dict[str, Tensor | float] = {}

    @property
    def outer_layers(self) -> list[str]:
        """Names of the first and last layers, which Muon is not for."""
        return [f"mae.{name}" for name in self.mae.outer_layers]

    def weight(self, step: int) -> float:
        """Lambda at a step."""
        climbed = (step - self.head_start + 1) / max(1.0, CLIMB * (self.steps - self.head_start))
        return self.head_weight * min(1.0, max(0.0, climbed))

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted terms `reconstruction` and, with a head, `classes`; the loss is their sum.

        `diagnostics` then holds the unweighted `masked_mse` and, with a head, `head_accuracy` on
        the masked batch. The head's term is there from the start, weightless, so that every
        process of several has the same gradients to exchange.
        """
        device = generator.device
        drawn = torch.randint(len(self.clips), (self.batch,), generator=generator, device=device)
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
