"""Groups that stand in the paths of images: folders of patients, numbers in file names."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import chain

import pandas as pd

from hubretrain.data.classes import split_labels
from hubretrain.data.layouts import SPLIT_NAMES
from hubretrain.data.options import NO_COLUMN
from hubretrain.errors import DataError
from hubretrain.storage import is_remote

logger = logging.getLogger(__name__)


def groups_from_paths(images: pd.DataFrame, rule: str, *, multi_label: bool = False) -> pd.Series:
    """Return the group of each image by its path; its own path where the rule gives none.

    Args:
        images: Columns path and label.
        rule: `folder:N` or a regular expression, see `TableOptions.group_from`. A folder that is
            named after the class of its images or a split is no group; nor one that is named after
            any label, where images may have several.
        multi_label: Whether images may have several labels, joined by a bar.

    Raises:
        DataError: The rule is none, or gives no image a group.
    """
    if match := re.fullmatch(r"folder:([+-]?\d+)", rule):
        number = int(match[1])
        names = set(chain(*map(split_labels, images["label"]))) if multi_label else set()
        names |= {name.partition(":")[2] for name in names}  # of several columns: `column:value`
        groups = [
            _folder(path, names if multi_label else {label}, number)
            for path, label in zip(images["path"], images["label"], strict=True)
        ]
    else:
        try:
            pattern = re.compile(rule)
        except re.error as error:
            raise DataError(
                f"`group_from` is {rule!r}, which is no regular expression ({error}); expected "
                "one, or folder:-1 for the folder that an image is in."
            ) from None
        groups = [_matched(pattern, path) for path in images["path"]]
    n_without = groups.count("")
    if n_without == len(groups):
        raise DataError(
            f"`group_from` {rule!r} gives none of the {len(groups)} images a group "
            f"(first: {images['path'].iloc[0] if len(groups) else ''}); "
            "check it against the path."
        )
    if n_without:
        first = images["path"].iloc[groups.index("")]
        logger.info(
            "%d of %d images have no group by %r and are each their own (first: %s).",
            *(n_without, len(groups), rule, first),
        )
    return pd.Series(
        [group or path for group, path in zip(groups, images["path"], strict=True)],
        images.index,
        dtype=object,
    )


def _folder(path: str, labels: set[str], number: int) -> str:
    folders = path.split("/")[:-1]
    index = number if number >= 0 else len(folders) + number
    name = folders[index] if 0 <= index < len(folders) else ""
    return "" if name in labels or name == ".." or name.lower() in SPLIT_NAMES else name


def _matched(pattern: re.Pattern[str], path: str) -> str:
    match = pattern.search(path)
    if match is None:
        return ""
    return (match[1] if pattern.groups else match[0]) or ""


def folders_below_classes(images: pd.DataFrame) -> tuple[int, str]:
    """Return how many folders stand between classes and images, and one of them.

    They may be patients. None counts where each class has one at most.

    Args:
        images: Columns path and label, the label being a folder.
    """
    below: dict[str, str] = {}
    for path, label in zip(images["path"], images["label"], strict=True):
        folders = [] if is_remote(path) else path.split("/")[:-1]
        if label in folders and folders[-1] != label:
            below.setdefault("/".join(folders), label)
    if len(below) <= len(set(below.values())):
        return 0, ""
    return len(below), min(below)


def repeated_folders(images: pd.DataFrame) -> list[str]:
    """Return the names of the last folders, if they look like the classes of the first ones.

    As in `p1/cat/1.png`: few names below many folders, each of them in several.

    Args:
        images: Columns path and label, the label being the folder above the last one.
    """
    first_of: dict[str, set[str]] = {}
    for path, label in zip(images["path"], images["label"], strict=True):
        folders = path.split("/")[-3:-1]
        if is_remote(path) or len(folders) < 2 or folders[0] != label:
            return []
        first_of.setdefault(folders[1], set()).add(label)
    is_repeated = all(
        len(firsts) > 1 and name.lower() not in SPLIT_NAMES for name, firsts in first_of.items()
    )
    return sorted(first_of) if is_repeated and 1 < len(first_of) < images["label"].nunique() else []


def classes_below_groups(images: pd.DataFrame, rule: str | None) -> pd.DataFrame:
    """Return images of class folders with the folder below as class, where the first is the group.

    Args:
        images: Columns path and label, the label being a folder.
        rule: See `TableOptions.group_from`; it is the number of the folder that was taken as class.
    """
    names = repeated_folders(images)
    if not names or rule != f"folder:{images['path'].iloc[0].count('/') - 2}":
        return images
    return images.assign(label=images["path"].str.split("/").str[-2])


def repeated_words(names: Sequence[str], folder: str) -> tuple[str, str]:
    """Return a sentence on folders that look like classes below groups, and the advice.

    Args:
        names: See `repeated_folders`.
        folder: Folder of an image.
    """
    number = folder.count("/") - 1
    shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    what = (
        f"The class of the images in {folder}/ is {folder.split('/')[number]!r}, but the "
        f"{len(names)} folders below the classes ({shown}) repeat from class to class"
    )
    advice = (
        "if those are the classes, and each folder above them is a patient or another group, use "
        f"`group_from=folder:{number}`; if they are groups, use `group_from=folder:-1`, else "
        f"`group_from={NO_COLUMN}`."
    )
    return what, advice


def propose_groups(images: pd.DataFrame, group_from: str | None) -> None:
    """Log that folders below the classes may be groups, or classes, unless that was answered."""
    n_folders, first = folders_below_classes(images)
    if group_from is None and (names := repeated_folders(images)):
        logger.info("%s; %s", *repeated_words(names, images["path"].iloc[0].rpartition("/")[0]))
    elif n_folders and group_from is None:
        logger.info(
            "Classes hold folders (%d, such as %s/), and each image counts as its own group; if "
            "each folder is a patient, a lesion or a series, use `group_from=folder:-1`, else "
            "`group_from=%s`.",
            *(n_folders, first, NO_COLUMN),
        )
