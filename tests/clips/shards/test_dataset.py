from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from braid.clips.preparation.scan import survey_shards, write_manifest
from braid.clips.shards.shards import Clips, open_clips
from braid.common.splits import SPLITS, split_of
from tests.clips.shard_files import (
    SHAPE,
    TEXT,
    latent,
    members,
    saved,
    text,
    write_clips,
    write_tar,
)

SHARES = (0.2, 0.3)
WIDE = (16, 16, 32, 40)  # 5/8 of a mebibyte in bfloat16
PACKING = {"a.tar": range(12), "b.tar": range(12, 20), "c.tar": range(20, 32)}


def index(
    folder: Path,
    paths: list[Path],
    *,
    layout: Literal["cthw", "tchw"] = "cthw",
    verify: Literal["first", "all"] = "all",
    checksums: Literal["none", "first", "all"] = "none",
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    found = survey_shards(paths, layout, verify)
    return write_manifest(
        folder, found, codec="wan", layout=layout, shares=SHARES, checksums=checksums
    )


def packed(folder: Path, packing: dict[str, Any] = PACKING) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [write_clips(folder / name, list(numbers)) for name, numbers in packing.items()]


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    index(tmp_path / "clips", packed(tmp_path / "mine"))
    return open_clips(tmp_path / "clips")


# ---- Reading ---------------------------------------------------------------------------------


def test_any_clips_in_any_order(clips: Clips) -> None:
    assert (len(clips), clips.shape, clips.text_shape, clips.codec) == (32, SHAPE, TEXT, "wan")
    wanted = [31, 0, 13, 13, 5, 20, 0]
    for each in (wanted, np.array(wanted), torch.tensor(wanted)):
        assert torch.equal(clips.latents(each), torch.stack([latent(n).float() for n in wanted]))
    assert torch.equal(clips.texts(wanted), torch.stack([text(n).float() for n in wanted]))
    assert clips.prompts(wanted) == [f"prompt {n} é" for n in wanted]
    assert [clips.keys[n] for n in wanted] == [f"{n:09d}" for n in wanted]
    assert clips.latents([]).shape == (0, *SHAPE)
    assert clips.latents([3]).dtype == clips.texts([3]).dtype == torch.float32


def test_stored_layouts_are_brought_to_one(tmp_path: Path) -> None:
    content = {}
    for n in range(12):
        turned = latent(n).movedim(1, 0).clone()
        content |= members(n) | {f"{n:09d}.latent.pt": saved(turned[None] if n % 2 else turned)}
    index(tmp_path / "clips", [write_tar(tmp_path / "a.tar", content)], layout="tchw")
    read = open_clips(tmp_path / "clips").latents(range(12))
    assert torch.equal(read, torch.stack([latent(n).float() for n in range(12)]))


def test_anchors(tmp_path: Path) -> None:
    content = {**members(40), "000000040.anchor.pt": saved(latent(99)), **members(41)}
    paths = [*packed(tmp_path), write_tar(tmp_path / "d.tar", content)]
    figures = index(tmp_path / "clips", paths)
    clips = open_clips(tmp_path / "clips")
    first = clips.keys.index("000000040")
    assert figures["anchors"] == 1
    assert torch.equal(clips.anchors([first, first]), torch.stack([latent(99).float()] * 2))
    with pytest.raises(ValueError, match="clip 000000041: the shards hold no anchor"):
        clips.anchors([first, first + 1])


# ---- The cache -------------------------------------------------------------------------------


def wide_clips(tmp_path: Path) -> list[Path]:
    content = {}
    for n in range(12):
        values = torch.full(WIDE, float(n)).bfloat16()
        content |= {**members(n), f"{n:09d}.latent.pt": saved(values)}
    return [write_tar(tmp_path / "a.tar", content)]


@pytest.mark.parametrize(("mebibytes", "kept"), [(0, 0), (1, 1), (2, 3), (5, 8), (1000, 12)])
def test_the_cache_keeps_what_fits_and_no_more(tmp_path: Path, mebibytes: int, kept: int) -> None:
    (path,) = wide_clips(tmp_path)
    index(tmp_path / "clips", [path])
    clips = open_clips(tmp_path / "clips", cache_mib=mebibytes)
    order = [5, 3, 0, 1, 2, 4, 6, 7, 8, 9, 10, 11]
    first = torch.cat([clips.latents(order[:3]), clips.latents(order[3:])])
    assert torch.equal(first[:, 0, 0, 0, 0], torch.tensor(order).float())
    assert torch.equal(clips.latents(order), first)
    path.write_bytes(b"")  # what is read now comes from the cache
    readable = []
    for clip in range(12):
        try:
            assert (clips.latents([clip]) == clip).all()
            readable.append(clip)
        except ValueError:
            pass
    assert len(readable) == kept


# ---- Splits ----------------------------------------------------------------------------------


def test_splits_depend_on_keys_alone(tmp_path: Path, clips: Clips) -> None:
    shuffled = {"x.tar": [*range(31, 15, -1)], "y.tar": [3, 1, 2, 0, *range(4, 16)]}
    index(tmp_path / "other", packed(tmp_path / "theirs", shuffled))
    other = open_clips(tmp_path / "other")
    assert clips.keys != other.keys
    for split in SPLITS:
        chosen, same = clips.indices(split), other.indices(split)
        assert len(chosen)
        assert {clips.keys[i] for i in chosen} == {other.keys[i] for i in same}
        assert {split_of(clips.keys[i], *SHARES) for i in chosen} == {split}
        assert (np.diff(chosen) > 0).all()
    assert sorted(np.concatenate([clips.indices(each) for each in SPLITS])) == list(range(32))


def test_splits_stay_as_they_are_and_hold_their_shares() -> None:
    found = [split_of(f"{n:09d}", 0.125, 0.25) for n in range(20_000)]
    assert [n for n in range(20) if found[n] == "test"] == [0, 2, 4, 9, 10, 15, 19]
    assert [n for n in range(20) if found[n] == "val"] == [3, 6]
    assert found.count("val") / len(found) == pytest.approx(0.125, abs=0.01)
    assert found.count("test") / len(found) == pytest.approx(0.25, abs=0.01)
    test = {n for n, each in enumerate(found) if each == "test"}
    assert test == {n for n in range(20_000) if split_of(f"{n:09d}", 0.4, 0.25) == "test"}


def test_an_empty_split(tmp_path: Path) -> None:
    paths = packed(tmp_path, {"a.tar": [1]})
    with pytest.raises(ValueError, match=r"leave a split empty: \{'train'"):
        index(tmp_path / "clips", paths)


# ---- The manifest ----------------------------------------------------------------------------


def test_figures(tmp_path: Path) -> None:
    paths = packed(tmp_path)
    figures = index(tmp_path / "clips", paths)
    assert figures["clips"] == figures["train"] + figures["val"] + figures["test"] == 32
    assert figures["clips_estimated"] == 36  # 12 in the first of three
    assert figures["bytes"] == sum(path.stat().st_size for path in paths)
    used = np.mean([1 + n % 5 for n in range(32)])
    assert figures["text_rows_used_mean"] == pytest.approx(used, abs=1e-3)
    expected = {"shards": 3, "faults": 0, "anchors": 0, "clips_read": 32, "channels": 16}
    expected |= {"frames": 3, "height": 2, "width": 4, "text_rows": 6, "text_dim": 5}
    assert expected.items() <= figures.items()


def test_faults_are_listed(tmp_path: Path) -> None:
    paths = packed(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-30_000])
    figures = index(tmp_path / "clips", paths)
    manifest = json.loads((tmp_path / "clips/manifest.json").read_text())
    assert figures["faults"] == len(manifest["faults"]) > 0
    assert {fault["shard"] for fault in manifest["faults"]} == {"b.tar"}
    assert figures["clips"] == len(open_clips(tmp_path / "clips")) < 32
    assert [shard["clips"] for shard in manifest["shards"]][::2] == [12, 12]


@pytest.mark.parametrize(("checksums", "count"), [("none", 0), ("first", 1), ("all", 3)])
def test_checksums_go_as_far_as_asked(
    tmp_path: Path, checksums: Literal["none", "first", "all"], count: int
) -> None:
    paths = packed(tmp_path)
    index(tmp_path / "clips", paths, checksums=checksums)
    listed = json.loads((tmp_path / "clips/manifest.json").read_text())["shards"]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert [each["sha256"] for each in listed] == [*digests[:count], *[None] * (3 - count)]


def test_shards_inside_the_folder_move_with_it(tmp_path: Path) -> None:
    index(tmp_path / "clips", packed(tmp_path / "clips"))
    (tmp_path / "clips").rename(tmp_path / "moved")
    assert torch.equal(open_clips(tmp_path / "moved").latents([31])[0], latent(31).float())


def test_the_same_shards_give_the_same_bytes(tmp_path: Path) -> None:
    paths = packed(tmp_path)
    for name in "xy":
        index(tmp_path / name, paths, checksums="all")
    for name in ("manifest.json", "index.npz"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


# ---- Shards that changed since ---------------------------------------------------------------


def test_a_shard_of_another_size(tmp_path: Path, clips: Clips) -> None:
    path = tmp_path / "mine/b.tar"
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(ValueError, match=r"b\.tar: the shard has .* `dvc repro -f prepare_clips`"):
        open_clips(tmp_path / "clips")
    path.unlink()
    with pytest.raises(ValueError, match=r"b\.tar: the shard is gone; run `dvc repro -f"):
        open_clips(tmp_path / "clips")


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json: cannot be read .* run `dvc repro -f"):
        open_clips(tmp_path)


def test_what_was_not_verified_is_checked_when_it_is_read(tmp_path: Path) -> None:
    spoilt = latent(40)
    spoilt[0, 0, 0, 0] = torch.nan
    bad = {
        **{**members(40), "000000040.latent.pt": saved(spoilt)},
        **{**members(41), "000000041.latent.pt": saved(latent(41)[:, 1:].clone())},
        **{**members(42), "000000042.embed.pt": saved(torch.zeros(2, 2))},
    }
    paths = [*packed(tmp_path), write_tar(tmp_path / "d.tar", bad)]
    figures = index(tmp_path / "clips", paths, verify="first")
    assert (figures["clips"], figures["clips_read"]) == (35, 12)
    clips = open_clips(tmp_path / "clips")
    with pytest.raises(ValueError, match=r"d\.tar: latent of 000000040: holds NaN"):
        clips.latents([3, 32])
    with pytest.raises(ValueError, match=r"000000041: its shape is \[16, 2, 2, 4\], expected"):
        clips.latents([33])
    with pytest.raises(ValueError, match=r"embed of 000000042: its shape is \[2, 2\], expected"):
        clips.texts([34])
