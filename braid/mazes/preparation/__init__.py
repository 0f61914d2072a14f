"""Where mazes and trajectories come from."""
