"""What prepare_clips writes for good shards, and its one line for bad ones."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.clips.shards.dataset import open_clips
from tests.clips.shard_files import latent, members, saved, write_clips, write_tar
from tests.stages.conftest import ROOT, fault, run
from tests.tiny import override

STAGE = "prepare_clips"
TINY_DIGITS = {"clips": 48, "per_shard": 20, "latent_frames": 2, "latent_size": 4}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A repository in which nothing has run, with tiny built-in clips."""
    repo = tmp_path / "bare"
    for name in ("params.yaml", "dvc.yaml"):
        repo.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, repo)
    override(repo, {"clips.digits": TINY_DIGITS})
    return repo


@pytest.fixture
def shards(bare: Path, tmp_path: Path) -> list[Path]:
    """Three shards outside of the repository, which its params name."""
    folder = tmp_path / "wan_synth"
    folder.mkdir()
    paths = [
        write_clips(folder / f"shard-{n:05d}.tar", range(16 * n, 16 * n + 16)) for n in range(3)
    ]
    override(bare, {"clips.source": f"{folder}/shard-*.tar"})
    return paths


def metrics(repo: Path) -> dict[str, int]:
    """The one row of the table, whose splits and faults are in the metrics too."""
    with (repo / "metrics/tables/clips.csv").open() as file:
        (row,) = csv.DictReader(file)
    counts = {name: int(value) for name, value in row.items() if name != "text_rows_used_mean"}
    headline = json.loads((repo / "metrics/clips.json").read_text())
    assert headline == {name: counts[name] for name in ("train", "val", "test", "faults")}
    return counts


def damage(path: Path, number: int) -> str:
    """Put a NaN into one clip of a shard of 16; its key."""
    values = latent(number)
    values[0, 0, 0, 0] = torch.nan
    first = number - number % 16
    content = {name: data for n in range(first, first + 16) for name, data in members(n).items()}
    write_tar(path, content | {f"{number:09d}.latent.pt": saved(values)})
    return f"{number:09d}"


# ---- The good case ---------------------------------------------------------------------------


def test_built_in_clips(bare: Path) -> None:
    run(bare, STAGE)
    clips = open_clips(bare / "data/clips")
    assert clips.codec == "space_time_transform"
    assert len(clips) == metrics(bare)["clips"] == 48
    assert metrics(bare)["clips_estimated"] == 60  # 3 shards, the first of 20
    assert clips.latents([0, 47]).shape == (2, 16, 2, 4, 4)
    assert clips.texts([5]).shape == (1, 16, 32)
    assert re.fullmatch(r"a \w+ \w+ .+, over \w+", clips.prompts([20])[0])
    listed = json.loads((bare / "data/clips/manifest.json").read_text())["shards"]
    assert [shard["path"] for shard in listed] == [f"shard-{n:05d}.tar" for n in range(3)]
    before = {path.name: path.read_bytes() for path in (bare / "data/clips").iterdir()}
    run(bare, STAGE)
    assert before == {path.name: path.read_bytes() for path in (bare / "data/clips").iterdir()}


def test_the_seed_decides_the_clips(bare: Path) -> None:
    run(bare, STAGE)
    first = open_clips(bare / "data/clips").latents([0])
    override(bare, {"seed": 1})
    run(bare, STAGE)
    assert not torch.equal(first, open_clips(bare / "data/clips").latents([0]))


def test_own_shards_stay_where_they_are(bare: Path, shards: list[Path]) -> None:
    run(bare, STAGE)
    assert {path.name for path in (bare / "data/clips").iterdir()} == {"manifest.json", "index.npz"}
    clips = open_clips(bare / "data/clips")
    assert clips.codec == "wan"
    assert clips.keys == [f"{n:09d}" for n in range(48)]
    assert torch.equal(clips.latents([40])[0], latent(40).float())
    expected = {"clips": 48, "shards": 3, "faults": 0, "clips_read": 48}
    assert expected.items() <= metrics(bare).items()


def test_shards_of_urls_are_fetched(bare: Path, shards: list[Path]) -> None:
    """The same clips as those of local shards, from shards of the stage's own."""
    damage(shards[1], 20)
    run(bare, STAGE)
    expected, counted = open_clips(bare / "data/clips"), metrics(bare)
    every = range(len(expected))
    latents, texts = expected.latents(every), expected.texts(every)
    override(bare, {"clips.source": f"file://{shards[0].parent}/shard-{{00000..00002}}.tar"})
    run(bare, STAGE)
    made = {path.name: path.read_bytes() for path in (bare / "data/clips").iterdir()}
    assert set(made) == {"manifest.json", "index.npz", *(path.name for path in shards)}
    assert {**metrics(bare), "bytes": 0} == {**counted, "bytes": 0}
    run(bare, STAGE)
    assert made == {path.name: path.read_bytes() for path in (bare / "data/clips").iterdir()}
    shutil.rmtree(shards[0].parent)
    clips = open_clips(bare / "data/clips")
    assert (clips.codec, clips.keys) == ("wan", expected.keys)
    assert torch.equal(clips.latents(every), latents)
    assert torch.equal(clips.texts(every), texts)


def test_shards_of_urls_are_cropped_when_fetched(bare: Path, shards: list[Path]) -> None:
    override(bare, {"clips.crop": [2, 2, 2]})
    run(bare, STAGE)
    latents = open_clips(bare / "data/clips").latents(range(48))
    override(bare, {"clips.source": f"file://{shards[0].parent}/shard-{{00000..00002}}.tar"})
    run(bare, STAGE)
    clips = open_clips(bare / "data/clips")
    assert torch.equal(clips.latents(range(48)), latents)
    manifest = json.loads((bare / "data/clips/manifest.json").read_text())
    assert manifest["stored_shape"] == manifest["latent_shape"] == [16, 2, 2, 2]


def test_how_much_is_read(bare: Path, shards: list[Path]) -> None:
    damage(shards[1], 20)
    override(bare, {"clips.verify": "first", "clips.checksums": "first"})
    run(bare, STAGE)
    assert {"clips": 48, "clips_read": 16, "faults": 0}.items() <= metrics(bare).items()
    with pytest.raises(ValueError, match="latent of 000000020: holds NaN"):
        open_clips(bare / "data/clips").latents([20])
    sums = json.loads((bare / "data/clips/manifest.json").read_text())["shards"]
    assert [shard["sha256"] is None for shard in sums] == [False, True, True]


def test_fractions(bare: Path, shards: list[Path]) -> None:
    run(bare, STAGE)
    first = metrics(bare)
    override(bare, {"clips.test_fraction": 0.45})
    run(bare, STAGE)
    assert metrics(bare)["test"] > first["test"]
    override(bare, {"clips.val_fraction": 0.45, "clips.test_fraction": 0.25})
    run(bare, STAGE)
    assert metrics(bare)["val"] > first["val"]
    assert metrics(bare)["test"] == first["test"]


# ---- Faults ----------------------------------------------------------------------------------


def test_faults_are_skipped_or_fatal(bare: Path, shards: list[Path]) -> None:
    key = damage(shards[1], 20)
    shards[2].write_bytes(shards[2].read_bytes()[:-40_000])
    run(bare, STAGE)
    listed = json.loads((bare / "data/clips/manifest.json").read_text())["faults"]
    assert len(listed) == metrics(bare)["faults"] >= 2
    assert listed[0] == {
        "shard": "shard-00001.tar",
        "member": key,
        "reason": f"{key}.latent.pt holds NaN or infinite values",
    }
    assert {listing["shard"] for listing in listed[1:]} == {"shard-00002.tar"}
    assert metrics(bare)["clips"] == len(open_clips(bare / "data/clips")) < 47
    override(bare, {"clips.faults": "fatal"})
    line = fault(bare, STAGE)
    assert line.startswith(f"shard-00001.tar: {key}: {key}.latent.pt holds NaN")
    assert f"({len(listed)} faults in all; clips.faults: skip" in line


def test_another_layout_than_the_setting_s(bare: Path, shards: list[Path]) -> None:
    override(bare, {"clips.layout": "tchw"})
    line = fault(bare, STAGE)
    assert line.endswith("read as tchw have 3 channels, expected 16")


def test_no_shards(bare: Path, shards: list[Path]) -> None:
    for path in shards:
        path.unlink()
    assert re.fullmatch(r"clips\.source: .*shard-\*\.tar: no such file.*", fault(bare, STAGE))


def test_urls_that_are_not_opened(bare: Path, tmp_path: Path) -> None:
    for source in (f"pipe:mkdir {tmp_path}/executed; curl https://a", "http://a/{0..3}.tar"):
        override(bare, {"clips.source": source})
        line = fault(bare, STAGE)
        assert line.startswith(f"clips.source: {source.replace('{0..3}', '0')}: expected")
    assert not (tmp_path / "executed").exists()


def test_a_fetched_shard_that_ends_early(bare: Path, shards: list[Path]) -> None:
    source = f"file://{shards[0].parent}/shard-{{00000..00003}}.tar"
    override(bare, {"clips.source": source})
    assert re.match(r"file://.*/shard-00003\.tar: cannot be opened", fault(bare, STAGE))
    shards[1].write_bytes(shards[1].read_bytes()[:-40_000])
    assert re.match(r"file://.*/shard-00001\.tar: .*(cut off|end)", fault(bare, STAGE))


def test_shards_inside_the_repository(bare: Path, shards: list[Path]) -> None:
    shutil.copytree(shards[0].parent, bare / "mine")
    override(bare, {"clips.source": "mine/*.tar"})
    assert "expected a place outside of the repository" in fault(bare, STAGE)


def test_files_that_are_no_shards(bare: Path, shards: list[Path]) -> None:
    for path in shards:
        path.write_text("a note")
    line = fault(bare, STAGE)
    assert line.startswith("no clip can be read; the first fault: shard-00000.tar: ends early or")


def test_too_few_clips_for_three_splits(bare: Path, shards: list[Path]) -> None:
    override(bare, {"clips.digits.clips": 2, "clips.source": "built_in"})
    assert "leave a split empty" in fault(bare, STAGE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clips.layout", "thwc"),
        ("clips.val_fraction", 0),
        ("clips.test_fraction", 0.5),
        ("clips.verify", "none"),
        ("clips.checksums", "some"),
        ("clips.cache_mib", -1),
        ("clips.digits.clips", 0),
        ("clips.digits.latent_frames", 1),
    ],
)
def test_impossible_params(bare: Path, key: str, value: Any) -> None:
    override(bare, {key: value})
    assert fault(bare, STAGE).startswith(f"params.yaml: {key}: ")


def test_a_shard_that_changed_since(bare: Path, shards: list[Path]) -> None:
    run(bare, STAGE)
    write_clips(shards[1], range(16, 30))
    with pytest.raises(ValueError, match=r"00001\.tar: .* run `dvc repro -f prepare_clips` again"):
        open_clips(bare / "data/clips")
