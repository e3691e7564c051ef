"""Embeddings of any tool, read from `.npy`, `.npz` or parquet with the ids of their images."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray, Float32Array
from hubretrain.data.tables import read_table
from hubretrain.errors import CacheError, DataError, first_line
from hubretrain.files import open_regular, read_regular

ID_COLUMNS = ("sha256", "path", "image", "image_path", "file", "filename", "file_name", "id")
VECTOR_COLUMNS = ("vector", "vectors", "features", "embedding", "embeddings")
VIEW = "view"
_TABLES = (".csv", ".tsv", ".tab", ".json", ".jsonl", ".parquet", ".pq")
_EXPECTED = "expected a .npy, .npz or parquet file with one row of numbers per image"


@dataclass(frozen=True)
class Vectors:
    """Feature vectors and what each is of.

    Attributes:
        features: float32 of shape (n, n_features), finite.
        ids: The image of each, a path or a sha256.
        views: The view of each, int16; 0 is the image as it is.
    """

    features: Float32Array
    ids: tuple[str, ...]
    views: npt.NDArray[np.int16]


def read_vectors(
    features: Path, ids: str, *, id_column: str | None = None, vector_column: str | None = None
) -> Vectors:
    """Read feature vectors, and the ids of their images from a file or a column beside them.

    A column or array `view` beside the ids or the vectors says of which view each is.

    Args:
        features: `.npy` of shape (n, n_features); `.npz` or parquet with such an array.
        ids: A text file with one id per line or a table; or the name of a column of `features`.
        id_column: Column of the ids in the table; by default one with a usual name.
        vector_column: Array or column of the vectors; by default the only one, or that with a
            usual name.

    Raises:
        CacheError: A file is missing, damaged or no such file; ids and vectors are not as many; a
            number is NaN or infinite.
        DataError: The table of ids cannot be read.
    """
    columns = _columns_of(features)
    name, vectors = _vectors_in(columns, features, vector_column)
    ids_file = Path(ids)
    if ids in columns and ids != name and not ids_file.is_file():
        of_ids = columns
        texts, source = _texts(columns[ids], features, ids), f"column {ids}"
    else:
        of_ids = _ids_in(ids_file, id_column, len(vectors), sorted(set(columns) - {name}))
        texts, source = of_ids["id"].tolist(), ids
    if len(texts) != len(vectors):
        raise CacheError(
            f"{features} holds {len(vectors):,} vectors and {source} {len(texts):,} ids; expected "
            "one id for each vector, in the same order."
        )
    views = of_ids.get(VIEW, columns.get(VIEW))
    return Vectors(
        _checked(vectors, texts, features), tuple(texts), _views(views, len(texts), features)
    )


def _columns_of(file: Path) -> dict[str, AnyArray]:
    """Return the arrays of a file by name; that of a `.npy` is called `vector`."""
    suffix = file.suffix.lower()
    try:
        with open_regular(file) as opened:
            if suffix == ".npy":
                return {"vector": np.load(opened, allow_pickle=False)}
            if suffix == ".npz":
                with np.load(opened, allow_pickle=False) as arrays:
                    return {name: arrays[name] for name in arrays.files}
        if suffix in (".parquet", ".pq"):
            return _parquet_columns(file)
    except FileNotFoundError:
        raise CacheError(f"{file} does not exist; {_EXPECTED}.") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CacheError(f"{file} cannot be read ({reason}); {_EXPECTED}.") from error
    raise CacheError(f"{file} ends in {suffix or 'nothing'}; {_EXPECTED}.")


def _parquet_columns(file: Path) -> dict[str, AnyArray]:
    """Return the columns of a parquet file, lists of one length as an array with two axes.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or the lists of a column differ in length.
    """
    try:
        import pyarrow as pa
        import pyarrow.compute as compute
        import pyarrow.parquet as parquet
    except ImportError:
        raise CacheError(
            f"{file}: reading parquet needs pyarrow; install it with: "
            "pip install 'hubretrain[parquet]'"
        ) from None
    table = parquet.read_table(file)
    columns: dict[str, AnyArray] = {}
    for name in table.column_names:
        cells = table[name].combine_chunks()
        if not hasattr(cells, "flatten") or pa.types.is_struct(cells.type):
            columns[name] = cells.to_numpy(zero_copy_only=False)
            continue
        lengths = compute.list_value_length(cells).unique().to_pylist()
        if len(lengths) > 1 or None in lengths:
            raise ValueError(f"the lists of column {name} are not of one length")
        columns[name] = cells.flatten().to_numpy(zero_copy_only=False).reshape(len(cells), -1)
    return columns


def _vectors_in(
    columns: dict[str, AnyArray], file: Path, chosen: str | None
) -> tuple[str, AnyArray]:
    """Return the vectors among some arrays, and the name of their array."""
    if chosen is not None and chosen not in columns:
        raise CacheError(
            f"`vector_column` is {chosen!r}; {file} has {', '.join(columns) or 'no columns'}."
        )
    wide = [name for name, values in columns.items() if values.ndim > 1]
    usual = [name for name in VECTOR_COLUMNS if name in columns]
    names = [chosen] if chosen is not None else wide if len(wide) == 1 else usual or list(columns)
    if len(names) != 1:
        among = ", ".join(wide or columns) or "no columns"
        raise CacheError(
            f"{file} has {among}; expected one array or column of vectors, named by "
            "`vector_column`."
        )
    vectors = columns[names[0]]
    if vectors.ndim != 2 or not vectors.shape[1] or vectors.dtype.kind not in "fiu":
        raise CacheError(
            f"{file} holds {vectors.dtype} of shape {vectors.shape}; expected numbers of shape "
            "(n_images, n_features)."
        )
    return names[0], vectors


def _ids_in(file: Path, column: str | None, n_vectors: int, columns: list[str]) -> Any:
    """Return a table with a column `id`, and perhaps `view`, of a file of ids."""
    import pandas as pd

    if not file.exists():
        has = f", which are {', '.join(columns)}" if columns else ""
        raise CacheError(
            f"{file} does not exist; expected a text file or a table with an id for each vector, "
            f"or the name of a column beside the vectors{has}."
        )
    if file.suffix.lower() not in _TABLES:
        try:
            lines = read_regular(file).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise CacheError(
                f"{file} cannot be read ({reason}); expected a text in UTF-8 with one id per line."
            ) from error
        return pd.DataFrame({"id": [line.strip() for line in lines if line.strip()]})
    table = read_table(file)
    if column is None:
        usual = [name for name in ID_COLUMNS if name in table]
        if not usual and len(table.columns) == 1:
            if len(table) + 1 == n_vectors:  # the header is an id, too
                table = read_table(file, header=False)
            usual = list(table.columns)
        if not usual:
            raise DataError(
                f"{file} has the columns {', '.join(table.columns)}; name one as `id_column`."
            )
        column = usual[0]
    if column not in table:
        raise DataError(f"`id_column` is {column!r}; {file} has {', '.join(table.columns)}.")
    return table.rename(columns={column: "id"})[["id", *([VIEW] if VIEW in table else [])]]


def _texts(values: AnyArray, file: Path, name: str) -> list[str]:
    """Return a column of ids as texts."""
    if values.ndim != 1 or values.dtype.kind not in "OSU":
        raise CacheError(
            f"{file}: column {name} holds {values.dtype} of shape {values.shape}; expected a path "
            "or a sha256 for each vector."
        )
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _views(values: Any, n: int, file: Path) -> npt.NDArray[np.int16]:
    """Return the view of each vector; 0 where there is no such column."""
    if values is None:
        return np.zeros(n, dtype=np.int16)
    try:
        numbers = np.asarray(values).astype(np.int64)
    except (TypeError, ValueError) as error:
        raise CacheError(
            f"{file}: {VIEW} is not a whole number everywhere ({first_line(error)}); expected 0 "
            "for images as they are, 1, 2, ... for augmented views."
        ) from error
    if numbers.shape != (n,) or numbers.min(initial=0) < 0 or numbers.max(initial=0) > 999:
        raise CacheError(
            f"{file}: {VIEW} has shape {numbers.shape}, {numbers.min(initial=0)} to "
            f"{numbers.max(initial=0)}; expected a number from 0 to 999 for each vector."
        )
    return numbers.astype(np.int16)


def _checked(vectors: AnyArray, ids: Sequence[str], file: Path) -> Float32Array:
    """Return vectors as float32.

    Raises:
        CacheError: There is none, or a number is NaN, or infinite as float32.
    """
    if not len(vectors):
        raise CacheError(f"{file} holds no vectors; {_EXPECTED}.")
    with np.errstate(over="ignore"):  # said below
        features: Float32Array = np.ascontiguousarray(vectors, dtype=np.float32)
    bad = ~np.asarray(np.isfinite(features).all(axis=1))
    if bad.any():
        raise CacheError(
            f"{file} has NaN or infinite numbers in {int(bad.sum()):,} of {len(bad):,} vectors "
            f"(first: that of {ids[int(np.argmax(bad))]}); expected finite float32."
        )
    return features
