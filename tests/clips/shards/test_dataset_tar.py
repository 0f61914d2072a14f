from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset

from braid.clips.shards.dataset import read_shard, write_shard, write_tensor
from tests.clips.shard_files import latent, members, text, write_clips, write_tar

CLIP = members(7)
NAMES = list(CLIP)


def safe(key: str, content: bytes) -> torch.Tensor | None:
    return torch.load(io.BytesIO(content), weights_only=True) if key.endswith(".pt") else None


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    clips = [
        (f"{n:09d}", {"latent": write_tensor(latent(n)), "prompt": f"é{n}".encode()})
        for n in range(4)
    ]
    write_shard(tmp_path / "shard-00000.tar", clips)
    dataset = webdataset.WebDataset(str(tmp_path / "shard-00000.tar"), shardshuffle=False)
    read = list(dataset.decode(safe))
    assert [clip["__key__"] for clip in read] == [key for key, _ in clips]
    assert [clip["prompt.txt"] for clip in read] == [f"é{n}" for n in range(4)]
    assert all(torch.equal(clip["latent.pt"], latent(n)) for n, clip in enumerate(read))


def test_shards_of_webdataset_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for n in range(3):
            named = {name.split(".", 1)[1]: data for name, data in members(n).items()}
            writer.write({"__key__": f"{n:09d}", **named})
    shard = read_shard(path)
    assert not shard.faults
    assert list(shard.clips) == [f"{n:09d}" for n in range(3)]
    for n, (key, places) in enumerate(shard.clips.items()):
        for kind, suffix in (("latent", "pt"), ("embed", "pt"), ("prompt", "txt")):
            place = places[kind]
            stored = path.read_bytes()[place.offset : place.offset + place.size]
            assert stored == members(n)[f"{key}.{kind}.{suffix}"]


def test_the_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    clips = [("000000001", {"latent": write_tensor(latent(1)), "embed": write_tensor(text(1))})]
    for name in "ab":
        write_shard(tmp_path / name, clips)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "a") as archive:
        assert {(entry.mtime, entry.uid, entry.uname) for entry in archive} == {(0, 0, "")}


def test_the_writer_of_webdataset_gives_the_bytes_of_tarfile(tmp_path: Path) -> None:
    """Members in the clip's order, without the clock and the user in their headers."""
    names = {"latent": "latent.pt", "embed": "embed.pt", "prompt": "prompt.txt"}
    clips = [
        (f"{n:09d}", {kind: members(n)[f"{n:09d}.{name}"] for kind, name in names.items()})
        for n in range(5)
    ]
    write_shard(tmp_path / "a.tar", clips)
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, kinds in clips:
            for kind, content in kinds.items():
                entry = tarfile.TarInfo(f"{key}.{names[kind]}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_stored_view_is_stored_alone() -> None:
    batch = torch.zeros(1000, 4)
    assert len(write_tensor(batch[0])) == len(write_tensor(torch.zeros(4)))


@pytest.mark.parametrize("prefix", ["", "./", "000000007/", "./some/folder.of.mine/", "../../"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_names_of_members(tmp_path: Path, prefix: str, suffix: str) -> None:
    content = {f"{prefix}{name.replace('.pt', suffix)}": data for name, data in CLIP.items()}
    shard = read_shard(write_tar(tmp_path / "a.tar", content))
    assert not shard.faults
    assert set(shard.clips) == {"000000007"}
    assert set(shard.clips["000000007"]) == {"latent", "embed", "prompt"}
    assert shard.latents == 1


def test_members_of_other_names_are_ignored(tmp_path: Path) -> None:
    other = {"README": b"", "000000007.json": b"", "._7.latent.pt": b"", "7.latent.pkl": b""}
    shard = read_shard(write_tar(tmp_path / "a.tar", {**other, **CLIP}))
    assert not shard.faults
    assert set(shard.clips["000000007"]) == {"latent", "embed", "prompt"}
    assert read_shard(write_tar(tmp_path / "b.tar", other)).faults[0].reason.startswith("holds no")


# ---- Shards that end early -------------------------------------------------------------------


def faults_after_cut(tmp_path: Path, length: int) -> tuple[list[str], list[str]]:
    path = write_clips(tmp_path / "a.tar", range(5))
    path.write_bytes(path.read_bytes()[:length])
    shard = read_shard(path)
    return list(shard.clips), [str(fault) for fault in shard.faults]


def edges(tmp_path: Path) -> list[tuple[str, int, int]]:
    """Each member's name, where its header begins and where its bytes end."""
    with tarfile.open(write_clips(tmp_path / "whole.tar", range(5))) as archive:
        return [(entry.name, entry.offset, entry.offset_data + entry.size) for entry in archive]


def test_every_cut_is_detected(tmp_path: Path) -> None:
    """Among them those at a header, which webdataset and tarfile take for the end."""
    end = edges(tmp_path)[-1][2]
    whole = (tmp_path / "whole.tar").stat().st_size
    for length in {*range(0, end, 333), *(cut for _, *cuts in edges(tmp_path) for cut in cuts)}:
        clips, faults = faults_after_cut(tmp_path, length)
        assert faults, length
        assert len(clips) <= 5
    assert faults_after_cut(tmp_path, whole) == ([f"{n:09d}" for n in range(5)], [])


def test_a_cut_that_webdataset_does_not_detect(tmp_path: Path) -> None:
    _, start, _ = edges(tmp_path)[9]  # header of clip 3's first member
    clips, faults = faults_after_cut(tmp_path, start)
    reader = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert len(list(reader)) == 3  # without a word
    assert clips == [f"{n:09d}" for n in range(3)]
    assert faults == [f"a.tar: has no end-of-archive mark at byte {start}: cut off or damaged"]


def test_a_cut_member(tmp_path: Path) -> None:
    name, _, end = edges(tmp_path)[12]
    clips, faults = faults_after_cut(tmp_path, end - 1)
    assert len(clips) == 4
    assert f"a.tar: {name}: is cut off by the end of the shard" in faults
    assert any("000000004: incomplete clip, lacks latent" in fault for fault in faults)


def test_zeros_within_a_shard_are_no_end(tmp_path: Path) -> None:
    path = write_clips(tmp_path / "a.tar", range(5))
    content = bytearray(path.read_bytes())
    _, start, _ = edges(tmp_path)[6]
    content[start : start + 512] = bytes(512)
    path.write_bytes(content)
    assert "no end-of-archive mark" in str(read_shard(path).faults[0])


# ---- Bytes after the end of an archive ----------------------------------------------------------


def test_archives_that_were_joined_are_read_as_one(tmp_path: Path) -> None:
    """`cat a.tar b.tar c.tar`: tarfile and webdataset stop after the first without a word."""
    parts = [range(4), range(4, 8), range(8, 9)]
    joined = b"".join(write_clips(tmp_path / "part.tar", n).read_bytes() for n in parts)
    path = tmp_path / "joined.tar"
    path.write_bytes(joined)
    shard = read_shard(path)
    assert not shard.faults
    assert list(shard.clips) == [f"{n:09d}" for n in range(9)]
    for n, (key, places) in enumerate(shard.clips.items()):
        place = places["latent"]
        stored = joined[place.offset : place.offset + place.size]
        assert stored == members(n)[f"{key}.latent.pt"]
    path.write_bytes(joined[:-8_000])  # the last archive is cut
    assert list(read_shard(path).clips)[:8] == [f"{n:09d}" for n in range(8)]
    assert read_shard(path).faults


@pytest.mark.parametrize("padding", [0, 1, 512, 3 * 512, 2**20 + 512])
def test_zeros_after_the_end_are_padding(tmp_path: Path, padding: int) -> None:
    path = write_clips(tmp_path / "a.tar", range(4))
    path.write_bytes(path.read_bytes() + bytes(padding))
    shard = read_shard(path)
    assert (len(shard.clips), shard.faults) == (4, [])
    path.write_bytes(path.read_bytes() + write_clips(tmp_path / "b.tar", [7]).read_bytes())
    shard = read_shard(path)
    assert (len(shard.clips), len(shard.faults)) == ((5, 0) if padding % 512 == 0 else (4, 1))


def test_other_bytes_after_the_end_are_a_fault(tmp_path: Path) -> None:
    path = write_clips(tmp_path / "a.tar", range(4))
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"a note")
    shard = read_shard(path)
    assert len(shard.clips) == 4
    (fault,) = shard.faults
    assert str(fault) == (
        f"a.tar: what follows the end-of-archive mark, at byte {whole}, is no tar archive"
    )


# ---- Broken clips ----------------------------------------------------------------------------


def test_incomplete_clips(tmp_path: Path) -> None:
    content = {**members(1), **CLIP}
    del content["000000007.embed.pt"], content["000000007.prompt.txt"]
    shard = read_shard(write_tar(tmp_path / "a.tar", content))
    assert list(shard.clips) == ["000000001"]
    assert [str(fault) for fault in shard.faults] == [
        "a.tar: 000000007: incomplete clip, lacks embed and prompt"
    ]


def test_a_member_that_comes_twice(tmp_path: Path) -> None:
    again = {f"b/{NAMES[0]}": b"other"}
    path = write_tar(tmp_path / "a.tar", {**CLIP, **again})
    shard = read_shard(path)
    assert shard.clips["000000007"]["latent"].size == len(CLIP[NAMES[0]])
    assert [str(fault) for fault in shard.faults] == [
        "a.tar: b/000000007.latent.pt: duplicate latent of clip 000000007"
    ]


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo(NAMES[0])
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    shard = read_shard(path)
    assert not shard.clips
    assert "is a link or another special member" in str(shard.faults[0])


def test_a_header_of_negative_size(tmp_path: Path) -> None:
    """A negative size makes Python's tarfile read the same header for ever."""
    path = write_clips(tmp_path / "a.tar", [1])
    content = bytearray(path.read_bytes())
    content[124:136] = b"\xff" * 10 + b"\xfc\x00"  # base 256: -1024
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    path.write_bytes(content)
    assert "negative size" in str(read_shard(path).faults[0])


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for content in (b"", b"a note", hashlib.sha512(b"x").digest() * 50):
        path.write_bytes(content)
        shard = read_shard(path)
        assert not shard.clips
        assert shard.faults[0].reason.startswith("ends early or is no tar file")
