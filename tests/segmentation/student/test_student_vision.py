"""The student's encoders: normalization, pyramid, backbones of timm, weights from files."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from braid.common.torchvision import mend_torchvision
from braid.segmentation.student.student import (
    ChannelScale,
    Pyramid,
    StudentVision,
    load_backbone,
    load_text_encoder,
    make_backbone,
    normalization,
)
from tests.segmentation.tiny_models import some_images, tiny_teacher
from tests.segmentation.tiny_students import RECIPE, tiny_student

mend_torchvision()  # timm needs it
IMAGENET = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
OPTIONS = RECIPE["backbone_options"]


def test_one_affine_step_is_as_good_as_preprocessing_twice():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    mean, std = (values.double().view(3, 1, 1) for values in IMAGENET)
    gain, offset = normalization("repvit_m2_3")
    own = ((pixels - 0.5) / 0.5) * gain + offset
    assert ((pixels.double() - mean) / std - own).abs().max() < 1e-6


def test_the_backbone_is_given_its_own_normalization():
    vision = StudentVision("repvit_m0_9", OPTIONS, 16).eval()
    inputs = []
    vision.backbone.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    white = torch.ones(1, 3, 56, 56)  # 255 in the teacher's normalization
    vision(pixel_values=white)
    mean, std = IMAGENET
    torch.testing.assert_close(inputs[0][0, :, 3, 3], (1 - mean) / std)


def test_a_backbone_keeps_the_normalization_that_timm_gives_it():
    gain, offset = normalization("vit_tiny_patch16_224")  # .5 and .5, as the teacher's
    torch.testing.assert_close(gain, torch.ones(3, 1, 1))
    torch.testing.assert_close(offset, torch.zeros(3, 1, 1))


def test_scales_of_channels_are_timms_convolutions_by_another_way():
    import timm

    backbone, _ = make_backbone("repvit_m0_9", OPTIONS)
    plain = timm.create_model("repvit_m0_9", features_only=True, **OPTIONS)
    plain.load_state_dict(backbone.state_dict())
    scales = [layer for layer in backbone.modules() if isinstance(layer, ChannelScale)]
    assert scales
    assert all(layer.weight.shape[1:] == (1, 1, 1) for layer in scales)
    ours, timms = (model.eval()(some_images()) for model in (backbone, plain))
    torch.testing.assert_close(ours, timms)
    layer = nn.Conv2d(6, 6, 1, groups=6)
    x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    layer.__class__ = ChannelScale
    torch.testing.assert_close(layer(x), expected)


def test_the_pyramid_adds_what_coarser_levels_have():
    torch.manual_seed(0)
    pyramid = Pyramid([3, 5, 7], 8)
    levels = [torch.randn(2, 3, 14, 14), torch.randn(2, 5, 7, 7), torch.randn(2, 7, 4, 4)]
    fine, middle, coarse = pyramid(levels)
    top = pyramid.lateral[2](levels[2])
    second = pyramid.lateral[1](levels[1]) + F.interpolate(top, (7, 7), mode="nearest")
    first = pyramid.lateral[0](levels[0]) + F.interpolate(second, (14, 14), mode="nearest")
    torch.testing.assert_close(coarse, pyramid.output[2](top))
    torch.testing.assert_close(middle, pyramid.output[1](second))
    torch.testing.assert_close(fine, pyramid.output[0](first))


def test_positions_are_those_of_the_teachers_neck():
    vision, neck = tiny_student().vision_encoder, tiny_teacher().vision_encoder.neck
    output = vision(pixel_values=some_images())
    assert [level.shape[-1] for level in output.fpn_hidden_states] == [14, 7, 4, 2]
    for level, position in zip(output.fpn_hidden_states, output.fpn_position_encoding, strict=True):
        expected = neck.position_encoding(level.shape, level.device, level.dtype)
        assert torch.equal(position, expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("repvit_m9", {}, "'repvit_m9' is no model of timm"),
        ("hf-hub:timm/repvit_m0_9.dist_450e_in1k", {}, "is no model of timm"),
        ("vit_tiny_patch16_224", {}, r"has NCHW features at strides \[16, 16, 16\], expected NCHW"),
        ("swin_tiny_patch4_window7_224", {}, "has NHWC features"),
        ("repvit_m0_9", {"breadth": 3}, "timm says .*breadth"),
        ("repvit_m0_9", {"embed_dim": [8, 8], "depth": [1]}, "timm says"),
    ],
)
def test_a_backbone_that_does_not_fit_gives_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as caught, torch.device("meta"):
        make_backbone(name, options)
    assert "\n" not in str(caught.value)


def test_strides_are_found_where_a_backbone_has_finer_ones_too():
    with torch.device("meta"):
        backbone, levels = make_backbone("resnet18", {})
    assert backbone.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert levels == [1, 2, 3, 4]


@pytest.fixture
def classifier():
    import timm

    torch.manual_seed(9)
    model = timm.create_model("repvit_m0_9", pretrained=False, **OPTIONS)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_backbone_takes_the_weights_of_timms_classifier(classifier, tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    state = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    backbone, _ = make_backbone("repvit_m0_9", OPTIONS)
    load_backbone(backbone, path)
    images = some_images()
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()(images)[-1], classifier.forward_features(images))


def test_weights_that_do_not_fit_give_one_line(classifier, tmp_path):
    backbone, _ = make_backbone("repvit_m0_9", {**OPTIONS, "embed_dim": [8, 8, 16, 24]})
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    with pytest.raises(ValueError, match=r"weights\.pth: \d+ of the backbone's \d+ tensors"):
        load_backbone(backbone, path)
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for name in ("nowhere.pth", "broken.safetensors"):
        with pytest.raises(ValueError, match=f"backbone_weights .*{name}: unreadable"):
            load_backbone(backbone, tmp_path / name)


def test_a_file_of_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    torch.save({"stem": Trap()}, tmp_path / "trap.pth")
    backbone, _ = make_backbone("repvit_m0_9", OPTIONS)
    with pytest.raises(ValueError, match=r"trap\.pth: unreadable"):
        load_backbone(backbone, tmp_path / "trap.pth")


@pytest.mark.parametrize("prefix", ["", "text_encoder.", "model.text_encoder."])
def test_a_text_encoder_takes_weights_of_its_own_or_of_a_whole_model(tmp_path, prefix):
    given, student = (tiny_student(seed).text_encoder for seed in (1, 2))
    state = {f"{prefix}{name}": value.clone() for name, value in given.state_dict().items()}
    save_file({**state, "vision_encoder.x": torch.zeros(1)}, tmp_path / "text.safetensors")
    load_text_encoder(student, tmp_path / "text.safetensors")
    for name, value in student.state_dict().items():
        assert torch.equal(value, given.state_dict()[name])


def test_text_weights_that_do_not_fit_give_one_line(tmp_path):
    path = tmp_path / "text.safetensors"
    save_file(tiny_student(text_width=32).text_encoder.state_dict(), path)
    with pytest.raises(ValueError, match=r"text_weights .*: \d+ of the text encoder's \d+ tensors"):
        load_text_encoder(tiny_student().text_encoder, path)
    path.write_bytes(b"no weights")
    for name in ("text.safetensors", "nowhere.safetensors"):
        with pytest.raises(ValueError, match=f"text_weights .*{name}: unreadable"):
            load_text_encoder(tiny_student().text_encoder, tmp_path / name)
