"""A trained model on disk: `model.safetensors` and a `config.json` to build it from."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write weights and config; equal models give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_model(
    folder: Path, build: Callable[..., Model], what: str
) -> tuple[dict[str, Any], Model]:
    """The config and the model that `save_model` wrote; `build` takes its entries as keywords.

    Raises:
        ValueError: a file is missing or broken; the message names the folder and `what` it is.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = build(**config)
        model.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: expected config.json and model.safetensors of a {what} ({error})"
        ) from None
    return config, model
