"""The teacher's predictions, made once and written down: what each epoch would compute again.

    write_cache(folder, teacher, scratch)
    cache = open_predictions(folder, prompted, model, device)
    cache.predictions([(0, 2), (0, 5), (7, 1)])  # as the teacher would predict

A forward pass of SAM3 costs nearly three times what a training step of its student does, and as
images are not augmented its predictions never change. A cache is a folder of

    index.json         its key, what is kept, how many prompts each image has, all texts
    text.safetensors   features and attention of the texts
    0000.safetensors   the predictions for all prompts of the first `shard` images that have any,
                       0001 those of the next ones, ...

In mode `outputs` predictions have no features of the teacher, in mode `full` they have. In mode
`online` there are only statistics of the first shard's images: which queries are in use, and how
likely the teacher detects what a prompt means. Texts are cached all the same; predictions come from
the teacher itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from braid.common.io import duplicate
from braid.common.progress import progress
from braid.segmentation.config import CacheConfig
from braid.segmentation.data.prompted import Pair, PromptedImages, images_of, prompt_batch
from braid.segmentation.sam3.checkpoint import TEXT
from braid.segmentation.sam3.geometry import resized
from braid.segmentation.sam3.predictor import Predictor, Texts
from braid.segmentation.sam3.sam3 import BY_PROMPT, Prediction
from braid.training.distributed import barrier, is_main, units

# ---- The teacher itself: its predictions as a student is given them, made now ----------------
#
#     predictor = Predictor.of(model, ["red circle", "blue star"], tokenizer, device)
#     teacher = OnlineTeacher(prompted, predictor, config)
#     teacher.predictions([(0, 2), (0, 5), (7, 1)])  # of three prompts on two images
#
# A cache holds what an `OnlineTeacher` predicts and gives it back by the same call, so that a
# training need not know which of the two it learns from. Both keep of a prediction what `kept_of`
# does.


def kept_of(prediction: Prediction, config: CacheConfig) -> Prediction:
    """That of the queries with the highest scores, in the model's order.

    Features are rounded to 16 bits.

    Raises:
        ValueError: there are fewer queries, smaller masks or fewer levels.
    """
    limits = {
        "masks": (config.masks, prediction.logits.shape[1], "queries"),
        "mask_size": (config.mask_size, prediction.masks.shape[-1], "pixels a side of its masks"),
        "levels": (config.kept_levels, len(prediction.fpn), "levels of features"),
    }
    for name, (value, most, what) in limits.items():
        if value > most:
            raise ValueError(
                f"sam3.cache.{name} is {value}, expected at most the teacher's {most} {what}"
            )
    chosen = prediction.logits.topk(config.masks, dim=1).indices.sort(dim=1).values
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]
    fpn, encoder = prediction.fpn, prediction.encoder
    return Prediction(
        masks=resized(prediction.masks[rows, chosen], config.mask_size),
        boxes=prediction.boxes[rows, chosen].float(),
        logits=prediction.logits.gather(1, chosen).float(),
        presence=prediction.presence.float(),
        semantic=resized(prediction.semantic, config.mask_size),
        fpn=tuple(level.half() for level in fpn[len(fpn) - config.kept_levels :]),
        encoder=encoder.half() if encoder is not None else None,
    )


class OnlineTeacher:
    """The teacher itself."""

    def __init__(
        self,
        prompted: PromptedImages,
        predictor: Predictor,  # with the texts of all prompts
        config: CacheConfig,
    ) -> None:
        self.prompted, self.predictor, self.config = prompted, predictor, config

    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        """Predictions in the order of the pairs, features of the images as these first come.

        Raises:
            ValueError: a prediction is not finite; the message names the image and the prompt.
        """
        return self.scored(pairs)[1]

    @torch.no_grad()
    def scored(self, pairs: Sequence[Pair]) -> tuple[Tensor, Prediction]:
        """The scores of all queries, [B, Q], and what is kept of the predictions."""
        batch = prompt_batch(self.prompted, pairs)
        prediction = self.predictor(batch, features=self.config.kept_levels > 0)
        kept = kept_of(prediction, self.config)
        self._require_finite(kept, pairs)
        return prediction.scores, kept

    def _require_finite(self, kept: Prediction, pairs: Sequence[Pair]) -> None:
        owner = images_of(pairs)[1]
        tensors = [(name, getattr(kept, name)) for name in BY_PROMPT]
        tensors += [("fpn", level) for level in kept.fpn]
        for name, values in tensors:
            if values is None:
                continue
            finite = values.isfinite().flatten(1).all(1).cpu()
            finite = finite[owner] if name == "fpn" else finite
            if not finite.all():
                image, place = pair = pairs[int(finite.int().argmin())]
                file, prompt = self.prompted.images.record(image).file, self.prompted.prompt(pair)
                raise ValueError(
                    f"{file}: the teacher's {name} for prompt {place} ({prompt.kind}: "
                    f"{prompt.text!r}) are not finite"
                )


# ---- Mask logits in a byte a pixel, and grids of such bytes compressed -------------------------
# A probability p = sigmoid(x) is kept as the angle
#
#     phi = arcsin(sqrt(p)) = arctan(exp(x / 2))
#
# in 255 equal steps of [0, pi / 2]: Fisher's variance-stabilizing transformation of a proportion
# (Fisher 1922, On the dominance ratio). An error d of that angle costs a soft target a KL
# divergence of 2 d^2 nats whatever p is, here at most 2e-5. Equal steps of p would lose the faint
# pixels, equal steps of x those in doubt.

_STEP = math.pi / 2 / 255


def quantize(
    logits: Tensor,  # [...]
) -> Tensor:
    """The nearest of 256 angles, [...] uint8; 0 and 255 are p below 1e-5 and above 1 - 1e-5."""
    return ((logits.float() / 2).exp().atan() / _STEP).round().to(torch.uint8)


def logit_table() -> Tensor:
    """The logit of each level, [256] float32: odd about the middle, finite at both ends."""
    angle = torch.arange(256, dtype=torch.float64) * _STEP
    angle = angle.clamp(_STEP / 4, math.pi / 2 - _STEP / 4)  # in the middle of the half steps
    return (2 * angle.tan().log()).float()


def pack(
    levels: Tensor,  # [N, h, w] uint8
) -> bytes:
    """Levels as differences along the rows, mostly runs of zeros in a mask, compressed."""
    left = F.pad(levels, (1, 0))[..., :-1]
    # Runs and Huffman codes alone: faster than a search for repetitions, which noise has not.
    deflate = zlib.compressobj(strategy=zlib.Z_RLE)
    return deflate.compress((levels - left).numpy().tobytes()) + deflate.flush()


def unpack(
    blobs: Sequence[NDArray[np.uint8]],  # what `pack` gave, for each of B
    shape: tuple[int, int, int],  # N, h, w
) -> Tensor:
    """The levels, [B, N, h, w] uint8.

    Raises:
        ValueError: a blob is damaged, or of another shape.
    """
    size = math.prod(shape)
    differences = np.empty((len(blobs), size), np.uint8)
    for row, blob in zip(differences, blobs, strict=True):
        try:
            content = zlib.decompress(blob.data, bufsize=size)
        except zlib.error as error:
            raise ValueError(f"damaged masks ({error})") from None
        if len(content) != size:
            raise ValueError(f"masks of {len(content)} pixels, expected {size}")
        row[:] = np.frombuffer(content, np.uint8)
    return torch.from_numpy(differences).reshape(-1, *shape).cumsum(-1, dtype=torch.uint8)


# ---- Shards: safetensors files of a few hundred images each ------------------------------------
# A shard holds, of P prompts on I images, K queries kept of Q, g pixels a side,
#
#     boxes [P, K, 4], logits [P, K], presence [P, 1]    float32
#     grids [bytes], sizes [P]        K masks and the semantic map, [K + 1, g, g], of `pack`
#     used [P, Q]                     the queries of a score above .5, and the best
#     encoder [P, C, h, w], fpn.0 [I, C, h, w], ...      float16, the finest level first
#
# or, of these, what the cache's mode keeps. Tensors are mapped into memory: what is not read takes
# none.

STATISTICS = ("logits", "presence", "used")
OUTPUTS = (*STATISTICS, "boxes", "grids", "sizes")
FEATURES = ("encoder", "fpn.0", "fpn.1", "fpn.2")

_LIKELY = 0.5  # a query of a higher score is in use


class Shard:
    """A shard on disk.

    Raises:
        ValueError: the file is missing or damaged, or of a cache with another key.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                own_key = (file.metadata() or {}).get("key")
                names: list[str] = file.keys()
                self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None
        if own_key != key:
            raise ValueError(f"{path}: of a cache with key {own_key}, expected {key}")
        sizes = self.tensors.get("sizes", torch.zeros(0, dtype=torch.int64))
        self._ends = sizes.cumsum(0).tolist()

    def row(self, name: str, row: int) -> Tensor:
        """That of one prompt, or of one image."""
        try:
            return self.tensors[name][row]
        except (KeyError, IndexError):
            raise ValueError(f"{self.path}: holds no {name} of row {row}") from None

    def grids(self, row: int) -> NDArray[np.uint8]:
        """The packed masks of one prompt."""
        size = int(self.row("sizes", row))
        return self.tensors["grids"][self._ends[row] - size : self._ends[row]].numpy()

    def bytes_of(self, names: Sequence[str]) -> int:
        """What these of its tensors take."""
        return sum(self.tensors[name].nbytes for name in names if name in self.tensors)


def shard_of(
    teacher: OnlineTeacher,
    images: Sequence[int],
    names: Sequence[str],  # of the tensors to keep
    batch: int,  # images
) -> dict[str, Tensor]:
    """The tensors of a shard: the teacher's predictions for all prompts of the images."""
    parts = []
    for start in range(0, len(images), batch):
        pairs = [
            (image, place)
            for image in images[start : start + batch]
            for place in range(len(teacher.prompted.prompts[image]))
        ]
        parts.append(_tensors(teacher, pairs))
    return {name: torch.cat([part[name] for part in parts]) for name in names if name in parts[0]}


def _tensors(teacher: OnlineTeacher, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    scores, kept = teacher.scored(pairs)
    levels = quantize(torch.cat([kept.masks, kept.semantic], dim=1)).cpu()
    blobs = [pack(of_prompt) for of_prompt in levels]
    used = (scores > _LIKELY).scatter(1, scores.argmax(1, keepdim=True), True)
    tensors = {
        "boxes": kept.boxes,
        "logits": kept.logits,
        "presence": kept.presence,
        "grids": torch.frombuffer(bytearray(b"".join(blobs)), dtype=torch.uint8),
        "sizes": torch.tensor([len(blob) for blob in blobs]),
        "used": used.to(torch.uint8),
        **{f"fpn.{place}": level for place, level in enumerate(kept.fpn)},
    }
    if kept.encoder is not None:
        tensors["encoder"] = kept.encoder
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def write_shard(path: Path, tensors: dict[str, Tensor], key: str) -> None:
    """Write a shard so that there is a whole one or none."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(save(tensors, {"key": key}))
        file.flush()
        os.fsync(file.fileno())  # a rename may reach the disk before the data it names
    partial.replace(path)


# ---- The cache ---------------------------------------------------------------------------------

_FORMAT = 2  # raised with any change of what is written, or of how images are prepared
_TENSORS = {"online": STATISTICS, "outputs": OUTPUTS, "full": (*OUTPUTS, *FEATURES)}
_AGAIN = "`dvc repro -f cache_teacher` makes it anew"


def write_cache(
    folder: Path,
    teacher: OnlineTeacher,
    scratch: Path,  # keeps finished shards, for a run that goes on where this one was killed
) -> None:
    """Write the teacher's predictions for all prompts; a shard is held in memory.

    Several processes share the shards; the first one's folder gets all of them.

    Raises:
        ValueError: a prediction is not finite.
    """
    prompted, texts, config = teacher.prompted, teacher.predictor.texts, teacher.config
    prompts = [len(of_image) for of_image in prompted.prompts]
    images = [image for image, count in enumerate(prompts) if count]
    layout = {"config": config.model_dump(), "precision": teacher.predictor.precision}
    key = cache_key(prompted, teacher.predictor.model, texts, layout)
    index = {"key": key, "layout": layout, "prompts": prompts, "texts": texts.texts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    encoded = {"features": texts.features, "attention": texts.attention}
    (folder / "text.safetensors").write_bytes(save(encoded))

    starts = range(0, len(images), config.shard)[: 1 if config.mode == "online" else None]
    taken = units(len(starts))
    for number in progress(taken, "teacher's predictions", "shard", total=len(starts)):
        if not _is_of(scratch / _name(number), key):
            of_shard = images[starts[number] : starts[number] + config.shard]
            tensors = shard_of(teacher, of_shard, _TENSORS[config.mode], config.images)
            write_shard(scratch / _name(number), tensors, key)
    barrier()
    for number in range(len(starts) if is_main() else 0):
        duplicate(scratch / _name(number), folder / _name(number))


def cache_key(prompted: PromptedImages, model: Any, texts: Texts, layout: Mapping[str, Any]) -> str:
    """A hash of prompts, weights, preparation and layout: all that predictions take but pixels."""
    digest = hashlib.blake2b(digest_size=16)
    prompts = [[(prompt.text, prompt.box) for prompt in group] for group in prompted.prompts]
    settings = [_FORMAT, prompted.images.size, prompts, layout]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    # The text tower has done its work: its features count.
    state = model.state_dict()
    weights = {name: state[name] for name in state if not name.startswith(TEXT)}
    for name, tensor in sorted({**weights, "texts": texts.features}.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content = tensor.detach().cpu().contiguous().flatten()
        digest.update(content.view(torch.uint8).numpy())
    return digest.hexdigest()


def open_cache(folder: Path) -> Cache:
    """Open what `write_cache` wrote.

    Raises:
        ValueError: a file is missing or damaged; the message names the folder.
    """
    try:
        index = json.loads((folder / "index.json").read_bytes())
        texts = load((folder / "text.safetensors").read_bytes())
        return Cache(folder, index, Texts(index["texts"], **texts))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder}: no cache of a teacher ({error}); {_AGAIN}") from None


def open_predictions(
    folder: Path,
    prompted: PromptedImages,
    model: Any,  # the teacher, which predicts itself in mode online; its text tower is not needed
    device: torch.device,
) -> Cache:
    """Open a cache as the predictions of this teacher for these prompts.

    Raises:
        ValueError: it holds those of another teacher or for other prompts, or is damaged.
    """
    cache = open_cache(folder)
    key = cache_key(prompted, model, cache.texts, cache.layout)
    if key != cache.key:
        raise ValueError(f"{folder}: of another teacher or of other prompts; {_AGAIN}")
    if cache.config.mode == "online":
        predictor = Predictor(model, cache.texts, device, cache.layout["precision"])
        cache.teacher = OnlineTeacher(prompted, predictor, cache.config)
    return cache


class Cache:
    """The teacher's predictions; made by `open_cache` or `open_predictions`."""

    teacher: OnlineTeacher | None = None  # which predicts in mode online

    def __init__(self, folder: Path, index: Mapping[str, Any], texts: Texts) -> None:
        self.key: str = index["key"]
        self.layout: dict[str, Any] = index["layout"]
        self.config, self.texts = CacheConfig(**self.layout["config"]), texts
        self._folder, self._images = folder, self.config.shard
        counts = [(image, count) for image, count in enumerate(index["prompts"]) if count]
        self._place = {image: place for place, (image, _) in enumerate(counts)}
        self._first = list(accumulate((count for _, count in counts), initial=0))
        self._open: dict[int, Shard] = {}
        self._logits = logit_table()

    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        """Predictions in the order of the pairs, features of the images as these first come.

        Raises:
            ValueError: there is no such prompt, or a shard is damaged.
        """
        if self.teacher is not None:
            return self.teacher.predictions(pairs)
        rows = [self._row(pair) for pair in pairs]
        grids = self._grids(rows)
        parts: dict[str, Any] = {"masks": grids[:, :-1], "semantic": grids[:, -1:]}
        for name in ("boxes", "logits", "presence"):
            parts[name] = self._stacked(name, rows)
        if self.config.mode == "full":
            images = [divmod(self._place[image], self._images) for image in images_of(pairs)[0]]
            levels = range(self.config.kept_levels)
            parts["fpn"] = tuple(self._stacked(f"fpn.{level}", images) for level in levels)
            parts["encoder"] = self._stacked("encoder", rows)
        return Prediction(**parts)

    def query_usage(self) -> Tensor:
        """How often each of the teacher's queries scored above .5 or best, [Q] long."""
        counts = [shard.tensors["used"].sum(0, dtype=torch.int64) for shard in self.shards()]
        return torch.stack(counts).sum(0)

    def statistics(self) -> dict[str, Any]:
        """How many prompts there are, how likely they are detected, what predictions take on disk.

        `mean_presence` and `mean_score` are of `prompts_read`, which are fewer in mode online.
        """
        shards = list(self.shards())
        presence = torch.cat([shard.tensors["presence"] for shard in shards]).double().sigmoid()
        best = torch.cat([shard.tensors["logits"] for shard in shards]).double().amax(1, True)
        usage = self.query_usage()
        images = len(self._place)
        sizes = {
            f"bytes_per_image_{name}": round(
                sum(shard.bytes_of(names) for shard in shards) / images
            )
            for name, names in (("outputs", OUTPUTS), ("features", FEATURES))
        }
        return {
            "key": self.key,
            "mode": self.config.mode,
            "images": images,
            "prompts": self._first[-1],
            "prompts_read": len(presence),
            "mean_presence": float(presence.mean()),
            "mean_score": float((presence * best.sigmoid()).mean()),  # of each prompt's best query
            "queries": len(usage),
            "queries_used": int((usage > 0).sum()),
            **sizes,
        }

    def shards(self) -> Iterator[Shard]:
        """All of them."""
        count = 1 if self.config.mode == "online" else -(-len(self._place) // self._images)
        return map(self._shard, range(count))

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = Shard(self._folder / _name(number), self.key)
        return self._open[number]

    def _row(self, pair: Pair) -> tuple[int, int]:
        """The shard of a prompt, and its row there."""
        image, prompt = pair
        place = self._place.get(image, -1)
        if place < 0 or not 0 <= prompt < self._first[place + 1] - self._first[place]:
            raise ValueError(f"{self._folder}: image {image} has no prompt {prompt}; {_AGAIN}")
        number = place // self._images
        return number, self._first[place] + prompt - self._first[number * self._images]

    def _stacked(self, name: str, rows: Sequence[tuple[int, int]]) -> Tensor:
        return torch.stack([self._shard(number).row(name, row) for number, row in rows])

    def _grids(self, rows: Sequence[tuple[int, int]]) -> Tensor:
        """Logits of masks and semantic maps, [B, K + 1, g, g]."""
        size = self.config.mask_size
        shape = (self.config.masks + 1, size, size)
        try:
            levels = unpack([self._shard(number).grids(row) for number, row in rows], shape)
        except ValueError as error:
            raise ValueError(f"{self._folder}: {error}; {_AGAIN}") from None
        return self._logits.index_select(0, levels.flatten().int()).view(levels.shape)


def _is_of(path: Path, key: str) -> bool:
    """Whether there is a whole shard of this key, from an earlier run."""
    try:
        Shard(path, key)
    except ValueError:
        return False
    return True


def _name(number: int) -> str:
    return f"{number:04d}.safetensors"
