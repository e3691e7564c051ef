"""Classes and labels: their names and order, as targets, and which are left out or merged.

The images of a multi-label data set have several labels or none, in one cell joined by a bar.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, overload

import numpy as np
import pandas as pd

from hubretrain.arrays import BoolArray, IntArray
from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError

logger = logging.getLogger(__name__)
_JOINER = "|"
_SHOWN = 20  # names in a sentence


def sorted_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels, by number where all are whole numbers, else by text."""
    distinct = set(labels)
    if all(label.isascii() and label.isdigit() for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def join_labels(names: Iterable[str]) -> str:
    """Return the labels of an image as one text; blank for none.

    Raises:
        DataError: A label holds what joins them.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if _JOINER in name:
            raise DataError(
                f"The label {name!r} holds {_JOINER!r}, which joins the labels of an image; rename "
                f"it, or if it is several labels, separate them by `label_separator={_JOINER}`."
            )
    return _JOINER.join(names)


def split_labels(joined: str) -> tuple[str, ...]:
    """Return the labels that `join_labels` joined."""
    return tuple(joined.split(_JOINER)) if joined else ()


def labels_of(cells: Iterable[str], multi_label: bool) -> list[tuple[str, ...]]:
    """Return the labels of each image: one, or any number where a data set is multi-label."""
    return [split_labels(cell) if multi_label else (cell,) for cell in cells]


@overload
def targets(
    labels: pd.Series, class_names: Sequence[str], multi_label: Literal[False]
) -> IntArray: ...
@overload
def targets(
    labels: pd.Series, class_names: Sequence[str], multi_label: Literal[True]
) -> BoolArray: ...
@overload
def targets(
    labels: pd.Series, class_names: Sequence[str], multi_label: bool
) -> IntArray | BoolArray: ...
def targets(
    labels: pd.Series, class_names: Sequence[str], multi_label: bool
) -> IntArray | BoolArray:
    """Return what images are labelled as numbers.

    Args:
        labels: Column `label` of an image table, shape (n_images,).
        class_names: The labels in class order.
        multi_label: Whether an image may have several labels or none.

    Returns:
        int64 of shape (n_images,), class indices; of a multi-label data set bool of shape
        (n_images, n_labels), whether each image has each label.

    Raises:
        DataError: A label is none of `class_names`.
    """
    order = {name: index for index, name in enumerate(class_names)}
    of_image = labels_of(labels, multi_label)
    if unknown := set(chain.from_iterable(of_image)) - order.keys():
        raise DataError(
            f"{min(unknown)!r} is none of the {len(order)} classes, such as {class_names[0]!r}."
        )
    indices = np.array([order[name] for names in of_image for name in names], np.int64)
    if not multi_label:
        return indices
    indicators = np.zeros((len(of_image), len(order)), bool)
    rows = np.repeat(np.arange(len(of_image)), [len(names) for names in of_image])
    indicators[rows, indices] = True
    return indicators


def in_class_order(cells: pd.Series) -> tuple[list[str], tuple[str, ...]]:
    """Return joined labels, those of each image in class order, and the labels in class order."""
    of_image = labels_of(cells, multi_label=True)
    class_names = sorted_classes(chain.from_iterable(of_image))
    order = {name: index for index, name in enumerate(class_names)}
    return [join_labels(sorted(names, key=order.__getitem__)) for names in of_image], class_names


def refuse_constant_labels(root: Path, labels: pd.Series, class_names: Sequence[str]) -> None:
    """Refuse labels of which images tell nothing: one or none, or the same on every image.

    Raises:
        DataError: They are such labels.
    """
    if len(class_names) < 2:
        what = f"{class_names[0]!r} is the only label" if class_names else "no image has a label"
        raise DataError(
            f"{root}: {what}; expected at least two labels where images may have several (to tell "
            "images with a label from those without, give both a class: `multi_label=False`)."
        )
    if (labels == labels.iloc[0]).all():
        raise DataError(
            f"{root}: all {len(labels)} images have the same {len(class_names)} labels, such as "
            f"{class_names[0]!r}; expected labels that some images have and others do not."
        )


def one_row_per_label(images: pd.DataFrame, multi_label: bool) -> pd.DataFrame:
    """Return an image table with a row for each label of each image, in column `label`."""
    if not multi_label:
        return images
    rows = images.assign(label=images["label"].map(split_labels)).explode("label")
    return rows[rows["label"].notna()]


def chosen_classes(images: pd.DataFrame, options: TableOptions) -> pd.DataFrame:
    """Return the images of the classes to learn: some left out, then some merged, then small ones.

    Where images may have several labels, all images stay, without the labels that are left out.

    Args:
        images: Columns label and group.
        options: Which classes; those that are too small are left out last.

    Raises:
        DataError: An option names a class that there is not, or has no `=`; or fewer than two
            classes are left.
    """
    multi_label = bool(options.is_multi_label)
    of_image = labels_of(images["label"], multi_label)
    labels = set(chain.from_iterable(of_image))
    merged: dict[str, str] = {}
    for item in options.merge:
        for name in _merged_names(item, labels):
            merged[name] = item.rpartition("=")[2].strip()
    for name in options.exclude_class:
        _check_class("exclude_class", name, labels)
    excluded = set(options.exclude_class)
    of_image = [
        tuple(dict.fromkeys(merged.get(name, name) for name in names if name not in excluded))
        for names in of_image
    ]
    if options.drop_small_classes is not None:
        small = _small_classes(of_image, images["group"], options.drop_small_classes)
        of_image = [tuple(name for name in names if name not in small) for names in of_image]
    n_left = len(set(chain.from_iterable(of_image)))
    if len(labels) > 1 and n_left < 2:
        raise DataError(
            f"`exclude_class`, `merge` and `drop_small_classes` leave {n_left} of {len(labels)} "
            "classes; expected at least two."
        )
    if multi_label:
        return images.assign(label=[join_labels(names) for names in of_image]).astype(object)
    images = images.assign(label=[name for names in of_image for name in names or ("",)])
    return images[[bool(names) for names in of_image]].astype(object)


def _small_classes(
    of_image: Sequence[tuple[str, ...]], groups: pd.Series, least: int
) -> Collection[str]:
    """Return the classes with fewer groups than a number, and log them."""
    groups_of: dict[str, set[str]] = {}
    for names, group in zip(of_image, groups, strict=True):
        for name in names:
            groups_of.setdefault(name, set()).add(group)
    small = [name for name in sorted(groups_of) if len(groups_of[name]) < least]
    if small:
        listed = ", ".join(f"{name} ({len(groups_of[name])})" for name in small[:_SHOWN])
        listed += f" and {len(small) - _SHOWN:,} more" * (len(small) > _SHOWN)
        logger.info("Classes with fewer than %d groups are left out: %s.", least, listed)
    return small


def _merged_names(item: str, labels: Collection[str]) -> list[str]:
    """Return the classes on the left of `a,b=c`; a class may have commas in its name."""
    left, equals, new = item.rpartition("=")
    if not (equals and left.strip() and new.strip()):
        raise DataError(f"`merge` is {item!r}; expected old names, = and the new one, as in a,b=c.")
    if left in labels:
        return [left]
    names = [name.strip() for name in left.split(",")]
    for name in names:
        _check_class("merge", name, labels)
    return names


def _check_class(option: str, name: str, labels: Collection[str]) -> None:
    if name not in labels:
        listed = ", ".join(sorted(labels)[:_SHOWN]) + ", ..." * (len(labels) > _SHOWN)
        raise DataError(f"`{option}` names {name!r}, which is no class; the classes are: {listed}.")
