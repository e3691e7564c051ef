"""Labels and groups as numbers, in the order of their names, so that the order of rows is free."""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd

from hubretrain.arrays import IntArray
from hubretrain.data.classes import labels_of
from hubretrain.data.splitting.folds import Column
from hubretrain.errors import SplitError


class LabelCodes(NamedTuple):
    """The labels of images as numbers, one of each image or any number.

    Attributes:
        rows: Image of each label, int64 of shape (n_labelled,), ascending.
        codes: Number of each label, int64 of shape (n_labelled,).
        names: The labels, in the order of their numbers.
    """

    rows: IntArray
    codes: IntArray
    names: list[str]


def codes(values: Column, what: str) -> tuple[IntArray, list[str]]:
    """Return the number of each value, in the order of names, not of rows; and the names."""
    numbers, uniques = pd.factorize(np.asarray(values))
    if (numbers < 0).any():
        raise SplitError(f"Image {int(np.argmax(numbers < 0))} (from 0) has no {what}.")
    names = np.array([str(value) for value in uniques], dtype=object)
    order = np.argsort(names)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[numbers].astype(np.int64), list(names[order])


def label_codes(labels: Column, multi_label: bool) -> LabelCodes:
    """Return the labels of images as numbers.

    Args:
        labels: Label of each image; where there may be several, joined as in an image table.
        multi_label: Whether there may be several, or none.

    Raises:
        SplitError: An image has no label where each has one.
    """
    if not multi_label:
        numbers, names = codes(labels, "label")
        return LabelCodes(np.arange(len(numbers)), numbers, names)
    of_image = labels_of(labels, multi_label)
    rows = np.repeat(np.arange(len(of_image)), [len(names) for names in of_image])
    numbers, names = codes(np.array([*chain.from_iterable(of_image)], object), "label")
    return LabelCodes(rows, numbers, names)


def check_length(what: str, values: Column, n_images: int) -> None:
    """Refuse a column that does not have one value per image."""
    if len(values) != n_images:
        raise SplitError(f"{len(values)} {what} for {n_images} images; expected one per image.")
