"""A test split and folds over images: whole groups, stratified classes, and their file.

A split gives every image one part: a fold 0 .. n_folds - 1, ``TEST``, or ``TRAIN`` (trained on by
every fold and validated by none, which only a given validation split brings about). Fold f is
validated on ``parts == f`` and trained on ``(parts != f) & (parts != TEST)``.

The split is keyed on (seed, group): the order of the rows changes nothing. How the groups are
dealt out is in ``stratify``; here is what is asked of it, what is kept of an earlier or a given
split, and the file ``folds.csv``.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.errors import SplitError
from hubretrain.files import whole_file
from hubretrain.stratify import place_groups

TEST = -1
TRAIN = -2
NEW = -3
"""In ``previous`` only: an image that the earlier split did not hold."""

COLUMNS = ("path", "sha256", "label", "group", "fold")
GIVEN_PARTS = {"train": NEW, "val": 0, "valid": 0, "validation": 0, "test": TEST, "": NEW}
N_FOLDS_LIMIT = 100
PARTS = f"{TRAIN} (train), {TEST} (test), or a fold from 0 to {N_FOLDS_LIMIT - 1}"

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Parts = npt.NDArray[np.int8]
Column = Sequence[Any] | npt.NDArray[Any] | pd.Series


def split_images(
    labels: Column,
    groups: Column,
    *,
    n_folds: int = 5,
    test_fraction: float = 0.2,
    seed: int = 0,
    previous: Column | None = None,
    given: Column | None = None,
) -> Parts:
    """Cut a test split and folds; no group straddles two parts and classes are stratified.

    Args:
        labels: the class of each image, shape ``(n_images,)``, text or integers.
        groups: the group of each image, shape ``(n_images,)``, text or integers. The split is keyed
            on it: an image without a group is its own, named by its sha256, not its row number.
        n_folds: 2 to 100. Not used where a validation split is given.
        test_fraction: share of the images in the test split, in [0, 1); 0 cuts none.
            Not used where a test split is given.
        seed: another seed is another split.
        previous: the parts of an earlier split, ``NEW`` for images that it did not hold, as
            ``previous_parts`` finds them. Old images keep their part, new images of an old group
            join it, and other new groups go where they are most needed.
        given: a split that the data set came with: ``train``, ``validation`` (``val``,
            ``valid``), ``test`` or blank for each image. Given test images are the test split and
            no other image is. Given validation images are fold 0, the only fold, and other images
            ``TRAIN``. It is honoured even where it tears a group apart: see ``leaked_images``.

    Returns:
        int8 ``(n_images,)``: 0 .. n_folds - 1, ``TEST`` or ``TRAIN``. Every class is in every
        part that was cut where the groups allow it: always, where no group mixes classes.

    Raises:
        SplitError: a class has fewer groups than there are parts, a value is missing or out of
            range, or the earlier split does not fit this one.
    """
    label_codes, class_names = _codes(labels, "label")
    group_codes, group_names = _codes(groups, "group")
    _check_length("groups", groups, len(label_codes))
    if not 2 <= n_folds <= N_FOLDS_LIMIT:
        raise SplitError(f"n_folds is {n_folds}: expected 2 to {N_FOLDS_LIMIT}.")
    if not 0 <= test_fraction < 1:
        raise SplitError(f"test_fraction is {test_fraction}: expected at least 0 and below 1.")

    parts = _given_parts(given, len(label_codes))
    in_play = parts == NEW
    old = _earlier_parts(previous, len(label_codes))[in_play]
    one_fold = bool((parts == 0).any() or (old == TRAIN).any())
    open_parts, weights = _open_parts(
        0 if one_fold else n_folds, 0.0 if (parts == TEST).any() else test_fraction
    )
    _check_earlier(old, open_parts)
    parts[in_play] = _join_groups(old, group_codes[in_play], group_names)
    _check_class_sizes(label_codes[in_play], group_codes[in_play], class_names, open_parts)

    def count(rows: npt.NDArray[np.bool_]) -> Ints:
        return np.bincount(label_codes[rows], minlength=len(class_names))

    free = parts == NEW
    placed = place_groups(
        label_codes[free],
        _seeded_rank(group_names, seed)[group_codes[free]],
        weights,
        np.array([count(parts == part) for part in open_parts]),
        count(in_play),
        _seeded_number(str(seed)),
    )
    parts[free] = open_parts[placed]
    return parts


def worst_deviation(parts: Column, labels: Column) -> float:
    """Largest gap between a class's share of one part and its share of all images.

    Args:
        parts: the part of each image, shape ``(n_images,)``.
        labels: the class of each image, shape ``(n_images,)``.

    Returns:
        Percentage points, 0 to 100; 0 without images.
    """
    label_codes, class_names = _codes(labels, "label")
    part_codes, part_names = _codes(parts, "part")
    _check_length("parts", parts, len(label_codes))
    if not len(label_codes):
        return 0.0
    counts = np.zeros((len(part_names), len(class_names)))
    np.add.at(counts, (part_codes, label_codes), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(100 * np.abs(shares - counts.sum(axis=0) / counts.sum()).max())


def leaked_images(parts: Column, groups: Column) -> int:
    """Number of validation and test images whose group also stands in another part.

    Args:
        parts: the part of each image, ``TEST``, ``TRAIN`` or a fold, shape ``(n_images,)``.
        groups: the group of each image, shape ``(n_images,)``.
    """
    group_codes, _ = _codes(groups, "group")
    _check_length("parts", parts, len(group_codes))
    table = pd.DataFrame({"part": np.asarray(parts), "group": group_codes})
    torn = table.groupby("group")["part"].transform("nunique") > 1
    return int((torn & (table["part"] != TRAIN)).sum())


def random_split_leak(groups: Column, fraction: float = 0.2, seed: int = 0) -> float:
    """Share of validation images leaked by a split that ignores the groups.

    Args:
        groups: the group of each image, shape ``(n_images,)``.
        fraction: share of the images drawn for validation, in (0, 1).
        seed: of the draw, 0 or more.

    Returns:
        0 to 1: of the images drawn, those with an image of the same group among the others.
    """
    group_codes, group_names = _codes(groups, "group")
    n_drawn = round(fraction * len(group_codes))
    if not 0 < n_drawn < len(group_codes):
        raise SplitError(
            f"A share of {fraction} of {len(group_codes)} images leaves one side empty: "
            "expected images on both."
        )
    drawn = np.zeros(len(group_codes), bool)
    drawn[np.random.default_rng(seed).permutation(len(drawn))[:n_drawn]] = True
    stays = np.bincount(group_codes[~drawn], minlength=len(group_names)) > 0
    return float(stays[group_codes[drawn]].mean())


def previous_parts(
    earlier: pd.DataFrame, paths: Sequence[str], sha256s: Sequence[str] | None = None
) -> Parts:
    """Look up the parts of images in an earlier split, for ``split_images(previous=...)``.

    Args:
        earlier: a table as ``read_folds`` returns it.
        paths: of the images, shape ``(n_images,)``.
        sha256s: of the images, shape ``(n_images,)``. An image is found by its content first, so
            that a renamed file keeps its part, then by its path.

    Returns:
        int8 ``(n_images,)``: the earlier part, or ``NEW``.
    """
    folds = earlier["fold"].tolist()
    by_path = dict(zip(earlier["path"], folds, strict=True))
    if sha256s is None:
        return np.array([by_path.get(path, NEW) for path in paths], np.int8)
    by_content = dict(zip(earlier["sha256"], folds, strict=True))
    by_content.pop("", None)
    # Copies of one file may stand in several parts: the same path with the same content is first.
    by_both = dict(zip(zip(earlier["path"], earlier["sha256"], strict=True), folds, strict=True))
    found = [
        by_both.get((path, sha256), by_content.get(sha256, by_path.get(path, NEW)))
        for path, sha256 in zip(paths, sha256s, strict=True)
    ]
    return np.array(found, np.int8)


def write_folds(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write ``folds.csv``: one row an image, ``fold`` one of ``test``, ``train``, 0, 1, ...

    Args:
        path: of the file, replaced as a whole.
        table: columns path, label, group, fold (the parts of ``split_images``) and, where known,
            sha256. Other columns are left out.

    Raises:
        SplitError: a column is missing, or a part is none of ``split_images``'.
        RunError: the file cannot be written.
    """
    _check_columns("the table of folds", table, set(COLUMNS) - {"sha256"})
    parts = table["fold"].to_numpy(int)
    if len(parts) and (parts.min() < TRAIN or parts.max() >= N_FOLDS_LIMIT):
        raise SplitError(f"The folds run from {parts.min()} to {parts.max()}: expected {PARTS}.")
    out = table.reindex(columns=list(COLUMNS), fill_value="")
    names = {TEST: "test", TRAIN: "train"}
    out["fold"] = [names.get(part, str(part)) for part in parts.tolist()]
    # pandas reads a bare carriage return as the end of a line, and quotes it only if told to.
    returns = any("\r" in str(value) for name in COLUMNS for value in out[name])
    with whole_file(Path(path)) as aside:
        quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
        out.to_csv(aside, index=False, lineterminator="\n", quoting=quoting)


def read_folds(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read ``folds.csv`` as ``write_folds`` wrote it.

    Returns:
        Columns path, sha256 (blank where unknown), label, group: text; fold: int8, ``TEST``,
        ``TRAIN`` or a fold.

    Raises:
        SplitError: no such file, a column is missing, or a fold is not one.
    """
    table: pd.DataFrame
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError as error:
        raise SplitError(f"{path}: no such file of folds.") from error
    except ValueError as error:
        raise SplitError(f"{path} is not a CSV file of folds: {error}") from error
    _check_columns(str(path), table, set(COLUMNS) - {"sha256"})
    table = table.reindex(columns=list(COLUMNS), fill_value="")
    parts = {"test": TEST, "train": TRAIN} | {str(i): i for i in range(N_FOLDS_LIMIT)}
    for row, fold in enumerate(table["fold"], start=2):
        if fold not in parts:
            raise SplitError(
                f"{path}, line {row}: fold is {fold!r}, expected test, train or a number from 0."
            )
    table["fold"] = np.array([parts[fold] for fold in table["fold"]], np.int8)
    return table


def _codes(values: Column, what: str) -> tuple[Ints, list[str]]:
    """Number values 0, 1, ... in the order of their names; the order of rows plays no part."""
    codes, uniques = pd.factorize(np.asarray(values))
    if (codes < 0).any():
        raise SplitError(f"Image {int(np.argmax(codes < 0))} (from 0) has no {what}.")
    names = np.array([str(value) for value in uniques], dtype=object)
    order = np.argsort(names)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[codes].astype(np.int64), list(names[order])


def _check_length(what: str, values: Column, n_images: int) -> None:
    if len(values) != n_images:
        raise SplitError(f"{len(values)} {what} for {n_images} images: expected one an image.")


def _check_columns(where: str, table: pd.DataFrame, expected: set[str]) -> None:
    missing = sorted(expected - set(table.columns))
    if missing:
        raise SplitError(f"{where}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}.")


def _part_name(part: int) -> str:
    return {TEST: "the test split", TRAIN: "the training part"}.get(part, f"fold {part}")


def _given_parts(given: Column | None, n_images: int) -> Parts:
    if given is None:
        return np.full(n_images, NEW, np.int8)
    _check_length("given splits", given, n_images)
    names: list[str] = ["" if pd.isna(value) else str(value).strip().lower() for value in given]
    unknown = sorted(set(names) - set(GIVEN_PARTS))
    if unknown:
        raise SplitError(
            f"The given split is {unknown[0]!r} for {names.count(unknown[0])} images: "
            "expected train, val, test or blank."
        )
    return np.array([GIVEN_PARTS[name] for name in names], np.int8)


def _earlier_parts(previous: Column | None, n_images: int) -> Parts:
    if previous is None:
        return np.full(n_images, NEW, np.int8)
    _check_length("earlier parts", previous, n_images)
    old = np.asarray(previous).astype(np.int64)
    if ((old < NEW) | (old >= N_FOLDS_LIMIT)).any():
        raise SplitError(
            f"The earlier parts run from {old.min()} to {old.max()}: expected {PARTS}."
        )
    return old.astype(np.int8)


def _open_parts(n_folds: int, test_fraction: float) -> tuple[Ints, Floats]:
    """The parts to cut and their shares of the images; no folds stand for one training part."""
    parts = list(range(n_folds)) or [TRAIN]
    weights = [(1 - test_fraction) / len(parts)] * len(parts)
    if test_fraction:
        return np.array([*parts, TEST]), np.array([*weights, test_fraction])
    return np.array(parts), np.array(weights)


def _check_earlier(old: Parts, open_parts: Ints) -> None:
    known = set(old.tolist()) - {NEW}
    fixed = {TEST, 0} if TRAIN in open_parts else {TEST}
    for part in sorted(known - fixed - set(open_parts.tolist())):
        raise SplitError(
            f"The earlier split has {_part_name(part)}, which this one lacks: "
            "ask for the parts that it has, or cut a new split."
        )
    for part in open_parts.tolist():
        if known and part not in known:
            raise SplitError(
                f"The earlier split lacks {_part_name(part)}: "
                "ask for the parts that it has, or cut a new split."
            )


def _join_groups(old: Parts, group_codes: Ints, group_names: list[str]) -> Parts:
    """Give new images the part of their group, where the earlier split held one."""
    part_of_group = np.full(len(group_names), NEW, np.int8)
    known = old != NEW
    part_of_group[group_codes[known]] = old[known]
    torn = known & (part_of_group[group_codes] != old)
    if torn.any():
        group = group_codes[torn.argmax()]
        both = sorted(set(old[known & (group_codes == group)].tolist()))
        raise SplitError(
            f"Group {group_names[group]!r} stands in {_part_name(both[0])} and "
            f"{_part_name(both[1])} of the earlier split: cut a new split, or part the group."
        )
    return part_of_group[group_codes]


def _check_class_sizes(
    label_codes: Ints, group_codes: Ints, class_names: list[str], open_parts: Ints
) -> None:
    pairs = np.unique(np.stack([label_codes, group_codes]), axis=1)
    n_groups = np.bincount(pairs[0], minlength=len(class_names))
    has_test = int(TEST in open_parts)
    n_folds = len(open_parts) - has_test
    asked = (f"{n_folds} folds" if n_folds > 1 else "training") + " and a test split" * has_test
    for name, n in zip(class_names, n_groups.tolist(), strict=True):
        if 0 < n < len(open_parts):
            fewer = f"ask for at most {n - has_test} folds, " if n - has_test >= 2 else ""
            raise SplitError(
                f"Class {name!r} has {n} group{'s' * (n != 1)} of images, too few for {asked}: "
                f"{fewer}merge the class with another or drop it."
            )


def _seeded_number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _seeded_rank(names: list[str], seed: int) -> Ints:
    """Places of the names in an order that depends on each name and the seed only."""
    keys = np.array([_seeded_number(f"{seed}\n{name}") for name in names], np.uint64)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(names))
    return rank
