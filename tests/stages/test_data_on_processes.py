"""Stages that make data, run by one, two and three processes: the same bytes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from tests.clips.shard_files import latent, members, saved, write_clips, write_tar
from tests.stages.conftest import ROOT
from tests.stages.conftest import run as run_stage
from tests.tiny import TINY, override
from tests.training.test_distributed import free_port
from tests.training.test_distributed_units import run

STEPS = (
    "wan prepare_clips",
    "digits prepare_clips",
    "digits quantize",
    "digits evaluate_representation",
    "radiance evaluate_radiance own response",
    "segments evaluate_sam3",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and anchors in shards of their own, with a key twice, a NaN and a cut anchor."""
    folder = tmp_path_factory.mktemp("wan_synth")
    write_clips(folder / "clips-0.tar", range(16))
    spoilt = latent(20)
    spoilt[0, 0, 0, 0] = torch.nan
    content = {name: data for n in range(15, 32) for name, data in members(n).items()}
    write_tar(folder / "clips-1.tar", content | {"000000020.latent.pt": saved(spoilt)})
    write_clips(folder / "clips-2.tar", range(32, 48))
    anchors = {f"{n:09d}.anchor.pt": saved(latent(100 + n)) for n in (3, 20, 33, 40)}
    cut = {"000000005.anchor.pt": saved(latent(5)[:, :1].clone())}
    write_tar(folder / "anchors-0.tar", anchors)
    write_tar(folder / "anchors-1.tar", cut | {"000000003.anchor.pt": saved(latent(7))})
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, shards: Path, finished: Path) -> Path:
    """Repositories in which nothing is missing but what the steps make."""
    folder = tmp_path_factory.mktemp("prepared")
    wan = {"clips.source": f"{shards}/clips-*.tar", "clips.anchors": f"{shards}/anchors-*.tar"}
    segments = {key: TINY[key] for key in TINY if key.startswith(("hardware", "training", "sam3"))}
    segments |= {"sam3.teacher.steps": 4, "sam3.evaluation.truth_only": "distilled"}
    of_digits = {**TINY, "clips.digits.per_shard": 20}
    params = {"wan": wan, "digits": of_digits, "segments": segments}
    for name, changes in params.items():
        (folder / name).mkdir()
        for file in ("params.yaml", "dvc.yaml", "none", "built_in"):
            shutil.copy(ROOT / file, folder / name)
        override(folder / name, changes)
    torch.manual_seed(0)
    save_latent_mae(folder / "digits/models/latent_mae", LatentMae(width=8, blocks=(1, 1)))
    for stage in ("prepare_sa1b", "fit_sam3_teacher", "cache_teacher"):
        run_stage(folder / "segments", stage)
    run_stage(folder / "segments", "distill_sam3", "distilled")
    shutil.copytree(finished, folder / "radiance")
    for made in ("data/renders", "data/turntable", "metrics", "plots/residuals"):
        shutil.rmtree(folder / "radiance" / made)
    return folder


def outs(folder: Path) -> dict[str, bytes]:
    """What the stages made, but for what clock and hardware say."""
    tops = ("data", "models", "metrics", "plots")
    paths = [path for top in tops for path in folder.glob(f"*/{top}/**/*")]
    files = [path for path in paths if path.is_file() and "runtime" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def shared(
    folder: Path, processes: int, mode: str = "live", steps: tuple[str, ...] = STEPS
) -> list[int]:
    """Run the steps; the exit codes."""
    with_ports = [f"{free_port()} {step}" for step in steps]
    module = "tests.stages.data_process"
    return run(folder, processes, mode, *with_ports, dies=mode == "die", module=module)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> dict[str, bytes]:
    """What one process makes."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("alone") / "repos"))
    assert shared(folder, 1) == [0]
    return outs(folder)


def test_three_processes_make_the_files_of_one(
    alone: dict[str, bytes], prepared: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "repos"))
    assert shared(folder, 3) == [0, 0, 0]
    assert outs(folder) == alone
    notes = [(folder / f"made{rank}.txt").read_text() for rank in range(3)]
    for kind in ("clips", "anchors", "shard-", "conditions", "features", "shot", "batch"):
        made = [note.count(kind) for note in notes]
        assert sum(count > 0 for count in made) > 1, f"{kind}: {made}"
    assert [note.count("frames") for note in notes] == [1, 0, 0]  # one times them
    for step in STEPS:
        repo, stage, *_ = step.split()
        assert list((folder / repo / "metrics/runtime").glob(f"{stage}*"))


def test_after_a_death_two_processes_go_on_with_what_is_finished(
    alone: dict[str, bytes], prepared: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "repos"))
    steps = tuple(step for step in STEPS if step.startswith("digits"))
    assert shared(folder, 2, "die", steps)[1] == -signal.SIGKILL
    assert not (folder / "digits/data/clips").exists()
    finished = {path.name for path in folder.glob("digits/scratch/**/shard-*.tar")}
    assert 0 < len(finished) < 6
    assert shared(folder, 2, "live", steps) == [0, 0]
    made = "".join((folder / f"made{rank}.txt").read_text() for rank in range(2)).split()
    again = [name for name in made if name.startswith("shard-")]
    assert len(again) == 6 - len(finished)
    assert not finished & set(again)
    of_digits = {name: content for name, content in alone.items() if name.startswith("digits")}
    assert {name: c for name, c in outs(folder).items() if name.startswith("digits")} == of_digits
