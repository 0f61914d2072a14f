import numpy as np
import pytest
import torch

from braid.clips.config import ConditionsConfig, PoolingConfig
from braid.pseudo_classes.quantizer import (
    ConditionEncoder,
    Pooling,
    fit_whitening,
    keyframe_indices,
    pool_keyframes,
    pool_text,
)

CLIPS = 70
FIT = {
    "mode": "joint",
    "text": "shards",
    "keyframes": 3,
    "grid": 2,
    "text_components": 4,
    "keyframe_components": 8,
    "shrinkage": 0.1,
    "text_weight": 1.0,
    "keyframe_weight": 1.0,
}


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXTS, LATENTS = normal(0, CLIPS, 5, 6), normal(1, CLIPS, 2, 5, 4, 6) + 3
TEXTS[::2, 3:] = 0


class Clips:
    """What `Pooling.read` reads from; logs the sizes of the batches."""

    def __init__(self):
        self.batches = []

    def texts(self, indices):
        self.batches.append(("text", len(indices)))
        return TEXTS[indices]

    def latents(self, indices):
        self.batches.append(("keyframes", len(indices)))
        return LATENTS[indices]


def fitted(mode="joint", **changed):
    config = ConditionsConfig(**FIT | changed | {"mode": mode})
    return ConditionEncoder.fit(Pooling(config)(TEXTS, LATENTS), config)


def pooling(keyframes, grid):
    return Pooling(PoolingConfig(mode="joint", text="shards", keyframes=keyframes, grid=grid))


def test_text_is_the_mean_of_its_rows_whatever_the_padding():
    short = normal(2, 1, 3, 6)
    padded = torch.cat([short, torch.zeros(1, 20, 6)], 1)
    torch.testing.assert_close(pool_text(short), short.mean(1))
    torch.testing.assert_close(pool_text(padded), short.mean(1))
    assert pool_text(torch.zeros(1, 4, 6)).eq(0).all()


def test_padding_does_not_change_h():
    encoder = fitted()
    padded = torch.cat([TEXTS, torch.zeros(CLIPS, 9, 6)], 1)
    torch.testing.assert_close(encoder(padded, LATENTS), encoder(TEXTS, LATENTS))


@pytest.mark.parametrize(
    ("frames", "keyframes", "expected"),
    [(9, 3, [0, 4, 8]), (21, 4, [0, 7, 13, 20]), (4, 3, [0, 2, 3]), (3, 3, [0, 1, 2])],
)
def test_keyframes_are_evenly_spread_with_both_ends(frames, keyframes, expected):
    assert keyframe_indices(frames, keyframes) == expected


def test_keyframes_are_averages_of_cells():
    latents = normal(3, 2, 3, 5, 4, 6)
    pooled = pool_keyframes(latents, 2, 2).view(2, 2, 3, 2, 2)
    for number, frame in enumerate((0, 4)):
        expected = latents[:, :, frame].unfold(2, 2, 2).unfold(3, 3, 3).mean((-2, -1))
        torch.testing.assert_close(pooled[:, number], expected)


def test_frames_between_keyframes_do_not_matter():
    changed = LATENTS.clone()
    changed[:, :, [1, 3]] = 0
    assert torch.equal(fitted()(TEXTS, LATENTS), fitted()(TEXTS, changed))


def test_whitening_without_shrinkage_gives_the_identity_covariance():
    values = normal(4, 500, 5) @ normal(5, 5, 5) + 100
    white = fit_whitening(values, "text", 5, shrinkage=0.0, weight=5.0)(values)
    torch.testing.assert_close(white.mean(0), torch.zeros(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(5), atol=2e-3, rtol=0)


def test_shrunk_variances_are_those_of_the_closed_form():
    values = normal(4, 400, 6) @ normal(5, 6, 6)
    white = fit_whitening(values, "text", 3, shrinkage=0.4, weight=2.0)(values).double()
    kept = torch.linalg.eigvalsh(torch.cov(values.double().T, correction=0))[-3:]
    expected = kept / (0.6 * kept + 0.4 * kept.mean())
    expected *= 2 / expected.sum()
    covariance = white.T @ white / 400
    torch.testing.assert_close(covariance, expected.diag(), atol=1e-4, rtol=1e-4)


def test_full_shrinkage_keeps_the_shape_of_the_data():
    values = normal(4, 100, 4) @ normal(5, 4, 4)
    white = fit_whitening(values, "text", 4, shrinkage=1.0, weight=1.0)(values)
    ratio = torch.pdist(white) / torch.pdist(values)
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-3, atol=0)


def test_directions_without_variance_are_left_out():
    values = normal(4, 100, 2) @ normal(5, 2, 6)
    white = fit_whitening(values, "text", 6, shrinkage=0.0, weight=1.0)(values)
    assert white.abs().max() < 10
    assert torch.linalg.matrix_rank(white, rtol=1e-3) == 2


def test_weights_are_mean_squares_of_the_blocks():
    encoder = fitted(text_weight=3.0, keyframe_weight=0.5)
    pooled = encoder.pooling(TEXTS, LATENTS)
    for block, weight in (("text", 3.0), ("keyframes", 0.5)):
        mean_square = encoder.whitening[block](pooled[block]).square().sum(1).mean()
        assert mean_square.item() == pytest.approx(weight, rel=1e-4)


def test_a_block_of_weight_zero_is_the_mode_without_it():
    alone = fitted("keyframes")(None, LATENTS)
    torch.testing.assert_close(fitted(text_weight=0.0)(TEXTS, LATENTS)[:, 4:], alone)


@pytest.mark.parametrize(("mode", "width"), [("text", 4), ("keyframes", 8), ("joint", 12)])
def test_modes_read_only_what_they_need(mode, width):
    clips = Clips()
    pooled = fitted(mode).pooling.read(clips, CLIPS)
    h = fitted(mode).embed(pooled)
    assert h.shape == (CLIPS, width)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h.norm(dim=1), torch.ones(CLIPS))
    torch.testing.assert_close(h, fitted(mode)(TEXTS, LATENTS))
    assert {block for block, _ in clips.batches} == set(pooled)
    assert max(size for _, size in clips.batches) < CLIPS  # in chunks


def test_state_round_trips():
    encoder = fitted()
    again = ConditionEncoder.from_state(encoder.pooling, encoder.state())
    assert torch.equal(again(TEXTS, LATENTS), encoder(TEXTS, LATENTS))


def test_covariance_does_not_depend_on_how_rows_are_split(monkeypatch):
    values = normal(4, 100, 5)
    whole = fit_whitening(values, "text", 3, 0.1, 1.0)(values)
    monkeypatch.setattr("braid.pseudo_classes.quantizer._ROWS", 7)
    torch.testing.assert_close(
        fit_whitening(values, "text", 3, 0.1, 1.0)(values).abs(), whole.abs()
    )


def test_bad_input_is_named():
    config = ConditionsConfig(**FIT)
    pooled = pooling(3, 2)(TEXTS, LATENTS)
    constant = {**pooled, "text": torch.full((CLIPS, 6), 0.1)}
    with pytest.raises(ValueError, match="the text is the same in all train clips"):
        ConditionEncoder.fit(constant, config)
    with pytest.raises(ValueError, match=r"text_components is 7, the text has 6"):
        fitted(text_components=7)
    with pytest.raises(ValueError, match="weights of text, keyframes are all zero"):
        fitted(text_weight=0.0, keyframe_weight=0.0)
    with pytest.raises(ValueError, match=r"conditions.keyframes is 6, expected 2 to 5"):
        pooling(6, 2)(TEXTS, LATENTS)
    with pytest.raises(ValueError, match=r"conditions.grid is 5, the latents are 4 x 6"):
        pooling(3, 5)(TEXTS, LATENTS)
    with pytest.raises(ValueError, match="mode is joint, which needs the keyframes"):
        pooling(3, 2)(TEXTS, None)
    with pytest.raises(ValueError, match="keyframes of a clip: expected finite"):
        pooling(3, 2)(TEXTS, LATENTS * np.nan)
    with pytest.raises(ValueError, match="text: expected 6 pooled dimensions, got 5"):
        fitted()(TEXTS[..., :5], LATENTS)
