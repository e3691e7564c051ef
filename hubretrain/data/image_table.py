"""What the image files of a data set contain: their digests, their copies, what can be used."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.digests import image_digests
from hubretrain.data.near_duplicates import Copies, near_copies
from hubretrain.data.quarantine import Quarantine
from hubretrain.errors import CacheError
from hubretrain.progress import Bar


class Labelled(Protocol):
    """What is asked of a data set here; `hubretrain.data.dataset.ImageDataset` has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def root(self) -> Path: ...  # noqa: D102
    @property
    def images(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def labels(self) -> pd.Series: ...  # noqa: D102


def folder_of(dataset: Labelled, cache: Path) -> Path:
    """The folder of one data set in the cache."""
    return cache / dataset.name


def digests_of(dataset: Labelled, cache: Path) -> list[str]:
    """The sha256 of each image of the data set, in its order; only changed files are read."""
    with Bar("reading files", len(dataset.images)) as bar:
        return image_digests(
            dataset.root,
            dataset.images["path"].tolist(),
            folder_of(dataset, cache) / "digests.csv",
            bar.advance,
        )


def copies_of(dataset: Labelled, sha256s: Sequence[str], cache: Path) -> Copies:
    """The near duplicates among the contents of a data set, sought once and kept in the cache.

    Where a module is cached for all images, pairs with a high cosine similarity of its features
    are looked at too.
    """
    place = folder_of(dataset, cache)
    with contextlib.ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def show(what: str, n_done: int, n: int) -> None:
            if what not in bars:
                stack.pop_all().close()  # the bar before it is done
                unit = what.rsplit(" ", 1)[-1]
                bars[what] = stack.enter_context(Bar(what, n, unit))
            bars[what].advance(n_done - bars[what].done)

        return near_copies(
            dataset.root,
            dataset.images["path"].tolist(),
            sha256s,
            place / "copies.csv",
            features=lambda contents: _cached_features(place, contents),
            progress=show,
        )


def usable_images(dataset: Labelled, cache: Path, *, near_duplicates: bool = True) -> pd.DataFrame:
    """The image table with contents, without what cannot be decoded.

    Args:
        dataset: The images.
        cache: Where digests and near duplicates are kept.
        near_duplicates: Look for near duplicates, and put them into one cluster.

    Returns:
        The columns of `ImageDataset.images`, and `sha256`, `class_index` (int64) and
        `cluster`: groups that share an image file's content, or hold near duplicates of each
        other, are one cluster, so that copies of one image never straddle splits.
    """
    table = dataset.images.copy()
    table["sha256"] = digests_of(dataset, cache)
    table["class_index"] = dataset.labels
    pairs = None
    if near_duplicates:
        pairs = copies_of(dataset, table["sha256"].tolist(), cache).pairs
    table["cluster"] = cluster_names(table["group"], table["sha256"], pairs)
    quarantine = Quarantine(folder_of(dataset, cache) / "quarantine.csv")
    return table[~table["sha256"].isin(list(quarantine.reasons))].reset_index(drop=True)


def cluster_names(
    groups: pd.Series, sha256s: pd.Series, pairs: pd.DataFrame | None = None
) -> list[str]:
    """Joins images that share a group or a content, or are near duplicates, directly or not.

    Args:
        groups: Of each image.
        sha256s: Of each image.
        pairs: Near duplicates, columns `a` and `b`, each the sha256 of some image.

    Returns:
        The cluster of each image, named by the least sha256 in it.
    """
    group_codes, _ = pd.factorize(groups)
    content_codes, contents = pd.factorize(sha256s)
    n_contents = len(contents)
    code_of = dict(zip(contents, range(n_contents), strict=True))
    ties = [(), ()] if pairs is None else [[code_of[s] for s in pairs[c]] for c in ("a", "b")]
    start = np.concatenate([content_codes, np.array(ties[0], np.int64)])
    end = np.concatenate([group_codes + n_contents, np.array(ties[1], np.int64)])
    n_nodes = n_contents + len(set(group_codes.tolist()))
    graph = coo_array((np.ones(len(start)), (start, end)), shape=(n_nodes, n_nodes))
    _, parts = connected_components(graph, directed=False)
    part_of_image = pd.Series(parts[content_codes], index=sha256s.index)
    least: pd.Series = sha256s.groupby(part_of_image).transform("min")
    return [str(name) for name in least]


def _cached_features(place: Path, sha256s: Sequence[str]) -> npt.NDArray[np.float32] | None:
    """View 0 of these contents from the first module that is cached for all of them, or None."""
    for file in sorted(place.glob("*.h5")):
        with contextlib.suppress(CacheError), Bottlenecks(file) as bottlenecks:
            row_of = {sha256: row for row, sha256 in enumerate(bottlenecks.sha256s)}
            if row_of.keys() >= set(sha256s):
                rows = np.array([row_of[sha256] for sha256 in sha256s], np.int64)
                # What cannot be decoded, or is still to do, is NaN; zeros are like nothing.
                return np.nan_to_num(np.asarray(bottlenecks.view(0), np.float32)[rows])
    return None
