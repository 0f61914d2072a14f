"""A small variational autoencoder of standardized cell features, and its training objective.

Objective (Kingma & Welling 2014): balanced reconstruction + beta * KL. *Balanced* is the mean over
channel groups of each group's mean squared error, so that 45 harmonics do not outvote one optical
depth. beta rises linearly from 0, and a latent dimension pays for KL only above `free_bits`
(Kingma et al. 2016), both against posterior collapse.
"""

from __future__ import annotations

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
        warmup = int(self.config.beta_warmup * self.config.steps)
        return self.config.beta * min(1.0, step / max(1, warmup))

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


def channel_balance(columns: Mapping[str, slice]) -> Tensor:
    """Weight per channel under which a weighted sum is the mean over groups of group means, [F]."""
    weights = [torch.full((c.stop - c.start,), 1 / (c.stop - c.start)) for c in columns.values()]
    return torch.cat(weights) / len(columns)


def save_vae(folder: Path, vae: FeatureVae, schema: str) -> None:
    """Write the VAE; `schema` is the hash of the features' schema."""
    sizes = vae.sizes.model_dump(include=set(VaeSizes.model_fields))
    save_model(folder, vae, {"features": vae.features, **sizes, "schema": schema})


def load_vae(folder: Path, schema: str) -> FeatureVae:
    """Read a VAE trained on features of this schema (its hash).

    Raises:
        ValueError: a file is missing or broken, or the VAE was trained on another schema.
    """
    config, vae = load_model(folder, _build, "feature VAE")
    if config["schema"] != schema:
        raise ValueError(
            f"{folder}: the VAE was trained on feature schema {config['schema'][:12]},"
            f" the features have {schema[:12]}"
        )
    return vae


def _build(features: int, schema: str, **sizes: Any) -> FeatureVae:
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


def vae_report(
    vae: FeatureVae,
    training: Tensor,  # [N, F], standardized
    validation: Tensor,  # [M, F], standardized
    columns: Mapping[str, slice],  # channel groups
    kl: Sequence[float],  # unweighted, by logged step
) -> dict[str, dict[str, Any]]:
    """Figures of `vae`, which decodes its posterior mean, and of `pca`, on the validation cells.

    `mse` is balanced over groups; `kl` is in nats per cell, summed over dimensions, `kl_stable`
    whether it had settled; `explained_variance_<group>` is 1 - error / variance. PCA is fitted to
    the training cells in channels scaled by the balance, which makes it the linear model that the
    balanced error likes best.
    """
    with torch.no_grad():
        posterior = vae.encode(validation)
        decoded = vae.decode(posterior.mean)
    linear = pca_reconstruction(training, validation, columns, vae.sizes.latent)
    latent = {
        "kl": float(posterior.kl().sum(dim=-1).mean()),
        "kl_stable": kl_stable(kl),
        "active_units": int((posterior.mean.var(dim=0) > ACTIVE_VARIANCE).sum()),
    }
    return {
        "vae": {**_fidelity(decoded, validation, columns), **latent},
        "pca": _fidelity(linear, validation, columns),
    }


def _fidelity(predicted: Tensor, target: Tensor, columns: Mapping[str, slice]) -> dict[str, float]:
    """Balanced squared error, and the variance explained in each group."""
    balance = channel_balance(columns).to(target)
    explained = explained_variance(predicted, target, columns)
    return {
        "mse": float(((predicted - target).square() @ balance).mean()),
        **{f"explained_variance_{group}": value for group, value in explained.items()},
    }


def pca_reconstruction(
    training: Tensor,  # [N, F]
    validation: Tensor,  # [M, F]
    columns: Mapping[str, slice],
    components: int,
) -> Tensor:
    """Validation rows through PCA of the training rows, [M, F]; fewer components if need be."""
    scale = channel_balance(columns).double().sqrt().numpy()
    rows = training.cpu().double().numpy() * scale
    pca = PCA(min(components, *rows.shape), svd_solver="full").fit(rows)
    projected = pca.inverse_transform(pca.transform(validation.cpu().double().numpy() * scale))
    return torch.from_numpy(projected / scale).to(validation)


def explained_variance(
    predicted: Tensor,  # [N, F]
    target: Tensor,  # [N, F]
    columns: Mapping[str, slice],  # channel groups
) -> dict[str, float]:
    """1 - squared error / variance about the mean per group; 0 for a group that does not vary."""
    predicted, target = predicted.cpu().double(), target.cpu().double()
    error = (predicted - target).square().sum(dim=0)
    total = (target - target.mean(dim=0)).square().sum(dim=0)
    explained = {}
    for group, channels in columns.items():
        variance = float(total[channels].sum())
        explained[group] = 1 - float(error[channels].sum()) / variance if variance > 0 else 0.0
    return explained


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


def vae_status(mse: float, stable: bool, gate: float) -> str:
    """`passed`, `recon_above_gate` or `kl_unstable`."""
    if mse > gate:
        return "recon_above_gate"
    return "passed" if stable else "kl_unstable"
