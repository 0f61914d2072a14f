"""EWA projection of Gaussians to the screen (Zwicker et al. 2001, as in 3D Gaussian Splatting)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from braid.radiance.gaussians import Gaussians
from braid.radiance.harmonics import colours
from braid.radiance.rays import Cameras

NEAR = 0.2  # scene units; what lies nearer, or behind the camera, is not drawn
BLUR = 0.3  # px^2 added to the screen covariance, so that no splat falls between pixels
FIELD_MARGIN = 1.3  # x/z and y/z are clamped to 1.3 tan(fov / 2) in the Jacobian only


class Splats(NamedTuple):
    """V Gaussians before the camera, in the scene's order. Pixel (0, 0) has its centre at 0.5."""

    centres: Tensor  # [2, V] px
    covariances: Tensor  # [3, V] px^2: xx, xy, yy, blur included
    log_opacities: Tensor  # [V]
    colours: Tensor  # [3, V] RGB, >= 0
    depths: Tensor  # [V] along the camera's axis (z), scene units


def project(gaussians: Gaussians, cameras: Cameras, view: int) -> Splats:
    """Project the Gaussians that lie before one camera.

    What lies behind is dropped before anything is computed from it: no attribute of it gets a
    gradient, and no division by its depth can make one infinite.
    """
    pose = cameras[[view]].world_to_camera()[0].to(gaussians.means)
    centre = cameras.camera_to_world[view, :3, 3].to(gaussians.means)
    front = gaussians.means @ pose[2, :3] + pose[2, 3] > NEAR
    seen = gaussians if front.all() else gaussians[front]
    local = pose[:3, :3] @ seen.means.T + pose[:3, 3:]  # [3, V]
    slopes, depths = local[:2] / local[2], local[2]
    middle = pose.new_tensor([[0.5 * cameras.width], [0.5 * cameras.height]])
    directions = _unit((seen.means - centre).T)
    rows = torch.einsum("vij,jk->kiv", _jacobian(slopes, cameras), pose[:3, :3])
    return Splats(
        centres=cameras.focal * slopes + middle,
        covariances=_screen_covariances(seen, rows * (cameras.focal / depths)),
        log_opacities=torch.nn.functional.logsigmoid(seen.opacity_logits),
        colours=colours(seen.sh, directions.T).T,
        depths=depths,
    )


def _jacobian(
    slopes: Tensor,  # [2, V], x / z and y / z
    cameras: Cameras,
) -> Tensor:
    """Jacobian of the projection at the means, over focal / z, [V, 2, 3]."""
    size = slopes.new_tensor([[cameras.width], [cameras.height]])
    limit = FIELD_MARGIN * 0.5 * size / cameras.focal
    slopes = torch.maximum(torch.minimum(slopes, limit), -limit)
    return torch.cat(
        [torch.eye(2).to(slopes).expand(slopes.shape[1], 2, 2), -slopes.T[:, :, None]], dim=2
    )


def _screen_covariances(
    gaussians: Gaussians,
    rows: Tensor,  # [3, 2, V], J W, world axis first
) -> Tensor:  # [3, V]
    """J W R S S R^T W^T J^T plus the blur.

    The rows t of J W are turned into the Gaussian's own axes by its quaternion (w, u), inverted:
    t - 2 w u x t + 2 u x (u x t), which is half the work of the matrix R and a product with it.
    """
    quaternions = _unit(gaussians.quaternions.T)
    w, u = quaternions[0], quaternions[1:]
    turned = _cross(u, rows)
    rows = rows + 2 * (_cross(u, turned) - w * turned)
    x, y = (rows * gaussians.log_scales.T.exp()[:, None]).unbind(dim=1)
    return torch.stack([(x * x).sum(0) + BLUR, (x * y).sum(0), (y * y).sum(0) + BLUR])


def _unit(
    vectors: Tensor,  # [D, V]
) -> Tensor:
    """Vectors of unit length, component first, in which layout a CPU is quick at it."""
    vectors = vectors.contiguous()
    return vectors * (vectors * vectors).sum(dim=0).add(1e-24).rsqrt()


def _cross(
    u: Tensor,  # [3, V]
    t: Tensor,  # [3, 2, V]
) -> Tensor:
    """u x t; `torch.linalg.cross` with broadcasting is several times slower on a CPU."""
    (ux, uy, uz), (tx, ty, tz) = u, t
    return torch.stack([uy * tz - uz * ty, uz * tx - ux * tz, ux * ty - uy * tx])
