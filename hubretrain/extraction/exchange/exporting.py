"""Bottlenecks for other tools: one row per image and view, as parquet or npz."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hubretrain.arrays import Float32Array
from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data import ImageDataset, SplitOptions
from hubretrain.errors import CacheError
from hubretrain.files import StrPath, whole_file

FORMATS = ("parquet", "npz")
COLUMNS = ("path", "sha256", "label", "fold", "view")


def export_bottlenecks(
    dataset: ImageDataset,
    file: Path,
    output: Path,
    *,
    cache: StrPath = "cache",
    folds_file: StrPath | None = None,
    layers: str = "last",
) -> int:
    """Write the bottlenecks of a module with labels and folds for other tools.

    The columns, or arrays of an npz, are `path`, `sha256`, `label` (several joined by a bar),
    `fold` (int8; -1: test split, -2: training only), `view` (int16; 0 is the image as it is) and
    `vector` (float32, `n_features` each). Images that cannot be decoded are left out.

    Args:
        dataset: The images.
        file: The bottleneck file.
        output: The file to write; its suffix is one of `FORMATS`.
        cache: The cache folder.
        folds_file: `folds.csv` of a run, for its folds; by default those that `fit` would cut.
        layers: `last` for the module's own output, `all` for that and all inner layers.

    Returns:
        Number of rows that were written.

    Raises:
        CacheError: The file is unfinished or damaged, or lacks an image.
        SplitError: A class has too few images for folds.
        WriteError: The output cannot be written.
    """
    images = dataset.split(SplitOptions(), folds_file=folds_file, cache=cache)
    write = {"parquet": _write_parquet, "npz": _write_npz}.get(output.suffix[1:])
    if write is None:
        raise CacheError(f"{output} ends in {output.suffix!r}; expected {' or '.join(FORMATS)}.")
    with Bottlenecks(file) as bottlenecks, whole_file(output) as aside:
        return write(aside, images, bottlenecks, layers)


def _parts(
    images: pd.DataFrame, bottlenecks: Bottlenecks, layers: str
) -> Iterator[tuple[pd.DataFrame, Float32Array]]:
    """Yield the rows of each view, and their vectors."""
    n_views_of = dict(zip(bottlenecks.sha256s, bottlenecks.n_views_of.tolist(), strict=True))
    n_views = images["sha256"].map(n_views_of).fillna(1)  # without a row: reading says so
    for view in range(bottlenecks.n_views):
        of_view = images[n_views > view] if view else images
        if len(of_view):
            table = of_view.assign(view=view, path=of_view["path"].map(_text))[list(COLUMNS)]
            yield table, bottlenecks.rows(of_view["sha256"].tolist(), view, layers)


def _text(path: str) -> str:
    """Return a path as UTF-8 can hold it."""
    return os.fsencode(path).decode("utf-8", "replace")


def _write_npz(output: Path, images: pd.DataFrame, bottlenecks: Bottlenecks, layers: str) -> int:
    tables, vectors = zip(*_parts(images, bottlenecks, layers), strict=True)
    table = pd.concat(tables, ignore_index=True)
    types: dict[str, Any] = {"fold": np.int8, "view": np.int16}
    columns = {name: table[name].to_numpy(types.get(name, np.str_)) for name in COLUMNS}
    with output.open("wb") as file:
        np.savez(file, **columns, vector=np.concatenate(vectors))
    return len(table)


def _write_parquet(
    output: Path, images: pd.DataFrame, bottlenecks: Bottlenecks, layers: str
) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise CacheError(
            "writing parquet needs pyarrow; install it with: pip install 'hubretrain[parquet]', "
            "or choose npz."
        ) from None
    n_features, n_rows = bottlenecks.n_features_of(layers), 0
    types = {"fold": pa.int8(), "view": pa.int16()}
    fields = [pa.field(name, types.get(name, pa.string())) for name in COLUMNS]
    schema = pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), n_features))])
    with parquet.ParquetWriter(output, schema) as writer:
        for table, vectors in _parts(images, bottlenecks, layers):
            columns = [pa.array(table[field.name], field.type) for field in fields]
            numbers = pa.array(vectors.reshape(-1), pa.float32())
            vector = pa.FixedSizeListArray.from_arrays(numbers, n_features)
            writer.write_table(pa.table([*columns, vector], schema=schema))
            n_rows += len(table)
    return n_rows
