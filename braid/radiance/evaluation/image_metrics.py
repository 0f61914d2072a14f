"""How close images come to the ground truth, beside what trivial predictors score on those views.

Conventions that change figures: images are composited over white, in [0, 1]; measures are per view,
unreduced, and a set's figure is the mean over its views. PSNR of equal images is capped at 100 dB.
SSIM (Wang et al. 2004) has an 11x11 Gaussian window of sigma 1.5, data range 1, K1 .01, K2 .03,
population covariances, no padding ("valid") and the mean over channels; scikit-image's with
`gaussian_weights=True, use_sample_covariance=False`. LPIPS (Zhang et al. 2018) has the AlexNet
trunk, is fed [-1, 1], and needs the trunk's weights by path: nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from braid.common.torchvision import mend_torchvision
from braid.radiance.scenes.blender import Views

Value = float | str | None

CONVENTIONS = "white background, range [0, 1], mean over views; SSIM valid 11x11; LPIPS alex"

LEAST_ERROR = 1e-10  # mean squared error that 100 dB stands for
COLLAPSE_MARGIN = 0.3  # dB
WINDOW, WINDOW_SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2


def psnr(
    images: Tensor,  # [N, H, W, 3]
    truth: Tensor,  # [N, H, W, 3]
) -> Tensor:
    """Peak signal-to-noise ratio of each view in dB, [N]."""
    pairs = zip(images, truth, strict=True)  # view by view: a full-size set's difference is large
    return _decibel(torch.stack([(x - y).square().mean() for x, y in pairs]))


def foreground_psnr(
    images: Tensor,  # [N, H, W, 3]
    truth: Tensor,  # [N, H, W, 3]
    alpha: Tensor,  # [N, H, W] of the truth
) -> Tensor:
    """PSNR over the pixels with alpha > 0.5, [N]; NaN for a view without any."""
    triples = zip(images, truth, alpha > 0.5, strict=True)
    return _decibel(torch.stack([(x[m] - y[m]).square().mean() for x, y, m in triples]))


def _decibel(error: Tensor) -> Tensor:
    return -10 * error.clamp_min(LEAST_ERROR).log10()


def ssim(
    images: Tensor,  # [N, H, W, 3]
    truth: Tensor,  # [N, H, W, 3]
) -> Tensor:
    """Structural similarity of each view, [N].

    Raises:
        ValueError: the images are smaller than the window.
    """
    if min(images.shape[1:3]) < WINDOW:
        height, width = images.shape[1:3]
        raise ValueError(f"SSIM needs images of at least {WINDOW} pixels, got {width}x{height}")
    return torch.stack([_similarity(x, y).mean() for x, y in zip(images, truth, strict=True)])


def _similarity(
    x: Tensor,  # [H, W, 3]
    y: Tensor,  # [H, W, 3]
) -> Tensor:
    """The map of local similarities, [H - 10, W - 10, 3].

    Moments are taken about white, so that they are exact zeros over a white background.
    """
    x, y = x - 1, y - 1
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 1, mean_y + 1
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance * (2 * covariance + C2) / (variance_x + variance_y + C2)


def _blur(image: Tensor) -> Tensor:
    """Gaussian window by sums of shifted images: CUDA's TF32 convolutions would lose variances."""
    weights = [math.exp(-0.5 * ((i - WINDOW // 2) / WINDOW_SIGMA) ** 2) for i in range(WINDOW)]
    total = sum(weights)
    for dim in (0, 1):
        length = image.shape[dim] - WINDOW + 1
        shifted = [image.narrow(dim, i, length) * (w / total) for i, w in enumerate(weights)]
        image = torch.stack(shifted).sum(dim=0)
    return image


class Lpips:
    """Learned perceptual distance: package `lpips`, net "alex", trunk weights from a local file."""

    net = "alex"
    version = "0.1"  # of the linear heads, which the package brings along

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Take torchvision's AlexNet state dict (`alexnet-owt-7be5be79.pth`) as the trunk.

        Raises:
            ValueError: the file is missing or holds something else.
        """
        content, trunk = _read_trunk(weights)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.model = _lpips_model()
        net = self.model.get_submodule("net")
        try:  # slice2.3.weight is the trunk's features.3.weight
            chosen = {n: trunk[f"features.{n.partition('.')[2]}"] for n in net.state_dict()}
            net.load_state_dict(chosen)
        except (KeyError, RuntimeError, TypeError):
            raise ValueError(f"{weights}: not the state dict of torchvision's AlexNet") from None
        self.model.to(device).eval()

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,  # [N, H, W, 3] in [0, 1]
        truth: Tensor,  # [N, H, W, 3] in [0, 1]
    ) -> Tensor:
        """Distance of each view, [N]."""
        pairs = zip(images, truth, strict=True)
        return torch.cat([self.model(_signed(x), _signed(y)).flatten() for x, y in pairs])


def _signed(
    image: Tensor,  # [H, W, 3] in [0, 1]
) -> Tensor:
    """In the range of the net, [1, 3, H, W] in [-1, 1]."""
    return 2 * image.permute(2, 0, 1)[None] - 1


def _read_trunk(path: Path) -> tuple[bytes, dict[str, Tensor]]:
    """The file's bytes and its state dict; nothing but tensors is unpickled."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read LPIPS trunk weights ({error.strerror})") from None
    try:
        trunk = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is no checkpoint
        raise ValueError(f"{path}: not a PyTorch state dict ({type(error).__name__})") from None
    if not isinstance(trunk, dict):
        raise ValueError(f"{path}: expected a state dict, got {type(trunk).__name__}")
    return content, trunk


def _lpips_model() -> torch.nn.Module:
    """The net with trained linear heads and a trunk yet to be loaded; no download."""
    mend_torchvision()
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision's deprecated signatures
        model: torch.nn.Module = lpips.LPIPS(net=Lpips.net, pnet_rand=True, verbose=False)
    return model.requires_grad_(False)


def trivial_predictions(
    truth: Views,
    train: Views,
) -> dict[str, Tensor]:
    """What needs no model, as images of `truth`'s views over white, each [N, H, W, 3].

    A white image, the training images' mean color, their mean image, and the true silhouette
    filled with the training foreground's mean color. The views must share one size.
    """
    train_images = train.on_white()
    shape = (*truth.alpha.shape, 3)
    foreground = train.rgba[..., :3].sum(dim=(0, 1, 2)) / train.alpha.sum().clamp_min(1e-8)
    alpha = truth.alpha[..., None]
    return {
        "white": torch.ones_like(foreground).expand(shape),
        "mean_color": train_images.mean(dim=(0, 1, 2)).expand(shape),
        "mean_image": train_images.mean(dim=0).expand(shape),
        "silhouette": alpha * foreground + (1 - alpha),
    }


def status(psnr: float, psnr_white: float, psnr_silhouette: float) -> str:
    """The named state of a model's mean PSNR.

    `collapsed`: within 0.3 dB of a white image; `below_silhouette`: not better than one color in
    the right outline (so is NaN); else `ok`.
    """
    if abs(psnr - psnr_white) <= COLLAPSE_MARGIN:
        return "collapsed"
    return "ok" if psnr > psnr_silhouette else "below_silhouette"


# ---- The evaluation of a model -------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What a model's images of a scene's test views score."""

    figures: dict[str, Value]  # of the model, by their columns in the table
    baselines: dict[str, float]  # PSNR of each trivial predictor

    def headline(self) -> dict[str, Value]:
        """The figures that are read daily, for the metrics file."""
        names = ("psnr", "ssim", "lpips", "psnr_foreground", "psnr_vs_teacher", "status")
        silhouette = {"psnr_silhouette": self.baselines["silhouette"]}
        return {name: self.figures[name] for name in names if name in self.figures} | silhouette

    def rows(
        self, scene: str, variant: str, smaller: Mapping[str, Mapping[str, Value]], **more: Value
    ) -> list[dict[str, Value]]:
        """The model with all its figures, then in its smaller files, then trivial predictors."""
        rows: dict[str, dict[str, Value]] = {
            variant: {**self.figures, **more, "conventions": CONVENTIONS},
            **{f"{variant}_{name}": dict(row) for name, row in smaller.items()},
            **{f"baseline_{name}": {"psnr": value} for name, value in self.baselines.items()},
        }
        return [{"scene": scene, "variant": name, **row} for name, row in rows.items()]


def evaluate(
    images: Tensor,  # [N, H, W, 3] over white
    truth: Views,
    train: Views,
    teacher: Tensor | None,  # [N, H, W, 3] over white, of the same views; None: it is the model
    weights: Path | None,  # of LPIPS's trunk; None: no LPIPS
    device: torch.device | None = None,  # that holds one view at a time; None: where images are
) -> Evaluation:
    """A model's quality, its closeness to the teacher, the trivial baselines and a status.

    Colors are clamped to [0, 1], as a screen shows them.

    Raises:
        ValueError: the images are smaller than SSIM's window, or the weights are something else.
    """
    device = device or images.device
    baselines = {
        name: float(psnr(prediction, truth.on_white()).mean())
        for name, prediction in trivial_predictions(truth, train).items()
    }
    lpips = Lpips(weights, device) if weights else None
    measured: dict[str, list[Tensor]] = {}
    for view in range(len(images)):
        one, image = truth[[view]].to(device), images[[view]].to(device).clamp(0, 1)
        scores = {
            "psnr": psnr(image, one.on_white()),
            "ssim": ssim(image, one.on_white()),
            "psnr_foreground": foreground_psnr(image, one.on_white(), one.alpha),
        }
        if lpips:
            scores["lpips"] = lpips(image, one.on_white())
        if teacher is not None:
            scores["psnr_vs_teacher"] = psnr(image, teacher[[view]].to(device).clamp(0, 1))
        for name, score in scores.items():
            measured.setdefault(name, []).append(score)
    mean = {name: float(torch.cat(scores).nanmean()) for name, scores in measured.items()}
    foreground = mean["psnr_foreground"]
    figures: dict[str, Value] = {
        "psnr": mean["psnr"],
        "ssim": mean["ssim"],
        **_perceptual(lpips, mean),
        "psnr_foreground": None if math.isnan(foreground) else foreground,
        "status": status(mean["psnr"], baselines["white"], baselines["silhouette"]),
    }
    if teacher is not None:
        figures["psnr_vs_teacher"] = mean["psnr_vs_teacher"]
    return Evaluation(figures, baselines)


def validation_psnr(images: Tensor, truth: Views) -> float:
    """Of the validation views, by which the best of the students is chosen."""
    return float(psnr(images.clamp(0, 1), truth.on_white()).mean())


def _perceptual(lpips: Lpips | None, mean: dict[str, float]) -> dict[str, Value]:
    """LPIPS and which one it is; without weights it is null, with the reason."""
    if lpips is None:
        return {"lpips": None, "lpips_reason": "no trunk weights were given"}
    return {
        "lpips": mean["lpips"],
        "lpips_net": lpips.net,
        "lpips_version": lpips.version,
        "lpips_weights_sha256": lpips.sha256,
    }
