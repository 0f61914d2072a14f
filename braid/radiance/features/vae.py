"""A small variational autoencoder of standardized cell features, and its training objective.

Objective (Kingma & Welling 2014): balanced reconstruction + beta * KL. *Balanced* is the mean over
channel groups of each group's mean squared error, so that 48 harmonics do not outvote one optical
depth; of features with one scale a group that is the mean unexplained fraction. beta rises linearly
from 0, and a latent dimension pays for KL only above `free_bits` (Kingma et al. 2016), both against
posterior collapse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from braid.common.io import load_model, save_model
from braid.radiance.config import VaeConfig, VaeSizes
from braid.radiance.features.table import (
    StoredFeatures,
    channel_balance,
    unexplained_variance,
)
from braid.training.ema import Ema

MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -10.0, 4.0
START_LOG_VARIANCE = -6.0  # what `start_from_pca` gives every latent


class Posterior(NamedTuple):
    """A diagonal Gaussian per row."""

    mean: Tensor  # [N, Z]
    log_variance: Tensor  # [N, Z], within the limits above

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw per row by reparametrization, [N, Z]."""
        shape = self.mean.shape
        noise = torch.randn(shape, generator=generator, device=generator.device).to(self.mean)
        return self.mean + noise * (0.5 * self.log_variance).exp()

    def kl(self) -> Tensor:
        """KL divergence from the standard normal per dimension, nats, [N, Z]."""
        variance = self.log_variance.exp()
        return 0.5 * (self.mean.square() + variance - 1 - self.log_variance)


class FeatureVae(nn.Module):
    """features -> hidden -> (mean, log variance) of the latent -> mirrored hidden -> features.

    Encoder and decoder are each a linear map plus an MLP that starts at zero, so that what PCA can
    do need not be learned through non-linearities: see `start_from_pca`. Without hidden layers only
    the linear maps are left.
    """

    def __init__(self, features: int, sizes: VaeSizes) -> None:
        super().__init__()
        self.features, self.sizes = features, sizes
        self.encoder = _LinearPlusMlp(features, sizes.hidden, 2 * sizes.latent)
        self.decoder = _LinearPlusMlp(sizes.latent, sizes.hidden[::-1], features)

    def encode(
        self,
        values: Tensor,  # [N, F], standardized
    ) -> Posterior:
        """The posterior of the latent."""
        mean, log_variance = self.encoder(values).chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE))

    def decode(
        self,
        latent: Tensor,  # [N, Z]
    ) -> Tensor:
        """Standardized features, [N, F]."""
        decoded: Tensor = self.decoder(latent)
        return decoded

    @torch.no_grad()
    def start_from_pca(
        self,
        values: Tensor,  # [N, F], standardized
        columns: Mapping[str, slice],  # channel groups to balance
    ) -> FeatureVae:
        """This model with linear maps that do PCA of the balanced channels, latents whitened."""
        root = channel_balance(columns).to(values).sqrt()
        center = values.mean(dim=0)
        scaled = (values - center) * root
        _, singular, axes = torch.linalg.svd(scaled.T @ scaled / len(values))
        latent = self.sizes.latent
        kept = min(latent, len(singular))
        size = singular[:kept].sqrt().clamp_min(1e-4)
        encode, decode = self.encoder.linear, self.decoder.linear
        encode.weight.zero_()
        encode.weight[:kept] = axes[:kept] / size[:, None] * root
        encode.bias[:latent] = -encode.weight[:latent] @ center
        encode.bias[latent:] = START_LOG_VARIANCE
        decode.weight[:, :kept] = axes[:kept].T * size / root[:, None]
        decode.bias.copy_(center)
        return self

    def freeze(self) -> FeatureVae:
        """This model with weights that take no gradient; gradients still pass through it."""
        return self.requires_grad_(False).eval()


class VaeObjective(nn.Module):
    """Loss terms of one training step on a random batch of cells."""

    def __init__(
        self,
        vae: FeatureVae,
        values: Tensor,  # [N, F], standardized, training cells
        columns: Mapping[str, slice],  # channel groups to balance
        config: VaeConfig,
    ) -> None:
        super().__init__()
        self.vae, self.config = vae, config
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("balance", channel_balance(columns).to(values), persistent=False)
        self.values: Tensor
        self.balance: Tensor
        self.diagnostics: dict[str, Tensor | float] = {}

    @property
    def outer_layers(self) -> list[str]:
        """Names of the layers that touch the features, which Muon is not for."""
        linear = ["vae.encoder.linear", "vae.decoder.linear"]
        last = 2 * len(self.vae.sizes.hidden)
        return [*linear, "vae.encoder.mlp.0", f"vae.decoder.mlp.{last}"] if last else linear

    def beta(self, step: int) -> float:
        """Weight of the KL term at a step."""
        return self.config.beta * min(1.0, step / max(1, _warmup(self.config)))

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted terms `reconstruction` and `kl`; the loss is their sum.

        `diagnostics` then holds the unweighted `kl_nats` per cell and `beta`.
        """
        shape = (self.config.batch,)
        rows = torch.randint(
            len(self.values), shape, generator=generator, device=generator.device
        ).to(self.values.device)
        values = self.values[rows]
        posterior = self.vae.encode(values)
        decoded = self.vae.decode(posterior.sample(generator))
        kl = posterior.kl().mean(dim=0)
        self.diagnostics = {"kl_nats": kl.detach().sum(), "beta": self.beta(step)}
        return {
            "reconstruction": ((decoded - values).square() * self.balance).sum(dim=-1).mean(),
            "kl": self.beta(step) * kl.clamp_min(self.config.free_bits).sum(),
        }


def _warmup(config: VaeConfig) -> int:
    """Steps before the KL term has its whole weight."""
    return int(config.beta_warmup * config.steps)


def save_vae(folder: Path, vae: FeatureVae, config: VaeConfig, schema: str) -> None:
    """Write the VAE and what it is of; `schema` is the hash of its features' schema."""
    sizes = vae.sizes.model_dump(include=set(VaeSizes.model_fields))
    part = {"groups": config.groups, "harmonics": config.harmonics, "schema": schema}
    save_model(folder, vae, {"features": vae.features, **sizes, **part})


def load_vae(folder: Path, stored: StoredFeatures) -> tuple[FeatureVae, StoredFeatures]:
    """Read a VAE, and the part of the features that it was trained on.

    Raises:
        ValueError: a file is missing or broken, or the VAE was trained on other features.
    """
    config, vae = load_model(folder, _build, "feature VAE")
    part = stored.select(config["groups"], config["harmonics"])
    schema = part.features.schema.hash
    if config["schema"] != schema:
        raise ValueError(
            f"{folder}: the VAE was trained on feature schema {config['schema'][:12]},"
            f" the features have {schema[:12]}"
        )
    return vae, part


def _build(
    features: int, schema: str, groups: Sequence[str], harmonics: int, **sizes: Any
) -> FeatureVae:
    return FeatureVae(features, VaeSizes(**sizes))


class _LinearPlusMlp(nn.Module):
    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([inputs, *hidden]):
            layers += [nn.Linear(fan_in, fan_out), nn.SiLU()]
        last = nn.Linear(hidden[-1], outputs) if hidden else None
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*layers, last) if last is not None else None

    def forward(self, values: Tensor) -> Tensor:
        mapped: Tensor = self.linear(values)
        return mapped if self.mlp is None else mapped + self.mlp(values)


# ---- What a feature VAE keeps of the features, beside PCA with as many components --------------

ACTIVE_VARIANCE = 0.01  # a latent dimension whose mean varies less over cells says nothing
KL_TAIL = 0.2  # fraction of the steps over which the KL must have settled
KL_TOLERANCE = 0.1  # of its mean


class BestVae:
    """A training hook that keeps the weights with the least balanced error on validation cells.

    Candidates are those after the warm-up of the KL term: before it the objective is another one.
    `start_error` is of the weights that it was made with.
    """

    def __init__(
        self, vae: FeatureVae, validation: Tensor, balance: Tensor, config: VaeConfig
    ) -> None:
        self.vae, self.validation, self.balance, self.config = vae, validation, balance, config
        self.error, self.step = math.inf, 0
        self.weights: dict[str, Tensor] = {}
        self.start_error = self._error()

    @torch.no_grad()
    def _error(self) -> float:
        decoded = self.vae.decode(self.vae.encode(self.validation).mean)
        return float(((decoded - self.validation).square() @ self.balance).mean())

    def __call__(
        self, step: int, objective: nn.Module, ema: Ema | None = None
    ) -> dict[str, float] | None:
        """Validate when it is due, and after the last step: a row with `error`."""
        if step % self.config.validate_every and step != self.config.steps:
            return None
        error = self._error()
        if error < self.error and step >= _warmup(self.config):
            state = self.vae.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}
            self.error, self.step = error, step
        return {"error": error}

    def restore(self) -> None:
        """Give the VAE its best weights back."""
        self.vae.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"error": self.error, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what was the best."""
        self.error, self.step, self.weights = state["error"], state["step"], state["weights"]


def vae_report(
    vae: FeatureVae,
    stored: StoredFeatures,
    kl: Sequence[float],  # unweighted, by logged step up to the one with these weights
) -> dict[str, dict[str, Any]]:
    """Figures on the validation cells of `vae`, which decodes its posterior mean, and of PCA.

    `recon_mse` is in the unit of the seed's authors: the plain mean over channels as aggregated,
    neither standardized nor clipped. `unexplained_fraction` is the mean over groups of error /
    variance. `kl` is in nats per cell, `kl_stable` whether it had settled. `pca` is fitted to the
    training cells in balanced channels, `pca_raw` in raw ones: each is the best linear model, of as
    many components as the VAE has latents, for one of the two measures.
    """
    inside, outside = stored.training, ~stored.training
    raw, scale = stored.features.values, stored.standardization.scale
    columns = stored.features.schema.columns
    device = next(vae.parameters()).device
    with torch.no_grad():
        posterior = vae.encode(stored.standardized[outside].to(device))
        decoded = stored.standardization.invert(vae.decode(posterior.mean).cpu())
    balanced = channel_balance(columns).sqrt() / scale
    count = vae.sizes.latent
    predictions = {
        "vae": decoded,
        "pca": pca_reconstruction(raw[inside], raw[outside], balanced, count),
        "pca_raw": pca_reconstruction(raw[inside], raw[outside], torch.ones_like(scale), count),
    }
    report = {name: _fidelity(rows, raw[outside], columns) for name, rows in predictions.items()}
    report["vae"] |= {
        "kl": float(posterior.kl().sum(dim=-1).mean()),
        "kl_stable": kl_stable(kl),
        "active_units": int((posterior.mean.var(dim=0) > ACTIVE_VARIANCE).sum()),
    }
    return report


def _fidelity(predicted: Tensor, target: Tensor, columns: Mapping[str, slice]) -> dict[str, Any]:
    """Plain squared error, and the fraction of the variance that is not explained."""
    unexplained = unexplained_variance(predicted, target, columns)
    return {
        "recon_mse": float((predicted - target).cpu().double().square().mean()),
        "unexplained_fraction": sum(unexplained.values()) / len(unexplained),
        **{f"unexplained_fraction_{group}": value for group, value in unexplained.items()},
    }


def pca_reconstruction(
    training: Tensor,  # [N, F]
    validation: Tensor,  # [M, F]
    root: Tensor,  # [F], what channels are multiplied with before
    components: int,
) -> Tensor:
    """Validation rows through PCA of the training rows, [M, F]; fewer components if need be."""
    scale = root.cpu().double().numpy()
    rows = training.cpu().double().numpy() * scale
    pca = PCA(min(components, *rows.shape), svd_solver="full").fit(rows)
    projected = pca.inverse_transform(pca.transform(validation.cpu().double().numpy() * scale))
    return torch.from_numpy(projected / scale).to(validation)


def kl_stable(
    kl: Sequence[float],  # unweighted KL by step, in order
) -> bool:
    """Whether the KL has settled.

    Over the last `KL_TAIL` of the steps, the mean of the last quarter differs from that of the
    first by at most `KL_TOLERANCE` of the mean. Fewer than four values cannot tell.
    """
    if len(kl) < 4:
        return False
    last = np.asarray(kl[-max(4, round(KL_TAIL * len(kl))) :], dtype=np.float64)
    quarters = [float(quarter.mean()) for quarter in np.array_split(last, 4)]
    return abs(quarters[-1] - quarters[0]) <= KL_TOLERANCE * abs(float(last.mean()))


def vae_status(recon_mse: float, stable: bool, gate: float) -> str:
    """`passed`, `recon_above_gate` or `kl_unstable`."""
    if recon_mse > gate:
        return "recon_above_gate"
    return "passed" if stable else "kl_unstable"


def against_pca(report: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the VAE keeps more than PCA does, by either measure."""
    vae = report["vae"]
    better = {
        "raw": vae["recon_mse"] < report["pca_raw"]["recon_mse"],
        "balanced": vae["unexplained_fraction"] < report["pca"]["unexplained_fraction"],
    }
    won = [name for name, is_better in better.items() if is_better]
    return f"better than PCA: {' and '.join(won)}" if won else "no better than PCA"
