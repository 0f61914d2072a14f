"""Motion compensation: what is missing is the keyframes around it, moved.

What a network draws anew it blurs; what it moves stays sharp, as in flow-based interpolation of
video (Jiang et al. 2018, arXiv 1712.00080). Latents themselves can be moved by whole cells only,
for less than that mixes their channels. So keyframes are moved in a *linear picture* U z, fitted to
what the decoder shows, and brought back by its pseudo-inverse D; both then learn with the network
(their gradient is the one sum here whose order CUDA does not fix). Between keyframes l and r, with
the interpolated frame z = (1 - f) z_l + f z_r,

    x = z + D [ (1 - w) (U z_l)(p + a_l) + w (U z_r)(p + a_r) - (1 - f) U z_l - f U z_r ]

at each pixel p. Displacements a(p) = A [p, 1] + b(p) are an affine map of the frame, which follows
a camera or a single object, plus what each cell adds; logit w is that of f plus what each cell
adds. The network predicts A, b and the latter from its tokens; where these are zero, x is z.

A latent frame covers several video frames (Wan: four; the first one alone). It has a picture for
each of some *moments*, evenly spread over them, with displacements and weights of its own. What is
moved is the keyframe's last moment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.drifting.interpolation.keyframes import neighbors

Decode = Callable[[Tensor], Tensor]  # latents [n, C, T, H, W] to frames [n, F, h, w, 3] in [0, 1]

COLORS = 3
REACH = 0.25  # half frame sides that a head's 1 displaces by: how fast displacements are learnt
_CHUNK = 8  # clips decoded at once
_RANK = 1e-4  # singular values of a picture, relative to the largest, that are none


class Picture(nn.Module):
    """The matrices U and D; zero until they are fitted, so that nothing moves."""

    def __init__(
        self,
        channels: int,  # C
        detail: int,  # r, pixels a side of a latent cell
        moments: int,  # M
    ) -> None:
        super().__init__()
        self.detail, self.moments = detail, moments
        pixels = COLORS * detail**2
        self.first = nn.Parameter(torch.zeros(pixels, channels))  # U of a clip's first frame
        self.later = nn.Parameter(torch.zeros(pixels, channels))  # U of the others
        self.back = nn.Parameter(torch.zeros(channels, moments * pixels))  # D

    @torch.no_grad()
    def fit(
        self,
        clips: Tensor,  # [n, C, T, H, W]
        decode: Decode,
    ) -> None:
        """Least squares from a cell's channels to its pixels, over all cells.

        Raises:
            ValueError: the moments do not divide a latent frame's video frames, pictures are finer
                than what is decoded, or they do not show all channels, as a preview does not.
        """
        sums = [[torch.zeros(()), torch.zeros(())] for _ in range(2)]
        for some in clips.split(_CHUNK):
            x, y = self._cells(some, decode(some))
            for part, frames in zip(sums, (slice(0, 1), slice(1, None)), strict=True):
                channels, pixels = (side[frames].flatten(0, 1).cpu().double() for side in (x, y))
                part[0] = part[0] + channels.T @ channels
                part[1] = part[1] + channels.T @ pixels
        first, later = (
            (torch.linalg.pinv(a, hermitian=True) @ b)[:-1].T.contiguous() for a, b in sums
        )
        if torch.linalg.matrix_rank(later, rtol=_RANK) < later.shape[1]:
            raise ValueError(
                f"drift.refiner.detail is {self.detail}, but what decodes these clips does not "
                f"show all of their {later.shape[1]} channels: expected clips.wan_vae, or detail 0"
            )
        shown = COLORS * self.detail**2  # of the last moment
        self.first.copy_(first[-shown:])
        self.later.copy_(later[-shown:])
        self.back.copy_(torch.linalg.pinv(later, rtol=_RANK))

    def _cells(
        self,
        clips: Tensor,  # [n, C, T, H, W]
        frames: Tensor,  # [n, F, h, w, 3] decoded
    ) -> tuple[Tensor, Tensor]:
        """Channels and a one [T, n H W, C + 1], and pixels [T, n H W, M 3 r r], of each cell."""
        stride = (frames.shape[1] - 1) // (clips.shape[2] - 1)
        side = frames.shape[2] // clips.shape[3]
        if 1 < side < self.detail:  # a preview has one, and too few colors: see `fit`
            raise ValueError(
                f"drift.refiner.detail is {self.detail}, expected at most {side}, the decoded "
                "pixels a side of a latent cell"
            )
        if stride % self.moments:
            raise ValueError(
                f"drift.refiner.moments is {self.moments}, expected a divisor of the {stride} "
                "video frames of a latent frame"
            )
        lead = frames[:, :1].expand(-1, stride, -1, -1, -1)  # the first latent frame is one frame
        parts = -1, self.moments, stride // self.moments
        moments = torch.cat([lead, frames[:, 1:]], 1).unflatten(1, parts).mean(3)
        moments = moments.movedim(-1, 3)  # [n, T, M, 3, h, w]
        height, width = (self.detail * side for side in clips.shape[-2:])
        fine = functional.adaptive_avg_pool2d(moments.flatten(0, 2), (height, width))
        pixels = functional.pixel_unshuffle(fine, self.detail).unflatten(0, moments.shape[:3])
        pixels = pixels.permute(1, 0, 4, 5, 2, 3).flatten(4).flatten(1, 3)
        channels = clips.permute(2, 0, 3, 4, 1).flatten(1, 3)
        return functional.pad(channels, (0, 1), value=1.0), pixels

    def show(
        self,
        frames: Tensor,  # [n, C, H, W]
        first: Tensor,  # [n] bool, of a clip's first frames
    ) -> Tensor:
        """Pictures of latent frames up to a constant, [n, 3, r H, r W]."""
        cells = frames.movedim(1, -1)
        pixels = torch.where(first[:, None, None, None], cells @ self.first.T, cells @ self.later.T)
        return functional.pixel_shuffle(pixels.movedim(-1, 1), self.detail)

    def latents(
        self,
        pictures: Tensor,  # [n, M, 3, r H, r W], without the constant
    ) -> Tensor:
        """The latent frames of pictures, [n, C, H, W]."""
        pixels = functional.pixel_unshuffle(pictures.flatten(1, 2), self.detail)
        return (pixels.movedim(1, -1) @ self.back.T).movedim(-1, 1)


class MovedKeyframes(nn.Module):
    """What moving keyframes adds to interpolated clips."""

    def __init__(
        self,
        channels: int,
        dim: int,  # of tokens
        patch: int,  # cells a side of a token
        detail: int,  # pixels a side of a cell
        moments: int,  # M
    ) -> None:
        super().__init__()
        self.patch, self.picture = patch, Picture(channels, detail, moments)
        self.of_cells = nn.Linear(dim, moments * 5 * patch**2)  # left x y, right x y, weight
        self.of_frame = nn.Linear(dim, moments * 2 * 2 * 3)  # left and right, x and y: affine
        for layer in (self.of_cells, self.of_frame):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        tokens: Tensor,  # [B, T, h, w, D]
        clips: Tensor,  # [B, C, T, H, W] interpolated
        mask: Tensor,  # [B, T] bool, keyframes
    ) -> Tensor:
        """To be added to the clips, [B, C, T, H, W]; zero at keyframes."""
        near, time = neighbors(mask), torch.arange(mask.shape[1], device=mask.device)
        clip, frame = (near.left != time).nonzero(as_tuple=True)  # n frames are missing
        sides = near.left[clip, frame], near.right[clip, frame]
        fraction = near.fraction[clip, frame]
        places, weight = self.motion(tokens[clip, frame], fraction, clips.shape[-2:])
        change = torch.zeros(())
        for side, (keyframe, part, usual) in enumerate(
            zip(sides, (1 - weight, weight), (1 - fraction, fraction), strict=True)
        ):
            shown = self.picture.show(clips[clip, :, keyframe].float(), keyframe == 0)
            still = usual[:, None, None, None, None] * shown[:, None]
            change = change + part * sampled(shown, places[:, :, side]) - still
        added = clips.new_zeros(clips.transpose(1, 2).shape)
        added = added.index_put((clip, frame), self.picture.latents(change).to(clips.dtype))
        return added.transpose(1, 2)

    def motion(
        self,
        tokens: Tensor,  # [n, h, w, D] of missing frames
        fraction: Tensor,  # [n] of the way from the left to the right keyframe
        grid: torch.Size,  # H and W, cells
    ) -> tuple[Tensor, Tensor]:
        """Where each pixel of each moment comes from in the keyframes, and the right one's weight.

        [n, M, 2, r H, r W, 2] as x and y from -1 to 1, and [n, M, 1, r H, r W].
        """
        detail, moments = self.picture.detail, self.picture.moments
        cells = self.of_cells(tokens).float().unflatten(-1, (-1, self.patch, self.patch))
        cells = cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # [n, M 5, H, W]
        fine = enlarged(cells[..., : grid[0], : grid[1]], detail).unflatten(1, (moments, 5))
        pixels = pixel_centers(detail * grid[0], detail * grid[1], tokens.device)
        affine = self.of_frame(tokens.mean((1, 2))).float().view(-1, moments, 2, 2, 3)
        places = functional.pad(pixels, (0, 1), value=1.0)
        of_frame = torch.einsum("nmsac,yxc->nmsayx", affine, places)
        apart = (of_frame + fine[:, :, :4].unflatten(2, (2, 2))).movedim(3, -1)
        odds = torch.logit(fraction, eps=1e-3)[:, None, None, None, None] + fine[:, :, 4:]
        return pixels + REACH * apart, odds.sigmoid()


def sampled(
    pictures: Tensor,  # [n, 3, h, w]
    places: Tensor,  # [n, M, h, w, 2] x and y from -1 to 1
) -> Tensor:
    """Pictures at places, bilinear, held at the border, [n, M, 3, h, w]."""
    moments, height = places.shape[1:3]
    rows = functional.grid_sample(
        pictures, places.flatten(1, 2), padding_mode="border", align_corners=False
    )
    return rows.unflatten(2, (moments, height)).transpose(1, 2)


def enlarged(
    cells: Tensor,  # [..., H, W]
    times: int,
) -> Tensor:
    """Bilinear enlargement, [..., times H, times W], as products with matrices.

    Their gradient is deterministic on every device, unlike that of `interpolate`.
    """
    rows, columns = (
        functional.interpolate(torch.eye(side)[None], scale_factor=times, mode="linear")[0]
        for side in cells.shape[-2:]
    )
    return rows.T.to(cells) @ cells @ columns.to(cells)


def pixel_centers(height: int, width: int, device: torch.device) -> Tensor:
    """The centers of pixels, [height, width, 2] as x and y from -1 to 1."""
    y, x = ((torch.arange(side, device=device) + 0.5) * (2 / side) - 1 for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
