"""Images without files, and bottleneck files of features that are made up."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from hubretrain.bottlenecks import BottleneckWriter, RowIndex, layer_segments

SHARES = (0.6, 0.3, 0.1)


def images_of(n_images, n_features=6, n_folds=3, signal=1.0, seed=0, group_size=1):
    """Images of three unbalanced classes, and features that tell them apart a little."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.choice(3, n_images, p=SHARES))
    images = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(n_images)],
            "sha256": [hashlib.sha256(b"%d" % i).hexdigest() for i in range(n_images)],
            "class_index": labels,
            "cluster": np.arange(n_images) // group_size,
            "fold": np.arange(n_images) // group_size % n_folds,
        }
    )
    features = rng.normal(size=(n_images, n_features)) + signal * np.eye(n_features)[labels]
    return images, features.astype(np.float32)


def write_features(path, images, views, n_views_of=None, inner=None):
    """A finished bottleneck file of the features of each view, (n_images, n_features).

    `inner` holds means and standard deviations of one inner layer, (n_images, 2 * n_channels).
    """
    known = {"module": path.stem, "handle": path.stem, "module_sha256": "0", "image_size": 8}
    n_views_of = np.full(len(images), len(views)) if n_views_of is None else n_views_of
    rows = RowIndex(tuple(images["path"]), tuple(images["sha256"]), n_views_of.astype(np.int16))
    known |= {"value_range": "[0.0, 1.0]"}
    layers = None
    if inner is not None:
        layers = layer_segments(views[0].shape[1], [("block/Relu", 7, 7, inner[0].shape[1] // 2)])
        views = [np.hstack(both) for both in zip(views, inner, strict=True)]
        known["layers"] = "all"
    n_features = views[0].shape[1] - (0 if inner is None else inner[0].shape[1])
    with BottleneckWriter(path, rows, n_features, known, layers=layers) as writer:
        for v, values in enumerate(views):
            here = np.flatnonzero(n_views_of > v)
            writer.write(np.full(len(here), v), here, values[here])
        writer.seal()
    return path
