"""Pictures and animations as data URIs, scaled down until all of them fit."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from PIL import Image, UnidentifiedImageError

from report.revisions import Revision

ENDINGS = (".png", ".jpg", ".jpeg", ".gif")
WIDTHS = (1600, 1200, 900, 640, 480, 320, 160)  # pixels, of the widest picture; the first that fits
_QUALITY = 82  # of WebP


@dataclass(frozen=True)
class Picture:
    """A picture of one revision."""

    path: str
    revision: str
    content: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels.

        Raises:
            ValueError: the file is no picture.
        """
        try:
            with Image.open(io.BytesIO(self.content)) as image:
                return image.size
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{self.path}: no picture ({error})") from None

    @property
    def alt(self) -> str:
        """What it shows, by its place in plots/."""
        folder, stem = PurePosixPath(self.path).parent, PurePosixPath(self.path).stem
        kind = "Animation" if self.path.endswith(".gif") else "Picture"
        words = [*folder.parts[1:], stem]
        return f"{kind}: {', '.join(words).replace('_', ' ')} ({self.revision})"


def pictures(path: str, revisions: Sequence[Revision]) -> list[Picture]:
    """The pictures of a file or folder, those of further revisions where they differ."""
    paths = sorted({name for revision in revisions for name in revision.below(path, *ENDINGS)})
    found = []
    for name in paths:
        seen: list[bytes] = []
        for revision in revisions:
            content = revision.files.get(name)
            if content is not None and content not in seen:
                seen.append(content)
                found.append(Picture(name, revision.name, content))
    return found


def data_uris(shown: Sequence[Picture], limit: int) -> Mapping[Picture, str]:
    """A data URI of each picture, together at most `limit` bytes.

    Raises:
        ValueError: a file is no picture, or not even the smallest scale fits.
    """
    for width in WIDTHS:
        uris = {picture: _data_uri(picture.content, picture.path, width) for picture in shown}
        if sum(map(len, uris.values())) <= limit:
            return uris
    raise ValueError(f"pictures: {len(shown)} are too many for {limit / 1e6:.1f} MB")


@cache
def _data_uri(content: bytes, path: str, width: int) -> str:
    """The picture as WebP, at most so wide; whatever is smaller already stays as it is."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            mime = Image.MIME[image.format or "PNG"]
            packed = _webp(image, width)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path}: no picture ({error})") from None
    if len(packed) >= len(content):
        packed = content
    else:
        mime = "image/webp"
    return f"data:{mime};base64,{base64.b64encode(packed).decode()}"


def _webp(image: Image.Image, width: int) -> bytes:
    """One frame, or all of an animation with their times."""
    size = (min(width, image.width), max(1, round(image.height * min(1, width / image.width))))
    frames, times = [], []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        frames.append(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        times.append(image.info.get("duration", 100))
    buffer = io.BytesIO()
    first, *rest = frames
    moving = {"save_all": True, "append_images": rest, "duration": times, "loop": 0} if rest else {}
    first.save(buffer, format="WEBP", quality=_QUALITY, method=4, **moving)
    return buffer.getvalue()
