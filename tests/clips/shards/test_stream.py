from __future__ import annotations

import os
import pickle
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import fsspec
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from braid.clips.preparation.scan import scan_shards, write_manifest
from braid.clips.shards.dataset import Clips, open_clips, read_shard
from braid.clips.shards.stream import (
    SCHEMES,
    expand_urls,
    fetch_shards,
    is_url,
    require_allowed,
    stream_clips,
)
from tests.clips.shard_files import latent, members, saved, write_clips, write_tar

PACKING = {"a.tar": range(12), "b.tar": range(12, 20), "c.tar": range(20, 32)}


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [write_clips(tmp_path / name, list(numbers)) for name, numbers in PACKING.items()]


@pytest.fixture
def urls(shards: list[Path]) -> list[str]:
    return [str(path) for path in shards]


@pytest.fixture
def store(shards: list[Path]) -> Iterator[list[str]]:
    """The shards in an object store of this process's memory."""
    memory = fsspec.filesystem("memory")
    for path in shards:
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield [f"memory://bucket/{path.name}" for path in shards]
    memory.rm("/bucket", recursive=True)


def indexed(
    folder: Path,
    paths: list[Path],
    layout: Literal["cthw", "tchw"] = "cthw",
    crop: tuple[int, int, int] | None = None,
) -> Clips:
    folder.mkdir(exist_ok=True)
    scan = scan_shards(paths, layout, "all")
    options = {"codec": "wan", "fractions": (0.2, 0.3)}
    write_manifest(folder, scan, layout=layout, crop=crop, **options)
    return open_clips(folder)


class Ranges(SimpleHTTPRequestHandler):
    """A store that gives what ranges of a file a reader names."""

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(Path(self.translate_path(self.path)).read_bytes())

    def answer(self, content: bytes) -> None:
        size = Path(self.translate_path(self.path)).stat().st_size
        first, last = 0, size - 1
        if named := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(named[1]), min(int(named[2]), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests' output is read."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path))) as http:
        thread = Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


# ---- One set, two paths ----------------------------------------------------------------------


def test_the_same_clips_in_the_same_order_as_by_the_index(
    tmp_path: Path, shards: list[Path], urls: list[str], store: list[str]
) -> None:
    clips = indexed(tmp_path / "clips", shards)
    every = range(len(clips))
    for source in (urls, [f"file://{url}" for url in urls], store):
        read = list(stream_clips(source, schemes={*SCHEMES, "memory"}))
        assert [clip["__key__"] for clip in read] == clips.keys
        assert torch.equal(torch.stack([c["latent"] for c in read]).float(), clips.latents(every))
        assert torch.equal(torch.stack([c["embed"] for c in read]).float(), clips.texts(every))
        assert [clip["prompt"] for clip in read] == clips.prompts(every)
        assert {c["latent"].dtype for c in read} == {c["embed"].dtype for c in read}
        assert [clip["__url__"] for clip in read] == [
            url for url, part in zip(source, PACKING.values(), strict=True) for _ in part
        ]


def test_layouts_and_archives_that_were_joined(tmp_path: Path) -> None:
    turned = {
        name: saved(latent(n).movedim(1, 0).clone()) if "latent" in name else data
        for n in range(4)
        for name, data in members(n).items()
    }
    path = write_tar(tmp_path / "a.tar", turned)
    path.write_bytes(2 * path.read_bytes())
    read = list(stream_clips([str(path)], layout="tchw"))
    assert [clip["__key__"] for clip in read] == 2 * [f"{n:09d}" for n in range(4)]
    assert all(torch.equal(clip["latent"], latent(n % 4)) for n, clip in enumerate(read))


def test_members_of_other_kinds_are_neither_decoded_nor_needed(tmp_path: Path) -> None:
    content = {**members(1), **members(2), "000000002.embed.pt": b"damaged", "2.mp4": b"a video"}
    del content["000000001.embed.pt"]
    url = str(write_tar(tmp_path / "a.tar", content))
    read = list(stream_clips([url], ["latent"]))
    assert [set(clip) for clip in read] == 2 * [{"__key__", "__url__", "latent"}]
    with pytest.raises(ValueError, match=r"a\.tar: 000000001: incomplete clip, lacks embed$"):
        list(stream_clips([url], ["latent", "embed"]))


def test_a_server_gives_what_the_disk_has(shards: list[Path], urls: list[str], server: str) -> None:
    remote = [f"{server}/{path.name}" for path in shards]
    read = list(stream_clips(remote, ["latent", "prompt"], schemes={"http"}))
    for ours, clip in zip(read, stream_clips(urls, ["latent", "prompt"]), strict=True):
        assert ours["__key__"] == clip["__key__"]
        assert torch.equal(ours["latent"], clip["latent"])
        assert ours["prompt"] == clip["prompt"]


def test_a_clip_does_not_go_on_in_the_next_shard(tmp_path: Path) -> None:
    content = list(members(1).items())
    urls = [
        str(write_tar(tmp_path / name, dict(part)))
        for name, part in (("a.tar", content[:1]), ("b.tar", content[1:]))
    ]
    with pytest.raises(ValueError, match=r"a\.tar: 000000001: incomplete clip, lacks embed and"):
        list(stream_clips(urls))


# ---- Every clip once an epoch ----------------------------------------------------------------


def placed(patch: pytest.MonkeyPatch, node: int, nodes: int, worker: int, workers: int) -> None:
    place = {"RANK": node, "WORLD_SIZE": nodes, "WORKER": worker, "NUM_WORKERS": workers}
    for name, value in place.items():
        patch.setenv(name, str(value))


@pytest.mark.parametrize("shuffle", [0, 5])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_every_clip_once_over_nodes_and_workers(
    urls: list[str], monkeypatch: pytest.MonkeyPatch, nodes: int, workers: int, shuffle: int
) -> None:
    """Three shards: fewer than most products of these."""
    counted: Counter[str] = Counter()
    busy = 0
    for node in range(nodes):
        for worker in range(workers):
            placed(monkeypatch, node, nodes, worker, workers)
            part = [c["__key__"] for c in stream_clips(urls, ["prompt"], shuffle=shuffle)]
            counted.update(part)
            busy += bool(part)
    assert counted == Counter(f"{n:09d}" for n in range(32))
    assert busy == min(nodes * workers, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_clip_once_over_the_workers_of_a_data_loader(urls: list[str], workers: int) -> None:
    loader = DataLoader(stream_clips(urls, ["latent"]), batch_size=None, num_workers=workers)
    read = {clip["__key__"]: clip["latent"] for clip in loader}
    assert sorted(read) == [f"{n:09d}" for n in range(32)]
    assert all(torch.equal(values, latent(int(key))) for key, values in read.items())


def test_a_shuffle_buffer_gives_another_order_by_the_seed(urls: list[str]) -> None:
    def order(shuffle: int, seed: int, shards: Sequence[str] = urls) -> list[str]:
        clips = stream_clips(shards, ["prompt"], shuffle=shuffle, seed=seed)
        return [clip["__key__"] for clip in clips]

    plain, first = order(0, 0), order(8, 0)
    assert plain == sorted(plain)
    assert first == order(8, 0) != plain
    assert order(8, 1) != first
    assert order(2, 0) != first
    assert order(8, 0, urls[:1]) != order(8, 1, urls[:1])  # the buffer
    heads = {order(2, seed)[0] for seed in range(8)}
    assert len({int(key) // 12 for key in heads}) > 1  # the shards
    assert sorted(order(8, 1)) == sorted(first) == plain
    near = [abs(first.index(a) - first.index(b)) for a, b in pairwise(plain)]
    assert max(near) > 2  # neighbors are torn apart


# ---- Nothing is executed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["pipe:mkdir {}", "PIPE:mkdir {}", "http://a/{}", "ftp://a/{}", "memory://a/b.tar"]
)
def test_urls_of_other_kinds_are_refused(tmp_path: Path, urls: list[str], url: str) -> None:
    url = url.format(tmp_path / "executed")
    with pytest.raises(ValueError, match="expected") as error:
        stream_clips([*urls, url])
    assert str(error.value) == f"{url}: expected a path or a URL of file, gs, https, s3"
    assert not (tmp_path / "executed").exists()


def test_chains_and_unbalanced_braces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^simplecache::s3://a: expected"):
        require_allowed(["simplecache::s3://a"])
    with pytest.raises(ValueError, match=r"^s3://a::https://b: expected"):
        require_allowed(["s3://a::https://b"])
    with pytest.raises(ValueError, match=r"^clips\.source: .*s3://a/\{1\.\.2"):
        expand_urls("s3://a/{1..2")
    with pytest.raises(ValueError, match=r"^clips\.source: pipe:cat https://a: expected"):
        expand_urls("pipe:cat https://a")
    assert expand_urls("s3://a/{08..10}.tar") == [f"s3://a/{n}.tar" for n in ("08", "09", "10")]
    assert [is_url(s) for s in ("/data/a-*.tar", "built_in", "s3://a")] == [False, False, True]


def test_a_path_is_no_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^ pipe:mkdir .*: cannot be opened \(FileNotFoundError"):
        list(stream_clips([f" pipe:mkdir {tmp_path / 'executed'}"]))
    assert not (tmp_path / "executed").exists()


def test_a_pickle_is_refused_unexecuted(tmp_path: Path) -> None:
    """Where webdataset's own decoder executes it."""
    for write in (pickle.dumps, saved):
        trap = write(Trap(tmp_path / "executed"))
        content = {n: d for n, d in members(1).items() if "latent" not in n}
        path = write_tar(tmp_path / "a.tar", {**content, "000000001.latent.pth": trap})
        with pytest.raises(ValueError, match=r"a\.tar: 000000001: latent is no tensor file") as e:
            list(stream_clips([str(path)]))
        assert "\n" not in str(e.value)
        assert not (tmp_path / "executed").exists()
    list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert (tmp_path / "executed").exists()


# ---- Bad shards ------------------------------------------------------------------------------


def edges(path: Path) -> list[tuple[int, int]]:
    """Where each member's header begins and where its bytes end."""
    with tarfile.open(path) as archive:
        return [(entry.offset, entry.offset_data + entry.size) for entry in archive]


def test_every_cut_is_one_line_that_names_the_shard(tmp_path: Path) -> None:
    path = write_clips(tmp_path / "a.tar", range(3))
    whole = path.read_bytes()
    last = edges(path)[-1][1]
    cuts = {cut for pair in edges(path) for cut in pair} | set(range(0, last, 1111))
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"cut off|ends early") as error:
            list(stream_clips([str(path)]))
        assert str(error.value).startswith(f"{path}: "), cut
        assert "\n" not in str(error.value)
    path.write_bytes(whole[: last - 1])
    with pytest.raises(ValueError, match=r"a\.tar: 000000002\.prompt\.txt is cut off by the end"):
        list(stream_clips([str(path)]))
    path.write_bytes(b"no tar file" * 200)
    with pytest.raises(ValueError, match=r"a\.tar: ends early or is no tar file"):
        list(stream_clips([str(path)]))


def test_a_cut_shard_of_a_store(store: list[str]) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/b.tar", memory.cat("/bucket/b.tar")[:9_000])
    clips = iter(stream_clips(store, schemes={"memory"}))
    assert [next(clips)["__key__"] for _ in range(12)] == [f"{n:09d}" for n in range(12)]
    with pytest.raises(ValueError, match=r"^memory://bucket/b\.tar: "):
        list(clips)


def test_shards_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.tar: cannot be opened \(FileNotFoundError"):
        list(stream_clips([str(tmp_path / "gone.tar")]))
    with pytest.raises(ValueError, match=r"^memory://bucket/gone\.tar: cannot be opened"):
        list(stream_clips(["memory://bucket/gone.tar"], schemes={"memory"}))


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ValueError, match="needs") as error:
        list(stream_clips(["s3://bucket/a.tar"]))
    assert str(error.value) == (
        "s3://bucket/a.tar: s3: needs a package that is not installed: "
        "pip install -e '.[stores]' (Install s3fs to access S3)"
    )


def missing(url: str) -> None:
    raise ImportError("Install s3fs to access S3")


def test_a_member_that_comes_twice_and_a_link(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members(1) | {"b/000000001.prompt.txt": b"another"})
    with pytest.raises(ValueError, match=r"a\.tar/b/000000001\.prompt\.txt: duplicate") as error:
        list(stream_clips([str(path)]))
    assert str(error.value).endswith("duplicate file name in tar file prompt")
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("000000001.prompt.txt")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    assert list(stream_clips([str(path)], ["prompt"])) == []


# ---- Local shards of a store's ---------------------------------------------------------------


def contents(path: Path) -> list[Any]:
    """(key, kind, bytes) of whole clips, in their order."""
    content = path.read_bytes()
    return [
        (key, kind, content[place.offset : place.offset + place.size])
        for key, places in read_shard(path).clips.items()
        for kind, place in places.items()
    ]


def test_fetched_shards_are_those_of_the_store(
    tmp_path: Path, shards: list[Path], urls: list[str]
) -> None:
    """Members, their order and their bytes; faults are those that the shards have themselves."""
    shards[1].unlink()
    bad = latent(15)
    bad[0, 0, 0, 0] = torch.nan
    content = {name: data for n in range(12, 20) for name, data in members(n).items()}
    content |= {"000000015.latent.pt": saved(bad), "000000013.embed.pt": b"damaged"}
    del content["000000017.prompt.txt"]
    write_tar(shards[1], {"a/README": b"", **content, "x/000000019.latent.pt": b"again"})
    (tmp_path / "fetched").mkdir()
    fetched = fetch_shards(urls, tmp_path / "fetched", "cthw")
    assert [path.name for path in fetched] == [f"shard-{n:05d}.tar" for n in range(3)]
    for theirs, ours in zip(shards, fetched, strict=True):
        assert contents(theirs) == contents(ours)
    faults = [scan_shards(paths, "cthw", "all").faults for paths in (shards, fetched)]
    reasons = [[fault.reason for fault in listed] for listed in faults]
    assert reasons[0] == reasons[1]
    assert len(reasons[0]) == 4


@pytest.mark.parametrize("layout", ["cthw", "tchw"])
def test_a_crop_is_made_while_shards_are_fetched(
    tmp_path: Path, layout: Literal["cthw", "tchw"]
) -> None:
    """The clips are those of the whole shards, cropped when read; anchors too."""
    content = {}
    for n in range(32):
        for kind, values in (("latent", latent(n)), ("anchor", latent(100 + n))):
            stored = values if layout == "cthw" else values.movedim(1, 0).clone()
            content |= members(n) if kind == "latent" else {}
            content[f"{n:09d}.{kind}.pt"] = saved(stored)
    content["000000007.latent.pt"] = b"damaged"
    path, crop = write_tar(tmp_path / "a.tar", content), (2, 2, 2)
    whole = indexed(tmp_path / "whole", [path], layout=layout, crop=crop)
    (tmp_path / "fetched").mkdir()
    shards = fetch_shards([str(path)], tmp_path / "fetched", layout, crop)
    ours = indexed(tmp_path / "fetched", shards, layout=layout, crop=crop)
    every = range(len(ours))
    assert ours.keys == whole.keys == [f"{n:09d}" for n in range(32) if n != 7]
    assert ours.shape == whole.shape == (16, *crop)
    assert torch.equal(ours.latents(every), whole.latents(every))
    assert torch.equal(ours.anchors(every), whole.anchors(every))
    assert torch.equal(ours.texts(every), whole.texts(every))
    assert shards[0].stat().st_size < path.stat().st_size


def test_a_crop_larger_than_latents_leaves_them(tmp_path: Path, urls: list[str]) -> None:
    (tmp_path / "fetched").mkdir()
    shards = fetch_shards(urls, tmp_path / "fetched", "cthw", (2, 2, 5))
    assert read_shard(shards[0]).clips == read_shard(Path(urls[0])).clips
    with pytest.raises(ValueError, match=r"clips\.crop is \[2, 2, 5\], expected at most"):
        indexed(tmp_path / "fetched", shards, crop=(2, 2, 5))
