"""Stage 2: the student goes on with the teacher's features beside its response.

A variant says which feature groups, and whether the frozen VAE decoder is in the loop; `control`
has none: it is Stage 1B trained for as many steps. Writes models/student/<scene>/<variant>.
"""

from braid.radiance.distillation.features import (
    AlignmentProbe,
    FeatureLoss,
    FeatureObjective,
    feature_curves,
)
from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.features.table import load_features
from braid.radiance.features.vae import load_vae
from braid.radiance.scenes.renders import load_renders
from braid.radiance.student.student import load_student, save_student
from braid.stage.context import open_stage
from braid.training.trainer import Snapshot, train


def main() -> None:
    """Run the stage."""
    with open_stage("distill_features") as stage:
        _, variant_name = stage.item
        config, run = stage.params.radiance, stage.training()
        distill, variant = config.distill, config.variants[variant_name]
        teacher = stage.dep("data/teacher")
        renders = load_renders(teacher / "train", teacher / "random")
        student = load_student(stage.dep("models/student")).to(run.device)

        loss = None
        if variant.groups:
            stored = load_features(stage.dep("data/features")).select(variant.groups)
            schema = stored.features.schema.hash
            vae = load_vae(stage.dep("models/feature_vae"), schema) if variant.vae else None
            loss = FeatureLoss(stored, student.width, student.grid, distill, vae)
        response = ResponseObjective(student, renders, config.rays, config.loss)
        objective = FeatureObjective(response, loss, distill).to(run.device)
        warm = Snapshot(student.field, max(1, int(distill.warmup * distill.steps)))
        result = train(
            objective,
            config.optimizer,
            run,
            steps=distill.steps,
            name="features",
            lr_scale=distill.lr_scale,
            term_gradients=config.optimizer.term_gradients,
            stateful={"warm": warm},
            hooks={"warm": warm, "alignment": AlignmentProbe(distill.steps, run.seed)},
        )
        save_student(stage.out("models/student"), student, {"warm": warm.weights})
        stage.write_table("plots/student", result.history)
        for name, rows, columns in feature_curves(result):
            stage.write_table(f"plots/{name}", rows, columns)


if __name__ == "__main__":
    main()
