"""Train a network of trajectories through mazes: models/drift_maze/<refiner>."""

from braid.drifting.maze.network import MazeRefiner, save_maze_refiner
from braid.drifting.maze.training import (
    OUTER_LAYERS,
    PROPOSALS,
    MazeSplit,
    MazeValidation,
    anchors_of,
    corruptions,
    maze_objective,
)
from braid.mazes.maze_set import open_maze_set
from braid.stage.card import Pace, write_card
from braid.stage.context import open_stage
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("train_drift_maze") as stage:
        (name,) = stage.item
        config, run, pace = stage.params.maze_drift, stage.training(), Pace()
        settings, mazes = config.refiners[name], open_maze_set(stage.dep("data/mazes"))
        start, anchors = stage.optional_dep(settings.start), stage.optional_dep(settings.anchors)
        tasks = corruptions(config.corruption, config.keyframes, mazes.paths.shape[1])
        corruption = tasks[settings.task]
        training, validation = (MazeSplit(mazes, split) for split in ("train", "val"))
        levels = tasks["refinement"].levels + 1
        refiner = MazeRefiner(training.mazes, corruption.frames, levels, config.refiner)
        phase_one = anchors, tasks["keyframes"], PROPOSALS[settings.objective], run.seed
        proposed, held_out = (anchors_of(split, *phase_one) for split in (training, validation))
        parts = settings, config.loss, refiner, corruption, training
        objective = maze_objective(*parts, start, proposed, run)
        best = MazeValidation(validation, corruption, settings, held_out, run)
        result = train(
            objective,
            config.optimizer,
            run,
            steps=settings.steps,
            lr_scale=settings.lr_scale,
            outer_layers=OUTER_LAYERS,
            stateful={"best": best, **objective.stateful()},
            hooks={"validation": best, "pace": pace},
        )
        save_maze_refiner(stage.out("models/drift_maze"), best.restored(refiner))
        samples = objective.clips_per_step * config.optimizer.accumulate * run.process.world_size
        stage.runtime["trajectories_per_second"] = pace.per_second(samples)
        status, reason = best.status()
        results = {"status": status, **best.best}
        stage.write_metrics({"status": status})
        stage.write_table("metrics/tables", best.rows(objective))
        stage.write_table("plots/drift_maze", result.history)
        stage.write_table("plots/drift_maze_validation", result.probes["validation"])
        data, model = {"train": len(training), "val": len(best.truth)}, objective.card(samples)
        write_card(stage, run.device, data=data, model=model, results=results, reason=reason)


if __name__ == "__main__":
    main()
