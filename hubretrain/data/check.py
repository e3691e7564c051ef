"""The check stage: what a careful person would look at before trusting a data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from hubretrain.data.dataset import ImageDataset
from hubretrain.data.findings import Finding, findings_of
from hubretrain.data.image_table import cluster_names, copies_of, digests_of, folder_of
from hubretrain.data.images import MAX_PIXELS, decode, read_headers
from hubretrain.data.quarantine import Quarantine
from hubretrain.data.splitting import cut_parts, worst_deviation
from hubretrain.data.summary import (
    Facts,
    class_facts,
    duplicate_facts,
    group_facts,
    random_split_leak,
    size_facts,
    split_facts,
)
from hubretrain.errors import DataError, SplitError
from hubretrain.files import write_json
from hubretrain.progress import Bar
from hubretrain.storage import located, read_bytes


@dataclass(frozen=True)
class DataCheck:
    """What `data check` found.

    Attributes:
        facts: Everything, as `data_check.json` holds it.
        findings: What it means, the gravest first.
        images: The image table with sha256, cluster, n_bytes, format, mode, width, height and
            unreadable.
    """

    facts: Facts
    findings: tuple[Finding, ...]
    images: pd.DataFrame

    @property
    def worst(self) -> str:
        """The gravest level: `error`, `wrong`, `note`, or blank."""
        return self.findings[0].level if self.findings else ""


def check_dataset(
    dataset: ImageDataset,
    *,
    cache: Path = Path("cache"),
    n_folds: int = 5,
    test_fraction: float = 0.2,
) -> DataCheck:
    """Looks at classes, files, sizes, groups, duplicates, leaks and whether folds can be cut.

    Args:
        dataset: The images.
        cache: Where digests and near duplicates are kept, so that they are sought once.
        n_folds: Folds that are to be cut.
        test_fraction: Share of the images in the test split.

    Raises:
        DataError: A file cannot be read.
    """
    images, pairs = _image_table(dataset, cache)
    names = dataset.class_names
    usable = images[images["unreadable"] == ""].reset_index(drop=True)
    facts: Facts = {
        "name": dataset.name,
        "folders": [str(dataset.root.resolve()), *_more_roots(dataset)],
        "n_images": len(images),
        "n_bytes": int(images["n_bytes"].sum()),
        "n_classes": len(names),
        "classes": class_facts(images, names),
        "imbalance": _imbalance(usable, names),
        "sizes": size_facts(images),
        "unreadable": [
            {"path": path, "reason": reason}
            for path, reason in zip(images["path"], images["unreadable"], strict=True)
            if reason
        ],
        "groups": group_facts(images, grouped=dataset.grouped),
        "duplicates": duplicate_facts(images, pairs),
        "given_splits": split_facts(images, names),
        "random_split_leak": random_split_leak(images),
        "folds": _folds(usable, names, n_folds, test_fraction),
    }
    return DataCheck(facts, tuple(findings_of(facts)), images)


def write_facts(checked: DataCheck, file: Path) -> None:
    """Writes `data_check.json`: the facts and the findings.

    Raises:
        WriteError: The file cannot be written.
    """
    write_json(file, {"findings": [asdict(one) for one in checked.findings], **checked.facts})


def _image_table(dataset: ImageDataset, cache: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The image table with what is told of each file, and the near duplicates."""
    images = dataset.images.copy()
    images["sha256"] = digests_of(dataset, cache)
    images["class_index"] = dataset.labels
    copies = copies_of(dataset, images["sha256"].tolist(), cache)
    images["cluster"] = cluster_names(images["group"], images["sha256"], copies.pairs)
    first = images.drop_duplicates("sha256").set_index("sha256")["path"]
    with Bar("reading headers", len(first)) as bar:
        headers = read_headers(dataset.root, first.tolist(), bar.advance)
    headers.index = first.index
    images = images.join(headers, on="sha256")
    quarantine = Quarantine(folder_of(dataset, cache) / "quarantine.csv")
    doubtful = {*copies.unreadable, *quarantine.reasons, *headers.index[headers["format"] == ""]}
    doubtful |= set(headers.index[headers["width"] * headers["height"] > MAX_PIXELS])
    reasons = {
        s: _why_unreadable(located(dataset.root, first[s])) for s in doubtful & set(first.index)
    }
    images["unreadable"] = [reasons.get(sha256, "") for sha256 in images["sha256"]]
    return images, copies.pairs


def _why_unreadable(place: str) -> str:
    """Why an image cannot be decoded as `hubretrain cache` decodes it, or blank if it can."""
    try:
        decode(read_bytes(place))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except DataError as error:
        return str(error)
    return ""


def _more_roots(dataset: ImageDataset) -> list[str]:
    more = dataset.opened_with.get("more_roots", [])
    return more if isinstance(more, list) else []


def _imbalance(usable: pd.DataFrame, names: tuple[str, ...]) -> Facts:
    counts = usable["label"].value_counts().reindex(list(names), fill_value=0)
    largest, smallest = str(counts.idxmax()), str(counts.idxmin())
    least = int(counts.min())
    return {
        "largest": largest,
        "smallest": smallest,
        "ratio": round(int(counts.max()) / least, 3) if least else None,
        "majority_share": round(int(counts.max()) / max(len(usable), 1), 6),
    }


def _folds(
    usable: pd.DataFrame, names: tuple[str, ...], n_folds: int, test_fraction: float
) -> Facts:
    """Whether folds can be cut, and how even they are."""
    asked = {"n_folds": n_folds, "test_fraction": test_fraction}
    gone = sorted(set(names) - set(usable["label"]))
    if gone:
        error = f"Class {gone[0]!r} has no image that can be decoded: mend its files or drop it."
        return {**asked, "error": error}
    try:
        parts = cut_parts(usable, None, n_folds=n_folds, test_fraction=test_fraction)
    except SplitError as error:
        return {**asked, "error": str(error)}
    return {**asked, "worst_deviation_points": round(worst_deviation(parts, usable["label"]), 4)}
