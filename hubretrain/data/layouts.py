"""Where the images and their table lie: the layouts of folders that are recognised.

In this order, without options:

1. HAM10000 as published: `HAM10000_metadata.csv` with `image_id`, `dx`, `lesion_id`.
2. Hugging Face imagefolder: `metadata.csv`, `.jsonl` or `.parquet` with `file_name` and a
   label column, for the whole folder or in each of `train/`, `validation/`, `test/`.
3. `train/<class>/..`, `val/<class>/..`, `test/<class>/..`, as TFDS' ImageFolder.
4. `<class>/..`: a folder a class.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hubretrain.data.images import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from hubretrain.errors import DataError

# Folder names and values of a split column, as people write them -> ours.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

KNOWN_TABLES = (
    "HAM10000_metadata.csv",
    "HAM10000_metadata.tab",
    "HAM10000_metadata",
    "metadata.csv",
    "metadata.jsonl",
    "metadata.parquet",
)


@dataclass(frozen=True)
class Place:
    """A folder of images, and how their paths are written in the data set.

    Attributes:
        root: The folder that was named.
        folder: That, or a folder of a given split in it.
        prefix: What the paths below it begin with: blank, or a folder and `/`.
        table: The table that labels its images; None: class folders.
        split: The split that all of its images were given, or blank.
    """

    root: Path
    folder: Path
    prefix: str = ""
    table: Path | None = None
    split: str = ""


def places_of(roots: Sequence[Path], *, tables: bool = True) -> list[Place]:
    """The folders of images below some roots; paths are relative to the first root.

    Args:
        roots: The folders of a data set, one or more.
        tables: Look for tables that need no options.

    Raises:
        DataError: A root is missing, is not named in UTF-8, or lies within another.
    """
    for root in roots:
        existing_folder(root)
    real = [root.resolve() for root in roots]
    for i, one in enumerate(real):
        for other in real[:i]:
            if one == other or one in other.parents or other in one.parents:
                raise DataError(f"{one} and {other} overlap; name each folder of images once.")
    found = []
    for root, place in zip(roots, real, strict=True):
        more = root is not roots[0]
        prefix = f"{os.path.relpath(place, real[0])}/".replace(os.sep, "/") if more else ""
        found += _tables_below(root, prefix) if tables else [Place(root, root, prefix)]
    return found


def known_table(root: Path) -> Path | None:
    """The table of labels in a folder that needs no options, if there is one."""
    return next((root / name for name in KNOWN_TABLES if (root / name).is_file()), None)


def _tables_below(root: Path, prefix: str) -> list[Place]:
    """The folder with its table; or the folders of given splits where each has a table."""
    if (table := known_table(root)) is not None:
        return [Place(root, root, prefix, table)]
    folders = [p for p in _subfolders(root) if p.name.lower() in SPLIT_NAMES]
    tables = [known_table(p) for p in folders]
    if folders and all(tables):
        return [
            Place(root, p, f"{prefix}{p.name}/", table, SPLIT_NAMES[p.name.lower()])
            for p, table in zip(folders, tables, strict=True)
        ]
    return [Place(root, root, prefix)]


def class_folders(place: Place) -> pd.DataFrame:
    """The image table of class folders: columns path, label, group and split, all text.

    Raises:
        DataError: Images lie outside every class folder, or classes stand beside splits.
    """
    root = place.folder
    paths = find_images(root)
    parts = [path.split("/") for path in paths]
    tops = {p[0] for p in parts if len(p) > 1}
    given = {top for top in tops if top.lower() in SPLIT_NAMES}
    depth = 1 if given and given == tops else 0
    loose = [path for path, p in zip(paths, parts, strict=True) if len(p) < depth + 2]
    if paths and len(loose) == len(paths) and not depth:
        raise DataError(
            f"{root}: {len(paths)} images but no class folders and no table of labels; "
            "put each class in a folder of its own, or name a table with --labels."
        )
    if loose:
        raise DataError(
            f"{root}: {len(loose)} images lie outside every class folder (first: {loose[0]}); "
            "move them into one, or out of the data set."
        )
    for top in sorted(given) if not depth else ():  # a class may be called train, as on rails
        below = {p[1] for p in parts if p[0] == top and len(p) > 2}
        if len(below) > 1 and not any(p[0] == top and len(p) == 2 for p in parts):
            raise DataError(
                f"{root}: {top}/ holds class folders, as a split does, but beside it stands "
                f"{min(tops - given)}/, which is no split; move one of them away."
            )
    table = {
        "path": [place.prefix + path for path in paths],
        "label": [p[depth] for p in parts],
        "group": [place.prefix + path for path in paths],
        "split": [SPLIT_NAMES[p[0].lower()] if depth else "" for p in parts],
    }
    return pd.DataFrame(table, dtype=object)


def default_folder(data: Path) -> Path:
    """The data set to take when none is named: the one in `data`, or `data` itself.

    Raises:
        DataError: There is none, or there are several (they are listed).
    """
    folders = [p for p in sorted(data.iterdir()) if p.is_dir()] if data.is_dir() else []
    found = [p for p in folders if known_table(p) is not None or _has_class_folders(p)]
    if known_table(data) is not None or (not found and _has_class_folders(data)):
        return data
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{data}/ holds {len(found)} data sets ({', '.join(p.name for p in found)}); "
            f"name one, such as: {found[0]}"
        )
    raise DataError(
        f"{data}/ holds no data set; put a folder of class folders or HAM10000 there, "
        "or name a folder."
    )


def find_images(root: Path) -> list[str]:
    """Every image file below `root`, as sorted paths relative to it; hidden ones left out.

    Links to folders are followed once each, so a link that loops ends.

    Raises:
        DataError: A folder cannot be read, or a name is not UTF-8.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_cannot_be_read):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
        found.extend(
            prefix + f
            for f in files
            if not f.startswith(".") and os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES
        )
    for path in found:
        _check_utf_8(path, f"{root}: the name of ", "the file")
    return sorted(found)


def existing_folder(root: Path) -> Path:
    """The folder, if it is one.

    Raises:
        DataError: It is none, or its name is not UTF-8.
    """
    _check_utf_8(str(root), "The name of ", "the folder")
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; expected a folder of images.")
    return root


def _cannot_be_read(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}; check its rights.")


def _check_utf_8(name: str, before: str, what: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise DataError(f"{before}{shown} is not UTF-8; rename {what}.") from None


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _has_class_folders(root: Path) -> bool:
    """Whether a sub-folder, or one below train/val/test, directly holds images or a table."""

    def holds_images(folder: Path) -> bool:
        return any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir() if p.is_file())

    for child in _subfolders(root) if root.is_dir() else ():
        split = child.name.lower() in SPLIT_NAMES
        if (split and known_table(child)) or holds_images(child):
            return True
        if split and any(holds_images(p) for p in _subfolders(child)):
            return True
    return False
