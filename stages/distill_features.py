"""Stage 2: the student goes on with the teacher's features beside its response.

A variant says which feature groups, and whether the frozen VAE decoder is in the loop; `control`
has none: it is Stage 1B trained for as many steps. Writes models/student/<scene>/<variant>.
"""

from braid.radiance.distillation.feature_loss import FeatureLoss, Projector
from braid.radiance.distillation.objectives import (
    AlignmentProbe,
    FeatureObjective,
    ResponseLoss,
    ResponseObjective,
)
from braid.radiance.features.table import StoredFeatures, load_features
from braid.radiance.features.vae import load_vae
from braid.radiance.scenes.renders import load_renders
from braid.radiance.student.student import Student, load_student, save_student
from braid.stage.context import Stage, open_stage
from braid.training.device import set_up
from braid.training.distributed import launched
from braid.training.trainer import Optimisation, Snapshot, optimise


def main() -> None:
    """Run the stage."""
    with open_stage("distill_features") as stage:
        process, hardware, seed = launched(), stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed, process.local_rank)
        params = stage.params.distill
        student = load_student(stage.dep("models/student")).to(device)
        objective = _objective(stage, student).to(device)
        warm = Snapshot(student.field, max(1, int(params.warmup * params.steps)))
        result = optimise(
            objective,
            Optimisation(**stage.params.optimisation.model_dump()),
            steps=params.steps,
            lr_scale=params.lr_scale,
            precision=hardware.precision,
            **stage.params.cadence.model_dump(),
            seed=seed,
            device=device,
            process=process,
            checkpoint=stage.scratch() / "features.pt",
            stateful={"warm": warm},
            hooks={"warm": warm, "alignment": AlignmentProbe(params.steps, seed)},
            on_log=stage.logger(),
        )
        save_student(stage.out("models/student"), student, {"warm": warm.weights})
        stage.write_curve("plots/student", result.history)
        stage.write_curve("plots/alignment", result.probes["alignment"])


def _objective(stage: Stage, student: Student) -> FeatureObjective:
    params, rays = stage.params.distill, stage.params.rays
    variant = stage.params.variants[stage.item[1]]
    teacher = stage.dep("data/teacher")
    renders = load_renders(teacher / "train", teacher / "random")
    response = ResponseObjective(
        student,
        renders,
        renders.sampler(**rays.model_dump(exclude={"count"})),
        ResponseLoss(**stage.params.response_loss.model_dump(), scale=student.extent),
        rays=rays.count,
    )
    if not variant.groups:
        return FeatureObjective(response, None)
    features = load_features(stage.dep("data/features")).select(variant.groups)
    loss = _feature_loss(stage, features, student, decode=variant.vae)
    return FeatureObjective(
        response,
        loss,
        points=params.points,
        columns=features.features.schema.columns,
        warmup=int(params.warmup * params.steps),
        decay=int(params.decay * params.steps),
        floor=params.floor,
    )


def _feature_loss(
    stage: Stage, stored: StoredFeatures, student: Student, *, decode: bool
) -> FeatureLoss:
    params, schema = stage.params.distill, stored.features.schema
    vae = load_vae(stage.dep("models/feature_vae"), schema.hash) if decode else None
    projector = Projector(
        student.field.architecture.hidden,
        vae.latent if vae else schema.channels,
        hidden=params.projector_hidden,
        depth=params.projector_depth,
    )
    return FeatureLoss(
        stored.features,
        stored.standardised,
        projector,
        student.grid,
        l2=params.l2,
        cosine=params.cosine,
        latent=params.latent,
        threshold=params.threshold,
        soft_transition=params.soft_transition,
        vae=vae,
        gate_tau=params.gate_tau,
    )


if __name__ == "__main__":
    main()
