"""Bottleneck files that tests make: features that follow from content and view."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import h5py
import numpy as np

from hubretrain.bottlenecks import BottleneckWriter, RowIndex, layer_segments
from hubretrain.bottlenecks.layout import layers_name, seal_of, view_name, write_digest

ATTRIBUTES = {
    "module": "small",
    "handle": "h",
    "module_sha256": "m",
    "image_size": 8,
    "value_range": "[0, 1]",
    "resize": "r",
    "engine": "tensorflow",
    "precision": "f32",
    "crop": 0.5,
    "seed": 0,
}
N_FEATURES = 6
LAYERS = layer_segments(N_FEATURES, [("stem/Relu", 4, 4, 2), ("block/add", 2, 1, 3)])
N_ALL = LAYERS[-1].stop


def sha256_of(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


def rows_of(names, n_views=2):
    """Rows of images called `names`; `n_views` is a number or a list of one per image."""
    n = n_views if isinstance(n_views, list) else [n_views] * len(names)
    paths = tuple(f"{name}.png" for name in names)
    return RowIndex(paths, tuple(map(sha256_of, names)), np.array(n, np.int16))


def features_of(sha256, view):
    """The vector of all layers; the first `N_FEATURES` are the module's own output."""
    seed = int.from_bytes(hashlib.sha256(f"{sha256}{view}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).random(N_ALL, np.float32)


def output_of(sha256, view):
    return features_of(sha256, view)[:N_FEATURES]


def fill(writer: BottleneckWriter, at_most=None) -> int:
    """Compute what is to do, one row at a time, and return how many rows that were."""
    count, n_columns = 0, writer.segments[-1].stop
    for row, v in np.argwhere(writer.todo).tolist():
        if at_most is not None and count >= at_most:
            return count
        writer.write([v], [row], features_of(writer.rows.sha256[row], v)[None, :n_columns])
        count += 1
    writer.seal()
    return count


@contextlib.contextmanager
def edited(path: Path, *, stopped: bool = False):
    """Open a file to change, which is then as if it had been written so.

    `stopped`: as a run that was killed leaves it, without digests.
    """
    with h5py.File(path, "r+") as file:
        yield file
        names = ["digests", "layer_digests"]
        for v in range(len(file["digests"])):
            for name, digests in zip((view_name(v), layers_name(v)), names, strict=True):
                if name in file and digests in file:
                    digest = hashlib.sha256(file[name][:].tobytes()).hexdigest()
                    file[digests][v] = b"" if stopped else digest.encode()
        file["seal"][()] = b"" if stopped else seal_of(file).encode()
    write_digest(path)


def make(path: Path, names="abcde", n_views=2, attributes=None, **options) -> int:
    """Make a bottleneck file or bring it up to date; return how many rows were computed."""
    attributes = {**ATTRIBUTES, **(attributes or {})}
    rows = rows_of(names, n_views)
    with BottleneckWriter(path, rows, N_FEATURES, attributes, **options) as writer:
        return fill(writer)
