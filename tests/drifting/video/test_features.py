"""phi: what each family says of a clip, and what it must not depend on."""

import pytest
import torch
from torch import nn

from braid.drifting.mae.latent_mae import LatentMae
from braid.drifting.video.features import FAMILIES, ClipFeatures, spread


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


class Identity(nn.Module):
    """An encoder whose one map is the clip."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def encode(self, values):
        return {"map": self.weight * values}

    def freeze(self):
        return self.requires_grad_(False)


def groups(values, families=FAMILIES, locations=10_000):
    return ClipFeatures(Identity(), families, locations)(values)


def test_every_group_is_what_a_loop_computes():
    values = clips(2, 5, 4, 6, 5)
    actual = groups(values)
    std = lambda x, dims: (x.var(dim=dims, correction=0) + 1e-6).sqrt()  # noqa: E731
    assert torch.equal(actual["map/location"], values.permute(0, 2, 3, 4, 1).reshape(2, 120, 5))
    torch.testing.assert_close(actual["map/clip_mean"][:, 0], values.mean((2, 3, 4)))
    torch.testing.assert_close(actual["map/clip_std"][:, 0], std(values, (2, 3, 4)))
    steps = values[:, :, 1:] - values[:, :, :-1]
    for name, x in (("frame", values), ("motion", steps)):
        torch.testing.assert_close(actual[f"map/{name}_mean"], x.mean((3, 4)).mT)
        torch.testing.assert_close(actual[f"map/{name}_std"], std(x, (3, 4)).mT)
    for side in (2, 4):
        windows = [
            values[:, :, t, i : i + side, j : j + side]
            for t in range(4)
            for i in range(0, 6, side)
            for j in range(0, 5, side)  # those at the far edge are narrower
        ]
        mean = torch.stack([window.mean((2, 3)) for window in windows], dim=1)
        deviation = torch.stack([std(window, (2, 3)) for window in windows], dim=1)
        torch.testing.assert_close(actual[f"map/patch{side}_mean"], mean)
        torch.testing.assert_close(actual[f"map/patch{side}_std"], deviation, rtol=1e-4, atol=1e-4)
    rms = (values.square().mean((2, 3, 4)) + 1e-6).sqrt()
    torch.testing.assert_close(actual["input/rms"][:, 0], rms)
    assert len(actual) == 12


def test_means_do_not_care_where_and_frames_do_not_care_where_within():
    values = clips(1, 5, 4, 4, 4)
    places = torch.randperm(16, generator=generator())
    within = values.flatten(3)[..., places].view_as(values)
    anywhere = values.flatten(2)[..., torch.randperm(64, generator=generator())].view_as(values)
    before, moved, mixed = groups(values), groups(within), groups(anywhere)
    for name in ("clip_mean", "clip_std"):
        torch.testing.assert_close(mixed[f"map/{name}"], before[f"map/{name}"])
    for name in ("frame_mean", "frame_std", "motion_mean", "motion_std"):
        torch.testing.assert_close(moved[f"map/{name}"], before[f"map/{name}"])
        assert not torch.allclose(mixed[f"map/{name}"], before[f"map/{name}"], atol=1e-3)
    for name in ("location", "patch2_mean", "patch2_std"):
        assert not torch.allclose(moved[f"map/{name}"], before[f"map/{name}"], atol=1e-3)


def test_a_static_clip_does_not_move():
    actual = groups(clips(2, 5, 1, 4, 4).expand(-1, -1, 6, -1, -1))
    assert not actual["map/motion_mean"].any()
    torch.testing.assert_close(actual["map/motion_std"], torch.full((2, 5, 5), 1e-3))


def test_motion_forth_and_back_is_not_the_same_as_none():
    still = clips(1, 5, 1, 4, 4).expand(-1, -1, 5, -1, -1)
    swinging = still.clone()
    swinging[:, :, 1::2] += clips(1, 5, 1, 4, 4, seed=1)  # the last frame is the first
    assert (groups(swinging)["map/motion_std"] > 0.1).all()
    assert not groups(still)["map/motion_mean"].any()


@pytest.mark.parametrize(
    ("size", "missing"),
    [
        ((4, 2, 2), {"patch2", "patch4"}),
        ((4, 4, 3), {"patch4"}),
        ((1, 8, 8), {"frame", "motion"}),
        ((3, 1, 1), {"frame", "patch2", "patch4"}),
        ((1, 1, 1), {"clip", "frame", "patch2", "patch4", "motion"}),
    ],
)
def test_what_a_small_map_would_repeat_is_left_out(size, missing):
    actual = groups(clips(2, 5, *size))
    families = {name.split("/")[1].split("_")[0] for name in actual}
    assert families == set(FAMILIES) - missing
    constant = [
        name for name, vectors in actual.items() if name.endswith("std") and vectors.std() == 0
    ]
    assert not constant


@pytest.mark.parametrize("total", [65, 144, 512, 576, 5 * 60 * 104])
def test_a_subset_is_spread_over_time_rows_and_columns(total):
    kept = spread(torch.arange(total)[None, :, None], 64)[0, :, 0]
    assert len(kept.unique()) == 64
    assert kept.diff().min() > 0
    quarters = (kept * 4 // total).bincount(minlength=4)
    assert quarters.min() >= 14
    for columns in (2, 4, 8):
        assert (kept % columns).bincount(minlength=columns).min() >= 32 // columns


def test_all_are_kept_where_they_fit():
    vectors = clips(2, 7, 3)
    assert spread(vectors, 7) is vectors


def test_families_can_be_chosen_and_come_in_one_order():
    values = clips(2, 5, 4, 8, 8)
    chosen = groups(values, families=("motion", "location"))
    assert list(chosen) == ["map/location", "map/motion_mean", "map/motion_std"]
    assert list(groups(values, families=("rms",))) == ["input/rms"]


@pytest.mark.parametrize(
    ("families", "locations", "message"),
    [
        ((), 4, r"features are \[\], expected some of location, clip"),
        (("location", "color"), 4, "'color'"),
        (("location",), 0, "locations is 0, expected 1 or more"),
    ],
)
def test_impossible_choices_are_refused(families, locations, message):
    with pytest.raises(ValueError, match=message):
        ClipFeatures(Identity(), families, locations)


def mae_features(**choice):
    torch.manual_seed(0)
    return ClipFeatures(LatentMae(3, 8, (1, 3)), **choice)


def test_gradients_reach_the_clips_and_leave_the_encoder_alone():
    features, values = mae_features(), clips(2, 3, 3, 6, 6).requires_grad_()
    sum(vectors.square().sum() for vectors in features(values).values()).backward()
    assert values.grad.abs().min() > 0
    assert all(weights.grad is None for weights in features.parameters())
    assert not features.mae.training


def test_sizes_count_what_forward_gives():
    features = mae_features(locations=12)
    sizes, actual = features.sizes((3, 3, 6, 6)), features(clips(2, 3, 3, 6, 6))
    assert sizes == {name: tuple(vectors.shape[1:]) for name, vectors in actual.items()}
    assert {name.split("/")[0] for name in sizes} == {
        "input",
        "stem",
        "stage1",
        "stage2_block2",
        "stage2",
    }
    assert max(vectors for vectors, _ in sizes.values()) == 12


def test_statistics_are_in_single_precision_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        actual = mae_features()(clips(2, 3, 3, 6, 6))
    assert {vectors.dtype for vectors in actual.values()} == {torch.float32}
