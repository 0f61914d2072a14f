"""Wan's network as a refiner: that of the library, with adapters, conditions, time by token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.drifting.video import wan as module
from braid.drifting.video.refiner import load_refiner, save_refiner, start_from
from braid.drifting.video.wan import WanRefiner, WanTransformer3DModel, merge
from braid.training import checkpoint
from tests.drifting import configs
from tests.drifting.video.wan_process import clips, fresh, texts, trained

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `transformer` of a tiny checkpoint, as diffusers writes it."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=3,
        out_channels=3,
        text_dim=10,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
    )
    folder = tmp_path_factory.mktemp("wan") / "transformer"
    model.save_pretrained(folder)
    return folder


def on(folder: Path, **changes: Any) -> WanRefiner:
    return fresh(**{"base": str(folder), "depth": 2} | changes)


def disturbed(refiner: WanRefiner) -> WanRefiner:
    """With random weights where any learn."""
    torch.manual_seed(3)
    for weights in refiner.parameters():
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.2)
    return refiner


def test_velocity_is_the_library_s_where_all_tokens_have_one_time(base: Path) -> None:
    refiner = on(base, mask_padding=False)
    values, time, text = clips()[0], torch.linspace(0.1, 0.9, 4), texts()
    own, _ = refiner.velocity(values, time[:, None].expand(4, 5), text, torch.zeros(4, 24))
    library = WanTransformer3DModel.from_pretrained(base)
    theirs = library(values, 1000 * time, text, return_dict=False)[0]
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)


def test_a_step_is_the_clip_less_sigma_times_velocity(base: Path) -> None:
    refiner, given = on(base, sigmas=(0.25, 0.75)), clips()
    sigma = torch.tensor([0.25, 0.75, 0.25, 0.75])[:, None]
    time = torch.where(given[1], 0.0, sigma.expand(4, 5))
    velocity, _ = refiner.velocity(given[0], time, texts(), torch.zeros(4, 24))
    expected = given[0] - sigma[..., None, None, None] * velocity
    torch.testing.assert_close(refiner(*given, text=texts()), expected)


@pytest.mark.parametrize("frozen", ["float32", "bfloat16"])
def test_untrained_adapters_leave_every_bit(base: Path, frozen: str) -> None:
    adapted = on(base, rank=2, frozen=frozen)
    plain = on(base) if frozen == "float32" else on(base, rank=1, frozen=frozen)
    assert torch.equal(adapted(*clips(), text=texts()), plain(*clips(), text=texts()))
    learns = {name for name, each in adapted.named_parameters() if each.requires_grad}
    assert all("lora" in name or name.startswith(("class_table", "alpha")) for name in learns)
    assert {each.dtype for each in adapted.parameters() if each.requires_grad} == {torch.float32}
    assert adapted.model.blocks[0].ffn.net[2].base_layer.weight.dtype == getattr(torch, frozen)
    assert all(each.requires_grad for each in on(base).parameters())


def test_fresh_weights_return_their_input() -> None:
    assert torch.equal(fresh()(*clips(), text=texts()), clips()[0])


@pytest.mark.parametrize("size", [(5, 3), (1, 1)])
def test_odd_sides_are_padded_and_cropped(base: Path, size: tuple[int, int]) -> None:
    given = clips(size=size)
    refined = on(base)(*given, text=texts())
    assert refined.shape == given[0].shape
    assert (refined - given[0]).abs().amin(dim=(0, 1, 2)).min() > 0


@pytest.mark.parametrize("which", range(1, 6))
def test_each_condition_changes_the_result(base: Path, which: int) -> None:
    refiner, given = disturbed(on(base)), clips()
    before = refiner(*given, text=texts())
    if which == 1:
        given[1] = ~given[1]
    elif which in (3, 4):
        given[which] = given[which] % 2 + 1
    else:
        given[which] = given[which] * 0.5 + 0.3
    assert not torch.allclose(refiner(*given, text=texts()), before)


def test_each_token_has_the_time_of_its_frame(base: Path) -> None:
    refiner, (values, *_) = on(base), clips()
    time = torch.zeros(4, 5)
    before, _ = refiner.velocity(values, time, texts(), torch.zeros(4, 24))
    _, first = refiner.velocity(values, time, texts(), torch.zeros(4, 24))
    time[:, 2] = 1.0
    after, tokens = refiner.velocity(values, time, texts(), torch.zeros(4, 24))
    moved = (tokens - first).abs().mean(dim=(0, 2, 3, 4))
    assert moved[2] > 2 * moved[[0, 1, 3, 4]].max()
    assert (after - before)[:, :, 2].abs().mean() > (after - before)[:, :, 0].abs().mean()


def test_padding_is_masked_unless_the_params_say_otherwise(base: Path) -> None:
    longer = torch.nn.functional.pad(texts(), (0, 0, 0, 5))
    for masked in (True, False):
        refiner = on(base, mask_padding=masked)
        change = refiner(*clips(), text=longer) - refiner(*clips(), text=texts())
        assert (change.abs().max() < 1e-5) == masked
    refiner, zeros = on(base), torch.zeros(4, 3, 10)
    assert refiner(*clips(), text=zeros).isfinite().all()
    assert torch.equal(refiner(*clips(), text=zeros[:, :1]), refiner(*clips()))


def test_given_frames_are_clamped_and_keyframes_moved(base: Path) -> None:
    given = clips()
    refiner = disturbed(on(base, detail=2))
    plain = disturbed(on(base))
    plain.load_state_dict(refiner.state_dict(), strict=False)
    kept = refiner(*given, clamp=True, text=texts())
    assert torch.equal(kept[:, :, [0, -1]], given[0][:, :, [0, -1]])
    assert not torch.allclose(kept, plain(*given, clamp=True, text=texts()))


@pytest.mark.parametrize("attention", ["full", "sparse_linear"])
def test_recomputed_blocks_give_the_same_gradients(base: Path, attention: str) -> None:
    gradients = []
    for recompute in (False, True):
        refiner = disturbed(on(base, rank=2, recompute=recompute, attention=attention))
        refiner(*clips(), text=texts()).square().mean().backward()
        gradients.append({n: e.grad for n, e in refiner.named_parameters() if e.requires_grad})
    assert any("attention.mix" in name for name in gradients[0]) == (attention != "full")
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_adapters_alone_are_stored_with_their_base_named(base: Path, tmp_path: Path) -> None:
    refiner = disturbed(on(base, rank=2))
    save_refiner(tmp_path / "adapted", refiner)
    stored = json.loads((tmp_path / "adapted/config.json").read_text())
    assert stored["wan"]["base"] == str(base)
    assert len(stored["base_hash"]) == 64
    assert all("lora" in name for name in refiner.state_dict() if name.startswith("model"))
    again = load_refiner(tmp_path / "adapted")
    expected = refiner(*clips(), text=texts())
    assert torch.equal(again(*clips(), text=texts()), expected)
    other = on(base, rank=2)
    start_from(other, tmp_path / "adapted")
    assert torch.equal(other(*clips(), text=texts()), expected)

    spoiled = tmp_path / "transformer"
    WanTransformer3DModel.from_pretrained(base).save_pretrained(spoiled)
    (spoiled / "config.json").write_text((spoiled / "config.json").read_text() + " ")
    text = (tmp_path / "adapted/config.json").read_text().replace(str(base), str(spoiled))
    (tmp_path / "adapted/config.json").write_text(text)
    with pytest.raises(ValueError, match="other weights than those that adapters were trained on"):
        load_refiner(tmp_path / "adapted")


def test_all_weights_are_stored_where_all_learn(base: Path, tmp_path: Path) -> None:
    refiner = disturbed(on(base))
    save_refiner(tmp_path / "tuned", refiner)
    text = (tmp_path / "tuned/config.json").read_text().replace(str(base), "/gone")
    (tmp_path / "tuned/config.json").write_text(text)
    again = load_refiner(tmp_path / "tuned")
    assert torch.equal(again(*clips(), text=texts()), refiner(*clips(), text=texts()))


def test_adapters_are_merged_on_export(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refiner = disturbed(on(base, rank=2))
    save_refiner(tmp_path / "adapted", refiner)
    command = ["wan", str(tmp_path / "adapted"), str(tmp_path / "merged")]
    monkeypatch.setattr(sys, "argv", command)
    module.main()
    merged = load_refiner(tmp_path / "merged")
    expected = refiner(*clips(), text=texts())
    torch.testing.assert_close(merged(*clips(), text=texts()), expected, rtol=1e-4, atol=1e-5)
    library = on(tmp_path / "merged/transformer")
    for name in ("class_table", "alpha"):
        getattr(library, name).load_state_dict(getattr(refiner, name).state_dict())
    torch.testing.assert_close(library(*clips(), text=texts()), expected, rtol=1e-4, atol=1e-5)
    assert merge(library) is library

    sparse = on(base, rank=2, attention="sparse_linear")
    save_refiner(tmp_path / "adapted", sparse)
    with pytest.raises(SystemExit, match="has sparse-linear attention"):
        module.main()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 36}, r"drift\.refiner\.dim is 36, expected 24, as"),
        ({"depth": 3}, r"drift\.refiner\.depth is 3, expected 2, as"),
        ({"patch": 4}, r"drift\.refiner\.patch is 4, expected 2, as"),
        ({"rank": 2, "targets": ("to_x",)}, r"wan\.targets: no layer of .* ends in to_x"),
        ({"base": "/nowhere"}, r"wan\.base: /nowhere: expected config\.json and safetensors"),
        ({"base": "none", "dim": 25}, r"drift\.refiner\.dim is 25, expected a multiple of twice"),
    ],
)
def test_what_does_not_fit_is_named(base: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on(base, **changes)


def test_a_base_of_another_class_or_of_other_inputs_is_named(base: Path, tmp_path: Path) -> None:
    text = (base / "config.json").read_text().replace("WanTransformer3DModel", "AutoencoderKLWan")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"of a WanTransformer3DModel \(it has a Autoencoder"):
        on(tmp_path)
    with pytest.raises(ValueError, match="in_channels is 3, expected 4, as clips have it"):
        WanRefiner(4, 5, 3, configs.wan_refiner(base=str(base), depth=2), 10)
    with pytest.raises(ValueError, match="text_dim is 10, expected 11, as clips have it"):
        WanRefiner(3, 5, 3, configs.wan_refiner(base=str(base), depth=2), 11)


def test_two_processes_that_share_the_weights_make_one_s_update(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = ["-m", "tests.drifting.video.wan_process", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *script], cwd=ROOT, env=environment, check=True, timeout=240)
    alone = trained()
    assert alone["kinds"] == ["Parameter"]
    for rank in (0, 1):
        whole = checkpoint.load(tmp_path / f"whole{rank}.pt")
        resumed = checkpoint.load(tmp_path / f"resumed{rank}.pt")
        assert whole is not None
        assert resumed is not None
        assert "DTensor" in whole["kinds"]
        assert whole["row"] == pytest.approx(alone["row"], rel=1e-4)
        for name, weights in alone["weights"].items():
            torch.testing.assert_close(whole["weights"][name], weights, rtol=1e-3, atol=1e-5)
            assert torch.equal(resumed["weights"][name], whole["weights"][name]), name


def test_with_sparse_linear_attention_of_density_1_nothing_changes(base: Path) -> None:
    expected = on(base)(*clips(), text=texts())
    dense = on(base, attention="sparse_linear", density=1.0)
    torch.testing.assert_close(dense(*clips(), text=texts()), expected, rtol=1e-5, atol=1e-5)
    sparse = on(base, attention="sparse_linear", density=0.1)
    assert not torch.allclose(sparse(*clips(), text=texts()), expected, atol=1e-3)
