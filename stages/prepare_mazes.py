"""Make mazes and trajectories through them, or read those of a pointmaze file.

Writes data/mazes: manifest.json and mazes.safetensors. Ten seconds for the built-in ones.
"""

from pathlib import Path

from braid.common.config import BUILT_IN
from braid.mazes.maze_set import open_maze_set, properties, write_maze_set
from braid.mazes.sources import built_in, read_pointmaze
from braid.stage.context import open_stage
from braid.training.device import make_deterministic, set_threads


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_mazes") as stage:
        make_deterministic()
        set_threads(1)
        config, seed = stage.params.mazes, stage.params.seed
        if config.source == BUILT_IN:
            made = built_in(config, seed)
        else:
            made = read_pointmaze(Path(config.source), config)
        out = stage.out("data/mazes")
        out.mkdir()
        stage.write_metrics(write_maze_set(out, made, config.source))
        stage.write_table("metrics/tables", properties(open_maze_set(out)))


if __name__ == "__main__":
    main()
