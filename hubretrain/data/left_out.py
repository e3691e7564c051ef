"""What lies in the folders of a data set and is not looked at: other files, empty class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hubretrain.data.images import (
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    advice_on,
)
from hubretrain.data.layouts import KNOWN_TABLES, SPLIT_NAMES, suffix_of, walk_files
from hubretrain.data.summary import EmptyFolder, LeftOut

_TABLES = {".csv", ".tsv", ".tab", ".jsonl", ".parquet"}
_OF_THE_SYSTEM = {"thumbs.db", "desktop.ini", "ehthumbs.db"}


def left_out(roots: Sequence[Path], *, class_folders: bool = False) -> LeftOut:
    """Return what is not looked at in the folders of a data set.

    Args:
        roots: The folders.
        class_folders: Whether folders are classes, so that one without images is told.

    Raises:
        DataError: A folder cannot be read.
    """
    endings: Counter[str] = Counter()
    of_folder: dict[str, Counter[str]] = {}
    has_images: set[str] = set()
    all_folders: list[str] = []
    for i, root in enumerate(roots):
        prefix = f"{root.name}/" if i else ""
        folders: list[str] = []
        for path in walk_files(root, folders):
            suffix, folder = suffix_of(path), prefix + _class_folder(path)
            if suffix in IMAGE_SUFFIXES:
                has_images.add(folder)
            elif not _is_known(path):
                endings[suffix] += 1
                if suffix in PICTURE_SUFFIXES | VIDEO_SUFFIXES:
                    of_folder.setdefault(folder, Counter())[suffix] += 1
        all_folders += [
            prefix + folder
            for folder in folders
            if folder == _class_folder(folder, 0) and folder.lower() not in SPLIT_NAMES
        ]
    empty = sorted(set(all_folders) - has_images) if class_folders else []
    return LeftOut(
        endings=_by_count(endings),
        folders={name: _by_count(of_folder[name]) for name in sorted(of_folder)},
        empty_folders=tuple(
            EmptyFolder(name, _by_count(of_folder.get(name, Counter()))) for name in empty
        ),
    )


def left_out_sentences(what: LeftOut) -> list[tuple[str, str]]:
    """Return what is not looked at and what to do, each two sentences; the second may be blank.

    Pictures and videos are first, then class folders without an image.
    """
    pictures = {e: n for e, n in what.endings.items() if e in PICTURE_SUFFIXES | VIDEO_SUFFIXES}
    others = {e: n for e, n in what.endings.items() if e not in pictures}
    sentences = []
    if pictures:
        folders = ", ".join(f"{name or '.'}: {_counts(n)}" for name, n in what.folders.items())
        advice = advice_on(set(pictures))
        sentences.append(
            (
                f"Pictures and videos that are not looked at: {_counts(pictures)} ({folders}).",
                f"{advice[:1].upper()}{advice[1:]}.",
            )
        )
    if what.empty_folders:
        names = ", ".join(
            f"{folder.name}/ ({_counts(folder.endings) or 'empty'})"
            for folder in what.empty_folders
        )
        sentences.append(
            (
                f"Folders without an image that is read, so that they are no class: {names}.",
                "Put images into them, or remove them.",
            )
        )
    if others:
        sentences.append((f"Other files that are not looked at: {_counts(others)}.", ""))
    return sentences


def _is_known(path: str) -> bool:
    """Return whether a file is the system's, or may be a table of labels."""
    name = os.path.basename(path)
    is_table = name in KNOWN_TABLES or suffix_of(path) in _TABLES
    return name.lower() in _OF_THE_SYSTEM or (is_table and path.count("/") < 2)


def _class_folder(path: str, n_last: int = 1) -> str:
    """Return the folder of a path that may be a class: the first, or the one below a split's.

    Args:
        path: Relative to the data set's folder.
        n_last: Parts of the path that are no folder: 1 of a file.
    """
    parts = path.split("/")
    folders = parts[: len(parts) - n_last]
    n = 2 if folders and folders[0].lower() in SPLIT_NAMES and len(folders) > 1 else 1
    return "/".join(folders[:n])


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _counts(endings: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {ending or 'without an ending'}" for ending, n in endings.items())
