"""Stage 1B: a KiloNeRF student learns the teacher's color, opacity and depth along rays.

Reads data/teacher/<scene> (train and random poses), writes models/student/<scene>/response. A
minute for the built-in scene.
"""

from braid.common.rng import generator
from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.scenes.grids import load_space
from braid.radiance.scenes.renders import load_renders
from braid.radiance.student.student import build_student, save_student
from braid.stage.context import open_stage
from braid.training.trainer import Snapshot, train


def main() -> None:
    """Run the stage."""
    with open_stage("distill_response") as stage:
        config, run = stage.params.radiance, stage.training()
        steps = config.response.steps
        field_steps = int(config.response.field_fraction * steps)
        teacher = stage.dep("data/teacher")
        renders = load_renders(teacher / "train", teacher / "random")
        occupancy, field_points = load_space(teacher / "space.safetensors")

        draws = generator(run.seed, "student")
        student = build_student(occupancy, config.student, draws).to(run.device)
        objective = ResponseObjective(
            student,
            renders,
            config.rays,
            config.loss,
            field_points=field_points.to(run.device),
            field_steps=field_steps,
        ).to(run.device)
        before = Snapshot(student.field, max(1, field_steps))  # rays are marched
        result = train(
            objective,
            config.optimizer,
            run,
            steps=steps,
            name="response",
            stateful={"before": before},
            hooks={"before": before},
        )
        save_student(stage.out("models/student"), student, {"before": before.weights})
        stage.write_table("plots/student", result.history)


if __name__ == "__main__":
    main()
