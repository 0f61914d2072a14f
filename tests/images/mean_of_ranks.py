"""What two nodes of test_launch.py do: average their numbers and write what they got."""

import sys
from pathlib import Path

import torch

from braid.training.distributed import joined, launched, mean

if __name__ == "__main__":
    process = launched()
    with joined(process, torch.device("cpu")):
        average = mean(torch.tensor(process.rank + 1.0)).item()
        line = f"rank {process.rank} of {process.world_size}: {average}"
        (Path(sys.argv[1]) / str(process.rank)).write_text(line)
