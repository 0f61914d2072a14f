"""Masks hide what they should, and the loss looks there only."""

import pytest
import torch

from braid.drifting.mae.objective import MODES, Masking, hide, masked_error
from tests.drifting import configs

SHAPE = (64, 16, 9, 8, 7)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def masks(mode, shape=SHAPE, seed=0, patch_ratio=0.5, tube_ratio=0.75):
    return Masking(configs.masking(mode, patch_ratio, tube_ratio))(shape, generator(seed))


def cells(hidden):
    """[B, T, h, w]: whether each 2x2 cell is hidden; it must be as a whole."""
    padded = torch.cat([hidden[:, 0], hidden[:, 0, ..., -1:]], dim=3).float()
    blocks = padded.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    assert torch.equal(blocks.amin(dim=(3, 5)), blocks.amax(dim=(3, 5)))
    return blocks[:, :, :, 0, :, 0].bool()


@pytest.mark.parametrize("mode", [*MODES, "mixed"])
def test_masks_are_booleans_of_the_clips_shape_that_the_seed_decides(mode):
    hidden = masks(mode)
    assert hidden.shape == (64, 1, 9, 8, 7)
    assert hidden.dtype == torch.bool
    assert torch.equal(hidden, masks(mode))
    assert not torch.equal(hidden, masks(mode, seed=1))
    assert hidden.flatten(1).any(dim=1).all()


def test_patches_are_hidden_each_by_itself():
    hidden = cells(masks("patch", patch_ratio=0.3)).float()
    assert hidden.mean() == pytest.approx(0.3, abs=0.02)
    kept = hidden - hidden.mean()
    for dim in (1, 2, 3):  # no correlation between neighbors in time and space
        along = kept.movedim(dim, 0)
        assert (along[1:] * along[:-1]).mean() == pytest.approx(0, abs=0.01)


def test_tubes_go_through_all_frames_and_are_a_fixed_number():
    hidden = cells(masks("tube"))
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert (hidden[:, 0].sum(dim=(1, 2)) == 12).all()  # of 4 x 4 cells
    assert hidden[:, 0].float().mean(0).min() > 0.5  # anywhere
    assert (cells(masks("tube", tube_ratio=0.999))[:, 0].sum(dim=(1, 2)) == 15).all()
    assert (cells(masks("tube", tube_ratio=0.001))[:, 0].sum(dim=(1, 2)) == 1).all()


def test_frames_are_hidden_whole_but_for_both_ends_and_random_others():
    hidden = masks("frame", shape=(4096, 16, 9, 2, 2))[:, 0]
    assert torch.equal(hidden, hidden[:, :, :1, :1].expand_as(hidden))
    frames = hidden[:, :, 0, 0]
    assert not frames[:, [0, -1]].any()
    visible = (~frames[:, 1:-1]).sum(dim=1)
    counts = visible.bincount(minlength=7)
    assert len(counts) == 7  # 0 to 6 of 7 inner frames
    assert (counts - 4096 / 7).abs().max() < 100
    fractions = frames[:, 1:-1].float().mean(0)
    assert fractions.max() - fractions.min() < 0.06


def test_mixed_masks_are_a_third_of_each_kind():
    hidden = masks("mixed", shape=(3000, 16, 9, 8, 8))[:, 0]
    whole = (hidden == hidden[:, :, :1, :1]).flatten(1).all(dim=1)
    tubes = (hidden == hidden[:, :1]).flatten(1).all(dim=1) & ~whole
    for kind in (whole, tubes, ~whole & ~tubes):
        assert kind.float().mean() == pytest.approx(1 / 3, abs=0.04)


def test_hidden_cells_are_zero_and_the_others_untouched():
    values, hidden = torch.randn(SHAPE, generator=generator()), masks("mixed")
    visible = hide(values, hidden)
    where = hidden.expand_as(values)
    assert not visible[where].any()
    assert torch.equal(visible[~where], values[~where])


def test_the_error_is_the_mean_over_each_clips_hidden_values():
    values, predicted = torch.randn(2, 4, 16, 9, 8, 7, generator=generator())
    hidden = masks("mixed", shape=values.shape)
    error = masked_error(predicted, values, hidden)
    for i in range(4):
        where = hidden[i].expand_as(values[i])
        expected = (predicted[i][where] - values[i][where]).square().mean()
        torch.testing.assert_close(error[i], expected)


def test_visible_cells_are_no_part_of_the_error():
    values, hidden = torch.randn(SHAPE, generator=generator()), masks("patch")
    predicted = torch.where(hidden, values, 1e6)
    assert not masked_error(predicted, values, hidden).any()
    assert not masked_error(predicted, values, torch.zeros_like(hidden)).any()


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_may_be_chosen_for_a_call(mode):
    mixed = Masking(configs.masking("mixed", tube_ratio=0.75))
    assert torch.equal(mixed(SHAPE, generator(), mode), masks(mode))


@pytest.mark.parametrize(
    ("key", "value"), [("mode", "block"), ("patch_ratio", 0.0), ("tube_ratio", 1.0)]
)
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        configs.masking(**{key: value})


def test_clips_too_small_for_a_mode_are_refused():
    with pytest.raises(ValueError, match="2 latent frames, expected 3 or more"):
        masks("frame", shape=(2, 16, 2, 8, 8))
    with pytest.raises(ValueError, match="frames of 2x2 have a single 2x2 cell"):
        masks("mixed", shape=(2, 16, 9, 2, 2))
