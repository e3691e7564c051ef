"""Images in a zip, or in parquet files as Hugging Face publishes them, become files in a folder."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.csv_tables import write_table
from hubretrain.data.images import IMAGE_SUFFIXES
from hubretrain.data.layouts import SPLIT_NAMES
from hubretrain.data.preparing.ham10000 import MAX_IMAGE_BYTES, MAX_MEMBERS, ZIP_ERRORS
from hubretrain.data.tables import TABLE_SUFFIXES
from hubretrain.errors import DataError
from hubretrain.files import whole_file
from hubretrain.progress import Bar

PARQUET = (".parquet", ".pq")
# How a file begins: its ending, where neither the archive nor the table names the file.
_STARTS = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"RIFF", ".webp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


@dataclass(frozen=True)
class UnpackedImages:
    """What was unpacked.

    Attributes:
        folder: The folder that was written.
        n_images: Number of images in the source.
        n_written: Number of images that were written now.
    """

    folder: Path
    n_images: int
    n_written: int


def prepare_images(source: Path, folder: Path) -> UnpackedImages:
    """Unpack images to work on: a zip as it is, parquet files with a `metadata.csv`.

    Args:
        source: A zip with images and tables; or a parquet file with image bytes in a column, as
            Hugging Face datasets have, or a folder of them. The names of classes are taken from
            the files' metadata, splits from their names.
        folder: Folder to write; images that it has already with the same size are left alone.

    Raises:
        DataError: The source is missing, damaged or holds no images, or pyarrow is needed and not
            installed.
        WriteError: The folder cannot be written.
    """
    if source.is_file() and zipfile.is_zipfile(source):
        return _unzip(source, folder)
    files = [source] if source.is_file() else []
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file())
    shards = [path for path in files if path.suffix.lower() in PARQUET]
    if not shards:
        state = "holds no parquet files" if source.exists() else "does not exist"
        raise DataError(f"{source} {state}; expected a zip, or parquet files with images.")
    return _unpack_shards(source, shards, folder)


def _unzip(source: Path, folder: Path) -> UnpackedImages:
    wanted = (*IMAGE_SUFFIXES, *TABLE_SUFFIXES)
    try:
        with zipfile.ZipFile(source) as archive:
            if len(archive.infolist()) > MAX_MEMBERS:
                raise DataError(
                    f"{source} holds more than {MAX_MEMBERS:,} files; unpack it yourself."
                )
            members = {
                parts: member
                for member in archive.infolist()
                if (parts := _safe_parts(member)) and parts[-1].lower().endswith(tuple(wanted))
            }
            images = [p for p in members if os.path.splitext(p[-1])[1].lower() in IMAGE_SUFFIXES]
            if not images:
                raise DataError(f"{source} holds no images.")
            n_above = _n_folders_above(images)
            n_written = 0
            with Bar("unpacking", len(members), "files") as bar:
                for parts, member in sorted(members.items()):
                    path = folder.joinpath(*parts[min(n_above, len(parts) - 1) :])
                    if not _is_there(path, member.file_size):
                        _write(path, _read(archive, member, source))
                        n_written += parts in images
                    bar.advance()
    except ZIP_ERRORS as error:
        raise DataError(f"{source} cannot be read: {error}; download it again.") from error
    return UnpackedImages(folder, len(images), n_written)


def _safe_parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
    """Return the parts of a member's path, none where it is hidden or leads out of the folder."""
    parts = tuple(part for part in member.filename.replace("\\", "/").split("/") if part != ".")
    is_safe = not any(p in ("", "..", "__MACOSX") or p.startswith(".") or ":" in p for p in parts)
    is_safe = is_safe and "\0" not in member.filename
    return parts if is_safe and not member.is_dir() else ()


def _n_folders_above(paths: Sequence[tuple[str, ...]]) -> int:
    """Return how many folders all images share above the folders of their classes."""
    first, last = min(paths), max(paths)  # what these share, all do
    n_shared = 0
    while n_shared < min(map(len, paths)) - 2 and first[n_shared] == last[n_shared]:
        n_shared += 1
    return n_shared


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Path) -> bytes:
    if member.file_size > MAX_IMAGE_BYTES:
        raise DataError(
            f"{source}: {member.filename} has {member.file_size:,} bytes; expected at most "
            f"{MAX_IMAGE_BYTES:,}."
        )
    return archive.read(member)


def _unpack_shards(source: Path, shards: Sequence[Path], folder: Path) -> UnpackedImages:
    tables, n_written = [], 0
    with Bar("unpacking", len(shards), "files") as bar:
        for number, shard in enumerate(shards):
            rows, class_names = _read_shard(shard)
            column = next((name for name in rows.columns if _holds_images(rows[name])), None)
            if column is None:
                raise DataError(
                    f"{shard} holds no image bytes; its columns are: {', '.join(rows.columns)}."
                )
            table = rows.drop(columns=[n for n in rows.columns if _holds_images(rows[n])])
            for name, names in class_names.items():
                if name in table:
                    table[name] = [
                        names[int(i)] if _is_class(i, names) else "" for i in table[name]
                    ]
            names = []
            for i, cell in enumerate(rows[column]):
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                if not data:
                    raise DataError(f"{shard}: row {i} has no image bytes.")
                name = f"images/{number:05d}-{i:06d}{_suffix(cell, data)}"
                names.append(name)
                if not _is_there(folder / name, len(data)):
                    _write(folder / name, data)
                    n_written += 1
            if split := _split_of(shard, source):
                table["split"] = split
            tables.append(table.assign(file_name=names))
            bar.advance()
    table = pd.concat(tables, ignore_index=True)
    write_table(folder / "metadata.csv", table[["file_name", *table.columns.drop("file_name")]])
    return UnpackedImages(folder, len(table), n_written)


def _read_shard(file: Path) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Return a table, and the names of the classes of each column that holds their numbers."""
    try:
        import pyarrow.parquet as parquet

        metadata = parquet.read_schema(file).metadata or {}
        rows = pd.read_parquet(file)
    except ImportError:
        raise DataError(
            f"{file}: reading parquet needs pyarrow; install it with: "
            "pip install 'hubretrain[parquet]'"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file} cannot be read as parquet: {reason}; download it again."
        ) from error
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    named = ((name, about.get("names")) for name, about in features.items() if _is_map(about))
    return rows, {name: names for name, names in named if names}


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_class(number: Any, names: list[str]) -> bool:
    return number == number and number is not None and 0 <= int(number) < len(names)


def _holds_images(cells: pd.Series) -> bool:
    first = cells.iloc[0] if len(cells) else None
    return isinstance(first, bytes) or (
        isinstance(first, dict) and isinstance(first.get("bytes"), bytes)
    )


def _suffix(cell: Any, data: bytes) -> str:
    named = os.path.splitext(str(cell.get("path") or "") if isinstance(cell, dict) else "")[1]
    if named.lower() in IMAGE_SUFFIXES:
        return named.lower()
    return next((suffix for start, suffix in _STARTS if data.startswith(start)), ".jpg")


def _split_of(shard: Path, source: Path) -> str:
    """Return the split that the name of a file, or of a folder above it, begins with, or blank."""
    above = shard.relative_to(source).parts[:-1] if source.is_dir() else ()
    words = (re.split(r"[-_.]", name)[0].lower() for name in (shard.stem, *reversed(above)))
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _is_there(path: Path, n_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == n_bytes


def _write(path: Path, data: bytes) -> None:
    with whole_file(path) as aside:
        aside.write_bytes(data)
