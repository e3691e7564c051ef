"""A test split and folds over images: whole groups, stratified classes.

A split gives every image one part: a fold 0 .. n_folds - 1, `TEST`, or `TRAIN` (trained on by
every fold and validated by none, which only a given validation split brings about). Fold f is
validated on `parts == f` and trained on `(parts != f) & (parts != TEST)`.

The split is keyed on (seed, group): the order of the rows changes nothing. `stratify` deals the
groups out; this file prepares its task, and keeps what an earlier or a given split decided.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hubretrain.arrays import BoolArray, FloatArray, IntArray
from hubretrain.data.options import SplitOptions
from hubretrain.data.splitting.codes import LabelCodes, check_length, codes, label_codes
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

_SHOWN = 20  # classes in a sentence
GIVEN_PARTS = {"train": NEW, "val": 0, "valid": 0, "validation": 0, "test": TEST, "": NEW}


def split_images(
    labels: Column,
    groups: Column,
    *,
    multi_label: bool = False,
    n_folds: int = 5,
    test_fraction: float = 0.2,
    seed: int = 0,
    previous: Column | None = None,
    given: Column | None = None,
) -> Parts:
    """Cut a test split and folds; no group straddles two parts and classes are stratified.

    Args:
        labels: Class of each image, shape (n_images,), text or integers; of a multi-label data set
            its labels as `ImageDataset.images` joins them.
        groups: Group of each image, shape (n_images,), text or integers. The split is keyed on
            it: an image without a group is its own, named by its sha256, not by its row number.
        multi_label: Whether an image may have several labels or none.
        n_folds: Number of folds, 2 to 100; not used where a validation split is given.
        test_fraction: Share of the images in the test split, [0, 1); 0 cuts none. Not used where
            a test split is given.
        seed: Random seed of the split.
        previous: Part of each image in an earlier split, `NEW` for images that it did not hold,
            as `previous_parts` returns them. Old images keep their part, new images of an old
            group join it, and other new groups go where they are most needed.
        given: Split that the data set came with: `train`, `validation` (`val`, `valid`), `test`
            or blank for each image. Given test images are the test split and no other image is.
            Given validation images are fold 0, the only fold, and other images `TRAIN`. It is
            honoured even where it tears a group apart: see `leaked_images`.

    Returns:
        int8 of shape (n_images,): 0 .. n_folds - 1, `TEST` or `TRAIN`. Every class is in every
        part that was cut where the groups allow it: always, where no group mixes classes.
        Of a multi-label data set images with and without each label are, nearly always.

    Raises:
        SplitError: A class has fewer groups than there are parts, a value is missing or out of
            range, or the earlier split does not fit this one.
    """
    if not 2 <= n_folds <= N_FOLDS_LIMIT:
        raise SplitError(f"`n_folds` is {n_folds}; expected 2 to {N_FOLDS_LIMIT}.")
    if not 0 <= test_fraction < 1:
        raise SplitError(f"`test_fraction` is {test_fraction}; expected at least 0 and below 1.")
    task = _Task.of(labels, groups, n_folds, test_fraction, given, previous, multi_label)
    parts, in_play = task.given.copy(), task.in_play
    earlier = task.earlier[in_play]
    _check_earlier(earlier, task.open_parts)
    parts[in_play] = _join_groups(earlier, task.group_codes[in_play], task.group_names)
    task.check_class_sizes()
    rows, numbers = task.counted

    def count(chosen: BoolArray) -> IntArray:
        return np.bincount(numbers[chosen[rows]], minlength=len(task.labels.names) + multi_label)

    free = (parts == NEW)[rows]
    placed = place_groups(
        numbers[free],
        _seeded_rank(task.group_names, seed)[task.group_codes[rows[free]]],
        task.weights,
        np.array([count(parts == part) for part in task.open_parts]),
        count(in_play),
        _seeded_number(str(seed)),
        last_is_every_image=multi_label,
    )
    parts[rows[free]] = task.open_parts[placed]
    return parts


def check_class_sizes(
    labels: Column,
    groups: Column,
    *,
    multi_label: bool = False,
    n_folds: int = 5,
    test_fraction: float = 0.2,
    given: Column | None = None,
) -> None:
    """Refuse classes that `split_images` would refuse, without cutting anything.

    Args:
        labels: Class of each image, as in `split_images`.
        groups: Group of each image.
        multi_label: Whether an image may have several labels or none.
        n_folds: Number of folds.
        test_fraction: Share of the images in the test split.
        given: Split that the data set came with, as in `split_images`.

    Raises:
        SplitError: A class has fewer groups than there are parts.
    """
    task = _Task.of(labels, groups, n_folds, test_fraction, given, multi_label=multi_label)
    task.check_class_sizes()


@dataclass(frozen=True, eq=False)
class _Task:
    """A split to cut: the images as codes, and the parts that are open to them.

    Attributes:
        labels: Classes of the images.
        multi_label: Whether an image may have several or none.
        group_codes: Group of each image, int64 of shape (n_images,).
        group_names: The groups, in the order of their codes.
        given: Part that each image was given, `NEW` where none; int8 of shape (n_images,).
        earlier: Part of each image in an earlier split, or `NEW`; int8 of shape (n_images,).
        open_parts: The parts to cut.
        weights: Share of the images that each of them should get, sum 1.
    """

    labels: LabelCodes
    multi_label: bool
    group_codes: IntArray
    group_names: list[str]
    given: Parts
    earlier: Parts
    open_parts: IntArray
    weights: FloatArray

    @classmethod
    def of(
        cls,
        labels: Column,
        groups: Column,
        n_folds: int,
        test_fraction: float,
        given: Column | None,
        previous: Column | None = None,
        multi_label: bool = False,
    ) -> _Task:
        """Return the task; the arguments are those of `split_images`.

        Raises:
            SplitError: A value is missing or out of range, or the columns differ in length.
        """
        numbers = label_codes(labels, multi_label)
        group_codes, group_names = codes(groups, "group")
        check_length("groups", groups, len(labels))
        given_parts = _given_parts(given, len(labels))
        earlier = _earlier_parts(previous, len(labels))
        one_fold = (given_parts == 0).any() or (earlier[given_parts == NEW] == TRAIN).any()
        open_parts, weights = _open_parts(
            0 if one_fold else n_folds, 0.0 if (given_parts == TEST).any() else test_fraction
        )
        return cls(
            numbers, multi_label, group_codes, group_names,
            given_parts, earlier, open_parts, weights,
        )  # fmt: skip

    @property
    def in_play(self) -> BoolArray:
        """Whether each image is free of a given split, bool of shape (n_images,)."""
        return self.given == NEW

    @property
    def counted(self) -> tuple[IntArray, IntArray]:
        """Image and number of each label; where images may have several, and of one more of all."""
        rows, numbers, names = self.labels
        if not self.multi_label:
            return rows, numbers
        every = np.arange(len(self.group_codes))
        return np.concatenate([rows, every]), np.concatenate([numbers, 0 * every + len(names)])

    def check_class_sizes(self) -> None:
        """Refuse a class with fewer groups than there are open parts."""
        n_classes, group_codes = len(self.labels.names), self.group_codes
        in_play = self.in_play[self.labels.rows]
        pairs = np.stack([self.labels.codes, group_codes[self.labels.rows]])[:, in_play]
        (label_of_pair, group_of_pair), n_images = np.unique(pairs, axis=1, return_counts=True)
        n_groups = np.bincount(label_of_pair, minlength=n_classes)
        has_test = int(TEST in self.open_parts)
        n_folds = len(self.open_parts) - has_test
        wanted = f"{n_folds} folds" if n_folds > 1 else "training"
        wanted += " and a test split" * has_test
        small = {
            name: n
            for name, n in zip(self.labels.names, n_groups.tolist(), strict=True)
            if 0 < n < len(self.open_parts)
        }
        if small:
            n_left = int((n_groups > 0).sum()) - len(small)
            at_most = min(small.values()) - has_test
            least = len(self.open_parts) if self.multi_label else 0
            raise SplitError(_too_small(small, wanted, at_most, least, can_leave_out=n_left > 1))
        if self.multi_label:
            sizes = np.bincount(group_codes[self.in_play], minlength=len(self.group_names))
            is_whole = n_images == sizes[group_of_pair]
            n_whole = np.bincount(label_of_pair[is_whole], minlength=n_classes)
            self._refuse_labels_of_all(int((sizes > 0).sum()) - n_whole, wanted)

    def _refuse_labels_of_all(self, n_groups_without: IntArray, wanted: str) -> None:
        """Refuse a label that too few groups have an image without.

        Args:
            n_groups_without: Groups with an image without each label, shape (n_labels,).
            wanted: What they are too few for.
        """
        fewest = int(n_groups_without.argmin())
        if (n := int(n_groups_without[fewest])) < len(self.open_parts):
            name = self.labels.names[fewest]
            raise SplitError(
                f"All images have the label {name!r} but those of {n} group{'s' * (n != 1)}, too "
                f"few for {wanted}: leave it out by `exclude_class={shlex.quote(name)}`."
            )


def _too_small(
    small: dict[str, int], wanted: str, at_most: int, least: int, *, can_leave_out: bool
) -> str:
    """Return a sentence on classes that are too small, and what to do.

    Args:
        small: Number of groups by class.
        wanted: What they are too small for.
        at_most: Number of folds that they are large enough for.
        least: Groups that would suffice, where many labels may be too small; else 0.
        can_leave_out: Whether two other classes remain.
    """
    counts = {name: f"{n} group{'s' * (n != 1)}" for name, n in small.items()}
    if len(small) == 1:
        (name, n_groups), *_ = counts.items()
        what = f"{'Label' if least else 'Class'} {name!r} has {n_groups} of images, too few"
        which, another = "it", "another"
    else:
        listed = ", ".join(f"{name!r} has {n}" for name, n in list(counts.items())[:_SHOWN])
        listed += f" and {len(counts) - _SHOWN} more" * (len(counts) > _SHOWN)
        what = f"{'Labels' if least else 'Classes'} are too small: {listed}, too few"
        which, another = "them", "others"
    advice = [f"ask for at most {at_most} folds"] * (at_most >= 2)
    advice.append(f"merge {which} with {another} by `merge`")
    if can_leave_out:
        names = " ".join(f"`exclude_class={shlex.quote(name)}`" for name in small)
        if least and len(small) > 1:
            names = f"`drop_small_classes={least}`"
        advice.append(f"leave {which} out by {names}")
    *firsts, last = advice
    return f"{what} for {wanted}: {', '.join(firsts)}{' or ' * bool(firsts)}{last}."


def cut_parts(
    images: pd.DataFrame,
    folds_file: Path | None,
    options: SplitOptions = SplitOptions(),
    *,
    multi_label: bool = False,
) -> Parts:
    """Return the part of each image: as in an earlier `folds.csv` if there is one, else newly cut.

    Args:
        images: Columns path, sha256, label, cluster, split (blank where none was given).
        folds_file: An earlier split, if there is one; images that it holds keep their part.
        options: How to split.
        multi_label: Whether an image may have several labels or none.

    Raises:
        SplitError: See `split_images`.
    """
    previous = None
    if folds_file is not None and folds_file.exists():
        earlier = read_folds(folds_file)
        previous = previous_parts(earlier, images["path"].tolist(), images["sha256"].tolist())
        _check_clusters(images, previous, folds_file)
    return split_images(
        images["label"],
        images["cluster"],
        multi_label=multi_label,
        n_folds=options.n_folds,
        test_fraction=options.test_fraction,
        seed=options.seed,
        previous=previous,
        given=images["split"] if (images["split"] != "").any() else None,
    )


def _check_clusters(images: pd.DataFrame, previous: Parts, folds_file: Path) -> None:
    """Refuse an earlier split that separates images which today belong together."""
    old = images.assign(part=previous)[previous != NEW]
    given = old["split"].isin(["validation", "test"])
    torn = old[~given].groupby("cluster")["part"].transform("nunique") > 1
    if torn.any():
        cluster = old.loc[torn.index[torn], "cluster"].iloc[0]
        apart = old[~given & (old["cluster"] == cluster)].drop_duplicates("part")
        paths, names = apart["path"].tolist(), [part_name(part) for part in apart["part"]]
        raise SplitError(
            f"{folds_file}: {paths[0]} is in {names[0]} and {paths[1]} in {names[1]}, but they "
            "belong together, as one group or duplicates; remove the file to cut a new split."
        )


def _given_parts(given: Column | None, n_images: int) -> Parts:
    if given is None:
        return np.full(n_images, NEW, np.int8)
    check_length("given splits", given, n_images)
    names: list[str] = ["" if pd.isna(value) else str(value).strip().lower() for value in given]
    unknown = sorted(set(names) - set(GIVEN_PARTS))
    if unknown:
        raise SplitError(
            f"The given split is {unknown[0]!r} for {names.count(unknown[0])} images; "
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
            f"The earlier parts run from {old.min()} to {old.max()}; expected {PARTS}."
        )
    return old.astype(np.int8)


def _open_parts(n_folds: int, test_fraction: float) -> tuple[IntArray, FloatArray]:
    """Return the parts to cut and their shares of the images; 0 folds: one training part."""
    parts = list(range(n_folds)) or [TRAIN]
    weights = [(1 - test_fraction) / len(parts)] * len(parts)
    if test_fraction:
        return np.array([*parts, TEST]), np.array([*weights, test_fraction])
    return np.array(parts), np.array(weights)


def _check_earlier(earlier: Parts, open_parts: IntArray) -> None:
    """Refuse an earlier split whose parts are not those to cut."""
    parts = set(earlier.tolist()) - {NEW}
    # Parts that a given split fills are closed, yet an earlier split may have put images there.
    closed = {TEST, 0} if TRAIN in open_parts else {TEST}
    advice = "ask for the parts that it has, or cut a new split."
    for part in sorted(parts - closed - set(open_parts.tolist())):
        raise SplitError(f"The earlier split has {part_name(part)}, which this one lacks: {advice}")
    for part in open_parts.tolist():
        if parts and part not in parts:
            raise SplitError(f"The earlier split lacks {part_name(part)}: {advice}")


def _join_groups(earlier: Parts, group_codes: IntArray, group_names: list[str]) -> Parts:
    """Give new images the part of their group, where the earlier split held one."""
    part_of_group = np.full(len(group_names), NEW, np.int8)
    is_old = earlier != NEW
    part_of_group[group_codes[is_old]] = earlier[is_old]
    torn = is_old & (part_of_group[group_codes] != earlier)
    if torn.any():
        group = group_codes[torn.argmax()]
        both = sorted(set(earlier[is_old & (group_codes == group)].tolist()))
        raise SplitError(
            f"Group {group_names[group]!r} is in {part_name(both[0])} and in "
            f"{part_name(both[1])} of the earlier split: cut a new split, or divide the group."
        )
    return part_of_group[group_codes]


def _seeded_number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _seeded_rank(names: list[str], seed: int) -> IntArray:
    """Return the rank of each name in an order that depends on the names and the seed only."""
    keys = np.array([_seeded_number(f"{seed}\n{name}") for name in names], np.uint64)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(names))
    return rank
