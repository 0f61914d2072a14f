"""The masked autoencoder: shapes, what its convolutions compute, storage."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from braid.drifting.mae.latent_mae import LatentMae, _Conv, load_latent_mae, save_latent_mae
from braid.training.optimizers import hidden_matrices


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def small(**changes):
    torch.manual_seed(0)
    return LatentMae(**{"channels": 3, "width": 8, "blocks": (1, 2, 1), "classes": 4, **changes})


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_that_of_torch(kernel, stride):
    conv = _Conv(4, 6, kernel, (stride if kernel[0] > 1 else 1, stride if kernel[1] > 1 else 1))
    values = clips(2, 4, 5, 7, 6)
    time, height, width = kernel
    weight = conv.weight.view(6, time, height, width, 4).permute(0, 4, 1, 2, 3)
    steps = [stride if size > 1 else 1 for size in kernel]
    expected = F.conv3d(values, weight, stride=steps, padding=[size // 2 for size in kernel])
    torch.testing.assert_close(conv(values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "coarsest"), [((9, 8, 8), (5, 2, 2)), ((21, 60, 104), (6, 8, 13))]
)
def test_maps_are_halved_rounding_up_and_the_decoder_comes_back(size, coarsest):
    blocks = (1,) * (3 if size[0] == 9 else 4)
    mae = LatentMae(16, 8, blocks).to("meta")
    maps = mae.encode(torch.empty(2, 16, *size, device="meta"))
    assert maps["stage1"].shape == (2, 8, *size)
    last = len(blocks)
    assert maps[f"stage{last}"].shape == (2, 8 * 2 ** (last - 1), *coarsest)
    assert mae.decode(maps).shape == (2, 16, *size)


@pytest.mark.parametrize("size", [(5, 7, 3), (1, 1, 1), (2, 5, 9)])
def test_odd_sizes_pass(size):
    assert small()(clips(1, 3, *size)).shape == (1, 3, *size)


def test_maps_go_from_fine_to_coarse_with_every_second_block_between():
    maps = small(blocks=(1, 5, 2)).encode(clips(1, 3, 3, 8, 8))
    expected = ["stem", "stage1", "stage2_block2", "stage2_block4", "stage2", "stage3"]
    assert list(maps) == expected


def test_clips_of_a_batch_do_not_meet():
    mae, batch = small(), clips(3, 3, 3, 4, 4)
    torch.nn.init.normal_(mae.out.weight)
    torch.testing.assert_close(mae(batch)[1:2], mae(batch[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_decoder_uses_every_stage(stage):
    mae = small()
    nn.init.normal_(mae.out.weight)
    maps = mae.encode(clips(1, 3, 5, 8, 8))
    changed = {**maps, f"stage{stage}": maps[f"stage{stage}"].roll(1, dims=1)}
    assert not torch.allclose(mae.decode(changed), mae.decode(maps), atol=1e-3)


def test_the_first_prediction_is_the_mean_of_normalized_latents():
    assert not small()(clips(2, 3, 3, 4, 4)).any()


def test_a_frame_reaches_its_neighbors_and_a_place_those_around():
    mae = small(blocks=(1,))
    nn.init.normal_(mae.stages[0][0].norm2.weight)
    values = clips(1, 3, 9, 9, 9).requires_grad_()
    mae.encode(values)["stage1"][0, 0, 4, 4, 4].backward()
    assert values.grad[0, :, 3, 4, 4].any()
    assert values.grad[0, :, 4, 4, 6].any()


def test_the_network_can_learn_one_batch_by_heart():
    mae, batch = small(width=16), clips(4, 3, 3, 4, 4)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = (mae(batch) - batch).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.02


def test_the_head_scores_the_pooled_last_stage():
    mae, batch = small(), clips(2, 3, 3, 4, 4)
    maps = mae.encode(batch)
    assert torch.equal(mae.logits(maps), mae.head(maps["stage3"].mean(dim=(2, 3, 4))))
    with pytest.raises(ValueError, match="no pseudo-class head"):
        small(classes=0).logits(maps)


def test_muon_gets_the_convolutions_but_not_the_first_and_the_last():
    mae = small()
    hidden = hidden_matrices(mae, mae.outer_layers)
    convolutions = {
        f"{name}.weight" for name, module in mae.named_modules() if type(module) is _Conv
    }
    assert set(hidden) == convolutions - {"stem.0.weight", "out.weight"}
    assert len(hidden) > 8
    assert small(classes=0).outer_layers == ["stem.0", "out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 6}, "width is 6, expected a multiple of 4"),
        ({"blocks": ()}, "expected one or more for every stage"),
        ({"blocks": (1, 0)}, "expected one or more for every stage"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)


def test_a_stored_model_computes_the_same_and_is_frozen(tmp_path):
    mae, batch = small(), clips(2, 3, 3, 4, 4)
    nn.init.normal_(mae.out.weight)
    save_latent_mae(tmp_path / "mae", mae)
    again = load_latent_mae(tmp_path / "mae")
    assert torch.equal(again(batch), mae(batch))
    assert not again.training
    assert not any(weights.requires_grad for weights in again.parameters())
    first = (tmp_path / "mae/model.safetensors").read_bytes()
    save_latent_mae(tmp_path / "mae", again)
    assert (tmp_path / "mae/model.safetensors").read_bytes() == first


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"mae: expected config.json and model.safetensors"):
        load_latent_mae(tmp_path / "mae")
    save_latent_mae(tmp_path / "mae", small())
    weights = tmp_path / "mae/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"mae: expected .* of a latent MAE"):
        load_latent_mae(tmp_path / "mae")
    save_latent_mae(tmp_path / "mae", small())
    (tmp_path / "mae/config.json").write_text('{"channels": 3, "depth": 2}')
    with pytest.raises(ValueError, match=r"mae: expected .* of a latent MAE"):
        load_latent_mae(tmp_path / "mae")
