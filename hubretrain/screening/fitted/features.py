"""Cached bottlenecks as arrays, with labels, groups and folds: what scikit-learn takes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hubretrain.arrays import BoolArray, Float32Array, IntArray
from hubretrain.bottlenecks import Bottlenecks, bottleneck_files
from hubretrain.data import ImageDataset, SplitOptions, open_dataset, targets
from hubretrain.data.splitting import read_folds
from hubretrain.errors import CacheError
from hubretrain.files import StrPath
from hubretrain.runs import Run


class Features(NamedTuple):
    """Features of a data set by one module, one row per image.

    Attributes:
        X: float32 (n_images, n_features).
        y: int64 (n_images,), class index in [0, n_classes); where an image may have several labels,
            bool (n_images, n_classes), an indicator of each.
        groups: Cluster of each image, text (n_images,): images that are kept in one part.
        folds: int8 (n_images,): 0, 1, ...; -1 for the test split, -2 for training only.
        class_names: Class names; class `c` is `class_names[c]`.
    """

    X: Float32Array
    y: IntArray | BoolArray
    groups: npt.NDArray[np.object_]
    folds: npt.NDArray[np.int8]
    class_names: tuple[str, ...]


def load_features(
    source: Run | ImageDataset | StrPath,
    module: str,
    *,
    layers: str | tuple[str, ...] = "last",
    view: int = 0,
    cache: StrPath = "cache",
    split: SplitOptions = SplitOptions(),
) -> Features:
    """Load cached features of all usable images, to fit models of your own on the same folds.

    Args:
        source: A fitted run or its folder, for its images and folds; or a data set or its folder,
            which is split as `fit` would.
        module: Name of a cached module.
        layers: `last`, `all`, or names of inner layers; see `Bottlenecks`.
        view: Number of the cached view; 0 is the image itself.
        cache: The cache folder of a data set; a run knows its own.
        split: How a data set is split.

    Raises:
        CacheError: The module or a layer is not cached, or not of all images.
        RunError: The run is not fitted, or damaged.
        DataError: See `open_dataset`.

    Examples:
        >>> from hubretrain import load_features
        >>> X, y, groups, folds, class_names = load_features("runs/digits", "small")
        >>> X.shape, y.shape, class_names
        ((120, 5), (120,), ('0', '1', '2'))
        >>> load_features("data/digits", "small", layers="all").X.shape
        (120, 21)
    """
    if not isinstance(source, Run | ImageDataset):
        run = Run(source)
        source = run if run.record_file.exists() else open_dataset(source)
    if isinstance(source, Run):
        fit = source.fit
        images = read_folds(source.checked(source.folds_file))
        images = images.rename(columns={"group": "cluster"})
        folder, class_names, multi_label = fit.cache_folder, fit.class_names, fit.multi_label
    else:
        images = source.split(split, cache=cache)
        folder, class_names = source.cache_folder(cache), source.class_names
        multi_label = source.multi_label
    return Features(
        _rows(folder, module, images, layers, view),
        targets(images["label"], class_names, multi_label),
        images["cluster"].to_numpy(object),
        images["fold"].to_numpy(np.int8),
        class_names,
    )


def _rows(
    folder: Path, module: str, images: pd.DataFrame, layers: str | tuple[str, ...], view: int
) -> Float32Array:
    files = {path.stem: path for path in bottleneck_files(folder)}
    if module not in files:
        raise CacheError(
            f"{module} is not cached in {folder}/ (there are: {', '.join(files)}); "
            "run `hubretrain cache` with this module first."
        )
    with Bottlenecks(files[module]) as bottlenecks:
        bottlenecks.check_module(module)
        return bottlenecks.rows(images["sha256"].tolist(), view, layers)
