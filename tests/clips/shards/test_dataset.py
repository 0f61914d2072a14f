from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from braid.clips.preparation.scan import join_anchors, scan_shards, write_manifest
from braid.clips.shards.dataset import Clips, _is_finite, open_clips
from braid.data.splits import SPLITS, split_of
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

FRACTIONS = (0.2, 0.3)
WIDE = (16, 16, 32, 40)  # 5/8 of a mebibyte in bfloat16
PACKING = {"a.tar": range(12), "b.tar": range(12, 20), "c.tar": range(20, 32)}


def index(
    folder: Path,
    paths: list[Path],
    *,
    layout: Literal["cthw", "tchw"] = "cthw",
    verify: Literal["first", "all"] = "all",
    checksums: Literal["none", "first", "all"] = "none",
    crop: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    scan = scan_shards(paths, layout, verify, checksums=checksums)
    parts: dict[str, Any] = {"codec": "wan", "layout": layout, "fractions": FRACTIONS}
    return write_manifest(folder, scan, crop=crop, **parts)


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
    order = [31, 0, 13, 13, 5, 20, 0]
    for indices in (order, np.array(order), torch.tensor(order)):
        assert torch.equal(clips.latents(indices), torch.stack([latent(n).float() for n in order]))
    assert torch.equal(clips.texts(order), torch.stack([text(n).float() for n in order]))
    assert clips.prompts(order) == [f"prompt {n} é" for n in order]
    assert [clips.keys[n] for n in order] == [f"{n:09d}" for n in order]
    assert clips.latents([]).shape == (0, *SHAPE)
    assert clips.latents([3]).dtype == clips.texts([3]).dtype == torch.float32


def test_stored_layouts_become_one(tmp_path: Path) -> None:
    content = {}
    for n in range(12):
        turned = latent(n).movedim(1, 0).clone()
        content |= members(n) | {f"{n:09d}.latent.pt": saved(turned[None] if n % 2 else turned)}
    index(tmp_path / "clips", [write_tar(tmp_path / "a.tar", content)], layout="tchw")
    read = open_clips(tmp_path / "clips").latents(range(12))
    assert torch.equal(read, torch.stack([latent(n).float() for n in range(12)]))


def test_texts_of_any_length_are_padded_with_zero_rows(tmp_path: Path) -> None:
    content = {}
    for n in range(12):
        rows = text(n)[: 1 + n % 5].clone()
        content |= members(n) | {f"{n:09d}.embed.pt": saved(rows)}
    index(tmp_path / "clips", [write_tar(tmp_path / "a.tar", content)])
    clips = open_clips(tmp_path / "clips")
    assert clips.text_shape == (5, TEXT[1])
    expected = torch.stack([text(n).float() for n in range(12)])  # zeros after the text
    assert torch.equal(clips.texts(range(12)), expected[:, :5])


def test_anchors(tmp_path: Path) -> None:
    content = {**members(40), "000000040.anchor.pt": saved(latent(99)), **members(41)}
    paths = [*packed(tmp_path), write_tar(tmp_path / "d.tar", content)]
    metrics = index(tmp_path / "clips", paths)
    clips = open_clips(tmp_path / "clips")
    first = clips.keys.index("000000040")
    assert metrics["anchors"] == 1
    assert torch.equal(clips.anchors([first, first]), torch.stack([latent(99).float()] * 2))
    with pytest.raises(ValueError, match="clip 000000041: the shards hold no anchor"):
        clips.anchors([first, first + 1])


def test_anchors_of_other_shards_are_joined_by_key(tmp_path: Path) -> None:
    named = [
        {name.replace(f"{n:09d}", f"clip_{n}"): data for name, data in members(n).items()}
        for n in range(40)
    ]
    parts = [
        {name: data for clip in named[part::2] for name, data in clip.items()} for part in (0, 1)
    ]
    paths = [
        write_tar(tmp_path / f"{name}.tar", part) for name, part in zip("ab", parts, strict=True)
    ]
    anchors = {f"clip_{n}.anchor.pt": saved(latent(100 + n)) for n in (7, 2, 31, 4, 99, 2)}
    half = write_tar(tmp_path / "anchors-1.tar", dict(list(anchors.items())[:2]))
    rest = dict(list(anchors.items())[1:]) | {"clip_5.anchor.pt": saved(latent(5)[:, :1].clone())}
    other = write_tar(tmp_path / "anchors-2.tar", rest)
    scan = scan_shards(paths, "cthw", "all")
    join_anchors(scan, [other, half], "cthw", "all")
    reasons = sorted(str(fault) for fault in scan.faults)
    assert len(reasons) == 3
    assert reasons[0] == "anchors-1.tar: clip_2: a second anchor"
    assert reasons[1].startswith(
        "anchors-2.tar: clip_5: clip_5.anchor.pt anchors [16, 1, 2, 4], exp"
    )
    assert reasons[2] == "anchors-2.tar: clip_99: an anchor of no clip"
    (tmp_path / "clips").mkdir()
    options = {"codec": "wan", "layout": "cthw"}
    metrics = write_manifest(tmp_path / "clips", scan, fractions=(0.2, 0.2), **options)
    assert metrics["anchors"] == 4
    clips = open_clips(tmp_path / "clips")
    order = [clips.keys.index(f"clip_{n}") for n in (4, 31, 2, 7)]
    expected = torch.stack([latent(100 + n).float() for n in (4, 31, 2, 7)])
    assert torch.equal(clips.anchors(order), expected)
    other.write_bytes(b"")
    with pytest.raises(ValueError, match=r"anchors-2\.tar: the shard has 0 bytes"):
        open_clips(tmp_path / "clips")


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
        assert {split_of(clips.keys[i], *FRACTIONS) for i in chosen} == {split}
        assert (np.diff(chosen) > 0).all()
    assert sorted(np.concatenate([clips.indices(split) for split in SPLITS])) == list(range(32))


def test_splits_do_not_change_and_have_their_fractions() -> None:
    splits = [split_of(f"{n:09d}", 0.125, 0.25) for n in range(20_000)]
    assert [n for n in range(20) if splits[n] == "test"] == [0, 2, 4, 9, 10, 15, 19]
    assert [n for n in range(20) if splits[n] == "val"] == [3, 6]
    assert splits.count("val") / len(splits) == pytest.approx(0.125, abs=0.01)
    assert splits.count("test") / len(splits) == pytest.approx(0.25, abs=0.01)
    test = {n for n, split in enumerate(splits) if split == "test"}
    assert test == {n for n in range(20_000) if split_of(f"{n:09d}", 0.4, 0.25) == "test"}


def test_an_empty_split(tmp_path: Path) -> None:
    paths = packed(tmp_path, {"a.tar": [1]})
    with pytest.raises(ValueError, match=r"leave a split empty: \{'train'"):
        index(tmp_path / "clips", paths)


# ---- The manifest ----------------------------------------------------------------------------


def test_metrics(tmp_path: Path) -> None:
    paths = packed(tmp_path)
    metrics = index(tmp_path / "clips", paths)
    assert metrics["clips"] == metrics["train"] + metrics["val"] + metrics["test"] == 32
    assert metrics["clips_estimated"] == 36  # 12 in the first of three
    assert metrics["bytes"] == sum(path.stat().st_size for path in paths)
    used = np.mean([1 + n % 5 for n in range(32)])
    assert metrics["text_rows_used_mean"] == pytest.approx(used, abs=1e-3)
    expected = {"shards": 3, "faults": 0, "anchors": 0, "clips_read": 32, "channels": 16}
    expected |= {"frames": 3, "height": 2, "width": 4, "text_rows": 6, "text_dim": 5}
    assert expected.items() <= metrics.items()


def test_faults_are_listed(tmp_path: Path) -> None:
    paths = packed(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-30_000])
    metrics = index(tmp_path / "clips", paths)
    manifest = json.loads((tmp_path / "clips/manifest.json").read_text())
    assert metrics["faults"] == len(manifest["faults"]) > 0
    assert {fault["shard"] for fault in manifest["faults"]} == {"b.tar"}
    assert metrics["clips"] == len(open_clips(tmp_path / "clips")) < 32
    assert [shard["clips"] for shard in manifest["shards"]][::2] == [12, 12]


def test_a_crop_is_the_first_frames_and_the_middle_of_each(tmp_path: Path) -> None:
    channels, frames, height, width = SHAPE
    paths, crop = packed(tmp_path / "mine"), (frames - 1, height - 1, width - 2)
    index(tmp_path / "whole", paths)
    assert index(tmp_path / "cropped", paths, crop=crop)["width"] == width - 2
    whole, cropped = (open_clips(tmp_path / name) for name in ("whole", "cropped"))
    assert cropped.shape == (channels, *crop)
    middle = whole.latents([3, 0])[:, :, :-1, : height - 1, 1 : width - 1]
    assert torch.equal(cropped.latents([3, 0]), middle)
    message = rf"clips.crop is \[{frames + 1}, 1, 1\], expected at most \[{frames}, {height}"
    with pytest.raises(ValueError, match=message):
        index(tmp_path / "large", paths, crop=(frames + 1, 1, 1))


@pytest.mark.parametrize(("checksums", "count"), [("none", 0), ("first", 1), ("all", 3)])
def test_checksums_go_as_far_as_the_setting_says(
    tmp_path: Path, checksums: Literal["none", "first", "all"], count: int
) -> None:
    paths = packed(tmp_path)
    index(tmp_path / "clips", paths, checksums=checksums)
    listed = json.loads((tmp_path / "clips/manifest.json").read_text())["shards"]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert [shard["sha256"] for shard in listed] == [*digests[:count], *[None] * (3 - count)]


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


def test_clips_that_were_not_verified_are_checked_when_read(tmp_path: Path) -> None:
    damaged = latent(40)
    damaged[0, 0, 0, 0] = torch.nan
    bad = {
        **{**members(40), "000000040.latent.pt": saved(damaged)},
        **{**members(41), "000000041.latent.pt": saved(latent(41)[:, 1:].clone())},
        **{**members(42), "000000042.embed.pt": saved(torch.zeros(2, 2))},
    }
    paths = [*packed(tmp_path), write_tar(tmp_path / "d.tar", bad)]
    metrics = index(tmp_path / "clips", paths, verify="first")
    assert (metrics["clips"], metrics["clips_read"]) == (35, 12)
    clips = open_clips(tmp_path / "clips")
    with pytest.raises(ValueError, match=r"d\.tar: latent of 000000040: holds NaN"):
        clips.latents([3, 32])
    with pytest.raises(ValueError, match=r"000000041: its shape is \[16, 2, 2, 4\], expected"):
        clips.latents([33])
    with pytest.raises(ValueError, match=r"embed of 000000042: its shape is \[2, 2\], expected"):
        clips.texts([34])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_bit_pattern_is_finite_or_not_as_pytorch_says(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    if dtype is torch.float32:
        bits = (bits.to(torch.int32) << 16) + 1
    values = bits.view(dtype)
    finite = values.isfinite()
    assert _is_finite(values[finite])
    assert 0 < (~finite).sum() < len(values)
    for value in values[~finite][:: len(values) // 512]:
        assert not _is_finite(torch.cat([values[finite][:9], value[None]]).unfold(0, 2, 1))
