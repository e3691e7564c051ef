"""Measure the catalogue's networks of Keras Applications; write the table of docs/modules.md.

    python benchmarks/bench_modules.py                  # the table, from modules.csv
    python benchmarks/bench_modules.py --measure NAME   # that row of modules.csv first; or all

A network is built with random weights through a store of its own. Its features of a photograph of
noise are compared with what Keras gives after its own `preprocess_input`; features, parameters and
operations are those of the project's own `complexity`, and the same on every machine.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hubretrain.modules import HubModule, StoredModule, read_catalogue, resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.builders import keras_applications
from hubretrain.modules.keras_handles import parse
from hubretrain.tensorflow import tf

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)

REPOSITORY = Path(__file__).resolve().parent.parent
CATALOGUE = REPOSITORY / "hubretrain" / "modules" / "modules.csv"
PAGE = REPOSITORY / "docs" / "modules.md"
TITLES = ("module", "network", "pixels", "features", "parameters", "GFLOPs", "licence")


def measured(handle: str) -> tuple[StoredModule, float]:
    """Return a network's probed module, and how far its features are from Keras'.

    Args:
        handle: `keras:NAME`, whose weights are drawn at random.

    Returns:
        The module, and the largest difference relative to the largest feature.
    """
    random_handle = f"{handle}?weights=none"
    backbone = Backbone(resolve(random_handle))
    size = backbone.stored.image_size
    levels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.float32)
    keras = parse(random_handle)
    preprocess = inspect.getmodule(
        getattr(tf_keras.applications, keras.application)
    ).preprocess_input
    model = keras_applications.build(keras)
    # Traced, as the module is: other kernels round otherwise, and some networks with random weights
    # (EfficientNetV2M) magnify that without bound.
    expected = tf.function(lambda levels: model(preprocess(levels)))(tf.constant(levels)).numpy()
    features = backbone(tf.constant(levels / 255)).numpy()
    return backbone.stored, float(np.abs(features - expected).max() / np.abs(expected).max())


def measure(names: Sequence[str]) -> None:
    """Write what the networks cost into their rows of `modules.csv`."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["source"] != "keras" or not (row["name"] in names or "all" in names):
            continue
        with tempfile.TemporaryDirectory() as store:
            os.environ["HUBRETRAIN_STORE"] = store
            module, difference = measured(row["handle"])
        tf_keras.backend.clear_session()
        row["image_size"], row["n_features"] = str(module.image_size), str(module.n_features)
        row["n_parameters"], row["gflops"] = str(module.n_parameters), str(module.gflops)
        print(row["name"], module.n_parameters, module.gflops, f"{difference:.1e}", flush=True)
        with CATALOGUE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def table(modules: Sequence[HubModule]) -> str:
    """Return the Markdown table of the networks of Keras Applications that were measured."""
    lines = [TITLES, ("---",) * len(TITLES)]
    for m in modules:
        if m.source == "keras" and m.gflops is not None:
            numbers = (f"{m.n_features:,}", f"{m.n_parameters:,}", f"{m.gflops:.2f}")
            cells = (f"`{m.name}`", f"`{m.own_handle}`", str(m.image_size), *numbers)
            lines.append((*cells, m.license or "unknown"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_table(page: str) -> str:
    """Return the text of the page with the table of today."""
    start = f"| {' | '.join(TITLES)} |\n"
    return re.sub(re.escape(start) + r"(\|.*\n)+", lambda _: table(read_catalogue()), page, count=1)


def main() -> None:
    """Measure what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="+", default=[], metavar="NAME", help="rows, or all")
    measure(parser.parse_args().measure)
    read_catalogue.cache_clear()
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
