"""Splits of data that come without: dealt by a hash, so that they depend on nothing but the name."""

import hashlib


def dealt(name: str, held_out: float) -> str:
    """`train` or `test`, the share `held_out` of all names to `test`."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if draw < held_out else "train"
