"""The cache of the teacher's predictions: as good as the teacher, and no other's."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from braid.segmentation.cache.cache import (
    OnlineTeacher,
    Shard,
    cache_key,
    kept_of,
    logit_table,
    open_cache,
    open_predictions,
    quantize,
    shard_of,
    write_cache,
    write_shard,
)
from braid.segmentation.config import CacheConfig
from braid.segmentation.data.prompted import Prompt, PromptedImages, images_of
from braid.segmentation.sam3.checkpoint import remove_text_tower
from braid.segmentation.sam3.predictor import Predictor, word_tokenizer
from braid.segmentation.sam3.sam3 import Prediction, predict
from braid.segmentation.training.batches import tokenized
from tests.segmentation.predictions import random_prediction
from tests.segmentation.tiny_losses import some_loss
from tests.segmentation.tiny_models import CONTEXT, IMAGE_SIZE, MASK_SIZE, QUERIES, tiny_teacher

CPU = torch.device("cpu")
CONFIG = CacheConfig(mode="full", mask_size=MASK_SIZE, masks=QUERIES, levels=3, shard=2, images=2)
CIRCLE, STAR = (
    Prompt("category", text, None, None, True) for text in ("red circle", "a blue star")
)
LEFT, RIGHT = (Prompt("box", "visual", (x, 0.5, 0.3, 0.4), None, True) for x in (0.3, 0.7))
PROMPTS = [[CIRCLE, LEFT], [], [STAR, RIGHT, CIRCLE], [LEFT], [STAR], []]
PAIRS = [(image, place) for image, group in enumerate(PROMPTS) for place in range(len(group))]


class RandomImages:
    """Six images without files."""

    size = IMAGE_SIZE

    def __len__(self):
        return len(PROMPTS)

    def pixels(self, index):
        source = torch.Generator().manual_seed(index)
        shape = (3, IMAGE_SIZE, IMAGE_SIZE)
        return torch.randint(0, 256, shape, generator=source, dtype=torch.uint8)

    def record(self, index):
        return SimpleNamespace(file=f"sa_{index + 1}.jpg")


def some_teacher(prompts=PROMPTS, seed=0, precision="float32", **changes):
    model = tiny_teacher(seed)
    prompted = PromptedImages(RandomImages(), prompts)
    words = word_tokenizer(["a", "blue", "circle", "red", "star", "visual"], length=CONTEXT)
    predictor = Predictor.of(model, prompted.texts(), words, CPU, precision)
    return OnlineTeacher(prompted, predictor, CONFIG.model_copy(update=changes))


def keeping(**changes):
    """What a cache of six masks of 8 pixels keeps."""
    return CONFIG.model_copy(update={"masks": 6, "mask_size": 8, **changes})


def written(folder, teacher, *, name="cache"):
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    place = folder / name
    write_cache(place, teacher, scratch)
    shutil.rmtree(scratch)
    return place


@pytest.fixture(scope="module")
def teacher():
    return some_teacher()


@pytest.fixture(scope="module")
def cache(teacher, tmp_path_factory):
    return open_cache(written(tmp_path_factory.mktemp("full"), teacher))


ORDERS = [PAIRS, [(4, 0), (2, 1), (0, 0), (2, 0), (2, 1)], [(3, 0)]]


@pytest.mark.parametrize("pairs", ORDERS)
def test_the_cache_predicts_as_the_teacher_would(pairs, teacher, cache):
    given, expected = cache.predictions(pairs), teacher.predictions(pairs)
    for name in ("boxes", "logits", "presence"):
        torch.testing.assert_close(getattr(given, name), getattr(expected, name))
    for name in ("masks", "semantic"):
        cached, exact = (getattr(part, name).sigmoid() for part in (given, expected))
        assert 0 < (cached - exact).abs().max() < 0.0032
    assert [level.shape for level in given.fpn] == [level.shape for level in expected.fpn]
    assert len(given.fpn[0]) == len({image for image, _ in pairs})
    for cached, exact in zip(
        (*given.fpn, given.encoder), (*expected.fpn, expected.encoder), strict=True
    ):
        torch.testing.assert_close(cached, exact, rtol=2e-3, atol=2e-3)  # 16 bits


def test_the_teacher_predicts_what_a_sam3_predicts(teacher):
    """Each prompt alone, from its tokens, in the model's own call."""
    words = word_tokenizer(["a", "blue", "circle", "red", "star", "visual"], length=CONTEXT)
    predictions = teacher.predictions(PAIRS)
    for row, pair in enumerate(PAIRS):
        inputs = tokenized([teacher.prompted.prompt(pair)], torch.tensor([0]), words, CONTEXT)
        with torch.no_grad():
            alone = predict(teacher.predictor.model, teacher.prompted.pixels([pair[0]]), inputs)
        for name in ("masks", "boxes", "logits", "presence", "semantic"):
            own = getattr(predictions, name)[row : row + 1]
            torch.testing.assert_close(own, getattr(alone, name), rtol=1e-4, atol=1e-4)


def test_cached_and_online_losses_agree_within_a_thousandth(teacher, cache):
    student = random_prediction(len(PAIRS), 3, 14, seed=3, features=(16, 14, 4))
    student = replace(student, fpn=student.fpn[:3])
    loss = some_loss()
    online, cached = (loss(student, source.predictions(PAIRS)) for source in (teacher, cache))
    assert set(online) == {
        "mask", "box", "giou", "logit", "presence", "semantic", "fpn", "encoder",
    }  # fmt: skip
    for name, value in online.items():
        assert cached[name].item() == pytest.approx(value.item(), abs=1e-3, rel=1e-3), name


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_losses_agree_for_faint_and_for_saturated_masks_and_a_student_that_is_right(scale):
    teacher = random_prediction(4, 6, 32, seed=1)
    teacher = replace(teacher, masks=scale * teacher.masks, semantic=scale * teacher.semantic)
    kept = {name: getattr(teacher, name) for name in ("masks", "semantic")}
    read = {name: logit_table()[quantize(logits).int()] for name, logits in kept.items()}
    cached = replace(teacher, **read)
    loss = some_loss()
    for student in (random_prediction(4, 3, 28, seed=2), teacher):
        for name, value in loss(student, teacher).items():
            again = loss(student, cached)[name].item()
            assert again == pytest.approx(value.item(), abs=1e-3, rel=1e-3), name


def test_a_cache_of_outputs_has_no_features_and_takes_less(tmp_path):
    place = written(tmp_path, some_teacher(mode="outputs"))
    given = open_cache(place).predictions(PAIRS)
    assert given.fpn == ()
    assert given.encoder is None
    statistics = open_cache(place).statistics()
    assert statistics["bytes_per_image_features"] == 0
    assert statistics["bytes_per_image_outputs"] > 0


def test_the_queries_with_the_highest_scores_are_kept_in_their_order():
    prediction = random_prediction(3, 6, 8, seed=5, features=(4, 8, 2))
    kept = kept_of(prediction, keeping(masks=2, levels=1))
    for row in range(3):
        best = sorted(range(6), key=lambda query: -prediction.scores[row, query].item())[:2]
        for name in ("masks", "boxes", "logits"):
            assert torch.equal(
                getattr(kept, name)[row], getattr(prediction, name)[row, sorted(best)]
            )
    assert [level.shape for level in kept.fpn] == [prediction.fpn[-1].shape]
    assert torch.equal(kept.fpn[0], prediction.fpn[-1].half())
    assert kept_of(prediction, keeping(mode="outputs")).fpn == ()


def test_smaller_masks_are_mean_probabilities():
    prediction = random_prediction(2, 3, 8, seed=6)
    kept = kept_of(prediction, keeping(masks=3, mask_size=4, mode="outputs"))
    for name in ("masks", "semantic"):
        p = getattr(prediction, name).sigmoid()
        mean = p.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
        torch.testing.assert_close(getattr(kept, name).sigmoid(), mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": 7}, "sam3.cache.masks is 7, expected at most the teacher's 6 queries"),
        ({"mask_size": 9}, "sam3.cache.mask_size is 9, expected at most the teacher's 8 pixels"),
        ({"levels": 4}, "sam3.cache.levels is 4, expected at most the teacher's 3 levels"),
    ],
)
def test_more_than_the_teacher_has_is_refused(change, message):
    prediction = random_prediction(2, 6, 8, features=(4, 8, 2))
    with pytest.raises(ValueError, match=message):
        kept_of(prediction, keeping(**change))


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    teacher = some_teacher(images=1)
    expected = content(written(tmp_path, teacher, name="at_once"))
    assert list(expected) == [
        "0000.safetensors", "0001.safetensors", "index.json", "text.safetensors",
    ]  # fmt: skip
    scratch, done, scored = tmp_path / "kept", [], teacher.scored
    scratch.mkdir()

    def killed(pairs):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(pairs)
        return scored(pairs)

    monkeypatch.setattr(teacher, "scored", killed)
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "first", teacher, scratch)
    assert [path.name for path in scratch.iterdir()] == ["0000.safetensors"]
    (scratch / "0001.partial").write_bytes(b"half a shard")

    again = []
    monkeypatch.setattr(teacher, "scored", lambda pairs: (again.append(pairs), scored(pairs))[1])
    write_cache(tmp_path / "second", teacher, scratch)
    assert again == [[(3, 0)], [(4, 0)]]
    monkeypatch.setattr(teacher, "scored", scored)
    assert content(tmp_path / "second") == expected
    other = content(written(tmp_path, some_teacher(), name="other"))
    assert other["0001.safetensors"] != expected["0001.safetensors"]  # another key


def test_shards_of_another_teacher_are_not_gone_on_with(tmp_path):
    scratch = tmp_path / "kept"
    scratch.mkdir()
    write_cache(tmp_path / "first", some_teacher(), scratch)
    other = some_teacher(seed=1)
    write_cache(tmp_path / "second", other, scratch)
    assert content(tmp_path / "second") == content(written(tmp_path, other))


def layout(**changes):
    return {"mode": "full", "kept": [5, 16, 3], "precision": "float32", **changes}


def key(teacher, **changes):
    predictor = teacher.predictor
    return cache_key(teacher.prompted, predictor.model, predictor.texts, layout(**changes))


def test_the_key_differs_with_whatever_changes_a_prediction(teacher):
    other_text = [[STAR, LEFT], *PROMPTS[1:]]
    other_box = [[CIRCLE, RIGHT], *PROMPTS[1:]]
    other_size = some_teacher()
    other_size.prompted.images.size = 1008
    keys = [
        key(teacher),
        key(some_teacher(seed=1)),
        key(some_teacher(other_text)),
        key(some_teacher(other_box)),
        key(other_size),
        key(teacher, mode="outputs"),
        key(teacher, precision="bfloat16"),
    ]
    assert len(set(keys)) == len(keys)
    relabelled = [[replace(CIRCLE, targets=(), labeled=False), LEFT], *PROMPTS[1:]]
    without = some_teacher(relabelled)
    remove_text_tower(without.predictor.model)
    assert key(without) == key(teacher)


def test_predictions_are_opened_for_their_teacher_and_prompts_alone(tmp_path, teacher):
    place = written(tmp_path, teacher)
    given = open_predictions(place, teacher.prompted, teacher.predictor.model, CPU).predictions(
        PAIRS
    )
    assert torch.equal(given.masks, open_cache(place).predictions(PAIRS).masks)
    others = [
        (some_teacher(seed=1).predictor.model, teacher.prompted),
        (teacher.predictor.model, some_teacher([[STAR]] * 6).prompted),
    ]
    for model, prompted in others:
        with pytest.raises(ValueError, match="of another teacher or of other prompts"):
            open_predictions(place, prompted, model, CPU)


def test_online_the_teacher_predicts_and_the_folder_has_texts_and_statistics(tmp_path):
    teacher = some_teacher(masks=3, mask_size=8, levels=2, mode="online")
    place = written(tmp_path, teacher)
    assert [path.name for path in sorted(place.iterdir())] == [
        "0000.safetensors", "index.json", "text.safetensors",
    ]  # fmt: skip
    model = tiny_teacher()
    remove_text_tower(model)
    online = open_predictions(place, teacher.prompted, model, CPU)
    given, expected = online.predictions(PAIRS), teacher.predictions(PAIRS)
    assert given.masks.shape == (len(PAIRS), 3, 8, 8)
    assert len(given.fpn) == 2
    for name in ("masks", "boxes", "logits", "presence", "semantic", "encoder"):
        assert torch.equal(getattr(given, name), getattr(expected, name))
    statistics = online.statistics()
    assert (statistics["prompts"], statistics["prompts_read"]) == (7, 5)
    assert statistics["bytes_per_image_features"] == 0
    assert online.query_usage().sum() >= 5
    with pytest.raises(ValueError, match="holds no sizes"):
        open_cache(place).predictions(PAIRS)


def test_the_teacher_predicts_in_the_precision_of_the_cache(tmp_path):
    teacher = some_teacher([[CIRCLE, STAR], *[[]] * 5], mode="online")
    pairs = [(0, 1), (0, 0)]
    exact = teacher.predictions(pairs)
    teacher.predictor.precision = "bfloat16"
    place = written(tmp_path, teacher)
    online = open_predictions(place, teacher.prompted, teacher.predictor.model, CPU).predictions(
        pairs
    )
    assert online.logits.dtype == torch.float32
    assert 1e-4 < (online.logits - exact.logits).abs().max() < 0.5


@pytest.mark.parametrize("name", ["logits", "masks", "encoder", "fpn"])
def test_a_prediction_that_is_no_number_names_image_and_prompt(name, monkeypatch):
    def spoiled(*given, **options) -> Prediction:
        prediction = predict(*given, **options)
        if name == "fpn":
            prediction.fpn[1][1, 0, 0, 0] = 1e6  # of the second image; too large for 16 bits
        else:
            getattr(prediction, name)[2, 0] = torch.nan
        return prediction

    monkeypatch.setattr("braid.segmentation.sam3.predictor.predict", spoiled)
    message = rf"sa_3.jpg: the teacher's {name} .* prompt 1 \(box: 'visual'\) are not finite"
    with pytest.raises(ValueError, match=message):
        some_teacher().predictions([(0, 0), (0, 1), (2, 1), (2, 0)])


def test_queries_in_use_are_the_likely_ones_and_the_best(cache, teacher):
    usage = torch.zeros(QUERIES, dtype=torch.int64)
    for pair in PAIRS:
        images, owner = images_of([pair])
        inputs = teacher.predictor.texts.inputs([teacher.prompted.prompt(pair)], owner)
        with torch.no_grad():
            scores = predict(
                teacher.predictor.model, teacher.prompted.pixels(images), inputs
            ).scores[0]
        for query in range(QUERIES):
            usage[query] += bool(scores[query] > 0.5) or int(scores.argmax()) == query
    assert torch.equal(cache.query_usage(), usage)
    assert cache.statistics()["queries_used"] == int((usage > 0).sum())


def test_a_query_that_was_not_kept_may_have_been_in_use():
    teacher = some_teacher(masks=1)
    scored = teacher.scored
    teacher.scored = lambda pairs: (torch.full((len(pairs), QUERIES), 0.9), scored(pairs)[1])
    tensors = shard_of(teacher, [0], ("used",), 1)
    assert tensors["used"].tolist() == [[1] * QUERIES] * 2


def test_the_statistics_are_those_of_the_predictions_and_the_files(cache, teacher, tmp_path):
    predictions = teacher.predictions(PAIRS)
    statistics = cache.statistics()
    assert statistics["images"] == 4
    assert statistics["prompts"] == statistics["prompts_read"] == 7
    assert statistics["mean_presence"] == pytest.approx(
        predictions.presence.sigmoid().mean().item()
    )
    assert statistics["mean_score"] == pytest.approx(
        predictions.scores.amax(1).mean().item(), rel=1e-5
    )
    assert statistics["queries"] == QUERIES
    place = written(tmp_path, teacher)
    size = sum(path.stat().st_size for path in place.glob("0*.safetensors"))
    total = statistics["bytes_per_image_outputs"] + statistics["bytes_per_image_features"]
    assert 0 < size - 4 * total < 2500  # two headers
    features = predictions.encoder.nbytes + sum(level.nbytes for level in predictions.fpn)
    assert statistics["bytes_per_image_features"] == features / 4


@pytest.mark.parametrize("pair", [(1, 0), (0, 2), (0, -1), (9, 0)])
def test_a_prompt_that_is_not_there_has_no_prediction(pair, cache):
    with pytest.raises(ValueError, match=rf"image {pair[0]} has no prompt {pair[1]}"):
        cache.predictions([pair])


def without_index(place):
    (place / "index.json").unlink()


def other_index(place):
    (place / "index.json").write_text(json.dumps({"key": "x"}))


def without_shard(place):
    (place / "0001.safetensors").unlink()


def half_a_shard(place):
    path = place / "0001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def foreign_shard(place):
    write_shard(place / "0001.safetensors", {"boxes": torch.zeros(1)}, "of another")


def damaged_masks(place):
    index = json.loads((place / "index.json").read_text())
    tensors = Shard(place / "0001.safetensors", index["key"]).tensors
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["grids"][5:] = 0
    write_shard(place / "0001.safetensors", tensors, index["key"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_index, "cache: no cache of a teacher"),
        (other_index, "cache: no cache of a teacher"),
        (without_shard, "0001.safetensors: cannot be read"),
        (half_a_shard, "0001.safetensors: cannot be read"),
        (foreign_shard, "0001.safetensors: of a cache with key of another"),
        (damaged_masks, "cache: damaged masks"),
    ],
)
def test_a_damaged_cache_is_named_in_one_line(damage, message, tmp_path, teacher):
    place = written(tmp_path, teacher)
    damage(place)
    with pytest.raises(ValueError, match=message) as caught:
        open_cache(place).predictions(PAIRS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mode", "levels"), [("full", 3), ("online", 3), ("outputs", 0)])
def test_outputs_alone_keep_no_features(mode, levels):
    assert CONFIG.model_copy(update={"mode": mode}).kept_levels == levels
