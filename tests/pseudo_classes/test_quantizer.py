import json

import numpy as np
import pytest
import torch

from braid.clips.config import ConditionsConfig, QuantizerConfig
from braid.clustering.kmeans import kmeans
from braid.pseudo_classes.quantizer import (
    ConditionEncoder,
    Pooling,
    PseudoClasses,
    Quantizer,
    load_pseudo_classes,
    load_quantizer,
    merge_small_classes,
    save_pseudo_classes,
    save_quantizer,
)

CLIPS = 120
SPLITS = {"train": np.arange(80), "val": np.arange(80, 100), "test": np.arange(100, CLIPS)}


CONDITIONS = ConditionsConfig(
    mode="joint",
    text="shards",
    keyframes=2,
    grid=2,
    text_components=4,
    keyframe_components=4,
    shrinkage=0.1,
    text_weight=1.0,
    keyframe_weight=1.0,
)
KMEANS = QuantizerConfig(
    seeding_rows=64,
    projection=4,
    candidates=2,
    projected_iterations=3,
    exact_iterations=2,
    min_count=1,
)


def inputs():
    draw = torch.Generator().manual_seed(0)
    texts = torch.randn(CLIPS, 5, 6, generator=draw)
    return texts, torch.randn(CLIPS, 2, 5, 4, 4, generator=draw)


def quantizer(min_count=1, k=12):
    pooled = {block: values[:80] for block, values in Pooling(CONDITIONS)(*inputs()).items()}
    encoder = ConditionEncoder.fit(pooled, CONDITIONS)
    clusters = kmeans(encoder.embed(pooled), k, KMEANS, torch.Generator().manual_seed(1))
    return Quantizer.of(encoder, clusters, min_count), clusters


def line(*positions):
    return torch.tensor(positions, dtype=torch.float32)[:, None]


def test_small_classes_join_the_nearest():
    # 1 (at 1.0) joins 0; 3 (at 4.4) joins 4: classes of 12, 11 and 5 clips
    merged = merge_small_classes(line(0, 1, 2.2, 4.4, 5), torch.tensor([10, 1, 5, 3, 9]), 4)
    assert merged.tolist() == [1, 1, 2, 0, 0]


def test_the_smallest_class_is_merged_first():
    # the one clip at 1 joins 1.5, then 0 is alone; 0 first would have made a class of 4 with 1
    assert merge_small_classes(line(0, 1, 1.5), torch.tensor([3, 1, 9]), 4).tolist() == [0, 0, 0]


def test_the_merged_class_is_where_its_mean_is():
    # 0 and 1 make a class of 5 at 0.6, still too small, and -1.1 is nearer to it than 2.9
    merged = merge_small_classes(line(0, 1, -1.1, 2.9), torch.tensor([2, 3, 9, 9]), 6)
    assert merged.tolist() == [0, 0, 0, 1]


def test_equal_classes_merge_lowest_first_and_keep_their_order():
    merged = merge_small_classes(line(0, 1, 2, 10), torch.tensor([2, 2, 2, 2]), 3)
    assert merged.tolist() == [0, 0, 0, 0]
    merged = merge_small_classes(line(0, 1, 9, 10), torch.tensor([2, 2, 2, 2]), 3)
    assert merged.tolist() == [0, 0, 1, 1]
    assert merge_small_classes(line(3, 1, 2), torch.tensor([2, 2, 2]), 2).tolist() == [0, 1, 2]


def test_all_classes_too_small_become_one():
    assert merge_small_classes(line(0, 1, 2), torch.tensor([1, 1, 1]), 50).tolist() == [0, 0, 0]


@pytest.mark.parametrize("min_count", [1, 4, 7])
def test_no_class_is_smaller_than_min_count_and_the_largest_come_first(min_count):
    fitted, clusters = quantizer(min_count)
    counts = torch.bincount(fitted.class_of[clusters.labels])
    assert len(counts) == fitted.classes
    assert counts.min() >= min_count
    assert counts.sum() == 80
    assert torch.equal(counts, counts.sort(descending=True).values)
    assert (fitted.classes < 12) == (min_count > 1)


def test_assigning_train_clips_gives_k_means_labels_merged():
    fitted, clusters = quantizer(4)
    labels = fitted.assign(*inputs())
    assert torch.equal(labels[:80], fitted.class_of[clusters.labels])
    assert torch.equal(fitted.assign(*(values[95:99] for values in inputs())), labels[95:99])


def test_a_clip_without_text_gets_the_class_of_its_keyframes():
    labels = torch.arange(CLIPS) % 2
    texts, latents = (
        values + 3 * labels.view(-1, *[1] * (values.dim() - 1)) for values in inputs()
    )
    pooled = Pooling(CONDITIONS)(texts, latents)
    encoder = ConditionEncoder.fit(pooled, CONDITIONS)
    h = encoder.embed(pooled)
    centroids = torch.stack([h[labels == label].mean(0) for label in (0, 1)])
    fitted = Quantizer(encoder, centroids, torch.arange(2))
    for given in ((texts, latents), (None, latents), (texts, None)):
        assert (fitted.assign(*given) == labels).float().mean() > 0.95
    with pytest.raises(ValueError, match=r"mode is joint, which needs the text"):
        fitted.assign(None, None)


def test_conditions_of_text_alone_need_one():
    mode = CONDITIONS.model_copy(update={"mode": "text"})
    texts, latents = inputs()
    encoder = ConditionEncoder.fit(Pooling(mode)(texts, None), mode)
    with pytest.raises(ValueError, match=r"mode is text, which needs the text"):
        Quantizer(encoder, torch.zeros(1, 4), torch.zeros(1).long()).assign(None, latents)


def test_quantizer_round_trips_and_is_the_same_bytes(tmp_path):
    fitted, _ = quantizer(3)
    for name in ("a", "b"):
        save_quantizer(tmp_path / name, quantizer(3)[0])
    again = load_quantizer(tmp_path / "a")
    assert torch.equal(again.assign(*inputs()), fitted.assign(*inputs()))
    assert torch.equal(again.centroids, fitted.centroids)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def pseudo_classes():
    fitted, _ = quantizer()
    h = fitted.encoder(*inputs())
    return PseudoClasses(fitted.label(h), fitted.classes, h, SPLITS)


def test_pseudo_classes_round_trip_and_are_the_same_bytes(tmp_path):
    stored = pseudo_classes()
    for name in ("a", "b"):
        save_pseudo_classes(tmp_path / name, pseudo_classes())
    again = load_pseudo_classes(tmp_path / "a")
    assert torch.equal(again.labels, stored.labels)
    assert again.labels.dtype == torch.int64
    assert torch.equal(again.embedding, stored.embedding)
    assert again.classes == 12
    for name, indices in SPLITS.items():
        assert np.array_equal(again.splits[name], indices)
    for file in ("classes.npz", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_broken_files_are_named(tmp_path):
    for folder, loader in ((tmp_path / "q", load_quantizer), (tmp_path / "p", load_pseudo_classes)):
        with pytest.raises(ValueError, match=rf"{folder.name}: expected config.json"):
            loader(folder)
    save_quantizer(tmp_path / "q", quantizer()[0])
    save_pseudo_classes(tmp_path / "p", pseudo_classes())
    for path in (tmp_path / "q" / "model.safetensors", tmp_path / "p" / "classes.npz"):
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"q: expected config.json and model.safetensors"):
        load_quantizer(tmp_path / "q")
    with pytest.raises(ValueError, match=r"p: expected config.json and classes.npz"):
        load_pseudo_classes(tmp_path / "p")


@pytest.mark.parametrize(("key", "value"), [("classes", 5), ("mode", "audio")])
def test_a_config_of_another_quantizer_is_refused(tmp_path, key, value):
    save_quantizer(tmp_path, quantizer()[0])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=r"quantizer|belong together"):
        load_quantizer(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("classes", 5, r"labels in \[0, 5\)"), ("clips", 7, "expected 7 clips")],
)
def test_a_config_of_other_classes_is_refused(tmp_path, key, value, message):
    save_pseudo_classes(tmp_path, pseudo_classes())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=message):
        load_pseudo_classes(tmp_path)


def test_pickled_arrays_are_refused(tmp_path):
    save_pseudo_classes(tmp_path, pseudo_classes())
    arrays = dict(np.load(tmp_path / "classes.npz"))
    np.savez(tmp_path / "classes.npz", **arrays | {"labels": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match=r"expected config.json and classes.npz"):
        load_pseudo_classes(tmp_path)
