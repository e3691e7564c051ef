"""The check stage: what a careful person would look at before trusting a data set."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.data.classes import one_row_per_label
from hubretrain.data.dataset import ImageDataset
from hubretrain.data.findings import Finding, Level, findings_of
from hubretrain.data.image_table import cluster_names
from hubretrain.data.images import (
    Inspection,
    Reading,
    inspect_image,
    read_headers,
    read_image,
    read_image_bytes,
)
from hubretrain.data.options import NO_COLUMN, SplitOptions
from hubretrain.data.quarantine import Quarantine
from hubretrain.data.splitting import check_class_sizes, cut_parts, worst_deviation
from hubretrain.data.summarizing import (
    list_cut,
    list_unreadable,
    random_split_leak,
    summarize_classes,
    summarize_deep,
    summarize_duplicates,
    summarize_given_split,
    summarize_groups,
    summarize_imbalance,
    summarize_labels,
    summarize_sizes,
)
from hubretrain.data.summary import FoldsSummary, Summary
from hubretrain.errors import DataError, SplitError
from hubretrain.files import StrPath, write_json
from hubretrain.parallel import ahead
from hubretrain.progress import Bar

_MODES_OF_32_BITS = ("F", "I")
_MANY = 10  # groups of a class per fold: so many are not joined to fewer than one


@dataclass(frozen=True)
class DataCheck:
    """The result of `data check`.

    Attributes:
        summary: What the data set holds.
        findings: What that means, the gravest first.
        images: The image table with sha256, cluster, n_bytes, format, mode, width, height,
            unreadable (why an image cannot be decoded, or blank), damage (why it looks cut, or
            blank) and highest (the highest level of channels of 16 bits; -1 without).
        reading: How the images are read.
    """

    summary: Summary
    findings: tuple[Finding, ...]
    images: pd.DataFrame
    reading: Reading = Reading()

    @property
    def worst(self) -> Level | None:
        """Gravest level of the findings; None without findings."""
        return self.findings[0].level if self.findings else None

    def images_of(self, class_name: str) -> pd.DataFrame:
        """Return the images of a class, or with a label, that can be decoded."""
        usable = self.images[self.images["unreadable"] == ""]
        rows = one_row_per_label(usable, self.summary.labels is not None)
        return usable.loc[rows.index[rows["label"] == class_name]]

    def to_json(self) -> dict[str, Any]:
        """Return findings and summary as `data_check.json` holds them."""
        return {"findings": [asdict(f) for f in self.findings], **self.summary.to_json()}

    def write(self, file: Path) -> None:
        """Write `data_check.json`.

        Raises:
            WriteError: The file cannot be written.
        """
        write_json(file, self.to_json())


def check_dataset(
    dataset: ImageDataset,
    options: SplitOptions = SplitOptions(),
    *,
    cache: StrPath = "cache",
) -> DataCheck:
    """Look at classes, files, sizes, groups, duplicates, leaks and whether folds can be cut.

    Args:
        dataset: The images.
        options: The split to try.
        cache: The cache folder, where digests and near duplicates are kept.

    Raises:
        DataError: A file cannot be read.

    Examples:
        >>> from hubretrain import check_dataset, open_dataset
        >>> check = check_dataset(open_dataset("data/digits"))
        >>> [finding.level for finding in check.findings]
        ['note', 'note']
    """
    images, pairs = _image_table(dataset, Path(cache))
    names, multi_label = dataset.class_names, dataset.multi_label
    summary = Summary(
        name=dataset.name,
        folders=(str(dataset.root.resolve()), *_more_roots(dataset)),
        n_images=len(images),
        n_bytes=int(images["n_bytes"].sum()),
        n_classes=len(names),
        classes=summarize_classes(images, names, multi_label),
        imbalance=summarize_imbalance(images, names, multi_label),
        sizes=summarize_sizes(images),
        unreadable=list_unreadable(images),
        cut=list_cut(images),
        deep=summarize_deep(images, dataset.reading.bits),
        left_out=dataset.left_out(),
        groups=summarize_groups(
            images, grouped=dataset.grouped, declined=_declines_groups(dataset)
        ),
        duplicates=summarize_duplicates(images, pairs),
        given_splits=summarize_given_split(images, names, multi_label),
        random_split_leak=random_split_leak(images),
        folds=_try_folds(images, names, options, multi_label),
        labels=summarize_labels(images, names) if multi_label else None,
    )
    return DataCheck(summary, findings_of(summary), images, dataset.reading)


def refuse_small_classes(dataset: ImageDataset, n_folds: int, cache: Path) -> None:
    """Refuse classes that are too small for folds and a test split, as a later fit would.

    Where a class is near the limit, duplicates are searched, which may join its groups.

    Args:
        dataset: The images.
        n_folds: Number of folds.
        cache: The cache folder, where digests and near duplicates are kept.

    Raises:
        DataError: A file cannot be read.
        SplitError: A class is too small.
    """
    images, multi_label = dataset.images, dataset.multi_label

    def check(groups: str) -> None:
        check_class_sizes(
            images["label"],
            images[groups],
            multi_label=multi_label,
            n_folds=n_folds,
            given=images["split"],
        )

    check("group")
    labelled = one_row_per_label(images, multi_label)
    if labelled.groupby("label")["group"].nunique().min() < _MANY * n_folds:
        images = dataset.usable_images(cache)
        near = dataset.near_duplicates(dataset.digests(cache), cache)
        images = images[~images["sha256"].isin(list(near.unreadable))]
        check("cluster")


def _image_table(dataset: ImageDataset, cache: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the image table with headers and contents, and the pairs of near duplicates."""
    images = dataset.images.copy()
    images["sha256"] = dataset.digests(cache)
    near = dataset.near_duplicates(images["sha256"].tolist(), cache)
    images["cluster"] = cluster_names(images["group"], images["sha256"], near.pairs)
    first = images.drop_duplicates("sha256").set_index("sha256")["path"]
    with Bar("reading headers", len(first)) as bar:
        headers = read_headers(dataset.root, first.tolist(), bar.advance)
    headers.index = first.index
    images = images.join(headers, on="sha256")
    # Only what some earlier reader stumbled over, or a header gives away, is decoded here.
    quarantine = Quarantine(dataset.cache_folder(cache))
    doubtful = {*near.unreadable, *quarantine.reasons, *headers.index[headers["format"] == ""]}
    n_pixels = headers["width"] * headers["height"]
    doubtful |= set(headers.index[n_pixels > dataset.reading.max_pixels])
    doubtful |= set(headers.index[headers["mode"].isin(_MODES_OF_32_BITS)])
    reasons = {
        sha256: _why_undecodable(dataset, first[sha256]) for sha256 in doubtful & set(first.index)
    }
    images["unreadable"] = [reasons.get(sha256, "") for sha256 in images["sha256"]]
    inspections = _inspect(dataset, first.drop([s for s, reason in reasons.items() if reason]))
    nothing = Inspection()
    images["damage"] = [inspections.get(s, nothing).damage for s in images["sha256"]]
    images["highest"] = [inspections.get(s, nothing).highest for s in images["sha256"]]
    return images, near.pairs


def _why_undecodable(dataset: ImageDataset, path: str) -> str:
    """Return why `hubretrain cache` cannot decode an image, or blank if it can."""
    try:
        read_image(dataset.root, path, reading=dataset.reading)
    except DataError as error:
        return str(error)
    return ""


def _inspect(dataset: ImageDataset, paths: pd.Series) -> dict[str, Inspection]:
    """Look at images, each named by its sha256; what cannot be read now is left out."""

    def look(path: str) -> Inspection:
        with contextlib.suppress(Exception):  # Pillow's decoders raise nearly every type
            data = read_image_bytes(dataset.root, path)
            return inspect_image(data, dataset.reading.max_pixels)
        return Inspection()

    inspections = {}
    n_threads = max(2, os.cpu_count() or 1)
    with Bar("looking for damage", len(paths)) as bar:
        looked = ahead(look, paths.tolist(), n_threads=n_threads)
        for sha256, (_, inspection) in zip(paths.index, looked, strict=True):
            inspections[str(sha256)] = inspection
            bar.advance()
    return inspections


def _declines_groups(dataset: ImageDataset) -> bool:
    return NO_COLUMN in (dataset.opened_with.get(name) for name in ("group_from", "group_column"))


def _more_roots(dataset: ImageDataset) -> list[str]:
    more_roots = dataset.opened_with.get("more_roots", [])
    return more_roots if isinstance(more_roots, list) else []


def _try_folds(
    images: pd.DataFrame, names: tuple[str, ...], options: SplitOptions, multi_label: bool
) -> FoldsSummary:
    """Cut folds to see whether it is possible, and how even they are."""
    usable = images[images["unreadable"] == ""].reset_index(drop=True)
    missing = sorted(set(names) - set(one_row_per_label(usable, multi_label)["label"]))
    if missing:
        error = (
            f"Class {missing[0]!r} has no image that can be decoded: repair its files or drop it."
        )
        return FoldsSummary(options.n_folds, options.test_fraction, error=error)
    try:
        parts = cut_parts(usable, None, options, multi_label=multi_label)
    except SplitError as error:
        return FoldsSummary(options.n_folds, options.test_fraction, error=str(error))
    deviation = round(worst_deviation(parts, usable["label"], multi_label), 4)
    return FoldsSummary(options.n_folds, options.test_fraction, worst_deviation_points=deviation)
