"""What the image files of a data set contain: their digests, and which of them can be used."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hubretrain.dataset import ImageDataset
from hubretrain.digests import image_digests
from hubretrain.progress import Bar
from hubretrain.quarantine import Quarantine


def folder_of(dataset: ImageDataset, cache: Path) -> Path:
    """The folder of one data set in the cache."""
    return cache / dataset.name


def digests_of(dataset: ImageDataset, cache: Path, *, quiet: bool = False) -> list[str]:
    """The sha256 of each image of the data set, in its order; only changed files are read."""
    with Bar("reading files", len(dataset.images), quiet=quiet) as bar:
        return image_digests(
            dataset.root,
            dataset.images["path"].tolist(),
            folder_of(dataset, cache) / "digests.csv",
            bar.advance,
        )


def usable_images(dataset: ImageDataset, cache: Path, *, quiet: bool = False) -> pd.DataFrame:
    """The image table with contents, without what cannot be decoded.

    Returns:
        The columns of :attr:`ImageDataset.images`, and ``sha256``, ``class_index`` (int64) and
        ``cluster``: groups that share an image file's content are one cluster, so that copies of
        one file never straddle splits.
    """
    table = dataset.images.copy()
    table["sha256"] = digests_of(dataset, cache, quiet=quiet)
    table["class_index"] = dataset.labels
    table["cluster"] = _clusters(table["group"], table["sha256"])
    quarantine = Quarantine(folder_of(dataset, cache) / "quarantine.csv")
    return table[~table["sha256"].isin(list(quarantine.reasons))].reset_index(drop=True)


def _clusters(groups: pd.Series, sha256s: pd.Series) -> list[str]:
    """Names the connected parts of the graph of groups and contents by their least content."""
    group_codes, _ = pd.factorize(groups)
    content_codes, _ = pd.factorize(sha256s)
    n_groups = int(group_codes.max()) + 1
    n_nodes = n_groups + int(content_codes.max()) + 1
    edges = coo_array(
        ([True] * len(groups), (group_codes, n_groups + content_codes)), shape=(n_nodes, n_nodes)
    )
    _, parts = connected_components(edges, directed=False)
    part_of_image = pd.Series(parts[group_codes], index=groups.index)
    least: pd.Series = sha256s.groupby(part_of_image).transform("min")
    return [str(name) for name in least]
