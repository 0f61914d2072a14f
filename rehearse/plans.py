"""What a rehearsal of each full-size recipe runs, on which inputs, and what it cuts down, and why.

A cut is a param that does not have the recipe's value. A loop's `Full` says how often the full run
goes around, from the recipe's own params where they say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rehearse import inputs

TWO_STEPS = "two steps show shapes and memory"


@dataclass(frozen=True)
class Cut:
    """A param that does not have the recipe's value in the rehearsal."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Input:
    """Data or a model that a param of the recipe names, made here."""

    param: str
    name: str  # below the folder of the inputs
    make: Callable[[Path], None]
    full: str  # what a full run takes
    here: str
    pattern: str = ""  # of files in it, where the param is one


@dataclass(frozen=True)
class Full:
    """How often a full run does what a loop of the rehearsal does once."""

    times: tuple[str | float, ...]  # numbers, and params with the recipe's values; their product
    batch: tuple[str, ...] = ()  # params that one time around grows with


@dataclass(frozen=True)
class Plan:
    """The rehearsal of one recipe."""

    targets: tuple[str, ...]  # stages, as in the recipe's command
    inputs: tuple[Input, ...]  # made in this order
    cuts: tuple[Cut, ...]
    full: Mapping[str, Mapping[str, Full]] = field(default_factory=dict)  # by stage and loop


NO_GPU = Cut("hardware.device", "cpu", "there is no GPU")

LEGO = Plan(
    targets=("compare_radiance",),
    inputs=(
        Input(
            "radiance.scenes.lego.source",
            "lego",
            inputs.blender_scene,
            "400 views of 800 px",
            "16 views of 800 px; each further one takes 10 MB of memory",
        ),
        Input(
            "radiance.scenes.lego.teacher",
            "point_cloud.ply",
            inputs.teacher,
            "about 300,000 Gaussians",
            "300,000 Gaussians on the surfaces, not fitted",
        ),
    ),
    cuts=(
        NO_GPU,
        Cut("radiance.renders.random_poses", 8, "a view of 800 px takes a CPU core seconds"),
        Cut("radiance.vae.steps", 2, TWO_STEPS),
        Cut("radiance.vae.validate_every", 2, "so that it validates"),
        Cut("radiance.response.steps", 2, TWO_STEPS),
        Cut("radiance.distill.steps", 2, TWO_STEPS),
        Cut("radiance.distill.head_batches", 1, "batches that fit the heads, not the student"),
        Cut("radiance.evaluation.frames", 2, "renderings that time the student"),
        Cut("radiance.evaluation.turntable", 2, "as many as a GIF needs to move"),
        Cut("radiance.evaluation.figure_frames", [0, 1], "there are two test views"),
        Cut(
            "radiance.students",
            ["response", "gaussian_all_vae"],
            "other variants take the same shapes with fewer terms",
        ),
    ),
    full={
        "train_vae@lego": {"vae": Full(("radiance.vae.steps",))},
        "distill_response@lego": {"response": Full(("radiance.response.steps",))},
        **{
            f"distill_features@lego-{variant}": {
                "features": Full(("radiance.distill.steps", f"radiance.variants.{variant}.length"))
            }
            for variant in ("control", "gaussian_all", "gaussian_all_vae", "control_long", "photos")
        },
    },
)

IMAGENET = Plan(
    targets=("evaluate_drift_image", "evaluate_image_representation"),
    inputs=(
        Input(
            "images.source",
            "train",
            inputs.image_folder,
            "1,281,167 images of 1,000 classes",
            "84 images of 6 classes; memory banks of 1,000 take 1.9 GiB more",
        ),
        Input(
            "images.sd_vae", "sd_vae", inputs.sd_vae, "sd-vae-ft-mse", "its sizes, random weights"
        ),
    ),
    cuts=(
        NO_GPU,
        Cut("hardware.threads", 1, "other work runs on this machine"),
        Cut("image_mae.steps", 2, TWO_STEPS),
        Cut("image_mae.batch", 8, "what a CPU takes a minute for"),
        Cut("image_mae.optimizer.accumulate", 1, "accumulated batches need no more memory"),
        Cut("image_drift.batches.classes", 2, "what a CPU takes a minute for"),
        Cut("image_drift.batches.generated", 4, "what a CPU takes a minute for"),
        Cut("image_drift.optimizer.accumulate", 1, "accumulated batches need no more memory"),
        Cut("image_drift.training.steps", 2, TWO_STEPS),
        Cut("image_drift.training.validate_every", 2, "so that it validates"),
        Cut("image_drift.evaluation.alphas", [1.0, 2.0], "others take as much memory"),
        Cut("image_drift.evaluation.samples", 1, "each is decoded by the SD-VAE"),
    ),
    full={
        "train_image_mae": {
            "training": Full(
                ("image_mae.steps",), batch=("image_mae.batch", "image_mae.optimizer.accumulate")
            )
        },
        "train_drift_image": {
            "training": Full(
                ("image_drift.training.steps",),
                batch=(
                    "image_drift.batches.classes",
                    "image_drift.batches.generated",
                    "image_drift.optimizer.accumulate",
                ),
            )
        },
    },
)

SA1B_TRAIN = 32_558  # images
CELLS = 60 * 104 / (16 * 16)  # of a latent over those of its crop; attention grows with its square

SA1B = Plan(
    targets=("evaluate_sam3",),
    inputs=(
        Input("sam3.data.source", "sa1b", inputs.sa1b, "33,558 images", "8 of SA-1B's size"),
        Input(
            "sam3.teacher.source", "sam3", inputs.sam3, "facebook/sam3", "its sizes, random weights"
        ),
        Input(
            "sam3.student.backbone_weights",
            "repvit.safetensors",
            inputs.repvit,
            "repvit_m2_3.dist_450e_in1k",
            "its sizes, random weights",
        ),
        Input(
            "sam3.student.tokenizer",
            "tokenizer",
            inputs.tokenizer,
            "MobileCLIP's",
            "one of the recipe's words",
        ),
    ),
    cuts=(
        NO_GPU,
        Cut("sam3.data.val", 2, "the teacher takes a CPU core a minute for an image"),
        Cut("sam3.data.test", 2, "the teacher takes a CPU core a minute for an image"),
        Cut("sam3.prompts.per_image", 2, "the generic prompt and another"),
        Cut("sam3.phases.features.epochs", 1, TWO_STEPS),
        Cut("sam3.phases.outputs.epochs", 1, TWO_STEPS),
        Cut("sam3.phases.features.optimizer.accumulate", 2, "four images are two steps"),
        Cut("sam3.phases.outputs.optimizer.accumulate", 2, "four images are two steps"),
        Cut("sam3.evaluation.latency_runs", 1, "each runs the teacher"),
        Cut("sam3.evaluation.pictures", 2, "there are two images"),
    ),
    full={
        "cache_teacher": {"teacher's predictions": Full((1 / 6, SA1B_TRAIN + 1000, 1.5))},
        **{
            f"distill_sam3@{student}": {
                phase: Full((f"sam3.phases.{phase}.epochs", SA1B_TRAIN / 2))
                for phase in ("features", "outputs")
            }
            for student in ("distilled", "truth_only")
        },
    },
)

STEP = ("drift.batches.classes", "drift.optimizer.accumulate")  # and `generated` of a refiner

WAN = Plan(
    targets=("evaluate_drift", "evaluate_representation"),
    inputs=(
        Input(
            "clips.source",
            "shards",
            inputs.wan_shards,
            "248,320 clips in 970 shards",
            "24 clips of full size in 2 shards",
            pattern="shard-*.tar",
        ),
    ),
    cuts=(
        NO_GPU,
        Cut("launch.train", "python -m", "one process of the eight, with its share of a step"),
        Cut("clips.crop", [21, 16, 16], "a whole clip is 32,760 tokens: a step takes a core hours"),
        Cut("clips.conditions.text_components", 6, "at most as many as there are clips"),
        Cut("clips.conditions.keyframe_components", 6, "at most as many as there are clips"),
        Cut("clips.quantizer.min_count", 1, "there are few clips"),
        Cut("clips.representation.clips", 12, "there are few clips"),
        Cut("clips.representation.map_clips", 12, "there are few clips"),
        Cut("clips.representation.components", 4, "at most as many as there are clips"),
        Cut("clips.representation.neighbors", [1, 2], "there are few clips"),
        Cut("latent_mae.steps", 2, TWO_STEPS),
        Cut("latent_mae.batch", 2, "what a CPU takes a minute for"),
        Cut("latent_mae.optimizer.accumulate", 1, "accumulated batches need no more memory"),
        Cut("drift.K", 3, "there are few clips; banks of positions take 8 bytes a clip"),
        Cut("drift.batches.positives", 4, "there are few clips"),
        Cut("drift.batches.unconditional", 2, "there are few clips"),
        Cut("drift.optimizer.accumulate", 1, "accumulated batches need no more memory"),
        *(
            Cut(f"drift.refiners.{name}.{key}", value, why)
            for name in ("paired", "drift")
            for key, value, why in (
                ("generated", 2, "what a CPU takes a minute for"),
                ("steps", 2, TWO_STEPS),
                ("validate_every", 2, "so that it validates"),
            )
        ),
        Cut("drift.evaluation.components", 2, "at most as many as there are clips"),
    ),
    full={
        "train_latent_mae": {
            "training": Full(
                ("latent_mae.steps", 8, CELLS),
                batch=("latent_mae.batch", "latent_mae.optimizer.accumulate"),
            )
        },
        **{
            f"train_drift@{name}": {
                "training": Full(
                    (f"drift.refiners.{name}.steps", 8, CELLS),
                    batch=(f"drift.refiners.{name}.generated", *STEP),
                )
            }
            for name in ("paired", "drift")
        },
    },
)

PLANS: Mapping[str, Plan] = {
    "lego_800": LEGO,
    "imagenet_one_gpu": IMAGENET,
    "sa1b": SA1B,
    "wan": WAN,
}
