"""Stage 2: the student goes on with the teacher's features beside its response, or with photos.

A variant says which feature groups, whether the frozen VAE decoder is in the loop, which fraction
of its views are photos, and how long it trains; `control` is Stage 1B trained for as many steps,
without features, `control_long` the same for `photos`. Writes models/student/<scene>/<variant>.
"""

from braid.radiance.distillation.features import (
    AlignmentProbe,
    FeatureObjective,
    feature_curves,
    feature_loss,
)
from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.features.table import load_features
from braid.radiance.scenes.blender import load_views
from braid.radiance.scenes.renders import load_renders, mixed
from braid.radiance.student.student import load_student, save_student
from braid.stage.context import open_stage
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("distill_features") as stage:
        _, name = stage.item
        config, run = stage.params.radiance, stage.training()
        variant = config.variants[name]
        distill = variant.distillation(config.distill)
        teacher = stage.dep("data/teacher")
        student = load_student(stage.dep("models/student")).to(run.device)
        before = {k: v.clone() for k, v in student.field.state_dict().items()}

        train_renders, random = (load_renders(teacher / which) for which in ("train", "random"))
        photos = load_views(stage.dep("data/scenes"), "train")
        renders = mixed(train_renders, random, photos, variant.photos)
        stored = load_features(stage.dep("data/features"))
        loss = feature_loss(stored, student, distill, variant, stage.dep("models/feature_vae"))
        response = ResponseObjective(student, renders, config.rays, config.loss)
        objective = FeatureObjective(response, loss, distill).to(run.device)
        objective.fit_heads(run.seed)
        result = train(
            objective,
            config.optimizer,
            run,
            steps=distill.steps,
            name="features",
            lr_scale=distill.lr_scale,
            term_gradients=config.optimizer.term_gradients and loss is not None,
            hooks={"alignment": AlignmentProbe(distill.steps, run.seed)},
        )
        save_student(stage.out("models/student"), student, {"before": before})
        stage.write_table("plots/student", result.history)
        for curve, rows, columns in feature_curves(result):
            stage.write_table(f"plots/{curve}", rows, columns)


if __name__ == "__main__":
    main()
