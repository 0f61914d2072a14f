"""What Wan2.1's transformer costs as a refiner, and what sparse-linear attention saves of it.

    python -m benchmarks.wan attention     two minutes of one core
    python -m benchmarks.wan count         one minute; nothing is computed, operations are counted
    python -m benchmarks.wan measure       ten minutes and 8 GiB: the 1.3 B network, random weights

`attention` writes docs/results/wan_attention.csv: for each density the error of sparse-linear
attention against full attention, with W fitted by least squares on other inputs, beside that of
dropping the rest; its time on this grid; and the operations of a head at the 32,760 tokens of
[16, 21, 60, 104]. Inputs are smooth fields in space and time, as latents of video are.

`count` and `measure` write docs/results/wan_cost.csv, a row a shape: operations of a forward pass
and of a step that trains adapters and recomputes blocks; measured seconds and peak memory; and the
seconds of a step on a processor that sustains 1 PFLOP/s, by count.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from braid.drifting.config import RefinerConfig
from braid.drifting.training.objectives import recompute_blocks
from braid.drifting.video.sparse_linear_attention import (
    SparseLinearAttention,
    critical_blocks,
    gathered,
    linear_rest,
)
from braid.drifting.video.wan import WanRefiner, add_adapters
from braid.stage.params import load_params

RESULTS = Path("docs/results")
GRID = (8, 16, 16)  # of tokens: T, h, w
HEADS, CHANNELS, BLOCK = 4, 64, 64
SCALE, FITTED = 1.5, 32  # of queries and keys: a query attends to some 80 keys; other inputs
DENSITIES = (0.05, 0.1, 0.2, 0.5, 1.0)
FULL = 21 * 30 * 52  # tokens of [16, 21, 60, 104]
SIZES = {"patch": 2, "dim": 1536, "depth": 30, "heads": 12, "detail": 0, "beside": "text"}
WIDENING, TEXT = 8960 / 1536, (512, 4096)  # of Wan2.1-T2V-1.3B, and of umT5
SHAPES = ((21, 16, 16), (5, 60, 104), (21, 60, 104))  # of latents
ROWS: tuple[tuple[tuple[int, ...], float | None], ...] = (
    *((shape, None) for shape in SHAPES),
    (SHAPES[-1], 0.1),
)
MEASURED = SHAPES[:2]  # the first by a step too
RANK = 16
SUSTAINED = 1e15  # operations a second


def main() -> None:
    """Run a part and print its table."""
    torch.set_num_threads(1)
    part = sys.argv[1] if len(sys.argv) == 2 else ""
    parts = {"attention": attention, "count": count, "measure": measure}
    if part not in parts:
        sys.exit(f"error: benchmarks.wan: expected one of {', '.join(parts)}")
    print(parts[part]().to_string(index=False))


# ---- Attention -----------------------------------------------------------------------------------


def smooth_heads(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [1, H, N, d] that vary slowly over space and time."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.cartesian_prod(*(torch.linspace(0, 1, extent) for extent in GRID))
    waves = 2 * torch.pi * torch.randn(3, 64, generator=draw)
    phases = torch.rand(64, generator=draw) * 2 * torch.pi
    fields = (places @ waves + phases).cos() / 8  # [N, 64]
    layer = torch.Generator().manual_seed(-1)  # whose weights are the same for all inputs
    mixing = torch.randn(2, HEADS, 64, CHANNELS, generator=layer)
    alike, values = fields @ mixing[0], fields @ mixing[1]
    noise = torch.randn(2, *alike.shape, generator=draw) / 2
    queries, keys = SCALE * (alike + noise)
    return queries[None], keys[None], values[None]


def attention() -> pd.DataFrame:
    """Errors, times and operations by density."""
    rows, tested = [], smooth_heads(0)
    truth = functional.scaled_dot_product_attention(*tested)
    full = best_of(lambda: functional.scaled_dot_product_attention(*tested))
    for density in DENSITIES:
        mixer = SparseLinearAttention(CHANNELS, density, BLOCK)
        fit(mixer, range(1, 1 + FITTED))
        with torch.no_grad():
            critical = critical_blocks(tested[0], tested[1], density, BLOCK)
            dropped = gathered(*tested, critical, BLOCK)
            rows.append(
                {
                    "density": density,
                    "error": relative(mixer(*tested), truth),
                    "error_dropped": relative(dropped, truth),
                    "milliseconds": best_of(lambda mixer=mixer: mixer(*tested)),
                    "milliseconds_full": full,
                    "gflop": flops(density) / 1e9,
                    "gflop_full": 4 * FULL**2 * 128 / 1e9,
                }
            )
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / "wan_attention.csv", index=False, float_format="%.4g")
    return table


@torch.no_grad()
def fit(mixer: SparseLinearAttention, seeds: Iterable[int]) -> None:
    """W by least squares from what linear attention to the rest gives to what is missing."""
    system = 1e-9 * torch.eye(CHANNELS, dtype=torch.float64)
    right = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64)
    for seed in seeds:
        heads = smooth_heads(seed)
        critical = critical_blocks(heads[0], heads[1], mixer.density, BLOCK)
        exact = gathered(*heads, critical, BLOCK)
        missing = functional.scaled_dot_product_attention(*heads) - exact
        rest = linear_rest(*heads, critical, BLOCK).flatten(0, 2).double()
        system += rest.T @ rest
        right += rest.T @ missing.flatten(0, 2).double()
    mixer.mix.weight.copy_(torch.linalg.solve(system, right).T)


def relative(mixed: Tensor, truth: Tensor) -> float:
    """Root mean square error over the truth's deviation."""
    return float((mixed - truth).square().mean().sqrt() / truth.std())


def best_of(call: Any) -> float:
    """Milliseconds of this thread, the best of five."""
    best = float("inf")
    for _ in range(5):
        start = time.thread_time()
        call()
        best = min(best, time.thread_time() - start)
    return 1000 * best


def flops(density: float) -> float:
    """Operations of one head of 128 channels at all tokens, by what the code calls."""
    heads = [torch.empty(1, 1, FULL, 128, device="meta") for _ in range(3)]
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        SparseLinearAttention(128, density, BLOCK)(*heads)
    return float(counter.get_total_flops())


# ---- The whole network ---------------------------------------------------------------------------


def config(density: float | None = None) -> RefinerConfig:
    """That of Wan2.1-T2V-1.3B, fresh; with sparse-linear attention where a density is given."""
    committed = load_params(Path("params.yaml")).drift.refiner
    own: dict[str, Any] = {"widening": WIDENING, "block": BLOCK}
    if density is not None:
        own |= {"attention": "sparse_linear", "density": density}
    return committed.model_copy(
        update={"backbone": "wan", **SIZES, "wan": committed.wan.model_copy(update=own)}
    )


def network(device: str, density: float | None = None) -> WanRefiner:
    """The 1.3 B network in bfloat16 with adapters; class, alpha and adapters in float32."""
    with torch.device("meta"):
        refiner = WanRefiner(16, 1024, 3, config(density), TEXT[1])
    for name, weights in refiner.model.named_parameters():
        if not any(part in name for part in refiner.model._keep_in_fp32_modules):
            weights.data = weights.data.to(torch.bfloat16)
    if device != "meta":
        refiner.to_empty(device=device)
        with torch.no_grad():
            for weights in refiner.parameters():
                weights.uniform_(-0.02, 0.02)
        refiner.model.rope = type(refiner.model.rope)(128, (1, 2, 2), 1024)
        refiner.sigmas.copy_(torch.tensor([0.0, 0.5, 1.0]))
    with torch.device(device):
        own = refiner.config.wan.model_copy(update={"rank": RANK})
        add_adapters(refiner.model, own)
    recompute_blocks(refiner)
    return refiner


def given(shape: tuple[int, ...], device: str) -> dict[str, Tensor]:
    """One clip to refine."""
    mask = torch.zeros(1, shape[0], dtype=torch.bool, device=device)
    mask[:, [0, -1]] = True
    return {
        "clips": torch.zeros(1, 16, *shape, device=device) + 0.1,
        "mask": mask,
        "confidence": mask.float(),
        "classes": torch.zeros(1, dtype=torch.long, device=device),
        "level": torch.full((1,), 2, device=device),
        "alpha": torch.ones(1, device=device),
        "text": torch.ones(1, *TEXT, device=device),
    }


def count() -> pd.DataFrame:
    """Operations by shape; of the largest with sparse-linear attention too."""
    rows = []
    for shape, density in ROWS:
        refiner, clip = network("meta", density), given(shape, "meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            refiner(**clip)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            refiner(**clip).square().mean().backward()
        step = counter.get_total_flops()
        rows.append(
            {
                **name_of(shape, density),
                "tokens": shape[0] * shape[1] * shape[2] // 4,
                "parameters": sum(each.numel() for each in refiner.parameters()),
                "forward_tflop": forward / 1e12,
                "step_tflop": step / 1e12,
                "step_seconds_1_pflops": step / SUSTAINED,
            }
        )
    return updated(pd.DataFrame(rows))


def measure() -> pd.DataFrame:
    """Seconds of this machine and peak memory."""
    refiner, table = network("cpu"), pd.DataFrame()
    for shape in MEASURED:
        clip = given(shape, "cpu")
        row: dict[str, Any] = name_of(shape, None)
        start = time.thread_time()
        with torch.no_grad():
            refiner(**clip)
        row["forward_seconds"] = time.thread_time() - start
        if shape == MEASURED[0]:
            learn = [each for each in refiner.parameters() if each.requires_grad]
            optimizer = torch.optim.AdamW(learn, lr=1e-4)
            start = time.thread_time()
            refiner(**clip).square().mean().backward()
            optimizer.step()
            row["step_seconds"] = time.thread_time() - start
        row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        table = updated(pd.DataFrame([row]))
    return table


def name_of(shape: tuple[int, ...], density: float | None) -> dict[str, str]:
    """A row's name: latents, and attention."""
    kind = "full" if density is None else f"sparse-linear {density:g}"
    return {"latents": f"16 x {' x '.join(map(str, shape))}", "attention": kind}


def updated(rows: pd.DataFrame) -> pd.DataFrame:
    """The table on disk with these figures in their rows."""
    path, keys = RESULTS / "wan_cost.csv", ["latents", "attention"]
    table = rows.set_index(keys)
    if path.exists():
        table = table.combine_first(pd.read_csv(path).set_index(keys))
    names = [tuple(name_of(*row).values()) for row in ROWS]
    table = table.loc[[name for name in names if name in table.index]].reset_index()
    table.to_csv(path, index=False, float_format="%.4g")
    return table


if __name__ == "__main__":
    main()
