from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from braid.clips.preparation import scan as scan_module
from braid.clips.preparation.scan import TEXT_ROWS, Format, find_shards, scan_shards
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

FORMAT = Format(SHAPE, TEXT[1], "bfloat16")
LATENT, EMBED, PROMPT = members(2)


class Planted:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def with_value(value: float) -> torch.Tensor:
    values = latent(2)
    values[3, 1, 0, 2] = value
    return values


def deflated(value: torch.Tensor) -> bytes:
    """A tensor file that says it holds far more than it has bytes for."""
    small = io.BytesIO(saved(value))
    out = io.BytesIO()
    with (
        zipfile.ZipFile(small) as stored,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    return out.getvalue()


DAMAGED = [
    ({LATENT: b"not a tensor"}, f"{LATENT} is no tensor file"),
    ({LATENT: saved(latent(2))[:-300]}, f"{LATENT} is no tensor file"),
    ({LATENT: b""}, f"{LATENT} is no tensor file"),
    ({LATENT: saved([latent(2)])}, f"{LATENT} holds list, expected a tensor"),
    ({LATENT: saved(latent(2).int())}, f"{LATENT} holds torch.int32 values"),
    ({LATENT: saved(latent(2).double())}, f"{LATENT} holds torch.float64 values"),
    ({LATENT: saved(latent(2).float().to_sparse())}, f"{LATENT} "),
    ({LATENT: saved(torch.zeros(1).expand(16, 3, 60, 104))}, f"{LATENT} holds 1"),
    ({LATENT: deflated(torch.zeros(16, 3, 200, 400))}, f"{LATENT} "),
    ({LATENT: saved(with_value(torch.nan))}, f"{LATENT} holds NaN or infinite values"),
    ({LATENT: saved(with_value(torch.inf))}, f"{LATENT} holds NaN or infinite values"),
    ({LATENT: saved(latent(2)[:, 0])}, f"{LATENT} latents [16, 2, 4] have 3 axes, expected 4"),
    ({LATENT: saved(latent(2).expand(2, *SHAPE).clone())}, "have 5 axes, expected 4"),
    ({LATENT: saved(latent(2)[:8].clone())}, "have 8 channels, expected 16"),
    ({LATENT: saved(latent(2)[:, :2].clone())}, "has bfloat16 latents [16, 2, 2, 4]"),
    ({LATENT: saved(latent(2).half())}, "has float16 latents"),
    ({EMBED: saved(torch.zeros(6, 4).bfloat16())}, "text [L, 4], most clips bfloat16"),
    ({EMBED: saved(torch.zeros(513, 5))}, "has a text of 513 rows, expected 512 at most"),
    ({EMBED: saved(torch.zeros(2, 6, 5))}, f"{EMBED} the text embedding [2, 6, 5] have 3 axes"),
    ({EMBED: saved(torch.full(TEXT, torch.nan))}, f"{EMBED} holds NaN"),
    ({PROMPT: b"\xff\xfe"}, f"{PROMPT} is not UTF-8 text"),
    ({"000000002.anchor.pt": saved(latent(2)[:, :1].clone())}, "000000002.anchor.pt anchors"),
    ({"000000002.anchor.pt": b""}, "000000002.anchor.pt is no tensor file"),
]


@pytest.mark.parametrize(("damaged", "reason"), DAMAGED)
def test_a_damaged_clip_is_listed_and_left_out(
    tmp_path: Path, damaged: dict[str, bytes], reason: str
) -> None:
    content = {**members(1), **members(2), **damaged, **members(3), **members(4)}
    scan = scan_shards([write_tar(tmp_path / "a.tar", content)], "cthw", "all")
    (fault,) = scan.faults
    assert (fault.shard, fault.member) == ("a.tar", "000000002")
    assert reason in fault.reason
    assert list(scan.shards[0].clips) == ["000000001", "000000003", "000000004"]
    assert scan.format == FORMAT


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("framing", [saved, pickle.dumps])
def test_a_planted_program_does_not_run(tmp_path: Path, framing: object) -> None:
    assert callable(framing)
    mark = tmp_path / "mark"
    content = {**members(1), **members(2), LATENT: framing(Planted(mark))}
    scan = scan_shards([write_tar(tmp_path / "a.tar", content)], "cthw", "all")
    assert not mark.exists()
    assert f"{LATENT} is no tensor file" in str(scan.faults[0])
    pickle.loads(pickle.dumps(Planted(mark)))  # it would have worked
    assert mark.exists()


def test_a_leading_batch_axis_and_both_layouts(tmp_path: Path) -> None:
    stored = {"cthw": latent(2), "tchw": latent(2).movedim(1, 0)}
    for layout in ("cthw", "tchw"):
        for batch in (False, True):
            values = stored[layout][None] if batch else stored[layout]
            text = torch.ones(TEXT)[None] if batch else torch.ones(TEXT)
            damaged = {LATENT: saved(values.clone()), EMBED: saved(text)}
            path = write_tar(tmp_path / "a.tar", {**members(2), **damaged})
            scan = scan_shards([path], layout, "all")  # type: ignore[arg-type]
            assert not scan.faults
            assert scan.format == FORMAT


def test_the_layout_is_not_guessed(tmp_path: Path) -> None:
    path = write_clips(tmp_path / "a.tar", [1])
    with pytest.raises(ValueError, match=r"read as tchw have 3 channels, expected 16"):
        scan_shards([path], "tchw", "all")


def test_a_key_belongs_to_the_first_shard_that_has_it(tmp_path: Path) -> None:
    paths = [write_clips(tmp_path / "a.tar", [1, 2]), write_clips(tmp_path / "b.tar", [2, 3])]
    scan = scan_shards(paths, "cthw", "all")
    assert [list(shard.clips) for shard in scan.shards] == [
        ["000000001", "000000002"],
        ["000000003"],
    ]
    assert [str(fault) for fault in scan.faults] == [
        "b.tar: 000000002: duplicate key, an earlier shard has it"
    ]


def test_a_first_clip_of_another_format_does_not_decide(tmp_path: Path) -> None:
    content = {**members(2), LATENT: saved(latent(2)[:, :2].clone()), **members(3), **members(4)}
    scan = scan_shards([write_tar(tmp_path / "a.tar", content)], "cthw", "all")
    assert scan.format == FORMAT
    assert len(scan.faults) == 1


def test_what_is_verified(tmp_path: Path) -> None:
    damaged = {LATENT: saved(with_value(torch.nan))}
    paths = [
        write_tar(tmp_path / "a.tar", {"000000009.latent.pt": b""}),
        write_clips(tmp_path / "b.tar", [1]),
        write_tar(tmp_path / "c.tar", {**members(2), **damaged}),
    ]
    every, first = (scan_shards(paths, "cthw", verify) for verify in ("all", "first"))
    assert len(every.faults) == 2  # of the first and the last shard
    assert len(first.faults) == 1
    assert list(every.formats) == list(first.formats) == ["000000001"]
    assert list(first.shards[2].clips) == ["000000002"]


def test_a_shard_is_read_again_only_if_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_clips(tmp_path / f"{n}.tar", [n, 10 + n]) for n in range(3)]
    write_tar(paths[1], {**members(2), LATENT: saved(with_value(torch.nan)), **members(5)})
    more = {"checksums": "all", "scratch": tmp_path / "scratch"}
    before = scan_shards(paths, "cthw", "all", **more)
    read, reader = [], scan_module._read_clips
    monkeypatch.setattr(
        scan_module,
        "_read_clips",
        lambda shard, layout: (read.append(shard.path.name), reader(shard, layout))[1],
    )
    assert scan_shards(paths, "cthw", "all", **more) == before
    assert scan_shards(paths, "cthw", "all", checksums="all") == before
    assert read == ["0.tar", "1.tar", "2.tar"]
    write_clips(paths[2], [7, 8, 9])
    after = scan_shards(paths, "cthw", "all", **more)
    assert read[3:] == ["2.tar"]
    assert after.shards[:2] == before.shards[:2]
    assert after.checksums[2] != before.checksums[2]


def test_texts_are_measured_without_their_padding(tmp_path: Path) -> None:
    scan = scan_shards([write_clips(tmp_path / "a.tar", range(5))], "cthw", "all")
    assert scan.lengths == [1, 2, 3, 4, 5]


def unpadded(path: Path, numbers: Sequence[int]) -> Path:
    """Texts as raw umT5 output is: as long as their prompts, 1 to 5 rows."""
    content = {}
    for n in numbers:
        content |= members(n) | {f"{n:09d}.embed.pt": saved(text(n)[: 1 + n % 5].clone())}
    return write_tar(path, content)


def test_texts_that_were_not_padded_are_no_faults(tmp_path: Path) -> None:
    paths = [unpadded(tmp_path / "a.tar", range(1, 4)), unpadded(tmp_path / "b.tar", range(4, 9))]
    scan = scan_shards(paths, "cthw", "all")
    assert not scan.faults
    assert sum(len(shard.clips) for shard in scan.shards) == 8
    assert scan.padded_rows == 5  # of the longest
    first = scan_shards(paths, "cthw", "first")
    assert first.padded_rows == TEXT_ROWS  # the others may be longer than those read
    padded = scan_shards([write_clips(tmp_path / "c.tar", range(4)), *paths], "cthw", "first")
    assert padded.padded_rows == TEXT[0]


def test_no_clip_at_all(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"000000002.latent.pt": b""})
    with pytest.raises(
        ValueError, match=r"no clip can be read; the first fault: a\.tar: 000000002"
    ):
        scan_shards([path], "cthw", "first")


def test_shards_are_plain_files_in_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.tar").mkdir()
    elsewhere = tmp_path / "elsewhere"
    assert [path.name for path in find_shards(f"{tmp_path}/*.tar", elsewhere)] == ["a.tar", "b.tar"]
    for source in (f"{tmp_path}/e-*.tar", "pipe:cat a.tar", "https://example.org/a.tar"):
        with pytest.raises(ValueError, match=r"clips\.source: .*: no such file"):
            find_shards(source, elsewhere)
    with pytest.raises(ValueError, match=r"expected a place outside of the repository"):
        find_shards(f"{tmp_path}/*.tar", tmp_path)
