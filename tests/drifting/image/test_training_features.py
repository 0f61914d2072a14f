"""phi of images: how many vectors there are, what they are of, and which files are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from braid.common.torchvision import mend_torchvision
from braid.drifting.image.training import ImageFeatures, ResNet, image_branches, image_features
from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from braid.drifting.video.features import ClipFeatures
from tests.drifting.image.configs import features_config

LIGHT, RICH = ("clip", "rms"), ("clip", "patch2", "patch4", "rms")


def settings(**changes):
    return features_config(
        **{"resnet_name": "resnet18", "families": RICH, "locations": 16, **changes}
    )


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def timm():
    mend_torchvision()
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def whole(timm):
    """timm's own network, with a classifier."""
    torch.manual_seed(0)
    network = timm.create_model("resnet18").eval()
    for name, value in network.named_buffers():  # as after a training
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    return network


@pytest.fixture(scope="module")
def weights(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "resnet18.safetensors"
    save_file(whole.state_dict(), path)
    return path


@pytest.fixture
def mae(tmp_path):
    torch.manual_seed(0)
    save_latent_mae(tmp_path / "mae", LatentMae(1, 8, (1, 1, 1), planar=True))
    return tmp_path / "mae"


@pytest.mark.parametrize(
    ("families", "locations", "side", "vectors"),
    [
        (LIGHT, 16, 64, 9),
        (LIGHT, 16, 256, 9),
        (RICH, 16, 64, 121),
        (RICH, 18, 64, 125),
        (RICH, 16, 256, 241),  # and one of the vanilla branch: 242
        (("location",), 16, 64, 16 + 16 + 16 + 4),
    ],
)
def test_a_resnet_gives_9_to_125_vectors_of_64_pixels_and_242_of_256(
    weights, families, locations, side, vectors
):
    features = ImageFeatures(ClipFeatures(ResNet(weights, "resnet18"), families, locations))
    assert features.vectors((3, side, side)) == vectors


@pytest.mark.parametrize(
    ("families", "locations", "side", "vectors"),
    [
        (LIGHT, 16, 8, 9),  # stem and three stages
        (RICH, 16, 8, 9 + 2 * (16 + 16 + 4) + 2 * (4 + 4)),
        (RICH, 16, 64, 9 + 2 * 4 * 16 + 2 * 4 * 16),
        (RICH, 15, 32, 9 + 2 * 4 * 15 + 2 * (3 * 15 + 4)),
        (("location", "clip"), 16, 8, 8 + 16 + 16 + 16 + 4),
    ],
)
def test_a_latent_mae_gives_as_many(families, locations, side, vectors):
    mae = LatentMae(1, 8, (1, 1, 1), planar=True)
    assert ImageFeatures(ClipFeatures(mae, families, locations)).vectors((1, side, side)) == vectors


def test_maps_are_the_outputs_of_timms_stages_on_normalized_pixels(whole, weights):
    outputs = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        hook = lambda _, __, out, name=name: outputs.update({name: out})  # noqa: E731
        getattr(whole, name).register_forward_hook(hook)
    pixels = images(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        whole(((pixels + 1) / 2 - mean[:, None, None]) / std[:, None, None])
        maps = ResNet(weights, "resnet18").freeze().encode(pixels[:, :, None])
    assert list(maps) == ["layer1", "layer2", "layer3", "layer4"]
    for name, value in maps.items():
        torch.testing.assert_close(value[:, :, 0], outputs[name], rtol=1e-4, atol=1e-4)


def test_gray_images_become_three_equal_channels(weights):
    network, gray = ResNet(weights, "resnet18").freeze(), images(2, 1, 1, 32, 32)
    one, three = network.encode(gray), network.encode(gray.expand(-1, 3, -1, -1, -1))
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize(("size", "side"), [((8, 8), 32), ((50, 40), 32)])
def test_images_are_resized_as_torch_does(weights, size, side):
    small, pixels = ResNet(weights, "resnet18", side).freeze(), images(2, 3, *size)
    resized = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    expected = ResNet(weights, "resnet18").freeze().encode(resized[:, :, None])
    maps = small.encode(pixels[:, :, None])
    for name, value in expected.items():
        torch.testing.assert_close(maps[name], value, rtol=1e-3, atol=1e-4)


def test_latents_are_no_pixels(weights):
    with pytest.raises(ValueError, match="images have 4 channels, expected pixels"):
        ResNet(weights, "resnet18").encode(images(1, 4, 1, 32, 32))


@pytest.mark.parametrize("encoder", ["latent_mae", "resnet"])
def test_gradients_reach_the_images_and_training_mode_changes_nothing(encoder, mae, weights):
    features = image_features(settings(encoder=encoder), mae, weights)
    pixels = images(2, 1, 16, 16).requires_grad_()
    before = features(pixels)
    sum(value.square().sum() for value in before.values()).backward()
    assert pixels.grad.abs().amin() > 0
    assert not any(value.requires_grad for value in features.parameters())
    state = {name: value.clone() for name, value in features.state_dict().items()}
    after = features.train()(pixels)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(value, state[name]) for name, value in features.state_dict().items())


def test_images_are_clips_of_one_frame(mae):
    features = image_features(settings(), mae, None)
    pixels = images(3, 1, 8, 8)
    groups, expected = features(pixels), features.features(pixels[:, :, None])
    assert all(torch.equal(groups[name], value) for name, value in expected.items())
    assert {value.shape[0] for value in groups.values()} == {3}


def test_an_encoder_without_weight_is_not_read(tmp_path, mae):
    device = torch.device("cpu")
    bare = image_branches(settings(encoder_weight=0, vanilla_weight=2.0), tmp_path, None, device)
    assert {name: weight for name, (weight, _) in bare.items()} == {"vanilla": 2.0}
    both = image_branches(settings(encoder_weight=0.5), mae, None, device)
    assert {name: weight for name, (weight, _) in both.items()} == {"vanilla": 1.0, "encoder": 0.5}


def test_weights_of_a_pth_file_are_the_same(whole, weights, tmp_path):
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "resnet18.pth")
    again = ResNet(tmp_path / "resnet18.pth", "resnet18").state_dict()
    expected = ResNet(weights, "resnet18").state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())


class Trap:
    """Its unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_is_not_executed(timm, tmp_path):
    torch.save({"conv1.weight": Trap(tmp_path / "sprung")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth: expected weights of timm's resnet18"):
        ResNet(tmp_path / "evil.pth", "resnet18")
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_depth_are_refused(weights, tmp_path, timm):
    with pytest.raises(ValueError, match=r"tensors are missing or too many, first layer1\.2"):
        ResNet(weights, "resnet34")
    deeper = tmp_path / "resnet34.safetensors"
    save_file(timm.create_model("resnet34").state_dict(), deeper)
    with pytest.raises(ValueError, match=r"resnet34.safetensors: .* first layer1.2"):
        ResNet(deeper, "resnet18")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "clip"}, r"encoder\s+Input should be 'latent_mae' or 'resnet'"),
        ({"families": ("clip", "motion")}, r"families\.1\s+Input should be 'location', 'clip'"),
        ({"families": ()}, r"families\s+Tuple should have at least 1 item"),
        ({"encoder_weight": 0, "vanilla_weight": 0}, "encoder_weight and vanilla_weight are both"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("resnet", "name", "message"),
    [
        (None, "resnet18", r"image_drift\.features\.resnet is none"),
        (Path("missing.pth"), "resnet18", r"missing\.pth: expected weights of timm's"),
        (Path("x"), "vgg16", "resnet_name is 'vgg16'"),
    ],
)
def test_bad_encoders_are_refused(resnet, name, message, mae):
    mend_torchvision()
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        image_features(settings(encoder="resnet", resnet_name=name), mae, resnet)


def test_a_missing_mae_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: expected config\.json"):
        image_features(settings(), tmp_path / "nowhere", None)
