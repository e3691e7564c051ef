"""Classes that are left out, merged or renamed, as options say."""

from __future__ import annotations

import logging
from collections.abc import Collection

import pandas as pd

from hubretrain.data.options import TableOptions
from hubretrain.errors import DataError

logger = logging.getLogger(__name__)


def chosen_classes(images: pd.DataFrame, options: TableOptions) -> pd.DataFrame:
    """Return the images of the classes to learn: some left out, then some merged, then small ones.

    Args:
        images: Columns label and group.
        options: Which classes; those that are too small are left out last.

    Raises:
        DataError: An option names a class that there is not, or has no `=`; or fewer than two
            classes are left.
    """
    labels = set(images["label"])
    merged: dict[str, str] = {}
    for item in options.merge:
        for name in _merged_names(item, labels):
            merged[name] = item.rpartition("=")[2].strip()
    for name in options.exclude_class:
        _check_class("exclude_class", name, labels)
    images = images[~images["label"].isin(list(options.exclude_class))]
    images = images.assign(label=images["label"].map(lambda name: merged.get(name, name)))
    if options.drop_small_classes is not None:
        n_groups = images.groupby("label")["group"].nunique()
        small = n_groups[n_groups < options.drop_small_classes]
        if len(small):
            listed = ", ".join(f"{name} ({n})" for name, n in small.items())
            logger.info(
                "Classes with fewer than %d groups are left out: %s.",
                *(options.drop_small_classes, listed),
            )
        images = images[~images["label"].isin(list(small.index))]
    if len(labels) > 1 and (n_left := images["label"].nunique()) < 2:
        raise DataError(
            f"`exclude_class`, `merge` and `drop_small_classes` leave {n_left} of {len(labels)} "
            "classes; expected at least two."
        )
    return images.astype(object)


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
        listed = ", ".join(sorted(labels)[:20]) + ", ..." * (len(labels) > 20)
        raise DataError(f"`{option}` names {name!r}, which is no class; the classes are: {listed}.")
