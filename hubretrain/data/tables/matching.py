"""The image that a cell of a table means: by path, file name or stem, and else by looser rules.

A looser rule is used only where the stricter ones find nothing, and holds only where it leads to
one image, and no other cell to the same one. What it matched is logged.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from hubretrain.data.layouts import IMAGE_SUFFIXES, ImageFolder, find_images
from hubretrain.errors import DataError
from hubretrain.storage import is_remote

logger = logging.getLogger(__name__)
Parts = tuple[str, ...]
_MOST_COMPARED = 20_000  # names among which the nearest is looked for


class Match(NamedTuple):
    """The image that a cell means.

    Attributes:
        path: Its path in the data set, or blank where there is none.
        how: What had to be ignored to find it, or blank.
    """

    path: str
    how: str = ""


class _Rule(NamedTuple):
    """A way to compare names.

    Attributes:
        how: What it ignores, in words; blank for what every table may leave out.
        spelled: Spelling of a part of a path that is compared.
        stems: Whether the endings of files are left out.
        cut: Whether the ending of the cell is, too.
    """

    how: str
    spelled: Callable[[str], str]
    stems: bool = False
    cut: bool = False


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(_composed(name).casefold())


def _without_zeros(name: str) -> str:
    """Return a name whose numbers have no leading zeros, and are whole: `7` of `007` and `7.0`."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"^(\d+)\.0$", r"\1", _folded(name)))


_RULES = (
    _Rule("", str),
    _Rule("", str, stems=True),
    _Rule("the encoding of accents", _composed),
    _Rule("the encoding of accents", _composed, stems=True),
    _Rule("upper and lower case", _folded),
    _Rule("upper and lower case", _folded, stems=True),
    _Rule("the ending", _folded, stems=True, cut=True),
    _Rule("zeros in front of numbers", _without_zeros, stems=True),
    _Rule("zeros in front of numbers", _without_zeros, stems=True, cut=True),
)


@dataclass(frozen=True)
class _Index:
    """Images by their path within their folder, and by each end of it."""

    whole: dict[Parts, list[str]]
    ends: dict[Parts, list[str]]


class ImageIndex:
    """The images of folders, by the names that a table may give them.

    Args:
        folders: The folders of the images.
        file: The table, for relative paths and errors.

    Attributes:
        paths: Path of each image within its own folder, by its path in the data set.
    """

    def __init__(self, folders: Sequence[ImageFolder], file: Path) -> None:
        self.file = file
        self.paths = {f.prefix + path: path for f in folders for path in find_images(f.folder)}
        self._bases = {
            base.rstrip("/") + "/": folder.prefix
            for folder in folders
            for base in (os.path.abspath(folder.folder), os.path.realpath(folder.folder))
        }
        self._table_folder = os.path.dirname(os.path.abspath(file))
        self._index_of = functools.cache(self._index)

    def match(self, cells: pd.Series) -> pd.Series:
        """Return the path of the image that each cell names, '' for none; a URL is its own path.

        Raises:
            DataError: A cell could mean several images, two cells the same one, or it leads out
                of the data set's folder.
        """
        matches = {cell: self.find(cell) for cell in cells.unique()}
        self._refuse_two_cells_for_one(matches)
        loose = {cell: match for cell, match in matches.items() if match.how}
        counts = Counter(match.how for match in loose.values())
        for how, n in counts.items():
            cell, match = next(item for item in loose.items() if item[1].how == how)
            logger.info(
                "%s: %d of %d names of images match without %s (first: %r is %s).",
                *(self.file, n, len(matches), how, cell, match.path),
            )
        return cells.map(lambda cell: matches[cell].path).astype(object)

    def names_images(self, cells: Iterable[str]) -> bool:
        """Return whether any of the cells names images."""
        for cell in cells:
            try:
                if self.find(cell).path:
                    return True
            except DataError:
                return True
        return False

    def has(self, cell: str) -> bool:
        """Return whether a cell is the path, file name or stem of an image as it is written."""
        try:
            match = self.find(cell)
        except DataError:
            return False
        return bool(match.path) and not match.how and not is_remote(cell)

    def find(self, cell: str) -> Match:
        """Return the image that a cell names.

        Raises:
            DataError: See `match`.
        """
        if not cell or is_remote(cell):
            return Match(cell)
        if (path := self._located(cell)) is not None:
            return Match(path)
        for slashes in ("", "the direction of slashes") if "\\" in cell else ("",):
            parts = _parts(cell.replace("\\", "/") if slashes else cell)
            for rule in _RULES:
                match = self._by_rule(cell, parts, rule)
                if match is not None:
                    hows = [how for how in (slashes, match.how) if how]
                    return Match(match.path, " and ".join(hows))
        if os.path.normpath(cell).startswith("../"):
            raise DataError(
                f"{self.file}: {cell!r} lies outside the data set's folder; "
                "use paths below it, or name the folder above as the data set."
            )
        return Match("")

    def nearest(self, cell: str) -> str:
        """Return the image whose name is most like a cell, '' without images."""
        name = _folded(_parts(cell.replace("\\", "/"))[-1] if _parts(cell) else cell)
        by_name: dict[str, str] = {}
        for path in islice(self.paths, _MOST_COMPARED):
            by_name.setdefault(_folded(path.rsplit("/", 1)[-1]), path)
        near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.3)
        return by_name[near[0]] if near else next(iter(self.paths), "")

    def _located(self, text: str) -> str | None:
        """Return the image at a path: in the data set, absolute, or beside the table."""
        relative = os.path.normpath(text).replace(os.sep, "/")
        own = self._index_of(_RULES[0]).whole.get(_parts(relative), ())
        if relative in self.paths and (len(own) <= 1 or relative.startswith("../")):
            return relative
        absolute = os.path.normpath(os.path.join(self._table_folder, text)).replace(os.sep, "/")
        for base, prefix in self._bases.items():
            path = prefix + absolute.removeprefix(base)
            if absolute.startswith(base) and path in self.paths and len(own) <= 1:
                return path
        return None

    def _by_rule(self, cell: str, parts: Parts, rule: _Rule) -> Match | None:
        index = self._index_of(rule)
        key = _key(parts, rule, is_cell=True)
        if not key:
            return None
        n_left = 0
        paths = index.whole.get(key) or index.ends.get(key) or []
        while not paths and n_left < len(key) - 1:
            n_left += 1
            paths = index.whole.get(key[n_left:], [])
        if len(paths) > 1:
            raise DataError(
                f"{self.file}: {cell!r} could be {paths[0]} or {paths[1]}; write the path instead."
            )
        if not paths:
            return None
        hows = ["the folders in front"] * (n_left > 0) + [rule.how] * bool(rule.how)
        return Match(paths[0], " and ".join(hows))

    def _index(self, rule: _Rule) -> _Index:
        whole, ends = defaultdict(list), defaultdict(list)
        for path, own in self.paths.items():
            key = _key(tuple(own.split("/")), rule, is_cell=False)
            whole[key].append(path)
            for n_left in range(1, len(key)):
                ends[key[n_left:]].append(path)
        return _Index(dict(whole), dict(ends))

    def _refuse_two_cells_for_one(self, matches: dict[str, Match]) -> None:
        cells_of: dict[str, list[str]] = defaultdict(list)
        for cell, match in matches.items():
            if match.path:
                cells_of[match.path].append(cell)
        for path, cells in cells_of.items():
            names = {tuple(map(_folded, _parts(cell.replace("\\", "/")))): cell for cell in cells}
            if len(names) > 1 and any(matches[cell].how for cell in cells):
                first, second = list(names.values())[:2]
                raise DataError(
                    f"{self.file}: {first!r} and {second!r} could both be {path}; "
                    "write the paths of the images as they are below the folder."
                )


def _parts(text: str) -> Parts:
    """Return the parts of a path, without those that lead nowhere or up, and without a drive."""
    parts = os.path.normpath(text).split("/")
    return tuple(
        part
        for part in parts
        if part not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", part)
    )


def _key(parts: Parts, rule: _Rule, *, is_cell: bool) -> Parts:
    if not parts:
        return ()
    *folders, name = parts
    if rule.stems and (rule.cut or not is_cell):
        stem, suffix = os.path.splitext(name)
        name = stem if suffix.lower() in IMAGE_SUFFIXES else name
    return tuple(map(rule.spelled, (*folders, name)))
