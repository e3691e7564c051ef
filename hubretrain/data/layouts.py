"""Where the images and their table lie: the folder layouts that are recognised.

In this order, without options:

1. HAM10000 as published: `HAM10000_metadata.csv` with `image_id`, `dx`, `lesion_id`.
2. Hugging Face imagefolder: `metadata.csv`, `.jsonl` or `.parquet` with `file_name` and a
   label column, for the whole folder or in each of `train/`, `validation/`, `test/`.
3. Tiny ImageNet as published: `train/<class>/images/..` and `val/val_annotations.txt`.
4. `train/<class>/..`, `val/<class>/..`, `test/<class>/..`, as TFDS' ImageFolder.
5. `<class>/..`: one folder per class.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hubretrain.data.images import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from hubretrain.errors import DataError

logger = logging.getLogger(__name__)
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
    "val_annotations.txt",
)


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, and how their paths are written in the data set.

    Attributes:
        root: The data set's folder that it is, or is part of.
        folder: The root, or the folder of a given split in it.
        prefix: What the paths of its images begin with: blank, or a folder and `/`.
        table: The table that labels its images; None: class folders.
        split: The split that all of its images were given, or blank.
    """

    root: Path
    folder: Path
    prefix: str = ""
    table: Path | None = None
    split: str = ""


def image_folders(roots: Sequence[Path], *, tables: bool = True) -> list[ImageFolder]:
    """Return the folders of images of a data set; paths are relative to its first root.

    Args:
        roots: The folders of the data set, one or more.
        tables: Look for tables that need no options.

    Raises:
        DataError: A root is missing, its name is not UTF-8, or it lies within another.
    """
    for root in roots:
        existing_folder(root)
    resolved = [root.resolve() for root in roots]
    for i, root in enumerate(resolved):
        for other in resolved[:i]:
            if root == other or root in other.parents or other in root.parents:
                raise DataError(f"{root} and {other} overlap; name each folder of images once.")
    folders = []
    for root, absolute in zip(roots, resolved, strict=True):
        prefix = ""
        if root is not roots[0]:
            prefix = f"{os.path.relpath(absolute, resolved[0])}/".replace(os.sep, "/")
        folders += _tables_below(root, prefix) if tables else [ImageFolder(root, root, prefix)]
    return folders


def known_table(root: Path) -> Path | None:
    """Return the table of labels in a folder that needs no options, if there is one."""
    return next((root / name for name in KNOWN_TABLES if (root / name).is_file()), None)


def _tables_below(root: Path, prefix: str) -> list[ImageFolder]:
    """Return the folder with its table, or the folders of given splits if each has a table."""
    if (table := known_table(root)) is not None:
        return [ImageFolder(root, root, prefix, table)]
    subfolders = _subfolders(root)
    folders = [p for p in subfolders if p.name.lower() in SPLIT_NAMES]
    tables = [known_table(p) for p in folders]
    if any(tables) and len(folders) == len(subfolders):
        return [
            ImageFolder(root, p, f"{prefix}{p.name}/", table, SPLIT_NAMES[p.name.lower()])
            for p, table in zip(folders, tables, strict=True)
        ]
    return [ImageFolder(root, root, prefix)]


def class_folders(folder: ImageFolder) -> pd.DataFrame:
    """Return the image table of class folders: columns path, label, group and split, all text.

    Raises:
        DataError: Images lie outside every class folder, or classes stand beside splits.
    """
    paths = find_images(folder.folder)
    parts = [path.split("/") for path in paths]
    depth = _depth_of_classes(folder.folder, parts)
    names = [folder.prefix + path for path in paths]
    table = {
        "path": names,
        "label": [p[depth] for p in parts],
        "group": names,
        "split": [SPLIT_NAMES[p[0].lower()] if depth else "" for p in parts],
    }
    return pd.DataFrame(table, dtype=object)


def without_unlabelled_splits(images: pd.DataFrame) -> pd.DataFrame:
    """Return an image table without splits whose images all lie in one folder of no other split.

    Such as `test/images/` beside `train/<class>/`: images to predict, published without labels.
    What is left out is logged.

    Args:
        images: Columns path, label and split.
    """
    classes = images.groupby("split")["label"].unique()
    for split, names in classes.items():
        others = {
            name for other, of_other in classes.items() if other != split for name in of_other
        }
        if split and len(names) == 1 and names[0] not in others and len(others) > 1:
            is_split = images["split"] == split
            if not images.loc[is_split, "path"].str.contains(f"/{names[0]}/", regex=False).all():
                continue
            logger.info(
                "The %s split is left out: its %d images lie in one folder, %s/, which is no class "
                "of the others.",
                *(split, is_split.sum(), names[0]),
            )
            images = images[~is_split]
    return images


def _depth_of_classes(root: Path, parts: list[list[str]]) -> int:
    """Return 0 if the folders directly below are classes, 1 if they are splits.

    Args:
        root: The folder, for errors.
        parts: Path of each image, split at `/`.

    Raises:
        DataError: See `class_folders`.
    """
    tops = {p[0] for p in parts if len(p) > 1}
    splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    depth = 1 if splits and splits == tops else 0
    loose = ["/".join(p) for p in parts if len(p) < depth + 2]
    if parts and len(loose) == len(parts) and not depth:
        raise DataError(
            f"{root}: {len(parts)} images but no class folders and no table of labels; "
            "put each class in a folder of its own, or name a table: `labels`."
        )
    if loose:
        raise DataError(
            f"{root}: {len(loose)} images lie outside every class folder (first: {loose[0]}); "
            "move them into one, or out of the data set."
        )
    if not depth:
        for top in sorted(splits):  # a class may be called train, as on rails
            below = {p[1] for p in parts if p[0] == top and len(p) > 2}
            if len(below) > 1 and not any(p[0] == top and len(p) == 2 for p in parts):
                raise DataError(
                    f"{root}: {top}/ holds class folders, as a split does, but beside it is "
                    f"{min(tops - splits)}/, which is no split; move one of them away."
                )
    return depth


def default_folder(data: Path) -> Path:
    """Return the data set to take when none is named: the one in `data`, or `data` itself.

    Raises:
        DataError: There is none, or there are several (they are listed).
    """
    subfolders = [p for p in sorted(data.iterdir()) if p.is_dir()] if data.is_dir() else []
    datasets = [p for p in subfolders if known_table(p) is not None or _is_data_set(p)]
    if known_table(data) is not None or (not datasets and _has_class_folders(data)):
        return data
    if len(datasets) == 1:
        return datasets[0]
    if datasets:
        raise DataError(
            f"{data}/ holds {len(datasets)} data sets ({', '.join(p.name for p in datasets)}); "
            f"name one, such as: {datasets[0]}"
        )
    raise DataError(
        f"{data}/ holds no data set; put a folder of class folders or HAM10000 there, "
        "or name a folder."
    )


def find_images(root: Path) -> list[str]:
    """Return every image file below `root`, as sorted paths relative to it, without hidden ones.

    Links to folders are followed once each, so a link that loops ends.

    Raises:
        DataError: A folder cannot be read, or a name is not UTF-8.
    """
    paths = [path for path in walk_files(root) if suffix_of(path) in IMAGE_SUFFIXES]
    for path in paths:
        _check_utf_8(path, f"{root}: the name of ", "the file")
    return sorted(paths)


def suffix_of(path: str) -> str:
    """Return the ending of a file's name, lower case with its dot; blank without one."""
    return os.path.splitext(path)[1].lower()


def walk_files(root: Path, folders: list[str] | None = None) -> Iterator[str]:
    """Yield every file below `root`, relative to it with `/`, without hidden ones.

    Args:
        root: The folder.
        folders: Takes the path of each folder below, likewise.

    Raises:
        DataError: A folder cannot be read.
    """
    visited: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
        if folders is not None and prefix:
            folders.append(prefix[:-1])
        yield from (prefix + f for f in files if not f.startswith("."))


def labels_file(labels: str | os.PathLike[str], root: Path) -> Path:
    """Return a table of labels that is named: as a path from here, or from the images.

    One that was found in or beside the folder of the images is logged.

    Args:
        labels: The table.
        root: Folder of the images.

    Raises:
        DataError: A relative path leads to none, or to one in each place.
    """
    file = Path(labels)
    if file.is_absolute() or os.path.lexists(file):
        return file
    near = [folder / file for folder in (root, root.resolve().parent)]
    existing = [path for path in near if path.is_file()]
    if len(existing) == 1:
        logger.info("`labels` is %s: %s does not exist here.", existing[0], file)
        return existing[0]
    if existing:
        raise DataError(
            f"{file} does not exist here, but {existing[0]} and {existing[1]} do; name one of them."
        )
    existing_folder(root)
    raise DataError(
        f"{file} does not exist, neither here nor in {root} or beside it; expected a table of "
        "labels."
    )


def existing_folder(root: Path) -> Path:
    """Return the folder, if it is one.

    Raises:
        DataError: It is none, or its name is not UTF-8.
    """
    _check_utf_8(str(root), "The name of ", "the folder")
    if not root.is_dir():
        if root.suffix.lower() in (".zip", ".parquet"):
            raise DataError(
                f"{root} is an archive; unpack it by hubretrain data prepare images, and name the "
                "folder."
            )
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {state}; expected a folder of images.")
    return root


def _raise_unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}; check its permissions.")


def _check_utf_8(name: str, before: str, what: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise DataError(f"{before}{shown} is not UTF-8; rename {what}.") from None


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_data_set(root: Path) -> bool:
    """Return whether a folder has class folders, with folders in them or not, or a table."""
    if _has_class_folders(root) or any(
        _holds_images(p) for child in _subfolders(root) for p in _subfolders(child)
    ):
        return True
    has_table = any(p.suffix.lower() in (".csv", ".tsv", ".jsonl") for p in root.iterdir())
    return has_table and _holds_images(root)


def _holds_images(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir() if p.is_file())


def _has_class_folders(root: Path) -> bool:
    """Return whether a sub-folder, or one below train/val/test, directly has images or a table."""
    for child in _subfolders(root) if root.is_dir() else ():
        is_split = child.name.lower() in SPLIT_NAMES
        if (is_split and known_table(child)) or _holds_images(child):
            return True
        if is_split and any(_holds_images(p) for p in _subfolders(child)):
            return True
    return False
