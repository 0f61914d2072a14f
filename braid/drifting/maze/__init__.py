"""One-step refinement of trajectories through mazes."""
