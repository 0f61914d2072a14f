"""A tensor of a `torch.save` file, fast where files repeat each other but for their numbers.

Such a file is a zip archive: a pickle that says what is built, and the numbers, uncompressed
(`torch/serialization.py`). PyTorch's restricted loader takes longer to interpret the first than to
read the second of a small clip. Files of one shape, dtype and writer have all bytes in common but
numbers, checksums (which PyTorch does not compare) and an id. So the first of a length is loaded by
PyTorch, and of another that equals it wherever the loader looks, the numbers are taken as they
lie. No file's program is run that the restricted loader has not accepted.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

Content = bytes | memoryview  # the latter may be written to
_MOST = 1024  # lengths that are kept: texts as long as their prompts have up to 512
_VARYING = ("/data/0", "/.data/serialization_id")  # records that differ between like tensors
_LOCAL, _CENTRAL = 30, 46  # bytes of a record's headers without their names
_DESCRIPTOR = b"PK\x07\x08"  # before a checksum that follows its record


@dataclass(frozen=True)
class _Form:
    """What files of like tensors have in common."""

    fixed: tuple[tuple[int, int, bytes], ...]  # from, to, the bytes
    start: int  # of the numbers
    shape: tuple[int, ...]
    dtype: torch.dtype

    def view(self, content: Content) -> Tensor | None:
        """The tensor in a file of this form; None: it is of another."""
        if any(content[first:last] != part for first, last, part in self.fixed):
            return None
        buffer = content if isinstance(content, memoryview) else bytearray(content)
        count = math.prod(self.shape)
        numbers = torch.frombuffer(buffer, dtype=self.dtype, count=count, offset=self.start)
        return numbers.view(self.shape)


_forms: dict[int, _Form | None] = {}  # by the length of the file


def load_tensor(content: Content) -> object:
    """What ``torch.load(weights_only=True)`` gives for a file, on the CPU.

    The tensor may lie in ``content`` itself where that is a memoryview.

    Raises:
        Exception: whatever that raises for a damaged or hostile file.
    """
    form = _forms.get(len(content))
    if form and (values := form.view(content)) is not None:
        return values
    loaded = load_by_torch(content)
    if len(content) not in _forms and len(_forms) < _MOST:
        _forms[len(content)] = _form_of(content, loaded)
    return loaded


def load_by_torch(content: Content) -> object:
    """The same by PyTorch alone: the reference."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _form_of(content: Content, loaded: object) -> _Form | None:
    """The form of a loaded file; None: its numbers do not lie in it as one block."""
    if type(loaded) is not Tensor or loaded.layout is not torch.strided or not loaded.nbytes:
        return None
    values = loaded.detach()
    if not values.is_contiguous() or values.untyped_storage().nbytes() != values.nbytes:
        return None
    try:
        holes, start = _holes(content)
    except (BadZipFile, struct.error, KeyError):
        return None
    if (
        content[start : start + values.nbytes]
        != values.view(-1).view(torch.uint8).numpy().tobytes()
    ):
        return None
    edges = [0, *(edge for hole in sorted(holes) for edge in hole), len(content)]
    parts = zip(edges[::2], edges[1::2], strict=True)
    fixed = tuple((first, last, bytes(content[first:last])) for first, last in parts)
    return _Form(fixed, start, tuple(values.shape), values.dtype)


def _holes(content: Content) -> tuple[list[tuple[int, int]], int]:
    """Where like files differ, [from, to), and where the numbers begin."""
    with ZipFile(io.BytesIO(content)) as archive:
        records, central = archive.infolist(), archive.start_dir
    holes, starts = [], {}
    for record in records:
        suffix = next((name for name in _VARYING if record.filename.endswith(name)), None)
        if suffix:
            names = struct.unpack_from("<2H", content, record.header_offset + 26)
            start = record.header_offset + _LOCAL + sum(names)
            stop = start + record.file_size
            holes += [(start, stop), (central + 16, central + 20)]
            if content[stop : stop + 4] == _DESCRIPTOR:
                holes.append((stop + 4, stop + 8))
            starts[suffix] = start
        central += _CENTRAL + sum(struct.unpack_from("<3H", content, central + 28))
    return holes, starts[_VARYING[0]]
