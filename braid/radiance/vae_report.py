"""What a feature VAE keeps of the features, beside PCA with as many components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from braid.radiance.alignment import explained_variance
from braid.radiance.feature_vae import FeatureVae, channel_balance

ACTIVE_VARIANCE = 0.01  # a latent dimension whose mean varies less over cells says nothing
KL_TAIL = 0.2  # share of the steps over which the KL must have settled
KL_TOLERANCE = 0.1  # of its mean


def vae_report(
    vae: FeatureVae,
    training: Tensor,  # [N, F], standardised
    validation: Tensor,  # [M, F], standardised
    columns: Mapping[str, slice],  # channel groups
) -> dict[str, float]:
    """Figures on the validation cells, the VAE decoding its posterior mean.

    `recon_mse` and `pca_recon_mse` are balanced over groups; `kl` is in nats per cell, summed over
    dimensions; `explained_variance/<group>` (also with `pca_` before) is 1 - error / variance. PCA
    is fitted to the training cells in channels scaled by the balance, which makes it the linear
    model that the balanced error likes best.
    """
    with torch.no_grad():
        posterior = vae.encode(validation)
        decoded = vae.decode(posterior.mean)
    linear = pca_reconstruction(training, validation, columns, vae.latent)
    balance = channel_balance(columns).to(validation)
    return {
        "recon_mse": float(((decoded - validation).square() @ balance).mean()),
        "kl": float(posterior.kl().sum(dim=-1).mean()),
        "active_units": float((posterior.mean.var(dim=0) > ACTIVE_VARIANCE).sum()),
        **_prefixed("explained_variance/", explained_variance(decoded, validation, columns)),
        "pca_recon_mse": float(((linear - validation).square() @ balance).mean()),
        **_prefixed("pca_explained_variance/", explained_variance(linear, validation, columns)),
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


def kl_stable(
    kl: Sequence[float],  # unweighted KL by step, in order
) -> bool:
    """Whether the KL has settled: over the last `KL_TAIL` of the steps, the mean of the last
    quarter differs from that of the first by at most `KL_TOLERANCE` of the mean. Fewer than four
    values cannot tell."""
    if len(kl) < 4:
        return False
    last = np.asarray(kl[-max(4, round(KL_TAIL * len(kl))) :], dtype=np.float64)
    quarters = [float(each.mean()) for each in np.array_split(last, 4)]
    return abs(quarters[-1] - quarters[0]) <= KL_TOLERANCE * abs(float(last.mean()))


def vae_status(recon_mse: float, stable: bool, gate: float) -> str:
    """`passed`, `recon_above_gate` or `kl_unstable`."""
    if recon_mse > gate:
        return "recon_above_gate"
    return "passed" if stable else "kl_unstable"


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in values.items()}
