"""The prepare stage: HAM10000, as it is downloaded, becomes a folder to work on.

Names within an archive are never used as paths: an image is written under the identifier that the
table gives it, so no archive can write outside the folder.
"""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import pandas as pd

from hubretrain.csv_tables import write_table
from hubretrain.data.tables import read_table
from hubretrain.errors import DataError
from hubretrain.files import open_regular, whole_file
from hubretrain.progress import Bar

# Tschandl, Rosendahl & Kittler 2018, "The HAM10000 dataset", https://doi.org/10.1038/sdata.2018.161
HAM10000_CLASSES = {
    "nv": 6705,
    "mel": 1113,
    "bkl": 1099,
    "bcc": 514,
    "akiec": 327,
    "vasc": 142,
    "df": 115,
}
HAM10000_LESIONS = 7470
TABLE_NAMES = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
IMAGE_NAME = re.compile(r"(ISIC_\d{7})\.jpg", re.IGNORECASE)
MAX_IMAGE_BYTES = 64 * 2**20  # an image of HAM10000 has 300 kB; this bounds a decompression bomb
MAX_DEPTH = 3  # archives within archives
MAX_INNER_BYTES = 2**34  # of all archives within archives; those of HAM10000 have 2.8 GB
MAX_MEMBERS = 1_000_000  # of all archives; HAM10000 has 20 thousand
# What zipfile raises of a damaged member, of an encrypted one (RuntimeError), and of a compression
# that it does not know (NotImplementedError).
ZIP_ERRORS = (OSError, RuntimeError, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class PreparedData:
    """The data set that was laid out.

    Attributes:
        folder: Its folder.
        n_images: Number of images in it.
        n_lesions: Number of lesions that they show.
        n_copied: Number of images that were copied now.
    """

    folder: Path
    n_images: int
    n_lesions: int
    n_copied: int


@dataclass(frozen=True)
class _File:
    """A file in a folder, or a member of an archive."""

    name: str
    size: int
    path: Path | None = None
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    def read(self, at_most: int) -> bytes:
        """Return the bytes, after an archive's checksum was verified.

        Raises:
            DataError: They are more than `at_most`, or damaged.
        """
        if self.size > at_most:
            raise DataError(f"{self.name} has {self.size:,} bytes; expected {at_most:,} at most.")
        try:
            if self.path is not None:
                with open_regular(self.path, at_most) as file:
                    return file.readall()
            assert self.archive is not None
            assert self.member is not None
            return self.archive.read(self.member)
        except ZIP_ERRORS as error:
            raise DataError(f"{self.name} cannot be read: {error}; download it again.") from error


class _Archives(ExitStack):
    """Open archives, and what was unpacked of those within others."""

    n_members = 0
    n_inner_bytes = 0


def prepare_ham10000(source: Path, folder: Path, *, partial: bool = False) -> PreparedData:
    """Lay out HAM10000: `HAM10000_metadata.csv` and `images/<image_id>.jpg`.

    Args:
        source: The download from Harvard Dataverse or Kaggle: a folder or a zip, with the images
            and the table at any depth, in zips within it too.
        folder: Folder to write; images that it has already with the same size are left alone.
        partial: Accept other counts than the published ones.

    Raises:
        DataError: There is no table, the counts are not the published ones, images are missing,
            or an archive is damaged.
        WriteError: The folder cannot be written.
    """
    with _Archives() as stack:
        tables: dict[str, _File] = {}
        images: dict[str, _File] = {}
        for file in _files(source, stack):
            base = PurePosixPath(file.name.replace("\\", "/")).name
            if base in TABLE_NAMES:
                tables.setdefault(base, file)
            elif match := IMAGE_NAME.fullmatch(base):
                images.setdefault(match[1].upper(), file)  # Kaggle's archive has each image twice
        rows = _metadata(source, tables)
        _check_counts(source, rows, images, partial)
        n_copied = 0
        with Bar("copying", int(rows["image_id"].isin(images).sum())) as bar:
            for name in sorted(images.keys() & set(rows["image_id"])):
                n_copied += _copy(images[name], folder / "images" / f"{name}.jpg")
                bar.advance()
    present = {path.stem for path in (folder / "images").iterdir()}
    rows = rows[rows["image_id"].isin(present)]
    write_table(folder / "HAM10000_metadata.csv", rows)
    return PreparedData(folder, len(rows), rows["lesion_id"].nunique(), n_copied)


def _files(source: Path, stack: _Archives) -> Iterator[_File]:
    """Yield every file of a folder or a zip, and of the zips in it."""
    if source.is_dir():
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder) / name
                if path.suffix.lower() == ".zip":
                    yield from _members(path, str(path), stack, 1)
                elif path.is_file():
                    yield _File(str(path), path.stat().st_size, path=path)
    elif source.is_file():
        yield from _members(source, str(source), stack, 1)
    else:
        raise DataError(f"{source} does not exist; expected a folder or a zip of HAM10000.")


def _members(file: Path | IO[bytes], name: str, stack: _Archives, depth: int) -> Iterator[_File]:
    try:
        if isinstance(file, Path):
            file = stack.enter_context(open_regular(file))
        archive = stack.enter_context(zipfile.ZipFile(file))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} cannot be opened as a zip: {error}; download it again.") from error
    stack.n_members += len(archive.infolist())
    if stack.n_members > MAX_MEMBERS:
        raise DataError(f"{name} holds more than {MAX_MEMBERS:,} files; expected HAM10000.")
    for member in archive.infolist():
        inner = f"{name}/{member.filename}"
        if member.is_dir() or "__MACOSX" in member.filename:
            continue
        if member.filename.lower().endswith(".zip"):
            if depth < MAX_DEPTH:
                # Seeking back in a compressed member decompresses it again; on disk it is free.
                yield from _members(
                    _unpacked(archive, member, inner, stack), inner, stack, depth + 1
                )
            continue
        yield _File(inner, member.file_size, archive=archive, member=member)


def _unpacked(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, stack: _Archives
) -> IO[bytes]:
    """Return an archive within an archive as a seekable file, in place if it is only stored."""
    if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
        return stack.enter_context(archive.open(member))
    aside = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
    stack.enter_context(aside)
    try:
        with archive.open(member) as packed:
            while block := packed.read(2**20):
                stack.n_inner_bytes += len(block)
                if stack.n_inner_bytes > MAX_INNER_BYTES:
                    raise DataError(
                        f"{name} unpacks to more than {MAX_INNER_BYTES:,} bytes; expected HAM10000."
                    )
                aside.write(block)
    except ZIP_ERRORS as error:
        raise DataError(f"{name} cannot be unpacked: {error}.") from error
    aside.seek(0)
    return aside


def _metadata(source: Path, tables: dict[str, _File]) -> pd.DataFrame:
    """Return the table of the published data set, as text, one row per image.

    Raises:
        DataError: There is none, a column is missing, or a name is no image of HAM10000.
    """
    name = next((name for name in TABLE_NAMES if name in tables), None)
    if name is None:
        raise DataError(
            f"{source} holds no HAM10000_metadata.csv (nor .tab); download the table too, "
            "from https://doi.org/10.7910/DVN/DBW86T."
        )
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside) / name
        copy.write_bytes(tables[name].read(MAX_IMAGE_BYTES))
        rows = read_table(copy)
    missing = [c for c in ("lesion_id", "image_id", "dx") if c not in rows.columns]
    if missing:
        raise DataError(
            f"{tables[name].name} has no column {missing[0]!r}; its columns are: "
            f"{', '.join(rows.columns)}."
        )
    foreign = rows[~rows["image_id"].str.fullmatch(r"ISIC_\d{7}")]
    if len(foreign):
        raise DataError(
            f"{tables[name].name}: {foreign['image_id'].iloc[0]!r} is no image of HAM10000; "
            "expected ISIC_ and seven digits."
        )
    return rows.drop_duplicates("image_id")


def _check_counts(
    source: Path, rows: pd.DataFrame, images: dict[str, _File], partial: bool
) -> None:
    """Compare with the published counts: classes, lesions, and an image for each row.

    Raises:
        DataError: They differ, or there is no image at all.
    """
    has_file = rows["image_id"].isin(images)
    if not has_file.any():
        raise DataError(
            f"{source} holds no image of the {len(rows):,} in the table; expected files such as "
            f"{rows['image_id'].iloc[0]}.jpg, or the zips that hold them."
        )
    if partial:
        return
    counts = {str(name): int(n) for name, n in rows["dx"].value_counts().items()}
    differences = [
        f"{counts.get(name, 0):,} images of {name} instead of {HAM10000_CLASSES.get(name, 0):,}"
        for name in sorted(counts.keys() | HAM10000_CLASSES.keys())
        if counts.get(name, 0) != HAM10000_CLASSES.get(name, 0)
    ]
    if (n := rows["lesion_id"].nunique()) != HAM10000_LESIONS:
        differences.append(f"{n:,} lesions instead of {HAM10000_LESIONS:,}")
    if n := int((~has_file).sum()):
        differences.append(
            f"no file for {n:,} images (first: {rows.loc[~has_file, 'image_id'].iloc[0]})"
        )
    if differences:
        raise DataError(
            f"{source} is not HAM10000 as published: {'; '.join(differences)}; download what is "
            "missing, or accept it as it is: `partial`."
        )


def _copy(image: _File, path: Path) -> bool:
    """Copy an image unless it is there already; return whether it was copied."""
    if path.exists() and path.stat().st_size == image.size:
        return False
    data = image.read(MAX_IMAGE_BYTES)
    with whole_file(path) as aside:
        aside.write_bytes(data)
    return True
