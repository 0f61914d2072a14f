"""EfficientSAM3: its size, what it predicts, what learns, and its way to disk and back."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from braid.segmentation.config import ArchitectureConfig
from braid.segmentation.sam3.predictor import encode, load_tokenizer, word_tokenizer
from braid.segmentation.sam3.sam3 import PromptInputs, count_parameters, predict
from braid.segmentation.student.student import (
    StudentRecipe,
    build_student,
    heads_of,
    load_student,
    new_student,
    save_student,
    student_tokenizer,
)
from tests.segmentation.tiny_models import (
    CONTEXT,
    IMAGE_SIZE,
    some_images,
    some_prompts,
    tiny_teacher,
)
from tests.segmentation.tiny_students import QUERIES, RECIPE, restless, tiny_student

UNUSED = {  # SAM3 drops the coarsest level, has a pixel decoder for it, and pools text itself
    "vision_encoder.pyramid.output.3.weight",
    "vision_encoder.pyramid.output.3.bias",
    "text_encoder.projection.weight",
    "mask_decoder.pixel_decoder.conv_layers.2.weight",
    "mask_decoder.pixel_decoder.conv_layers.2.bias",
    "mask_decoder.pixel_decoder.norms.2.weight",
    "mask_decoder.pixel_decoder.norms.2.bias",
}
FULL = {
    "vocabulary": 49408,
    "context": 32,
    "image_size": 1008,
    "kinds": (),
    "queries": 100,
    "backbone": "repvit_m2_3",
    "backbone_options": {},
    "text_layers": 6,
    "text_width": 512,
    "checkpointing": True,
}


def full_student(**changes):
    from transformers import Sam3Config

    heads = heads_of(SimpleNamespace(config=Sam3Config()))
    return build_student(StudentRecipe(heads=heads, **{**FULL, **changes}))


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def predictions(model, boxed="none", features=False):
    with torch.no_grad():
        return predict(model, some_images(), some_prompts(boxed=boxed), features=features)


def test_full_size_has_100_2_million_parameters_and_201_megabytes_in_half_precision():
    with torch.device("meta"):
        student = full_student()
    vision = student.vision_encoder
    assert count_parameters(student) == 100_209_198
    assert abs(count_parameters(student) / 100.2e6 - 1) < 0.005
    assert abs(2 * count_parameters(student) / 201e6 - 1) < 0.005
    assert round(count_parameters(vision.backbone) / 1e6, 2) == 22.40
    assert round(count_parameters(vision.pyramid) / 1e6, 2) == 2.67
    assert round(count_parameters(student.text_encoder) / 1e6, 2) == 42.42


def test_other_backbones_come_by_name():
    sizes = {"tiny_vit_21m_224": 98.4, "efficientvit_b2": 92.7, "convnext_tiny": 105.7}
    for name, expected in sizes.items():
        with torch.device("meta"):
            assert round(count_parameters(full_student(backbone=name)) / 1e6, 1) == expected


def test_full_size_predicts_at_1008_pixels_on_a_cpu():
    student = full_student(checkpointing=False)
    inputs = PromptInputs(torch.zeros(1).long(), torch.ones(1, 32).long(), torch.ones(1, 32).long())
    with torch.inference_mode():
        prediction = predict(student, torch.randn(1, 3, 1008, 1008), inputs)
    shapes = [
        tuple(tensor.shape) for tensor in (prediction.masks, prediction.boxes, prediction.logits)
    ]
    assert shapes == [(1, 100, 252, 252), (1, 100, 4), (1, 100)]
    assert prediction.presence.shape == (1, 1)
    assert prediction.semantic.shape == (1, 1, 252, 252)
    assert all(bool(getattr(prediction, name).isfinite().all()) for name in ("masks", "semantic"))


@pytest.mark.parametrize("boxed", ["none", "all", "some"])
def test_it_predicts_in_the_teachers_form(boxed):
    prediction = predictions(tiny_student(), boxed, features=True)
    assert prediction.masks.shape == (6, QUERIES, 14, 14)
    assert prediction.boxes.shape == (6, QUERIES, 4)
    assert prediction.logits.shape == (6, QUERIES)
    assert prediction.presence.shape == (6, 1)
    assert prediction.semantic.shape == (6, 1, 14, 14)
    assert [tuple(level.shape) for level in prediction.fpn] == [
        (3, 16, 14, 14),
        (3, 16, 7, 7),
        (3, 16, 4, 4),
    ]
    assert prediction.encoder.shape == (6, 16, 4, 4)


def test_sizes_come_by_param():
    student = tiny_student(queries=4, text_layers=2, text_width=128, vocabulary=70, context=5)
    text = student.text_encoder
    assert predictions(student).logits.shape == (6, 4)
    assert len(text.layers) == 2
    assert text.embeddings.token_embedding.weight.shape == (70, 128)
    assert text.embeddings.position_embedding.position_embedding.shape[2] == 5
    assert text.config.num_attention_heads == 2


def test_a_prediction_depends_on_its_own_image_and_prompt_alone():
    student, images, inputs = restless(tiny_student()), some_images(), some_prompts()
    together = predictions(student)
    with torch.no_grad():
        for row in range(6):
            image = inputs.owner[row]
            own = inputs.take(torch.tensor([row]))
            alone = PromptInputs(torch.tensor([0]), own.tokens, own.attention)
            one = predict(student, images[image, None], alone)
            torch.testing.assert_close(one.masks[0], together.masks[row], atol=1e-4, rtol=1e-4)
    assert (together.masks[0] - together.masks[1]).abs().max() > 1e-3  # two prompts of one image
    assert (together.masks[0] - together.masks[2]).abs().max() > 1e-3


def test_every_parameter_learns_but_those_that_sam3_leaves_unused():
    student = restless(tiny_student()).train()
    for boxed in ("none", "all"):
        prediction = predict(student, some_images(), some_prompts(boxed=boxed))
        parts = (
            prediction.masks,
            prediction.boxes,
            prediction.logits,
            prediction.presence,
            prediction.semantic,
        )
        sum(tensor.square().sum() for tensor in parts).backward()
    idle = {
        name
        for name, parameter in student.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.any())
    }
    assert {name for name in idle if not name.endswith("k_proj.bias")} == UNUSED  # softmax-neutral


def test_it_learns_one_batch_by_heart():
    student = tiny_student().train()
    images, inputs = some_images(), some_prompts()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    target = (torch.arange(14) < 7).float().expand(6, 1, 14, 14).clone()
    target[1::2] = 1 - target[1::2]  # what is right depends on the prompt
    losses = []
    for _ in range(40):
        prediction = predict(student, images, inputs)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(prediction.semantic, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_it_starts_with_weights_from_which_it_learns():
    student = tiny_student(text_width=64, vocabulary=500, queries=4)
    words = student.text_encoder.embeddings.token_embedding.weight
    assert abs(words.std() * 8 - 1) < 0.05
    linear = student.text_encoder.layers[1].mlp.fc1.weight  # 64 to 256 channels
    assert abs(linear.std() / (2 / (64 + 256)) ** 0.5 - 1) < 0.05
    decoder = student.detr_decoder
    boxes = decoder.reference_points.weight.sigmoid()
    torch.testing.assert_close(boxes[:, 2:], torch.full((4, 2), 0.3))
    assert boxes[:, :2].std() > 0.15
    hidden = torch.randn(4, 16)
    assert not decoder.box_head(hidden).any()  # queries first predict where they stand


def test_same_seed_same_student():
    first, second, other = (tiny_student(seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.fixture
def saved(tmp_path):
    student = restless(tiny_student())
    save_student(tmp_path / "one", student, word_tokenizer(["circle", "red"], length=8))
    return student, tmp_path / "one"


def test_a_saved_student_predicts_as_before(saved):
    student, folder = saved
    read = load_student(folder)
    assert not read.training
    assert read.recipe == student.recipe
    before, after = predictions(student), predictions(read)
    assert torch.equal(before.masks, after.masks)
    assert torch.equal(before.boxes, after.boxes)
    ids, attention = encode(load_tokenizer(folder / "tokenizer"), ["a red circle"], length=8)
    assert ids.shape == attention.shape == (1, 8)


def test_the_librarys_own_way_to_save_is_refused(saved, tmp_path):
    """What it writes would be loaded as a Sam3Model with random weights."""
    with pytest.raises(TypeError, match="expected save_student"):
        saved[0].save_pretrained(tmp_path / "trap")
    assert not (tmp_path / "trap").exists()


def test_equal_students_give_equal_bytes(saved, tmp_path):
    _, folder = saved
    save_student(
        tmp_path / "two", load_student(folder), word_tokenizer(["circle", "red"], length=8)
    )
    assert digests(folder) == digests(tmp_path / "two")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_it_loads_and_predicts_in_half_precision(saved, dtype, tolerance):
    student, folder = saved
    half = load_student(folder).to(dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    prediction, exact = predictions(half), predictions(student)  # of images in float32
    assert prediction.masks.dtype == dtype
    error = (prediction.masks.float() - exact.masks).abs().max()
    assert error < tolerance * exact.masks.abs().max()


def test_a_student_trained_in_half_precision_is_saved_as_it_is(saved, tmp_path):
    student, folder = saved
    save_student(tmp_path / "half", student.half(), load_tokenizer(folder / "tokenizer"))
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert weights["text_projection.weight"].dtype == torch.float16
    read = load_student(tmp_path / "half")
    assert torch.equal(read.text_projection.weight, student.text_projection.weight.float())


def test_a_broken_folder_gives_one_line(saved, tmp_path):
    _, folder = saved
    with pytest.raises(ValueError, match=r"nowhere: expected config\.json .* of a student"):
        load_student(tmp_path / "nowhere")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for wrong in ({**config, "queries": 7}, {**config, "unknown": 1}, {"queries": 3}):
        (folder / "config.json").write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(ValueError, match=r"one: expected config\.json .* of a student"):
            load_student(folder)


def test_heads_must_divide_the_width_of_the_text():
    with pytest.raises(ValueError, match="text_width is 129, expected less than 128"):
        tiny_student(text_width=129)


def test_the_recipe_is_json_and_knows_the_teachers_heads():
    teacher = tiny_teacher()
    heads = json.loads(json.dumps(heads_of(teacher)))
    student = build_student(StudentRecipe(heads=heads, **RECIPE))
    assert student.config.detr_encoder_config.hidden_size == 16
    assert heads["detr_decoder"]["num_queries"] == 5  # the recipe's number counts, not this
    assert student.config.detr_decoder_config.num_queries == QUERIES
    assert IMAGE_SIZE == 56


def encoders(student):
    """A weight of the text encoder and one of the image encoder."""
    return (
        student.text_encoder.embeddings.token_embedding.weight,
        student.vision_encoder.pyramid.lateral[0].weight,
    )


def test_a_student_of_a_teacher_has_its_heads_and_a_tokenizer_of_its_own(tmp_path):
    teacher = tiny_teacher()
    tokenizer = student_tokenizer(None, ["a red circle", "a star"], teacher)
    architecture = {name: RECIPE[name] for name in ArchitectureConfig.model_fields}
    student = new_student(
        ArchitectureConfig(**architecture), teacher, tokenizer, ["box", "generic"]
    )
    assert (student.recipe.image_size, student.recipe.kinds) == (IMAGE_SIZE, ("box", "generic"))
    assert student.recipe.vocabulary == len(tokenizer) == 3 + 4
    assert student.recipe.context == tokenizer.model_max_length == CONTEXT
    assert student.recipe.heads == heads_of(teacher)
    assert architecture.items() <= student.recipe.model_dump(mode="json").items()
    save_student(tmp_path, student, tokenizer)
    read = student_tokenizer(tmp_path / "tokenizer", [], teacher)
    assert len(read) == len(tokenizer)
    parts = (ArchitectureConfig(**architecture), teacher, tokenizer, ["box"])
    again = new_student(*parts, text_weights=tmp_path / "model.safetensors")
    same = [torch.equal(*pair) for pair in zip(encoders(student), encoders(again), strict=True)]
    assert same == [True, False]
