"""Damaged, swapped and missing files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Random = np.random.Generator


def flip_bit(data: bytearray, random: Random) -> None:
    """Change one bit."""
    data[random.integers(len(data))] ^= 1 << int(random.integers(8))


def flip_bits(data: bytearray, random: Random) -> None:
    """Change a bit in each of up to 64 bytes."""
    for _ in range(int(random.integers(2, 65))):
        flip_bit(data, random)


def cut(data: bytearray, random: Random) -> None:
    """Leave the beginning, perhaps nothing."""
    del data[random.integers(len(data)) :]


def zero_block(data: bytearray, random: Random) -> None:
    """Zero up to 4,096 bytes, as a bad sector reads."""
    first = int(random.integers(len(data)))
    n = min(2 ** int(random.integers(0, 13)), len(data) - first)
    data[first : first + n] = bytes(n)


def repeat_block(data: bytearray, random: Random) -> None:
    """Put a block in another place."""
    first, to = (int(i) for i in random.integers(len(data), size=2))
    n = min(2 ** int(random.integers(2, 10)), len(data) - max(first, to))
    data[to : to + n] = data[first : first + n]


def append(data: bytearray, random: Random) -> None:
    """Add bytes to the end."""
    data += random.bytes(int(random.integers(1, 512)))


def change_digit(data: bytearray, random: Random) -> None:
    """Change one digit of a text, which stays well-formed; a bit where there is none."""
    at = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if not at:
        return flip_bit(data, random)
    i = at[random.integers(len(at))]
    data[i] = 48 + (data[i] - 48 + int(random.integers(1, 10))) % 10
    return None


CHANGES: dict[str, Callable[[bytearray, Random], None]] = {
    "one bit": flip_bit,
    "several bits": flip_bits,
    "cut short": cut,
    "zeroed block": zero_block,
    "repeated block": repeat_block,
    "longer": append,
    "another digit": change_digit,
}


def damage(path: Path, random: Random, others: Sequence[Path]) -> str:
    """Damage a file; return how.

    Args:
        path: The file.
        random: What it is chosen by.
        others: Files of the same kind, one of which it may be swapped for.
    """
    others = [other for other in others if other.read_bytes() != path.read_bytes()]
    kinds = [*CHANGES, "gone", "a folder", *(["swapped"] if others else [])]
    weights = np.array([*[4.0] * len(CHANGES), 1.0, 0.5, *([4.0] if others else [])])
    kind = str(random.choice(kinds, p=weights / weights.sum()))
    if kind == "swapped":
        shutil.copyfile(others[random.integers(len(others))], path)
    elif kind in ("gone", "a folder"):
        path.unlink()
        if kind == "a folder":
            path.mkdir()
    else:
        before = path.read_bytes()
        while before and path.read_bytes() == before:
            data = bytearray(before)
            CHANGES[kind](data, random)
            status = path.stat()
            path.write_bytes(data)
            if random.random() < 0.5:  # a disk that rots changes no time
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return kind
