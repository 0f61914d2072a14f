"""The params models of the radiance strand (`radiance` in params.yaml): units, ranges, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from braid.common.config import (
    BUILT_IN,
    Config,
    Count,
    Distinct,
    Fraction,
    Named,
    NonNegative,
    Positive,
    Steps,
    Whole,
)
from braid.training.config import OptimizerConfig

FeatureGroup = Literal[
    "position", "sh", "sh_dc", "sh_rest", "opacity", "scale", "covariance", "count", "std"
]


def _groups_once(groups: tuple[FeatureGroup, ...]) -> tuple[FeatureGroup, ...]:
    """The groups, of which sh holds two others."""
    whole = {"sh_dc", "sh_rest"} & {*groups} if "sh" in groups else set()
    if whole:
        raise ValueError(f"sh holds {sorted(whole)}: expected sh or its parts")
    return groups


FeatureGroups = Annotated[Distinct[FeatureGroup], AfterValidator(_groups_once)]
Weighting = Literal["opacity", "mass", "contribution"]
Split = Literal["hard", "trilinear"]
Mask = Literal["weight", "face"]


BUILT_IN_SCENES = (BUILT_IN, f"{BUILT_IN}_rack")


class SceneConfig(Config):
    """Where one scene and its teacher come from."""

    source: str  # a scene's folder; built_in: ray-traced bricks; built_in_rack: thin, shiny bars
    teacher: str = Field(pattern=r"(\.(ply|splat|spz)|^built_in)$")  # 3DGS; built_in: fitted here
    downsample: Count  # box filter, source pixels per side of a kept pixel


class BricksConfig(Config):
    """The views of the built-in ray-traced scenes."""

    width: Count  # pixels, square views
    supersample: Count  # rays per pixel side
    train: Count  # views
    val: Count
    test: Count


class TeacherConfig(Config):
    """How Gaussians are fitted to a scene; learning rates are Adam's, before the decay."""

    steps: Steps  # one view a step
    resolution: Count  # voxels along the visual hull's longest side: sets how many Gaussians start
    sh_degree: Annotated[int, Field(ge=0, le=3)]
    sh_interval: Count  # steps after which one more degree is let in
    lr_means: Positive  # half scene sides
    lr_scales: Positive
    lr_quaternions: Positive
    lr_opacities: Positive
    lr_color: Positive  # harmonics of degree 0
    lr_harmonics: Positive  # degrees 1 to 3
    lr_decay: Annotated[float, Field(gt=0, le=1)]  # fraction of each rate that is left at the end
    alpha_weight: NonNegative  # squared error of alpha beside the L1 error of color
    density_interval: Whole  # steps between rounds of density control, 0: none
    density_start: Fraction  # of the steps
    density_stop: Fraction
    density_grow: Fraction  # of the Gaussians, a round
    density_capacity: Count  # Gaussians
    prune_opacity: Fraction
    split_scale: Positive  # hull voxels; larger ones are split, smaller ones cloned


class OwnTeacherConfig(Config):
    """When a user's own teacher is taken, and which of its Gaussians."""

    outside: Annotated[float, Field(ge=0, lt=0.5)]  # of its contribution, which sets no extent
    mismatch: Literal["stop", "warn"]  # where it shows less of the views than a silhouette


class RendersConfig(Config):
    """What the teacher renders for its students."""

    random_poses: Whole  # beside the train poses
    voxels: Count  # of the occupancy grid, along the longest axis
    field_points: Count  # points in occupied space with the teacher's density and color


class AggregationConfig(Config):
    """How Gaussians add up to the features of a cell."""

    weighting: Weighting  # opacity; mass: opacity times (2 pi)^1.5 prod(s); or contribution
    split: Split  # hard: to the center's cell; trilinear: to the 8 whose centers surround it


class FeaturesConfig(AggregationConfig):
    """Per-cell aggregates of the teacher's Gaussians."""

    cells: Count  # along the longest axis; at least 100k occupied ones want about 128
    robust: bool  # median and MAD instead of mean and standard deviation
    block: Count  # cells per side of the spatial blocks that are split into train and val
    val_fraction: Annotated[float, Field(gt=0, lt=1)]


class VaeSizes(Config):
    """The layers of a VAE."""

    latent: Annotated[int, Field(ge=1)]  # the seed: 16 to 32
    hidden: tuple[Count, ...] = Field(strict=False)


class VaeConfig(VaeSizes):
    """The MLP VAE on per-cell features."""

    groups: FeatureGroups = Field(min_length=1)  # what it is trained on
    harmonics: Annotated[int, Field(ge=0, le=3)]  # highest degree of the groups sh and sh_rest
    steps: Steps
    validate_every: Steps  # the weights that validate best after the warm-up are kept
    batch: Count  # cells
    optimizer: OptimizerConfig
    beta: NonNegative  # weight of the KL term after its warm-up
    beta_warmup: Fraction  # of the steps
    free_bits: NonNegative  # nats a latent dimension
    gate: Positive  # recon_mse, the plain mean over channels as aggregated


class NetworkConfig(Config):
    """The sizes of one tiny MLP."""

    hidden: Annotated[int, Field(ge=1, le=128)]  # units of every hidden layer
    layers: Annotated[int, Field(ge=2)]  # from position to density: hidden ones and the head
    frequencies: Whole  # octaves of the position; the paper's 10 add noise at 100 to 200 pixels
    direction_frequencies: Whole  # octaves of the view direction


class FieldConfig(NetworkConfig):
    """The KiloNeRF grid of tiny MLPs as a radiance field."""

    margin: Annotated[float, Field(ge=0, le=0.5)]  # half width of the blend at a face, cells
    density_scale: Positive  # density that a network output of one means, per longest cell edge


class StudentConfig(FieldConfig):
    """A student: how many networks, and how its rays are sampled."""

    cells: Count  # networks along the longest axis of the tight box
    step: Positive  # ray step, voxel edges


class RaysConfig(Config):
    """How training rays are drawn, in Stage 1B and Stage 2."""

    count: Count  # a step
    # Drawn in proportion to the running error (PVD-AL-lite); 0: uniformly. At 1 pixels without an
    # error would never be drawn again.
    hard: Annotated[float, Field(ge=0, lt=1)]
    decay: Fraction  # of the running error, per visit
    tile: Count  # pixels a side, with one running error


class ResponseLossConfig(Config):
    """Weights of the response loss, in Stage 1B and Stage 2."""

    color: NonNegative
    opacity: NonNegative
    depth: NonNegative


class StudentOptimizerConfig(OptimizerConfig):
    """How students are optimized, in Stage 1B and Stage 2."""

    term_gradients: bool  # log the gradient norm of each loss term where features are compared


class ResponseConfig(Config):
    """Stage 1B."""

    steps: Steps
    field_fraction: Annotated[float, Field(ge=0, lt=1)]  # steps that regress the field at points


class DistillConfig(Config):
    """Stage 2: features beside the response."""

    steps: Steps
    lr_scale: Positive  # of optimizer.lr
    points: Count  # a step, where features are compared
    head_batches: Count  # of rays, whose points the networks' linear heads are fitted to first
    l2: NonNegative
    cosine: NonNegative
    latent: NonNegative  # with the VAE decoder in the loop
    warmup: Fraction  # of the steps, feature weight from 0 to 1
    decay: Fraction  # of the steps, from 1 to the floor
    floor: Annotated[float, Field(gt=0, le=1)]
    mask: Mask  # weight: the fraction of a ray's weight in its main cell; face: its distance
    threshold: Fraction  # of the boundary mask; of a distance in half cell edges
    soft_transition: Fraction  # width of its rise, 0: a hard mask
    gate_tau: Positive  # VAE reconstruction error that halves a cell's weight


class VariantConfig(Config):
    """A Stage 2 variant: which teacher features, and through what."""

    groups: FeatureGroups  # none: the response alone, a control
    vae: bool  # the frozen VAE decoder is in the loop
    photos: Fraction  # of the views; the others are the teacher's, from random poses. 0: all are
    length: Positive  # of the training, times distill.steps

    def distillation(self, config: DistillConfig) -> DistillConfig:
        """Stage 2 as long as this variant is trained."""
        steps = max(1, round(self.length * config.steps))
        return config.model_copy(update={"steps": steps})


class EvaluationConfig(Config):
    """How renders are evaluated."""

    chunk: Count  # rays at once
    stop: Annotated[float, Field(ge=0, lt=1)]  # transmittance at which a ray ends
    frames: Count  # timed
    turntable: Count  # frames of the animation around the scene
    figure_frames: Distinct[Whole] = Field(min_length=1)  # test views pictured
    lpips_weights: str  # file of torchvision's AlexNet; none: no LPIPS


class RadianceConfig(Config):
    """The strand: what is fitted, rendered, distilled and evaluated."""

    scenes: Named[SceneConfig]
    bricks: BricksConfig
    teacher: TeacherConfig
    own_teacher: OwnTeacherConfig
    renders: RendersConfig
    features: FeaturesConfig
    vae: VaeConfig
    student: StudentConfig
    rays: RaysConfig
    loss: ResponseLossConfig
    optimizer: StudentOptimizerConfig
    response: ResponseConfig
    distill: DistillConfig
    variants: Named[VariantConfig]
    students: Distinct[str] = Field(min_length=1)
    evaluation: EvaluationConfig

    @model_validator(mode="after")
    def _groups_are_of_the_vae(self) -> RadianceConfig:
        parts = {"sh_dc", "sh_rest"}
        known: set[str] = set(self.vae.groups)
        known |= parts if "sh" in known else {"sh"} if parts <= known else set()
        for name, variant in self.variants.items():
            if variant.vae and not variant.groups:
                raise ValueError(f"variants.{name}.groups: expected one or more with vae: true")
            if variant.vae and (missing := set(variant.groups) - known):
                raise ValueError(f"variants.{name}.groups: {sorted(missing)}: not in vae.groups")
        return self

    @model_validator(mode="after")
    def _students_are_trained(self) -> RadianceConfig:
        unknown = set(self.students) - {"response", *self.variants}
        if unknown:
            raise ValueError(f"students: expected response or a variant, got {sorted(unknown)}")
        return self
