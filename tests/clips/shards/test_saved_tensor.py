from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.clips.shards import saved_tensor
from braid.clips.shards.saved_tensor import load_by_torch, load_tensor
from tests.clips.shard_files import latent, saved


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    forms: dict[int, Any] = {}
    monkeypatch.setattr(saved_tensor, "_forms", forms)
    return forms


def same(left: object, right: object) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right)
    like = (left.shape, left.dtype, left.stride()) == (right.shape, right.dtype, right.stride())
    return like and left.detach().cpu().contiguous().view(-1).view(torch.uint8).equal(
        right.detach().cpu().contiguous().view(-1).view(torch.uint8)
    )


FILES = {
    "bfloat16": [saved(latent(n)) for n in range(3)],
    "float16": [saved(latent(n).half()) for n in range(3)],
    "float32": [saved(latent(n).float()) for n in range(3)],
    "with gradients": [saved(latent(n).float().requires_grad_()) for n in range(3)],
    "turned": [saved(latent(n).movedim(0, 1)) for n in range(3)],
    "a view": [saved(latent(n)[2:5]) for n in range(3)],
    "no numbers": [saved(torch.zeros(3, 0))] * 3,
    "one number": [saved(torch.tensor(float(n))) for n in range(3)],
    "a parameter": [saved(torch.nn.Parameter(latent(n).float())) for n in range(3)],
    "a dict": [saved({"latent": latent(n)}) for n in range(3)],
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_loaded_is_what_pytorch_loads(name: str) -> None:
    for content in FILES[name]:
        for given in (content, memoryview(bytearray(content))):
            assert same(load_tensor(given), load_by_torch(content))


def test_files_of_the_older_format_and_of_a_path(tmp_path: Path) -> None:
    for n in range(3):
        buffer = io.BytesIO()
        torch.save(latent(n), buffer, _use_new_zipfile_serialization=False)
        torch.save(latent(n), tmp_path / "some_name.pt")
        for content in (buffer.getvalue(), (tmp_path / "some_name.pt").read_bytes()):
            assert same(load_tensor(content), latent(n))


def test_like_files_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def counted(content: bytes) -> object:
        loaded.append(content)
        return load_by_torch(content)

    monkeypatch.setattr(saved_tensor, "load_by_torch", counted)
    for name in ("bfloat16", "float32", "one number"):
        for content in FILES[name]:
            load_tensor(content)
        assert loaded.pop() == FILES[name][0]
        assert not loaded
    assert len(FILES["float16"][0]) == len(FILES["bfloat16"][0])  # of another dtype
    for content in FILES["float16"]:
        load_tensor(content)
    assert loaded == FILES["float16"]


def test_a_changed_byte_is_a_number_s_or_the_file_is_pytorch_s_to_load(
    forgotten: dict[int, Any],
) -> None:
    first, second = saved(latent(0)[:, :1].clone()), saved(latent(1)[:, :1].clone())
    values = load_tensor(first)
    assert isinstance(values, Tensor)
    taken = 0
    for position in range(len(second)):
        changed = bytearray(second)
        changed[position] ^= 0x55
        viewed = forgotten[len(first)].view(bytes(changed))
        if viewed is not None:
            assert same(viewed, load_by_torch(bytes(changed))), position
            taken += 1
    assert taken == values.nbytes + 40 + 4 * 4  # the id, and two checksums of each of them


def test_a_program_of_the_same_length_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    good, trap = saved(latent(0)), pickle.dumps(Trap(), 2)
    load_tensor(good)
    start = good.index(b"\x80\x02ctorch")  # of the pickle
    for content in (trap.ljust(len(good), b"\0"), good[:start] + trap + good[start + len(trap) :]):
        assert len(content) == len(good)
        with pytest.raises(pickle.UnpicklingError, match="mkdir"):
            load_tensor(content)
    assert not (tmp_path / "executed").exists()


def test_the_tensor_lies_in_memory_that_may_be_written_to_alone(
    forgotten: dict[int, Any], recwarn: pytest.WarningsRecorder
) -> None:
    first, second = FILES["bfloat16"][:2]
    load_tensor(first)
    kept = bytes(second)
    for given in (second, memoryview(bytearray(second))):
        values = load_tensor(given)
        assert isinstance(values, Tensor)
        values.zero_()
        assert (bytes(given) == kept) == isinstance(given, bytes)
    assert not recwarn.list
    assert len(forgotten) == 1


def test_a_tensor_that_is_not_strided() -> None:
    for _ in range(3):
        values = load_tensor(saved(torch.eye(3).to_sparse()))
        assert isinstance(values, Tensor)
        assert torch.equal(values.to_dense(), torch.eye(3))


def test_so_many_lengths_are_kept(
    forgotten: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_tensor, "_MOST", 3)
    for rows in range(1, 9):
        values = torch.randn(64 * rows)
        assert same(load_tensor(saved(values)), values)
    assert len(forgotten) == 3
