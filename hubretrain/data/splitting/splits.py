"""A test split and folds over images: whole groups, stratified classes.

A split gives every image one part: a fold 0 .. n_folds - 1, `TEST`, or `TRAIN` (trained on by
every fold and validated by none, which only a given validation split brings about). Fold f is
validated on `parts == f` and trained on `(parts != f) & (parts != TEST)`.

The split is keyed on (seed, group): the order of the rows changes nothing. How the groups are
dealt out is in `stratify`; here is what is asked of it, and what is kept of an earlier or a given
split.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.data.splitting.folds import (
    N_FOLDS_LIMIT,
    NEW,
    PARTS,
    TEST,
    TRAIN,
    Column,
    Parts,
    part_name,
    previous_parts,
    read_folds,
)
from hubretrain.data.splitting.stratify import place_groups
from hubretrain.errors import SplitError

GIVEN_PARTS = {"train": NEW, "val": 0, "valid": 0, "validation": 0, "test": TEST, "": NEW}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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
        labels: the class of each image, shape `(n_images,)`, text or integers.
        groups: the group of each image, shape `(n_images,)`, text or integers. The split is keyed
            on it: an image without a group is its own, named by its sha256, not its row number.
        n_folds: 2 to 100. Not used where a validation split is given.
        test_fraction: share of the images in the test split, in [0, 1); 0 cuts none.
            Not used where a test split is given.
        seed: another seed is another split.
        previous: the parts of an earlier split, `NEW` for images that it did not hold, as
            `previous_parts` finds them. Old images keep their part, new images of an old group
            join it, and other new groups go where they are most needed.
        given: a split that the data set came with: `train`, `validation` (`val`,
            `valid`), `test` or blank for each image. Given test images are the test split and
            no other image is. Given validation images are fold 0, the only fold, and other images
            `TRAIN`. It is honoured even where it tears a group apart: see `leaked_images`.

    Returns:
        int8 `(n_images,)`: 0 .. n_folds - 1, `TEST` or `TRAIN`. Every class is in every
        part that was cut where the groups allow it: always, where no group mixes classes.

    Raises:
        SplitError: a class has fewer groups than there are parts, a value is missing or out of
            range, or the earlier split does not fit this one.
    """
    label_codes, class_names = codes(labels, "label")
    group_codes, group_names = codes(groups, "group")
    check_length("groups", groups, len(label_codes))
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


def check_class_sizes(
    labels: Column,
    groups: Column,
    *,
    n_folds: int = 5,
    test_fraction: float = 0.2,
    given: Column | None = None,
) -> None:
    """Refuses what `split_images` would refuse, without cutting anything.

    Args:
        labels: as there, for the rest too.
        groups: of each image.
        n_folds: of the cross-validation.
        test_fraction: of the images.
        given: a split that the data set came with.

    Raises:
        SplitError: a class has fewer groups than there are parts.
    """
    label_codes, class_names = codes(labels, "label")
    group_codes, _ = codes(groups, "group")
    parts = _given_parts(given, len(label_codes))
    in_play = parts == NEW
    open_parts, _ = _open_parts(
        0 if (parts == 0).any() else n_folds, 0.0 if (parts == TEST).any() else test_fraction
    )
    _check_class_sizes(label_codes[in_play], group_codes[in_play], class_names, open_parts)


def cut_parts(
    images: pd.DataFrame,
    folds_file: Path | None,
    *,
    n_folds: int = 5,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Parts:
    """The part of each image: as an earlier `folds.csv` says where there is one, else newly cut.

    Args:
        images: columns path, sha256, label, cluster, split (blank where none was given).
        folds_file: an earlier split, if there is one; images that it holds keep their part.
        n_folds: see `split_images`, as for the rest.
        test_fraction: of the images.
        seed: of the split.

    Raises:
        SplitError: see `split_images`.
    """
    previous = None
    if folds_file is not None and folds_file.exists():
        earlier = read_folds(folds_file)
        previous = previous_parts(earlier, images["path"].tolist(), images["sha256"].tolist())
        _check_clusters(images, previous, folds_file)
    return split_images(
        images["label"],
        images["cluster"],
        n_folds=n_folds,
        test_fraction=test_fraction,
        seed=seed,
        previous=previous,
        given=images["split"] if (images["split"] != "").any() else None,
    )


def _check_clusters(images: pd.DataFrame, previous: Parts, folds_file: Path) -> None:
    """Refuses an earlier split that parts what is known today to belong together."""
    old = images.assign(part=previous)[previous != NEW]
    given = old["split"].isin(["validation", "test"])
    torn = old[~given].groupby("cluster")["part"].transform("nunique") > 1
    if torn.any():
        cluster = old.loc[torn.index[torn], "cluster"].iloc[0]
        apart = old[~given & (old["cluster"] == cluster)].drop_duplicates("part")
        (one, in_one), (other, in_other) = list(zip(apart["path"], apart["part"], strict=True))[:2]
        raise SplitError(
            f"{folds_file}: {one} stands in {part_name(in_one)} and {other} in "
            f"{part_name(in_other)}, but they belong together, being of one group or copies; "
            "remove the file to cut a new split."
        )


def codes(values: Column, what: str) -> tuple[Ints, list[str]]:
    """Number values 0, 1, ... in the order of their names; the order of rows plays no part."""
    codes, uniques = pd.factorize(np.asarray(values))
    if (codes < 0).any():
        raise SplitError(f"Image {int(np.argmax(codes < 0))} (from 0) has no {what}.")
    names = np.array([str(value) for value in uniques], dtype=object)
    order = np.argsort(names)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[codes].astype(np.int64), list(names[order])


def check_length(what: str, values: Column, n_images: int) -> None:
    """Refuses a column that is not one value an image."""
    if len(values) != n_images:
        raise SplitError(f"{len(values)} {what} for {n_images} images: expected one an image.")


def _given_parts(given: Column | None, n_images: int) -> Parts:
    if given is None:
        return np.full(n_images, NEW, np.int8)
    check_length("given splits", given, n_images)
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
    check_length("earlier parts", previous, n_images)
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
            f"The earlier split has {part_name(part)}, which this one lacks: "
            "ask for the parts that it has, or cut a new split."
        )
    for part in open_parts.tolist():
        if known and part not in known:
            raise SplitError(
                f"The earlier split lacks {part_name(part)}: "
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
            f"Group {group_names[group]!r} stands in {part_name(both[0])} and "
            f"{part_name(both[1])} of the earlier split: cut a new split, or part the group."
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
