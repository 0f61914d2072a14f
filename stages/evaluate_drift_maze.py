"""Evaluate trajectories through unseen mazes, with true keyframes and with those of phase 1.

Writes tables of methods and of cases with two ways around, and pictures. Ten seconds.
"""

from braid.drifting.maze.evaluation import (
    MazeEvaluation,
    Networks,
    draw_evaluation,
    headline,
    held_out,
)
from braid.drifting.maze.network import load_maze_refiner
from braid.drifting.maze.training import MazeSplit, corruptions
from braid.mazes.maze_set import open_maze_set
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_drift_maze") as stage:
        params, seed, device = stage.params.maze_drift, stage.params.seed, stage.device()
        config, mazes = params.evaluation, open_maze_set(stage.dep("data/mazes"))
        train, test = (MazeSplit(mazes, split) for split in ("train", "test"))
        networks = Networks(
            *(
                load_maze_refiner(stage.dep(f"models/drift_maze/{name}"), test.mazes).to(device)
                for name in (
                    config.refiner,
                    config.paired,
                    config.keyframes,
                    config.paired_keyframes,
                )
            )
        )
        tasks = corruptions(params.corruption, params.keyframes, mazes.paths.shape[1])
        held = held_out(test, mazes.planned, mazes.way, mazes.two_ways())
        evaluation = MazeEvaluation(
            networks, held, tasks, params.keyframes.count, train.clips, config, seed
        )
        rows = evaluation.table()
        two_ways, samples = evaluation.two_ways()
        stage.write_metrics(headline(rows, two_ways))
        stage.write_table("metrics/tables/drift_maze.csv", rows)
        stage.write_table("metrics/tables/drift_maze_two_ways.csv", two_ways)
        stage.runtime |= evaluation.clock
        pictures = stage.out("plots/maze_evaluation")
        pictures.mkdir()
        draw_evaluation(pictures, evaluation, samples)


if __name__ == "__main__":
    main()
