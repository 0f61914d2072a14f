"""An independent reader of clips: what they show, where, and whether it is one object.

It learns from real train clips alone and knows no refiner. What there is to read are the words of
the built-in prompts: digit, ink, ground and motion. Clips are decoded, and of every second frame
there is a *map*: how far each pixel's color is from the ground's, in units of the object's contrast
in the given frames (all methods are given these: 1 is an opaque object, 0 the ground). Networks of
one hidden layer predict

    digit           from crops around the object, to its own scale; mean log-probability of frames
    ink, ground     from mean colors
    motion          from the object's position, extent and opacity in every frame
    several         from crops, whether a frame shows more than one object: trained on single real
                    frames against double exposures, blends of two real frames of a clip that have
                    less than half in common

A reader of *missing* frames is trained on the missing frames of real clips and gets no others, so
what is given helps no method. A frame is a ghost if it shows several objects, or none. Frames in
which the real clip shows no object, since it fades, count for no method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.common.rng import generator, seed_global_stream
from braid.drifting.video.motion import Decode

Words = Mapping[str, Tensor]  # numbers of each clip's word of each head, [n]

HEADS = ("digit", "ink", "ground", "motion")
NO_WORDS = "the prompts do not name digit, ink, ground and motion"


# ---- What frames show ----------------------------------------------------------------------------

EVERY = 2  # of so many video frames one is read
_SIDE = 32  # pixels of a map
_CHUNK = 32  # clips decoded at once
_FLOOR = 0.15  # of the contrast that is no object: rounding, ringing, shades of the ground
_VISIBLE = 0.25  # peak of a map that shows an object


@dataclass(frozen=True)
class View:
    """What the read frames of n clips show."""

    maps: Tensor  # [n, F, s, s] distance to the ground's color over the object's in given frames
    ink: Tensor  # [n, F, 4] sum of colors where there is an object, and of their weights
    ground: Tensor  # [n, F, 3] median color
    detail: Tensor  # [n, F] mean square of differences between neighboring pixels
    stray: Tensor  # [n, F] mean square of colors off the line from ground to ink
    backdrop: Tensor  # [n, 7] in given frames: ground's color, object's contrast, way to its ink
    missing: Tensor  # [F] bool, not given
    pixels: int  # of a decoded frame's side

    def of_missing(self) -> View:
        """The missing frames alone."""
        kept: dict[str, Any] = {
            name: getattr(self, name)[:, self.missing]
            for name in ("maps", "ink", "ground", "detail", "stray")
        }
        return replace(self, **kept, missing=self.missing[self.missing])

    @property
    def colors(self) -> Tensor:
        """Mean color of object and ground, [n, 6]."""
        sums = self.ink.sum(1)
        return torch.cat([sums[:, :3] / sums[:, 3:].clamp_min(1e-3), self.ground.mean(1)], -1)

    @cached_property
    def tracks(self) -> Tensor:
        """`tracks_of` the maps, [n, F, 7]."""
        return tracks_of(self.maps)

    @property
    def visible(self) -> Tensor:
        """Frames in which there is an object, [n, F] bool."""
        return self.tracks[..., 6] > _VISIBLE


def tracks_of(
    maps: Tensor,  # [..., s, s]
) -> Tensor:
    """Center x and y, variances xx, yy and xy, mass and peak of the object, [..., 7].

    Positions are in half frame sides from the frame's center, which is also an empty map's.
    """
    weights = (maps - _FLOOR).clamp_min(0)
    side = weights.shape[-1]
    place = (torch.arange(side) + 0.5) * (2 / side) - 1
    mass = weights.sum((-1, -2))
    some = mass.clamp_min(1e-3)[..., None]
    columns, rows = weights.sum(-2) / some, weights.sum(-1) / some
    x, y = columns @ place, rows @ place
    dx, dy = place - x[..., None], place - y[..., None]
    xx, yy = (columns * dx.square()).sum(-1), (rows * dy.square()).sum(-1)
    xy = ((weights @ dx[..., None]).squeeze(-1) / some * dy).sum(-1)
    return torch.stack([x, y, xx, yy, xy, 10 * mass / side**2, maps.flatten(-2).amax(-1)], -1)


class Viewer:
    """Decodes clips and maps them against the given frames of the real ones."""

    def __init__(
        self,
        decode: Decode,
        given: Tensor,  # [T] bool, latent frames
    ) -> None:
        self.decode, self.given = decode, given

    def __call__(
        self,
        clips: Tensor,  # [n, C, T, H, W]
        real: View | None = None,  # of the real clips in their place; None: these are real
    ) -> View:
        """What the clips show."""
        backdrops = real.backdrop.split(_CHUNK) if real else repeat(None)
        chunks = zip(clips.split(_CHUNK), backdrops, strict=False)
        views = [self._view(*chunk) for chunk in chunks]
        names = ("maps", "ink", "ground", "detail", "stray", "backdrop")
        whole: dict[str, Any] = {
            name: torch.cat([getattr(view, name) for view in views]) for name in names
        }
        return replace(views[0], **whole)

    def _view(self, clips: Tensor, backdrop: Tensor | None) -> View:
        decoded = self.decode(clips)
        missing, frames = self._missing(decoded.shape[1]), _pooled(decoded)
        if backdrop is None:
            backdrop = _backdrop(frames[:, ~missing])
        maps = _distance(frames, backdrop[:, None, :3]) / backdrop[:, 3, None, None, None]
        weights = (maps - 2 * _FLOOR).clamp_min(0)
        colors = (frames * weights[:, :, None]).sum((-1, -2))
        ink = torch.cat([colors, weights.sum((-1, -2))[..., None]], -1)
        right, down = (frames.diff(dim=axis).square().mean((-1, -2, -3)) for axis in (-1, -2))
        from_ground = frames - backdrop[:, None, :3, None, None]
        along = torch.einsum("nfcyx,nc->nfyx", from_ground, backdrop[:, 4:])
        stray = (from_ground.square().sum(2) - along.square()).mean((-1, -2))
        parts = maps, ink, _ground(frames), right + down, stray, backdrop, missing
        return View(*parts, decoded.shape[2])

    def _missing(self, frames: int) -> Tensor:
        """Which of the read ones of so many video frames are not given, [F] bool."""
        stride = (frames - 1) // (len(self.given) - 1)  # the first latent frame is one video frame
        return ~self.given[(torch.arange(0, frames, EVERY) + stride - 1) // stride]


def _pooled(decoded: Tensor) -> Tensor:
    """The read ones of frames [n, F, h, w, 3], at the size of maps, [n, F', 3, s, s]."""
    frames = decoded[:, ::EVERY].movedim(-1, 2)
    stride = max(1, frames.shape[-1] // _SIDE)
    pooled = functional.avg_pool2d(frames.flatten(0, 1).contiguous(), stride)
    return pooled.unflatten(0, frames.shape[:2])


def _ground(frames: Tensor) -> Tensor:
    """The median color of frames [n, F, 3, s, s], over some pixels; [n, F, 3]."""
    return frames[..., ::3, ::3].flatten(-2).median(dim=-1).values


def _backdrop(given: Tensor) -> Tensor:
    """Ground, contrast and unit vector from ground to ink of frames [n, F, 3, s, s], [n, 7]."""
    ground = _ground(given).median(dim=1).values
    distance = _distance(given, ground[:, None])
    contrast = distance.flatten(1).amax(1, keepdim=True).clamp_min(1e-3)
    from_ground = given - ground[:, None, :, None, None]
    way = functional.normalize((from_ground * distance[:, :, None]).sum((1, 3, 4)), dim=-1)
    return torch.cat([ground, contrast, way], 1)


def _distance(frames: Tensor, ground: Tensor) -> Tensor:
    """Of each pixel's color to the ground's, [n, F, s, s]."""
    return (frames - ground[..., None, None]).square().sum(2).sqrt()


# ---- Networks of one hidden layer ----------------------------------------------------------------

_CROP = 16  # pixels a side
_REACH = 2.2  # of a crop to the object's scale, in standard deviations
SHOWN = ("object", "several", "smear", "nothing")
_BLURS = (1.5, 2.0, 2.5, 3.0)  # standard deviations, pixels of a map
_CELL = 4  # pixels of a map that one cell of the latents covers
_OVERLAP = 0.5  # squared distance of two frames of a double exposure, over the sum of squares
_WINDOW = 0.75  # of a crop that shows all objects, in half frame sides
_RATE, _BATCH, _DECAY, _DROPOUT = 3e-3, 128, 0.01, 0.2


def crops(
    maps: Tensor,  # [m, s, s]
    tracks: Tensor,  # [m, 7]
    reach: float | None = None,  # half-width in half frame sides; None: to the object's scale
) -> Tensor:
    """Squares around objects, at their peak's brightness, [m, pixels]."""
    scale = _REACH * (tracks[:, 2] + tracks[:, 3]).sqrt()
    half = (scale.clamp(0.15, 0.8) if reach is None else torch.full_like(scale, reach))[:, None]
    place = (torch.arange(_CROP) + 0.5) * (2 / _CROP) - 1
    x, y = tracks[:, :1] + half * place, tracks[:, 1:2] + half * place
    size = len(maps), _CROP, _CROP
    grid = torch.stack([x[:, None].expand(size), y[:, :, None].expand(size)], -1)
    squares = functional.grid_sample(maps[:, None], grid, align_corners=False)
    return squares.flatten(1) / tracks[:, 6:].clamp_min(_FLOOR)


class Classifier:
    """From vectors [n, d] to log-probabilities of classes; fitted as it is made."""

    def __init__(
        self,
        vectors: Tensor,  # [n, d]
        labels: Tensor,  # [n]
        classes: int,
        hidden: int,
        steps: int,
        draw: torch.Generator,
    ) -> None:
        seed_global_stream(draw)
        self.mean, self.scale = vectors.mean(0), vectors.std(0) + 1e-3
        layers = nn.Linear(vectors.shape[1], hidden), nn.ReLU(), nn.Dropout(_DROPOUT)
        self.network = nn.Sequential(*layers, nn.Linear(hidden, classes))
        optimizer = torch.optim.AdamW(self.network.parameters(), _RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, steps)
        for _ in range(steps):
            rows = torch.randint(len(vectors), (_BATCH,), generator=draw)
            logits = self.network((vectors[rows] - self.mean) / self.scale)
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
        self.network.eval()

    @torch.no_grad()
    def __call__(self, vectors: Tensor) -> Tensor:
        """Log-probabilities, [..., classes]."""
        return self.network((vectors - self.mean) / self.scale).log_softmax(-1)


class WordReader:
    """Reads the words of clips from frames of a view."""

    def __init__(self, view: View, words: Words, steps: int, draw: torch.Generator) -> None:
        features = self._features(view)
        self.networks = {}
        for head in HEADS:
            vectors, labels = features[head], words[head]
            if head == "digit":
                vectors, labels = vectors.flatten(0, 1), labels.repeat_interleave(vectors.shape[1])
            hidden, classes = 32 if head in ("ink", "ground") else 128, int(words[head].max()) + 1
            self.networks[head] = Classifier(vectors, labels, classes, hidden, steps, draw)

    def __call__(self, view: View) -> dict[str, Tensor]:
        """The word of each clip by head, [n]."""
        scores = {head: self.networks[head](x) for head, x in self._features(view).items()}
        scores["digit"] = scores["digit"].mean(1)
        return {head: score.argmax(-1) for head, score in scores.items()}

    def _features(self, view: View) -> dict[str, Tensor]:
        tracks, (clips, frames) = view.tracks, view.maps.shape[:2]
        squares = crops(view.maps.flatten(0, 1), tracks.flatten(0, 1))
        return {
            "digit": squares.unflatten(0, (clips, frames)),  # [n, F, d]
            "ink": view.colors,
            "ground": view.colors,
            "motion": tracks.flatten(1),
        }


class FrameReader:
    """Whether a frame shows one object, several, a smear, or nothing."""

    def __init__(self, view: View, steps: int, draw: torch.Generator) -> None:
        """Learns from the frames of real clips."""
        single = view.maps[view.visible]
        examples = single, double_exposures(view, draw), smears(single, draw)
        size = len(single)  # as many of each kind, if there is one
        kinds = [(kind, part) for kind, part in enumerate(examples) if len(part)]
        labels = torch.tensor([kind for kind, _ in kinds]).repeat_interleave(size)
        balanced = [part[torch.arange(size) % len(part)] for _, part in kinds]
        vectors = self._vectors(torch.cat(balanced))
        self.network = Classifier(vectors, labels, 3, 64, steps, draw)

    def __call__(
        self,
        maps: Tensor,  # [..., s, s]
    ) -> Tensor:
        """The numbers of what frames show, as of SHOWN, [...]."""
        flat = maps.flatten(0, -3)
        shown = self.network(self._vectors(flat)).argmax(-1)
        empty = flat.flatten(1).amax(1) < _FLOOR
        return torch.where(empty, SHOWN.index("nothing"), shown).view(maps.shape[:-2])

    def _vectors(self, maps: Tensor) -> Tensor:
        tracks = tracks_of(maps)
        return torch.cat([crops(maps, tracks), crops(maps, tracks, _WINDOW)], -1)


def smears(
    maps: Tensor,  # [m, s, s]
    draw: torch.Generator,
) -> Tensor:
    """Blurred frames whose cells of a latent are each off in brightness, [m, s, s]."""
    side = maps.shape[-1]
    parts = []
    for part, width in zip(maps.chunk(len(_BLURS)), _BLURS, strict=False):
        reach = torch.arange(side)
        kernel = (-0.5 * ((reach[:, None] - reach) / width).square()).exp()
        kernel = kernel / kernel.sum(1, keepdim=True)
        parts.append(kernel @ part @ kernel.T)
    cells = torch.rand(len(maps), 1, side // _CELL, side // _CELL, generator=draw) - 0.5
    off = functional.interpolate(cells, size=side)[:, 0] * torch.rand(
        len(maps), 1, 1, generator=draw
    )
    return (torch.cat(parts) * (1 + off)).clamp_min(0)


def double_exposures(view: View, draw: torch.Generator) -> Tensor:
    """Blends of frames with others of the same clips that have little in common, [m, s, s]."""
    clips, frames = view.maps.shape[:2]
    other = torch.rand(clips, frames, generator=draw).argsort(1)
    second = view.maps.gather(1, other[..., None, None].expand_as(view.maps))
    energy = view.maps.square().sum((-1, -2)) + second.square().sum((-1, -2))
    apart = (view.maps - second).square().sum((-1, -2)) > _OVERLAP * energy
    chosen = apart & view.visible & view.visible.gather(1, other)
    part = 0.3 + 0.4 * torch.rand(clips, frames, 1, 1, generator=draw)
    return (part * view.maps + (1 - part) * second)[chosen]


# ---- Figures -------------------------------------------------------------------------------------


class ClipReader:
    """Reads clips of the built-in words."""

    def __init__(
        self,
        view: View,  # of real clips to learn from
        words: Words,
        steps: int,  # of each network
        seed: int,
    ) -> None:
        self.most_frequent = {head: words[head].mode().values for head in HEADS}
        self.whole = WordReader(view, words, steps, generator(seed, "reader", "whole"))
        self.missing = WordReader(
            view.of_missing(), words, steps, generator(seed, "reader", "missing")
        )
        self.frames = FrameReader(view, steps, generator(seed, "reader", "frames"))

    def figures(
        self,
        view: View,
        real: View,  # of the real clips in their place
        words: Words,  # of these
    ) -> dict[str, float]:
        """Accuracies of whole clips and of missing frames, and how the object moves in these."""
        missing, truth = view.of_missing(), real.of_missing()
        shown = self.frames(missing.maps)[truth.visible]
        return {
            **_accuracies(self.whole(view), words, "_whole"),
            **_accuracies(self.missing(missing), words, "_missing"),
            "ghost": float(((shown == 1) | (shown == 3)).float().mean()),
            "smear": float((shown == 2).float().mean()),
            "position_error": position_error(missing, truth),
            "track_roughness": roughness(view) / roughness(real),
        }

    def chance(self, real: View, words: Words) -> dict[str, float]:
        """What the train clips' most frequent words score, and an object that rests mid-frame."""
        constant = {head: self.most_frequent[head].expand_as(words[head]) for head in HEADS}
        truth = real.of_missing()
        empty = replace(truth, maps=torch.zeros_like(truth.maps))
        return {
            **_accuracies(constant, words, "_whole"),
            **_accuracies(constant, words, "_missing"),
            "position_error": position_error(empty, truth),
        }


def _accuracies(predicted: Words, words: Words, suffix: str) -> dict[str, float]:
    return {
        f"{head}{suffix}": float((predicted[head] == words[head]).float().mean()) for head in HEADS
    }


def position_error(view: View, real: View) -> float:
    """Mean distance of objects' centers to the real ones', pixels of the decoded frames."""
    apart = (view.tracks[..., :2] - real.tracks[..., :2]).norm(dim=-1) * view.pixels / 2
    return float(apart[real.visible].mean())


def roughness(view: View) -> float:
    """Mean square of second differences of objects' centers, in squared half frame sides."""
    return float(view.tracks[..., :2].diff(n=2, dim=1).square().sum(-1).mean())


def stray_color(view: View) -> float:
    """Mean square of colors of missing frames that no mixture of ground and ink has, [0, 1] RGB."""
    return float(view.of_missing().stray.mean())


def sharpness(view: View, real: View) -> float:
    """Gradient energy of missing frames, over the real ones'."""
    return float(view.of_missing().detail.mean() / real.of_missing().detail.mean())
