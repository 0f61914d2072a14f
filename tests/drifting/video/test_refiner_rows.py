"""Beside the class a refiner may take rows of a text, or the embedding of text and keyframes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.evaluation.clips import rows_beside
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import Refiner, finish, load_refiner, refine, save_refiner
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_objective

WIDTH = 6
BESIDE = ("text", "embedding")


def make(beside: str, target: str = "clip") -> Refiner:
    torch.manual_seed(0)
    refiner = Refiner(2, 2, 3, configs.refiner(beside=beside, heads=4), WIDTH, target)
    for parameter in refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return refiner


def start():
    clips, labels = toy_clips(4)
    mask = torch.tensor([True, False, False, False, True]).expand(4, -1)
    return corruption().impute(clips, mask), labels


def corruption() -> Corruption:
    return Corruption(5, configs.corruption(levels=2, min_keyframes=2, schedule="linear"))


def texts(rows: int) -> torch.Tensor:
    return torch.randn(4, rows, WIDTH, generator=torch.Generator().manual_seed(2))


def test_rows_have_a_say_and_zero_rows_have_none() -> None:
    for beside in BESIDE:
        rows, refined = texts(3), partial(refine, make(beside), *start(), 1, 1.0, None)
        padded = torch.cat([rows, torch.zeros(4, 2, WIDTH)], 1)
        torch.testing.assert_close(refined(padded), refined(rows))
        assert not torch.allclose(refined(rows.roll(1, 0)), refined(rows), atol=1e-3)
        torch.testing.assert_close(refined(None), refined(torch.zeros(4, 1, WIDTH)))
        assert not torch.allclose(refined(None), refined(rows), atol=1e-3)
        weights = [name for name, _ in make(beside).named_parameters()]
        assert any("text" in name for name in weights) == (beside == "text")
    assert torch.equal(refine(make("none"), *start(), 1, 1.0, None, texts(3)),
                       refine(make("none"), *start(), 1, 1.0))  # fmt: skip


def test_an_untrained_text_attention_adds_nothing() -> None:
    refiner = make("text")
    for block in refiner.blocks:
        torch.nn.init.zeros_(block.text.out.weight)
        torch.nn.init.zeros_(block.text.out.bias)
    both = [refine(refiner, *start(), 1, 1.0, None, rows) for rows in (texts(3), None)]
    assert torch.equal(*both)


def test_training_takes_the_rows_of_the_same_clips(monkeypatch) -> None:
    toy, seen = toy_objective("paired"), []
    toy.texts = lambda positions: positions[:, None, None].float()
    toy.refiner.forward = lambda clips, *_, text: (
        seen.append(text) or clips + toy.refiner.out.bias[0]
    )
    truth = toy.refine(torch.ones(2), generator(0)).truth.flatten(0, 1)
    (rows,) = seen
    assert torch.equal(toy_clips()[0][rows.flatten().long()], truth)


def test_the_embedding_is_one_row_and_must_be_there_where_it_is_taken() -> None:
    (clips, *_), _ = start()
    h = texts(1)[:, 0]
    assert torch.equal(rows_beside(make("embedding"), None, clips, lambda *_: h), h[:, None])
    assert torch.equal(rows_beside(make("text"), texts(3), clips, None), texts(3))
    with pytest.raises(ValueError, match=r"drift\.refiner\.beside is embedding"):
        rows_beside(make("embedding"), texts(3), clips, None)


def test_a_stored_refiner_keeps_what_it_takes_and_what_it_refines_to(tmp_path: Path) -> None:
    for beside, target in zip(BESIDE, ("clip", "finer"), strict=True):
        refiner = make(beside, target)
        save_refiner(tmp_path / beside, refiner)
        again = load_refiner(tmp_path / beside)
        assert again.target == target
        results = [refine(each, *start(), 1, 1.0, None, texts(3)) for each in (refiner, again)]
        assert torch.equal(*results)


def test_a_clip_is_finished_in_one_step_or_level_by_level_as_trained() -> None:
    clips, labels = toy_clips(4)
    begun, _ = start()
    ids = torch.arange(4)

    def perfect(latents, mask, confidence, classes, level, alpha, clamp, text=None):
        levels.append(int(level[0]))
        masks.append(mask[0].tolist())
        return clips if target == "clip" else corruption().finer(clips, level, ids, generator(0))

    for target, expected in (("clip", [2]), ("finer", [2, 1])):
        levels: list[int] = []
        masks: list[list[bool]] = []
        refiner = make("none", target)
        refiner.forward = perfect  # type: ignore[method-assign]
        given = begun, labels, 2, 1.0, True, None, generator(0)
        torch.testing.assert_close(finish(refiner, corruption(), *given), clips)
        assert levels == expected
    assert masks == [[True, False, False, False, True], [True, True, False, True, True]]
