"""Fixed splits: a sample's name alone decides whether it is for training, validation or test.

Neither the order of samples, nor their number, nor the shard they lie in has a say, so a data set
that grows or is packed anew keeps every sample where it was.
"""

from __future__ import annotations

import hashlib

SPLITS = ("train", "val", "test")


def split_of(name: str, val_fraction: float, test_fraction: float) -> str:
    """The split of the sample called ``name``; the fractions hold in expectation.

    The place of BLAKE2b(name) in [0, 1) is compared with the fractions: test lies lowest, val next.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < test_fraction:
        return "test"
    return "val" if place < test_fraction + val_fraction else "train"
