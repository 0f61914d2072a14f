import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from braid.drifting.loss.drift import Samples
from braid.training import checkpoint
from braid.training.distributed import Process, joined
from tests.drifting.drift_example import differentiate, drift_loss, normal

ROOT = Path(__file__).parents[3]


def half_of(rank: int, ragged: bool) -> tuple[Samples, Tensor]:
    """Half of four classes, with counts that differ between the halves."""
    generated, positives = normal(0, 4, 5, 3, 8), normal(1, 4, 6, 3, 8)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    mine = slice(2 * rank, 2 * rank + 2) if rank >= 0 else slice(None)
    counts = torch.tensor([5, 4, 2, 1])[mine] if ragged else None
    samples = Samples(
        generated[mine], 1 + positives[mine], None, normal(2, 4, 3, 8), generated_count=counts
    )
    return samples, weight[mine]


CASES = [{"ragged": False}, {"ragged": True}, {"ragged": True, "scale_scope": "class"}]


def evaluate(rank: int) -> dict[str, Tensor]:
    actual = {}
    for index, (case, reduction) in enumerate((c, r) for c in CASES for r in ("mean", "sum")):
        samples, weight = half_of(rank, case["ragged"])
        scope = case.get("scale_scope", "batch")
        loss = drift_loss(reduction=reduction, scale_scope=scope)
        value, gradient = differentiate(loss, samples, weight)
        actual |= {f"loss{index}": value, f"gradient{index}": gradient}
    return actual


def test_two_processes_have_the_gradients_of_one_on_the_joint_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.drifting.loss.test_drift_processes", str(tmp_path)]
    running = [
        subprocess.Popen(command, cwd=ROOT, env={**environment, "RANK": rank}) for rank in "01"
    ]
    try:
        assert [process.wait(timeout=120) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    halves = [checkpoint.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    joint = evaluate(-1)
    for index in range(2 * len(CASES)):
        losses = torch.stack([half[f"loss{index}"] for half in halves])
        torch.testing.assert_close(losses.mean(), joint[f"loss{index}"])
        # DDP averages gradients over processes: half holds half of what it sends.
        gradients = torch.cat([half[f"gradient{index}"] for half in halves]) / 2
        torch.testing.assert_close(gradients, joint[f"gradient{index}"])


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    with joined(Process(rank, 2, rank), torch.device("cpu")):
        checkpoint.save(Path(sys.argv[1]) / f"{rank}.pt", evaluate(rank))
        torch.distributed.barrier()
