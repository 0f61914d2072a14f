"""The one line that a bad scene or teacher gets from a stage, which loses nothing made before."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from braid.radiance.gaussians.gaussians import load_ply, save_ply
from braid.radiance.scenes.blender import load_views
from braid.stage.dag import declaration
from tests.radiance.tiny_teacher import ball
from tests.stages.conftest import fault, made, override, run

# ---- The good case ---------------------------------------------------------------------------


def test_an_own_scene_is_taken_over_as_it_is(finished: Path) -> None:
    for split in ("train", "val", "test"):
        given = load_views(finished / "mine/scene", split)
        taken = load_views(finished / "data/scenes/own", split)
        assert torch.equal(taken.rgba, given.rgba)
        torch.testing.assert_close(taken.cameras.camera_to_world, given.cameras.camera_to_world)
        assert taken.cameras.focal == pytest.approx(given.cameras.focal)


def test_an_own_ply_is_copied_and_evaluated_without_fitting(finished: Path) -> None:
    given = load_ply(finished / "mine/gaussians.ply")
    taken = load_ply(finished / "models/teacher/own/point_cloud.ply")
    for name, tensor in vars(given).items():
        torch.testing.assert_close(getattr(taken, name), tensor)
    figures = json.loads((finished / "metrics/radiance/own/teacher.json").read_text())
    assert figures["psnr"] > 30  # the scene was rendered from these very Gaussians
    table = pd.read_csv(finished / "metrics/tables/radiance/own/teacher.csv")
    assert table["gaussians"][0] == len(given)
    curve = pd.read_csv(finished / "plots/teacher/own.csv")
    assert len(curve) == 0
    assert {"step", "loss", "psnr"} <= set(curve.columns)


def test_own_paths_are_declared_deps(finished: Path) -> None:
    assert "mine/scene" in declaration(finished, "prepare_scene", ("own",)).deps
    assert "mine/gaussians.ply" in declaration(finished, "fit_teacher", ("own",)).deps


def test_a_scene_elsewhere_and_shrunk(repo: Path, tmp_path: Path) -> None:
    shutil.move(repo / "mine", tmp_path / "elsewhere")
    own = "radiance.scenes.own"
    source = str(tmp_path / "elsewhere/scene")
    override(repo, {f"{own}.source": source, f"{own}.downsample": 2})
    run(repo, "prepare_scene", "own")
    cameras = load_views(repo / "data/scenes/own", "test").cameras
    assert (cameras.width, cameras.height) == (8, 8)


def test_an_own_ply_of_another_frame_stops_before_anything_is_distilled(repo: Path) -> None:
    override(repo, {"radiance.own_teacher.mismatch": "stop"})
    run(repo, "fit_teacher", "own")  # the right one
    moved = load_ply(repo / "mine/gaussians.ply")
    moved.means += 1.5
    save_ply(repo / "mine/gaussians.ply", moved)
    line = fault(repo, "fit_teacher", "own")
    assert line.startswith("the teacher's mean squared error against 6 training views is ")
    assert line.endswith("(or radiance.own_teacher.mismatch: warn)")


# ---- Scenes ----------------------------------------------------------------------------------


def test_a_missing_image(repo: Path) -> None:
    (repo / "mine/scene/test/r_1.png").unlink()
    assert re.search(
        r"mine/scene/test/r_1\.png: no such image", fault(repo, "prepare_scene", "own")
    )


def rewrite(path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        change(image).save(path)


def test_an_image_of_another_size(repo: Path) -> None:
    rewrite(repo / "mine/scene/train/r_3.png", lambda image: image.resize((8, 8)))
    line = fault(repo, "prepare_scene", "own")
    assert line.endswith("train/r_3.png: image is 8x8, the first of its split is 16x16")


def test_splits_of_different_sizes(repo: Path) -> None:
    for image in (repo / "mine/scene/test").iterdir():
        rewrite(image, lambda image: image.resize((32, 32)))
    line = fault(repo, "prepare_scene", "own")
    assert "mine/scene: expected one image size in all splits" in line
    assert "'train': '16x16'" in line
    assert "'test': '32x32'" in line


def test_an_image_without_alpha(repo: Path) -> None:
    rewrite(repo / "mine/scene/train/r_0.png", lambda image: image.convert("RGB"))
    assert re.search(r"train/r_0\.png: no alpha channel", fault(repo, "prepare_scene", "own"))


def test_a_pose_that_is_not_rigid(repo: Path) -> None:
    path = repo / "mine/scene/transforms_val.json"
    content = json.loads(path.read_text())
    content["frames"][0]["transform_matrix"][0][0] += 0.5
    path.write_text(json.dumps(content))
    line = fault(repo, "prepare_scene", "own")
    assert re.search(r"transforms_val\.json: frame 0: transform_matrix is not rigid", line)


def test_a_scene_folder_that_does_not_exist(repo: Path) -> None:
    shutil.rmtree(repo / "mine/scene")
    line = fault(repo, "prepare_scene", "own")
    assert line.startswith("mine/scene: missing")
    assert "params.yaml" in line


def test_a_factor_that_does_not_divide_the_images(repo: Path) -> None:
    for factor in (3, 100):
        override(repo, {"radiance.scenes.own.downsample": factor})
        line = fault(repo, "prepare_scene", "own")
        assert line == f"downsample: {factor} does not divide both sides of 16x16"


# ---- Teachers --------------------------------------------------------------------------------


def header_and_body(path: Path) -> tuple[bytes, bytes]:
    header, end, body = path.read_bytes().partition(b"end_header\n")
    return header + end, body


def spoil_with_nan(path: Path) -> None:
    header, body = header_and_body(path)
    values = np.frombuffer(body, "<f4").copy()
    values[2] = np.nan
    path.write_bytes(header + values.tobytes())


def spoil_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def spoil_by_dropping_a_harmonic(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"property float f_rest_8\n", b""))


def spoil_by_dropping_the_opacity(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"property float opacity\n", b""))


def spoil_by_another_file(path: Path) -> None:
    path.write_text("a note\n")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_with_nan, r"property z is NaN or infinite \(first at vertex 0\)"),
        (spoil_by_cutting, r"truncated PLY, 60 vertices need"),
        (spoil_by_dropping_a_harmonic, r"expected 0, 9, 24 or 45 f_rest properties, got 8"),
        (spoil_by_dropping_the_opacity, r"PLY lacks the property opacity"),
        (spoil_by_another_file, r"not a PLY file"),
        (Path.unlink, r"missing"),
    ],
)
def test_a_broken_ply(repo: Path, spoil: Callable[[Path], None], expected: str) -> None:
    spoil(repo / "mine/gaussians.ply")
    line = fault(repo, "fit_teacher", "own")
    assert re.search(rf"mine/gaussians\.ply: {expected}", line)


def test_a_folder_in_place_of_a_ply(repo: Path) -> None:
    (repo / "mine/gaussians.ply").unlink()
    (repo / "mine/gaussians.ply").mkdir()
    assert "mine/gaussians.ply" in fault(repo, "fit_teacher", "own")


def test_a_teacher_that_is_neither_a_ply_nor_the_fit(repo: Path) -> None:
    override(repo, {"radiance.scenes.own.teacher": "mine"})
    line = fault(repo, "fit_teacher", "own")
    assert line.startswith("params.yaml: radiance.scenes.own.teacher: ")


@pytest.mark.parametrize("stage", ["render_teacher", "export_features"])
def test_a_teacher_that_was_not_made(repo: Path, stage: str) -> None:
    (repo / "models/teacher/own/point_cloud.ply").unlink()
    line = fault(repo, stage, "own")
    assert line.startswith("models/teacher/own/point_cloud.ply: missing; `dvc repro` makes it")


def test_gaussians_that_are_all_transparent(repo: Path) -> None:
    path = repo / "models/teacher/own/point_cloud.ply"
    save_ply(path, ball(opacity=0.005))
    line = fault(repo, "render_teacher", "own")
    assert line == "no Gaussian reaches the opacity 0.01: nothing is occupied"


# ---- On the command line ---------------------------------------------------------------------


def test_the_line_stands_alone_on_standard_error(repo: Path) -> None:
    (repo / "mine/scene/train/r_0.png").unlink()
    before = made(repo)
    result = subprocess.run(
        [sys.executable, "-m", "stages.prepare_scene", "own"],
        cwd=repo,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    path = re.escape("mine/scene/train/r_0.png")
    assert re.fullmatch(rf"error: prepare_scene own: .*{path}: no such image.*\n", result.stderr)
    assert made(repo) == before
