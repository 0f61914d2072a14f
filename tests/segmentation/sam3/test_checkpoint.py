"""The teacher's folder: whole models, models elsewhere, without text tower, and wrong folders."""

import json
from dataclasses import replace

import pytest
import torch

from braid.segmentation.sam3.checkpoint import (
    load_teacher,
    located,
    remove_text_tower,
    weight_files,
    weights_hash,
    write_source,
)
from braid.segmentation.sam3.sam3 import predict, text_features
from tests.segmentation.tiny_models import IMAGE_SIZE, some_images, some_prompts, tiny_teacher


@pytest.fixture(scope="module")
def original():
    return tiny_teacher()


@pytest.fixture
def folder(original, tmp_path):
    original.save_pretrained(tmp_path / "sam3")
    return tmp_path / "sam3"


@torch.no_grad()
def masks(model, inputs=None):
    return predict(model, some_images(), inputs or some_prompts(boxed="some")).masks


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_model_predicts_as_before_and_cannot_learn(original, folder):
    model = load_teacher(folder, torch.device("cpu"), image_size=IMAGE_SIZE)
    assert torch.equal(masks(model), masks(original))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert located(folder) == folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "as its config says"])
def test_weights_are_float32_whatever_a_checkpoint_has(original, tmp_path, dtype):
    place = tmp_path / "half"
    if dtype == "as its config says":
        original.save_pretrained(place)
        edit(place / "config.json", dtype="bfloat16")
    else:
        tiny_teacher().to(getattr(torch, dtype)).save_pretrained(place)
    model = load_teacher(place)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    tolerance = 0.3 if dtype == "bfloat16" else 0.05
    torch.testing.assert_close(masks(model), masks(original), rtol=tolerance, atol=tolerance)


def test_a_source_that_is_not_there_is_named_with_its_key_and_the_alternative(tmp_path):
    message = r"^sam3\.teacher\.source: builtin: no such folder.*, or built_in$"
    with pytest.raises(ValueError, match=message):
        write_source(tmp_path, "builtin", IMAGE_SIZE)


def test_equal_models_give_equal_bytes(folder, tmp_path):
    tiny_teacher().save_pretrained(tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_checkpoint_elsewhere_is_named_and_not_copied(original, folder, tmp_path):
    place = tmp_path / "models"
    assert write_source(place, str(folder), IMAGE_SIZE) == folder
    assert [path.name for path in place.iterdir()] == ["source.json"]
    content = json.loads((place / "source.json").read_text())
    assert content["source"] == str(folder)
    assert content["weights"] == weights_hash(folder)
    assert content["config"]["image_size"] == IMAGE_SIZE
    assert content["config"]["queries"] == original.config.detr_decoder_config.num_queries
    assert located(place) == folder
    assert torch.equal(masks(load_teacher(place)), masks(original))


def test_other_weights_than_were_named_are_refused(folder, tmp_path):
    place = tmp_path / "models"
    write_source(place, str(folder), IMAGE_SIZE)
    tiny_teacher(seed=1).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"other weights than .*models was made for"):
        load_teacher(place)


def test_shards_are_read_and_hashed(original, tmp_path):
    folder = tmp_path / "shards"
    original.save_pretrained(folder, max_shard_size="100KB")
    assert len(weight_files(folder)) > 1
    assert torch.equal(masks(load_teacher(folder)), masks(original))
    before = weights_hash(folder)
    edit(folder / "model.safetensors.index.json", metadata={"note": 1})
    assert weights_hash(folder) == before
    edit(folder / "model.safetensors.index.json", weight_map={"x": "../other.safetensors"})
    with pytest.raises(ValueError, match="expected a weight_map to files beside it"):
        load_teacher(folder)


def test_the_text_tower_can_be_left_out(original, folder):
    inputs = some_prompts(boxed="some")
    with torch.no_grad():
        given = replace(inputs, text=text_features(original, inputs))
    model = load_teacher(folder, drop_text=True)
    towers = (original.text_encoder, original.text_projection)
    assert count(model) == count(original) - sum(map(count, towers))
    assert torch.equal(masks(model, given), masks(original, inputs))


def test_a_folder_without_text_tower_takes_text_features(original, tmp_path):
    inputs = some_prompts()
    with torch.no_grad():
        given = replace(inputs, text=text_features(original, inputs))
    bare = tiny_teacher()
    remove_text_tower(bare)
    bare.save_pretrained(tmp_path)
    model = load_teacher(tmp_path)
    assert torch.equal(masks(model, given), masks(original, inputs))
    with pytest.raises(ValueError, match="text tower was removed"):
        masks(model, inputs)


def test_a_video_checkpoint_holds_the_teacher_as_its_detector(original, tmp_path):
    from transformers import Sam3VideoConfig

    original.save_pretrained(tmp_path)
    config = Sam3VideoConfig(detector_config=original.config.to_dict())
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam3_video"
    model = load_teacher(tmp_path, image_size=IMAGE_SIZE)
    assert torch.equal(masks(model), masks(original))


def spoil_config(folder):
    (folder / "config.json").unlink()


def spoil_json(folder):
    (folder / "config.json").write_text("{")


def spoil_kind(folder):
    edit(folder / "config.json", model_type="clip")


def spoil_missing(folder):
    (folder / "model.safetensors").unlink()


def spoil_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_garbage(folder):
    (folder / "model.safetensors").write_bytes(b"no tensors")


def spoil_part(folder):
    model = tiny_teacher()
    model.mask_decoder = None
    model.save_pretrained(folder)


def spoil_width(folder):
    config = (folder / "config.json").read_text()
    tiny_teacher(width=24).save_pretrained(folder)
    (folder / "config.json").write_text(config)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_config, "config.json: missing or no JSON"),
        (spoil_json, "config.json: missing or no JSON"),
        (spoil_kind, "model_type is 'clip', expected 'sam3'"),
        (spoil_missing, "model.safetensors: missing or damaged"),
        (spoil_short, "model.safetensors: missing or damaged"),
        (spoil_garbage, "model.safetensors: missing or damaged"),
        (spoil_part, "its weights lack mask_decoder"),
        (spoil_width, "its weights cannot be read"),
    ],
)
def test_a_wrong_folder_is_one_clear_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_teacher(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_images_of_another_size_are_refused_before_anything_is_loaded(folder, tmp_path):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    message = f"takes images of {IMAGE_SIZE} pixels, sam3.data.image_size is 112"
    with pytest.raises(ValueError, match=message):
        load_teacher(folder, image_size=112)
    with pytest.raises(ValueError, match=message):
        write_source(tmp_path / "models", str(folder), 112)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("source", ["/no/such/sam3", "sam3", "a/b/c", "../x", "a b/c"])
def test_what_is_neither_folder_nor_hub_id_is_not_looked_for_in_the_network(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("called"))
    with pytest.raises(ValueError, match="no such folder, expected one, the id of a model"):
        write_source(tmp_path / "models", source, IMAGE_SIZE)


def test_a_hub_id_is_fetched_once_by_the_stage_and_read_from_the_cache_afterwards(
    original, folder, tmp_path, monkeypatch
):
    calls = []

    def download(source, *, local_files_only, **_):
        calls.append((source, local_files_only))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    place = tmp_path / "models"
    write_source(place, "owner/sam3", IMAGE_SIZE)
    assert calls == [("owner/sam3", False)]
    assert json.loads((place / "source.json").read_text())["source"] == "owner/sam3"
    assert torch.equal(masks(load_teacher(place)), masks(original))
    assert calls[1:] == [("owner/sam3", True)]


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match="not had from the hub: first line second line"):
        write_source(tmp_path / "models", "owner/sam3", IMAGE_SIZE)


def test_a_broken_source_is_refused(tmp_path):
    (tmp_path / "source.json").write_text('{"source": 3}')
    with pytest.raises(ValueError, match="expected the strings source and weights"):
        load_teacher(tmp_path)


def test_a_folder_in_the_repository_is_refused_by_its_key(original, tmp_path, monkeypatch):
    """Native code would read its weights past the guard of stages."""
    monkeypatch.chdir(tmp_path)
    original.save_pretrained(tmp_path / "mine/sam3")
    with pytest.raises(
        ValueError, match=r"^sam3\.teacher\.source: mine/sam3: is read where it lies"
    ):
        write_source(tmp_path / "models", "mine/sam3", IMAGE_SIZE)
