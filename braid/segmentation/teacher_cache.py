"""The teacher's answers, asked once and written down: what each epoch would ask again.

    write_cache(folder, teacher, mode="outputs", shard=256, batch=1, scratch=scratch)
    answers = open_answers(folder, prompted, model, device)
    answers.predictions([(0, 2), (0, 5), (7, 1)])  # as the teacher would answer

A forward pass of SAM3 costs more than three times what a training step of its student does, and as
images are not augmented it never says anything new. A cache is a folder of

    index.json         its key, what is kept, how many prompts each image has, all texts
    text.safetensors   features and attention of the texts
    0000.safetensors   the answers to all prompts of the first `shard` images that have any, ...

In mode `outputs` answers have no features of the teacher, in mode `full` they have. In mode
`online` there is only a survey of the first shard's images: which queries are in use, and how
likely the teacher finds what it is asked for. Texts are cached all the same; predictions come from
the teacher itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from braid.segmentation import cache_shards
from braid.segmentation.cache_shards import FEATURES, OUTPUTS, SURVEY, Shard
from braid.segmentation.mask_codec import logit_table, unpacked
from braid.segmentation.prompted import Pair, PromptedImages, images_of
from braid.segmentation.sam3 import Prediction
from braid.segmentation.teacher import TEXT
from braid.segmentation.teacher_answers import Kept, OnlineTeacher, Texts

Mode = Literal["online", "outputs", "full"]

_FORMAT = 1  # raised with any change of what is written, or of how images are prepared
_TENSORS = {"online": SURVEY, "outputs": OUTPUTS, "full": (*OUTPUTS, *FEATURES)}
_AGAIN = "`dvc repro -f cache_teacher` makes it anew"


def write_cache(
    folder: Path,
    teacher: OnlineTeacher,
    *,
    mode: Mode,
    shard: int,  # images
    batch: int,  # images, with all their prompts
    scratch: Path,  # keeps finished shards, for a run that goes on where this one was killed
) -> None:
    """Ask the teacher all prompts and write its answers; a shard is held in memory.

    Raises:
        ValueError: an answer is not finite.
    """
    prompts = [len(each) for each in teacher.prompted.prompts]
    asked = [image for image, count in enumerate(prompts) if count]
    layout: dict[str, Any] = {"mode": mode, "shard": shard, "batch": batch}
    layout |= {"kept": asdict(teacher.kept), "precision": teacher.precision}
    key = cache_key(teacher.prompted, teacher.model, teacher.texts, layout)
    index = {"key": key, "layout": layout, "prompts": prompts, "texts": teacher.texts.texts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    texts = {"features": teacher.texts.features, "attention": teacher.texts.attention}
    (folder / "text.safetensors").write_bytes(save(texts))

    starts = range(0, len(asked), shard)[: 1 if mode == "online" else None]
    for number, start in enumerate(tqdm(starts, desc="shards", disable=None)):
        done = scratch / _name(number)
        if not _finished(done, key):
            images = asked[start : start + shard]
            tensors = cache_shards.ask(teacher, images, _TENSORS[mode], batch)
            cache_shards.write_shard(done, tensors, key)
        cache_shards.duplicate(done, folder / _name(number))


def cache_key(prompted: PromptedImages, model: Any, texts: Texts, layout: Mapping[str, Any]) -> str:
    """A hash of prompts, weights, preparation and layout: whatever answers depend on but pixels."""
    digest = hashlib.blake2b(digest_size=16)
    asked = [[(each.text, each.box) for each in prompts] for prompts in prompted.prompts]
    settings = [_FORMAT, prompted.images.size, asked, layout]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    # The text tower has done its work: what it said counts.
    held = {name: each for name, each in model.state_dict().items() if not name.startswith(TEXT)}
    for name, each in sorted({**held, "texts": texts.features}.items()):
        digest.update(f"{name} {each.dtype} {list(each.shape)}".encode())
        content = each.detach().cpu().contiguous().flatten()
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


def open_answers(
    folder: Path,
    prompted: PromptedImages,
    model: Any,  # the teacher, which answers itself in mode online; its text tower is not needed
    device: torch.device,
) -> Cache:
    """Open a cache as the answers of this teacher to these prompts.

    Raises:
        ValueError: it holds those of another teacher or to other prompts, or is damaged.
    """
    cache = open_cache(folder)
    key = cache_key(prompted, model, cache.texts, cache.layout)
    if key != cache.key:
        raise ValueError(f"{folder}: of another teacher or of other prompts; {_AGAIN}")
    if cache.mode == "online":
        precision = cache.layout["precision"]
        cache.teacher = OnlineTeacher(
            prompted, model, cache.texts, cache.kept, device=device, precision=precision
        )
    return cache


class Cache:
    """The teacher's answers; made by `open_cache` or `open_answers`."""

    teacher: OnlineTeacher | None = None  # who answers in mode online

    def __init__(self, folder: Path, index: Mapping[str, Any], texts: Texts) -> None:
        self.key: str = index["key"]
        self.layout: dict[str, Any] = index["layout"]
        self.mode: Mode = self.layout["mode"]
        self.kept, self.texts = Kept(**self.layout["kept"]), texts
        self._folder, self._images = folder, int(self.layout["shard"])
        asked = [(image, count) for image, count in enumerate(index["prompts"]) if count]
        self._place = {image: place for place, (image, _) in enumerate(asked)}
        self._first = list(accumulate((count for _, count in asked), initial=0))
        self._open: dict[int, Shard] = {}
        self._logits = logit_table()

    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        """Answers in the order of the pairs, features of the images as these first come.

        Raises:
            ValueError: there is no such prompt, or a shard is damaged.
        """
        if self.teacher is not None:
            return self.teacher.predictions(pairs)
        rows = [self._row(pair) for pair in pairs]
        grids = self._grids(rows)
        found: dict[str, Any] = {"masks": grids[:, :-1], "semantic": grids[:, -1:]}
        for name in ("boxes", "logits", "presence"):
            found[name] = self._stacked(name, rows)
        if self.mode == "full":
            images = [divmod(self._place[image], self._images) for image in images_of(pairs)[0]]
            levels = range(self.kept.levels)
            found["fpn"] = tuple(self._stacked(f"fpn.{level}", images) for level in levels)
            found["encoder"] = self._stacked("encoder", rows)
        return Prediction(**found)

    def query_usage(self) -> Tensor:
        """How often each of the teacher's queries scored above .5 or best, [Q] long."""
        counts = [shard.tensors["used"].sum(0, dtype=torch.int64) for shard in self.shards()]
        return torch.stack(counts).sum(0)

    def figures(self) -> dict[str, Any]:
        """What was asked, how likely the teacher found it, and what the answers take on disk."""
        shards = list(self.shards())
        presence = torch.cat([each.tensors["presence"] for each in shards]).double().sigmoid()
        best = torch.cat([each.tensors["logits"] for each in shards]).double().amax(1, True)
        usage = self.query_usage()
        images = len(self._place)
        sizes = {
            f"bytes_per_image_{name}": round(sum(each.bytes_of(held) for each in shards) / images)
            for name, held in (("outputs", OUTPUTS), ("features", FEATURES))
        }
        return {
            "key": self.key,
            "mode": self.mode,
            "images": images,
            "prompts": self._first[-1],
            "prompts_in_figures": len(presence),  # fewer in mode online
            "mean_presence": float(presence.mean()),
            "mean_score": float((presence * best.sigmoid()).mean()),  # of each prompt's best query
            "queries": len(usage),
            "queries_used": int((usage > 0).sum()),
            **sizes,
        }

    def shards(self) -> Iterator[Shard]:
        """All of them."""
        count = 1 if self.mode == "online" else -(-len(self._place) // self._images)
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
        size = self.kept.mask_size
        shape = (self.kept.masks + 1, size, size)
        try:
            levels = unpacked([self._shard(number).grids(row) for number, row in rows], shape)
        except ValueError as error:
            raise ValueError(f"{self._folder}: {error}; {_AGAIN}") from None
        return self._logits.index_select(0, levels.flatten().int()).view(levels.shape)


def _finished(path: Path, key: str) -> bool:
    """Whether there is such a shard from an earlier run."""
    try:
        Shard(path, key)
    except ValueError:
        return False
    return True


def _name(number: int) -> str:
    return f"{number:04d}.safetensors"
