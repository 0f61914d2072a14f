import numpy as np
import pytest
import torch

from braid.radiance.gaussians.gaussians import Gaussians, load_ply, property_names, save_ply


def random_gaussians(count: int, degree: int = 3, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Gaussians(
        normal(count, 3),
        normal(count, 3),
        normal(count, 4),
        normal(count),
        normal(count, (degree + 1) ** 2, 3),
    )


def rewrite(path, names, columns, count=None):
    """Write a PLY of float properties by hand."""
    table = np.stack([columns[name] for name in names], axis=1).astype("<f4")
    count = len(table) if count is None else count
    header = ["ply", "format binary_little_endian 1.0", "comment by hand"]
    header += [f"element vertex {count}", *(f"property float {name}" for name in names)]
    path.write_bytes(("\n".join([*header, "end_header"]) + "\n").encode() + table.tobytes())


@pytest.mark.parametrize(("degree", "properties"), [(0, 17), (1, 26), (2, 41), (3, 62)])
def test_ply_round_trip_keeps_everything_but_the_quaternions_length(tmp_path, degree, properties):
    written = random_gaussians(7, degree)
    save_ply(tmp_path / "a.ply", written)
    read = load_ply(tmp_path / "a.ply")
    content = (tmp_path / "a.ply").read_bytes()
    assert content.count(b"property float ") == properties
    assert len(content) == content.index(b"end_header\n") + 11 + 7 * properties * 4
    for name in ("means", "log_scales", "opacity_logits", "sh"):
        assert torch.equal(getattr(read, name), getattr(written, name)), name
    unit = torch.nn.functional.normalize(written.quaternions, dim=1)
    torch.testing.assert_close(read.quaternions, unit)
    assert read.degree == degree


def test_file_layout_is_channel_major_with_zero_normals(tmp_path):
    gaussians = random_gaussians(2)
    save_ply(tmp_path / "a.ply", gaussians)
    content = (tmp_path / "a.ply").read_bytes()
    vertex = np.frombuffer(content[-2 * 248 : -248], "<f4")
    names = property_names(3)
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[54:] == [
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]
    assert not vertex[3:6].any()
    np.testing.assert_array_equal(vertex[6:9], gaussians.sh[0, 0])
    np.testing.assert_array_equal(vertex[9:24], gaussians.sh[0, 1:, 0])  # all of red first
    np.testing.assert_array_equal(vertex[39:54], gaussians.sh[0, 1:, 2])
    np.testing.assert_array_equal(vertex[58:62], gaussians.quaternions[0])  # as it was: any length


def test_properties_are_found_by_name(tmp_path):
    names = property_names(1)
    columns = {name: np.arange(3) + 10.0 * i for i, name in enumerate(names)}
    rewrite(tmp_path / "a.ply", names, columns)
    columns["extra"] = np.zeros(3)
    shuffled = ["extra", *(name for name in reversed(names) if not name.startswith("n"))]
    rewrite(tmp_path / "b.ply", shuffled, columns)
    first, second = load_ply(tmp_path / "a.ply"), load_ply(tmp_path / "b.ply")
    for name in ("means", "log_scales", "quaternions", "opacity_logits", "sh"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_other_scalar_types_and_later_elements_are_read(tmp_path):
    names = [name for name in property_names(0) if not name.startswith("n")]
    dtype = np.dtype([("flag", "u1"), *((name, "<f8") for name in names)])
    vertices = np.zeros(2, dtype)
    vertices["x"] = [1.5, -2.5]
    vertices["rot_0"] = 2.0
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 2", "property uchar flag"]
    lines += [*(f"property double {name}" for name in names), "element face 1"]
    lines += ["property list uchar int vertex_indices", "end_header", ""]
    (tmp_path / "a.ply").write_bytes("\n".join(lines).encode() + vertices.tobytes() + b"\0" * 13)
    assert load_ply(tmp_path / "a.ply").means[:, 0].tolist() == [1.5, -2.5]


def same(first: Gaussians, second: Gaussians) -> bool:
    return all(torch.equal(getattr(first, name), value) for name, value in vars(second).items())


def test_headers_of_windows_and_bytes_of_other_machines_and_text_are_read(tmp_path):
    save_ply(tmp_path / "a.ply", random_gaussians(5))
    head, end, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    table = np.frombuffer(body, "<f4").reshape(5, -1)
    text = "\n".join(" ".join(map(repr, map(float, row))) for row in table) + "\n"
    little = b"binary_little_endian"
    files = {
        "crlf": (head + end).replace(b"\n", b"\r\n") + body,
        "big": head.replace(little, b"binary_big_endian") + end + table.astype(">f4").tobytes(),
        "text": head.replace(little, b"ascii") + end + text.encode(),
        "crlf_text": (head.replace(little, b"ascii") + end + text.encode()).replace(b"\n", b"\r\n"),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.ply").write_bytes(content)
        assert same(load_ply(tmp_path / f"{name}.ply"), load_ply(tmp_path / "a.ply")), name
    short = files["text"].rsplit(b"\n", 2)[0]
    (tmp_path / "short.ply").write_bytes(short)
    with pytest.raises(ValueError, match=r"short\.ply: truncated PLY, expected 5 lines of 62"):
        load_ply(tmp_path / "short.ply")


def test_the_filter_of_mip_splatting_belongs_into_scales_and_opacities(tmp_path):
    gaussians = random_gaussians(6)
    save_ply(tmp_path / "a.ply", gaussians)
    head, end, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    size = np.linspace(0.05, 0.5, 6, dtype="<f4")[:, None]
    table = np.concatenate([np.frombuffer(body, "<f4").reshape(6, -1), size], axis=1)
    content = head + b"property float filter_3D\n" + end + table.astype("<f4").tobytes()
    (tmp_path / "b.ply").write_bytes(content)
    read = load_ply(tmp_path / "b.ply")
    squared = (2 * gaussians.log_scales).exp()
    widened = squared + torch.from_numpy(size.copy()) ** 2
    torch.testing.assert_close(read.log_scales, widened.sqrt().log(), rtol=1e-4, atol=1e-5)
    kept = (squared.prod(1) / widened.prod(1)).sqrt()
    torch.testing.assert_close(read.opacities, gaussians.opacities * kept, rtol=1e-4, atol=1e-6)


def test_opaque_and_absent_splats_may_have_infinite_logits(tmp_path):
    gaussians = random_gaussians(4)
    gaussians.opacity_logits[1], gaussians.opacity_logits[3] = torch.inf, -torch.inf
    save_ply(tmp_path / "a.ply", gaussians)
    read = load_ply(tmp_path / "a.ply").opacities
    assert (read[1], read[3] < 1e-12) == (1, True)
    torch.testing.assert_close(read[0], gaussians.opacities[0])


def broken(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[:-5]
    if how == "not a ply":
        return b"\x89PNG" + content
    if how == "no end":
        return content.replace(b"end_header", b"end_footer")
    if how == "format":
        return content.replace(b"binary_little_endian", b"binary_middle_endian")
    if how == "empty":
        return content.replace(b"element vertex 4", b"element vertex 0")
    if how == "count":
        return content.replace(b"element vertex 4", b"element vertex x")
    if how == "list":
        return content.replace(b"property float nx", b"property list uchar int nx")
    if how == "twice":
        return content.replace(b"property float ny", b"property float nx")
    if how == "no opacity":
        return content.replace(b"property float opacity", b"property float opaqueness")
    return content.replace(b"property float f_rest_44", b"property float other_44")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "truncated PLY, 4 vertices need 992 bytes after the header, found 987"),
        ("not a ply", "not a PLY file"),
        ("no end", "not a PLY file"),
        ("format", "PLY of format binary_middle_endian, expected one of"),
        ("empty", "PLY has no vertex"),
        ("count", "element vertex <count>"),
        ("list", "scalar PLY vertex property, got 'property list uchar int nx'"),
        ("twice", "named twice"),
        ("no opacity", "lacks the property opacity"),
        ("rest", "expected 0, 9, 24 or 45 f_rest properties, got 44"),
    ],
)
def test_bad_ply_gives_one_clear_line(tmp_path, how, message):
    path = tmp_path / "bad.ply"
    save_ply(path, random_gaussians(4))
    path.write_bytes(broken(path.read_bytes(), how))
    with pytest.raises(ValueError, match=message) as caught:
        load_ply(path)
    assert "bad.ply" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_not_finite_is_named(tmp_path, value):
    gaussians = random_gaussians(4)
    gaussians.log_scales[2, 1] = value
    save_ply(tmp_path / "a.ply", gaussians)
    with pytest.raises(ValueError, match=r"a\.ply: property scale_1 .* vertex 2"):
        load_ply(tmp_path / "a.ply")


def test_covariance_has_the_squared_scales_along_the_rotated_axes():
    gaussians = random_gaussians(20)
    covariances = gaussians.covariances().double()
    values, _ = torch.linalg.eigh(covariances)
    expected = (2 * gaussians.log_scales.double()).exp().sort(dim=1).values
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-6)
    rotations = gaussians.rotations()
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(20))
    first = (covariances.float() @ rotations[:, :, :1])[..., 0]
    scale = (2 * gaussians.log_scales[:, :1]).exp()
    torch.testing.assert_close(first, scale * rotations[:, :, 0], rtol=1e-3, atol=1e-4)


def test_quaternion_is_w_first():
    quarter_turn_about_z = torch.tensor([[1.0, 0.0, 0.0, 1.0]])  # not normalized
    gaussians = random_gaussians(1)
    gaussians.quaternions = quarter_turn_about_z
    image_of_x = gaussians.rotations()[0] @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(image_of_x, torch.tensor([0.0, 1.0, 0.0]))
