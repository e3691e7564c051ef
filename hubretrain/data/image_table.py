"""What the image files of a data set contain: digests, near duplicates, clusters, what is usable.

The functions work on paths and plain tables; `dataset.ImageDataset` calls them for its images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hubretrain.arrays import Float32Array
from hubretrain.bottlenecks import Bottlenecks
from hubretrain.data.digests import image_digests
from hubretrain.data.near_duplicates import NearDuplicates, find_near_duplicates
from hubretrain.data.quarantine import Quarantine
from hubretrain.errors import CacheError
from hubretrain.progress import Bar


def read_digests(root: Path, paths: Sequence[str], folder: Path) -> list[str]:
    """Return the sha256 of each image file, in order; only changed files are read.

    Args:
        root: The folder that `paths` are relative to.
        paths: The image files.
        folder: The data set's folder in the cache.
    """
    with Bar("reading files", len(paths)) as bar:
        return image_digests(root, paths, folder, bar.advance)


def search_near_duplicates(
    root: Path, paths: Sequence[str], sha256s: Sequence[str], folder: Path
) -> NearDuplicates:
    """Return the near duplicates among contents, searched once and kept in the cache.

    Where a module is cached for all images, pairs with a high cosine similarity of its features
    are compared too.

    Args:
        root: The folder that `paths` are relative to.
        paths: The image files.
        sha256s: Digest of each image file.
        folder: The data set's folder in the cache.
    """
    with contextlib.ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def show(what: str, n_done: int, n: int) -> None:
            if what not in bars:
                stack.pop_all().close()  # the bar before it is done
                unit = what.rsplit(" ", 1)[-1]
                bars[what] = stack.enter_context(Bar(what, n, unit))
            bars[what].advance(n_done - bars[what].done)

        return find_near_duplicates(
            root,
            paths,
            sha256s,
            folder,
            features=lambda contents: _cached_features(folder, contents),
            progress=show,
        )


def without_quarantined(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the rows whose content, column `sha256`, is not in quarantine.

    Args:
        table: One row per image.
        folder: The data set's folder in the cache.
    """
    quarantine = Quarantine(folder)
    return table[~table["sha256"].isin(list(quarantine.reasons))].reset_index(drop=True)


def cluster_names(
    groups: pd.Series, sha256s: pd.Series, pairs: pd.DataFrame | None = None
) -> list[str]:
    """Join images that share a group or a content, or are near duplicates, directly or not.

    Args:
        groups: Group of each image.
        sha256s: Digest of each image.
        pairs: Near duplicates, columns `a` and `b`, each the sha256 of some image.

    Returns:
        The cluster of each image, named by the least sha256 in it.
    """
    # A graph whose nodes are contents and groups. Each image ties its content to its group, each
    # pair of near duplicates ties two contents; clusters are the connected components.
    group_codes, _ = pd.factorize(groups)
    content_codes, contents = pd.factorize(sha256s)
    n_contents = len(contents)
    code_of = dict(zip(contents, range(n_contents), strict=True))
    ties = [(), ()] if pairs is None else [[code_of[s] for s in pairs[c]] for c in ("a", "b")]
    start = np.concatenate([content_codes, np.array(ties[0], np.int64)])
    end = np.concatenate([group_codes + n_contents, np.array(ties[1], np.int64)])
    n_nodes = n_contents + len(set(group_codes.tolist()))
    graph = coo_array((np.ones(len(start)), (start, end)), shape=(n_nodes, n_nodes))
    _, components = connected_components(graph, directed=False)
    component_of_image = pd.Series(components[content_codes], index=sha256s.index)
    least: pd.Series = sha256s.groupby(component_of_image).transform("min")
    return [str(name) for name in least]


def _cached_features(folder: Path, sha256s: Sequence[str]) -> Float32Array | None:
    """Return view 0 of contents from the first module that is cached for all of them, or None."""
    for file in sorted(folder.glob("*.h5")):
        with contextlib.suppress(CacheError), Bottlenecks(file) as bottlenecks:
            row_of = {sha256: row for row, sha256 in enumerate(bottlenecks.sha256s)}
            if row_of.keys() >= set(sha256s):
                rows = np.array([row_of[sha256] for sha256 in sha256s], np.int64)
                # Images that cannot be decoded, or are still to do, are NaN; zeros resemble none.
                return np.nan_to_num(np.asarray(bottlenecks.view(0), np.float32)[rows])
    return None
