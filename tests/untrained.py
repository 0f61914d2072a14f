"""Scenes, clips and models as `dvc repro` leaves them, tiny and untrained, for what uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from braid.clips.codec.codec import TRANSFORM
from braid.clips.preparation.moving_digits import LAYOUT, write_digit_shards
from braid.clips.preparation.scan import scan_shards, write_manifest
from braid.clips.shards.dataset import open_clips
from braid.clustering.kmeans import kmeans
from braid.common.rng import generator
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import Refiner, save_refiner
from braid.pseudo_classes.quantizer import ConditionEncoder, Pooling, Quantizer, save_quantizer
from braid.radiance.gaussians.field import render_all
from braid.radiance.gaussians.gaussians import save_ply
from braid.radiance.scenes.blender import Views, save_views
from braid.radiance.student.student import save_student
from braid.stage.params import load_params
from tests.radiance.tiny_teacher import ball, student, views


def write_radiance(folder: Path, scene: str = "own") -> None:
    """A scene, its student with another one as its warm-up, and its teacher."""
    for split, count in {"train": 4, "test": 2}.items():
        cameras = views(count)
        rgba = torch.from_numpy(render_all(ball(), cameras).rgba.astype(np.float32))
        save_views(folder / "data/scenes" / scene, split, Views(cameras, rgba))
    warm = {"warm": student(1).field.state_dict()}
    save_student(folder / "models/student" / scene / "response", student(), warm)
    (folder / "models/teacher" / scene).mkdir(parents=True)
    save_ply(folder / "models/teacher" / scene / "point_cloud.ply", ball())


def write_clips(folder: Path) -> None:
    """Built-in clips, their quantizer, and a refiner that has learned nothing."""
    params = load_params(folder / "params.yaml")
    fractions, out = (params.clips.val_fraction, params.clips.test_fraction), folder / "data/clips"
    out.mkdir(parents=True)
    draws = {"fractions": fractions, "seed": 0, "scratch": folder / "scratch"}
    shards = write_digit_shards(out, params.clips.digits, **draws)
    scan = scan_shards(shards, LAYOUT, params.clips.verify)
    write_manifest(out, scan, codec=TRANSFORM, layout=LAYOUT, fractions=fractions)
    clips = open_clips(out)
    pooled = Pooling(params.clips.conditions).read(clips, len(clips))
    encoder = ConditionEncoder.fit(pooled, params.clips.conditions)
    clusters = kmeans(encoder.embed(pooled), 5, params.clips.quantizer, generator(0, "kmeans"))
    quantizer = Quantizer.of(encoder, clusters, 1)
    save_quantizer(folder / "models/quantizer", quantizer)
    levels = Corruption(clips.shape[1], params.drift.corruption).levels + 1
    torch.manual_seed(0)
    refiner = Refiner(clips.shape[0], quantizer.classes, levels, params.drift.refiner)
    save_refiner(folder / "models/drift/drift", refiner)
