"""The teacher's checkpoint: a `Sam3Model` as `save_pretrained` writes it, or where one is.

    write_source(folder, "/models/sam3", image_size=1008)   # or "facebook/sam3", of the hub
    model = load_teacher(folder, device, drop_text=True)
    tokenizer = load_tokenizer(located(folder))

A real checkpoint is 3.4 GB and never copied: `source.json` names its folder and the content of its
weights, so that what was cached of one checkpoint is not taken for another's. Once the features of
all texts are known, the text tower, 353 of 840 million parameters, need not be loaded, and a folder
that was saved without it will do.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from braid.common.config import BUILT_IN, external_path
from braid.common.torchvision import mend_torchvision

SOURCE = "source.json"
MODEL_TYPES = ("sam3", "sam3_video")  # a video checkpoint holds the image model as its detector
TEXT = ("text_encoder", "text_projection")  # the modules that only texts go through


def load_teacher(
    folder: Path,
    device: torch.device | None = None,
    *,
    image_size: int | None = None,  # of the data; None: not checked
    drop_text: bool = False,  # the model then takes text features alone
) -> Any:
    """The frozen `Sam3Model` of a folder in float32 and evaluation mode; without text tower if it
    has none.

    Raises:
        ValueError: there is no such model, it is damaged or has changed, or it takes other images.
    """
    place = located(folder)
    check(place, image_size)
    source = _source(folder)
    if source is not None and source["weights"] != weights_hash(place):
        raise ValueError(f"{place}: other weights than {folder} was made for; run its stage again")
    mend_torchvision()
    from transformers import Sam3Model

    load: Any = Sam3Model.from_pretrained  # whose types leave out the loading info
    try:
        model, loaded = load(
            place,
            dtype=torch.float32,  # whatever the checkpoint or its config.json has
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{place}: its weights cannot be read: {_line(error)}") from None
    missing = {name for name in loaded["missing_keys"] if not name.startswith(TEXT)}
    if missing:
        raise ValueError(f"{place}: its weights lack {min(missing)} and {len(missing) - 1} more")
    if drop_text or loaded["missing_keys"]:
        remove_text_tower(model)
    return model.requires_grad_(False).eval().to(device)


def remove_text_tower(model: Any) -> None:
    """Free what turns tokens into text features."""
    for name in TEXT:
        setattr(model, name, None)


def located(folder: Path) -> Path:
    """Where the model and the tokenizer are: the folder itself, or what its source.json names.

    Raises:
        ValueError: that is not there any more.
    """
    source = _source(folder)
    return folder if source is None else _fetched(source["source"], offline=True)


def write_source(folder: Path, source: str, image_size: int) -> Path:
    """Make `folder` point at a checkpoint; gives its place.

    Args:
        source: a folder, or else the id of a model of the Hugging Face hub, which is downloaded
            into the hub's own cache.
        image_size: of the data, which the checkpoint must take.

    Raises:
        ValueError: it is not there, lies in the repository, or is no whole `Sam3Model` for such
            images.
    """
    if Path(source).is_dir():
        external_path(source, "sam3.teacher.source")
    try:
        place = _fetched(source, offline=False)
    except ValueError as error:
        raise ValueError(f"sam3.teacher.source: {error}, or {BUILT_IN}") from None
    summary = check(place, image_size)
    local = place.resolve() if Path(source).is_dir() else source
    content = {"source": str(local), "weights": weights_hash(place), "config": summary}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return place


def check(place: Path, image_size: int | None) -> dict[str, Any]:
    """Check a checkpoint without loading it; a summary of its configuration.

    Raises:
        ValueError: no configuration or weights, broken ones, or those of something else.
    """
    if not place.is_dir():
        raise ValueError(f"{place}: no such folder, expected one with a Sam3Model")
    kind = _json(place / "config.json").get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"{place / 'config.json'}: model_type is {kind!r}, expected 'sam3'")
    for file in weight_files(place):
        try:
            with safe_open(file, framework="pt"):  # its table has to fit its length
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: missing or damaged ({_line(error)})") from None
    mend_torchvision()
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{place / 'config.json'}: cannot be read ({_line(error)})") from None
    config = getattr(config, "detector_config", config)
    side = config.vision_config.image_size
    if image_size not in (None, side):
        raise ValueError(
            f"{place}: takes images of {side} pixels, sam3.data.image_size is {image_size}"
        )
    return {
        "model_type": kind,
        "image_size": side,
        "queries": config.detr_decoder_config.num_queries,
        "width": config.detr_decoder_config.hidden_size,
        "text_length": config.text_config.max_position_embeddings,
    }


def weight_files(place: Path) -> list[Path]:
    """The safetensors of a checkpoint, sorted: one file, or the shards that its index lists.

    Raises:
        ValueError: there are none, or the index names files elsewhere.
    """
    index = place / "model.safetensors.index.json"
    if not index.is_file():
        return [place / "model.safetensors"]
    names = sorted(set(_json(index).get("weight_map", {}).values()))
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{index}: expected a weight_map to files beside it")
    return [place / name for name in names]


def weights_hash(place: Path) -> str:
    """A hash of the content of all weights."""
    digest = hashlib.blake2b(digest_size=16)
    for path in weight_files(place):
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.hexdigest()


def _fetched(source: str, *, offline: bool) -> Path:
    """A folder as it is; a model of the hub from its cache, where a download put it."""
    if Path(source).is_dir():
        return Path(source)
    if Path(source).is_absolute() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise ValueError(f"{source}: no such folder, expected one, the id of a model of the hub")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt"]
        return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:  # whatever the client lets through
        raise ValueError(
            f"{source}: no such folder, and not had from the hub: {_line(error)}"
        ) from None


def _source(folder: Path) -> dict[str, Any] | None:
    """What source.json says; None where the folder has the model itself."""
    if not (folder / SOURCE).is_file():
        return None
    content = _json(folder / SOURCE)
    if not isinstance(content.get("source"), str) or not isinstance(content.get("weights"), str):
        raise ValueError(f"{folder / SOURCE}: expected the strings source and weights")
    return content


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: missing or no JSON ({_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
