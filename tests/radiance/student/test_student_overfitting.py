"""A student trained through the marcher fits the view that it is trained on."""

import math

import torch
from torch import Tensor

from braid.radiance.scenes.cameras import Cameras
from braid.radiance.scenes.grids import Occupancy
from braid.radiance.student.marching import Field, march
from braid.radiance.student.student import KiloNeRF
from tests.radiance.settings import student_config


def _overfit(steps: int) -> tuple[KiloNeRF, Tensor]:
    """A small grid fitted to one 20 x 20 view of a patterned ball, and the MSE of its color."""

    def truth(points: Tensor, directions: Tensor, features: bool = True) -> Field:
        sigma = 40 * (points.norm(dim=1) < 0.7).float()
        return Field(sigma, 0.5 + 0.45 * torch.sin(6 * points), points[:, :0])

    camera = Cameras(torch.eye(4).unsqueeze(0), focal=24.0, width=20, height=20)
    camera.camera_to_world[0, 2, 3] = 3.0
    rays, corner = camera.view_rays(0), torch.full((3,), 0.8)
    box = Occupancy(torch.ones(8, 8, 8, dtype=torch.bool), -corner, corner)
    target = march(truth, box, rays, 0.02, features=False)
    generator = torch.Generator().manual_seed(0)
    cells = torch.ones(2, 2, 2, dtype=torch.bool)
    corners = box.low.tolist(), box.high.tolist()
    sizes = student_config(density_scale=30.0, hidden=16, frequencies=3)
    model = KiloNeRF.for_cells(cells, *corners, sizes, generator)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    error = torch.zeros(())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * 0.05 ** (step / steps)
        result = march(model, box, rays, 0.08, generator, features=False)
        error = (result.rgb - target.rgb).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(error + (result.alpha - target.alpha).square().mean())
        optimizer.step()
    return model, error.detach()


def test_a_small_student_overfits_one_view_to_30_decibels() -> None:
    assert -10 * math.log10(float(_overfit(150)[1])) > 30


def test_training_is_the_same_to_the_byte_from_the_same_seed() -> None:
    first, again = (_overfit(4)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
