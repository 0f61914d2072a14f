"""Stage 1B: a KiloNeRF student learns the teacher's colour, opacity and depth along rays.

Reads data/teacher/<scene> (train and random poses), writes models/student/<scene>/response. A
minute for the built-in scene.
"""

from braid.common.rng import generator
from braid.radiance.distillation.objectives import ResponseLoss, ResponseObjective
from braid.radiance.scenes.occupancy import load_space
from braid.radiance.scenes.renders import load_renders
from braid.radiance.student.student import build_student, save_student
from braid.stage.context import open_stage
from braid.training.device import set_up
from braid.training.distributed import launched
from braid.training.trainer import Optimisation, Snapshot, optimise


def main() -> None:
    """Run the stage."""
    with open_stage("distill_response") as stage:
        process, hardware, seed = launched(), stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed, process.local_rank)
        rays, steps = stage.params.rays, stage.params.response.steps
        field_steps = int(stage.params.response.field_share * steps)
        teacher = stage.dep("data/teacher")
        renders = load_renders(teacher / "train", teacher / "random")
        occupancy, field_points = load_space(teacher / "space.safetensors")

        student = build_student(
            occupancy, generator(seed, "student"), **stage.params.student.model_dump()
        ).to(device)
        objective = ResponseObjective(
            student,
            renders,
            renders.sampler(**rays.model_dump(exclude={"count"})),
            ResponseLoss(**stage.params.response_loss.model_dump(), scale=student.extent),
            rays=rays.count,
            field_points=field_points.to(device),
            field_steps=field_steps,
        ).to(device)
        warm = Snapshot(student.field, max(1, field_steps))
        result = optimise(
            objective,
            Optimisation(**stage.params.optimisation.model_dump()),
            steps=steps,
            precision=hardware.precision,
            **stage.params.cadence.model_dump(),
            seed=seed,
            device=device,
            process=process,
            checkpoint=stage.scratch() / "response.pt",
            stateful={"warm": warm},
            hooks={"warm": warm},
            on_log=stage.logger(),
        )
        save_student(stage.out("models/student"), student, {"warm": warm.weights})
        stage.write_curve("plots/student", result.history)


if __name__ == "__main__":
    main()
