"""The engines side by side: speed, exactness, and the accuracy that a coarser one costs.

    python benchmarks/bench_engines.py DATA [--module NAME ...] [--images N] [--speed-only]

One row per module and engine: images per second on pixels in memory (median of rounds of 4 s in
which the engines take turns) and their ratio to TensorFlow f32, the baseline; relative error of
the features, ||x - x_tf|| / ||x_tf||; and balanced accuracy, out of fold over 5 folds of whole
groups, of the same softmax head fitted to the first view of the images, with its difference from
f32. Confidence intervals: 95 %, 1,000 resamples of whole groups.
bf16 is measured where the CPU has it.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hubretrain.data.dataset import open_dataset
from hubretrain.data.images.decoding import decode, view
from hubretrain.evaluation.intervals import difference, group_resamples, interval, resample
from hubretrain.extraction.engines import Engine, TensorFlowEngine, calibrate, open_engine
from hubretrain.extraction.engines.openvino_library import can_bf16
from hubretrain.extraction.engines.quantization import sample
from hubretrain.extraction.engines.tensorflow import images_per_second
from hubretrain.heads.estimators import SoftmaxHead
from hubretrain.modules import StoredModule, resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.parallel import ahead

METRIC = "balanced_accuracy"
PENALTY = 3e-4  # C of scikit-learn, for standardized features; near the best on HAM10000


@dataclass
class Engines:
    """The engines of one module, opened anew for every measurement."""

    module: StoredModule
    backbone: Backbone
    quantised: Path

    def names(self) -> list[tuple[str, str]]:
        """Return the engines that this CPU can run: (engine, precision)."""
        coarse = ["bf16"] if can_bf16() else []
        return [("tensorflow", "f32"), *(("openvino", p) for p in ("f32", *coarse, "int8"))]

    def open(self, name: str, precision: str) -> Engine:
        """Open an engine; TensorFlow's module was loaded before."""
        if name == "tensorflow":
            return TensorFlowEngine(self.backbone)
        quantised = self.quantised if precision == "int8" else None
        return open_engine(self.module, name, precision, quantised=quantised)


def speeds(engines: Engines, rounds: int) -> dict[tuple[str, str], float]:
    """Return the median images per second of each engine."""
    measured: dict[tuple[str, str], list[float]] = {kind: [] for kind in engines.names()}
    for _ in range(rounds):
        for kind, rates in measured.items():
            rates.append(images_per_second(engines.open(*kind), seconds=4.0))
    return {kind: float(np.median(rates)) for kind, rates in measured.items()}


def features(engine: Engine, pixels_of, sha256s: list[str]) -> np.ndarray:
    """Return the bottlenecks of the first view of every content."""
    batch, futures = [], []
    with engine:
        for _, pixels in ahead(pixels_of, sha256s):
            batch.append(pixels)
            if len(batch) == engine.batch_size:
                futures.append(engine.submit(batch))
                futures[max(0, len(futures) - engine.n_ahead)].result()
                batch = []
        futures.append(engine.submit(batch))
        return np.concatenate([future.result() for future in futures])


def out_of_fold(X: np.ndarray, table) -> np.ndarray:
    """Return out-of-fold probabilities over whole groups, (n_images, n_classes)."""
    head = make_pipeline(StandardScaler(), SoftmaxHead(C=PENALTY, class_weight="balanced"))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    return cross_val_predict(
        head, X, table["class_index"], groups=table["cluster"], cv=folds, method="predict_proba"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--module", action="append")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speed-only", action="store_true")
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    print("| module | engine | images/s | ratio | feature error | balanced accuracy | difference |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        table = dataset.usable_images(folder).drop_duplicates("sha256")
        chosen = set(sample(table["sha256"], 0)[: options.images])
        table = table[table["sha256"].isin(chosen)].reset_index(drop=True)
        path_of = dict(zip(table["sha256"], table["path"], strict=True))
        for name in options.module or ["efficientnet_lite0"]:
            backbone = Backbone(resolve(name))
            module = backbone.stored

            def pixels_of(sha256: str, size: int = module.image_size) -> np.ndarray:
                data = (dataset.root / path_of[sha256]).read_bytes()
                return view(decode(data), size, None)

            quantised = Path(folder) / f"{module.name}.int8"
            calibrate(module, quantised, path_of, pixels_of)
            report(
                Engines(module, backbone, quantised),
                table,
                pixels_of,
                options.rounds,
                options.speed_only,
            )


def report(engines: Engines, table, pixels_of, rounds: int, speed_only: bool) -> None:
    """Print the rows of one module."""
    speed = speeds(engines, rounds)
    labels = table["class_index"].to_numpy()
    groups = table["cluster"].to_numpy()
    weights = group_resamples(groups)
    sha256s = table["sha256"].tolist()
    baseline = features(engines.open("tensorflow", "f32"), pixels_of, sha256s[:96])
    exact = None
    for kind in engines.names():
        row = [engines.module.name, " ".join(kind), f"{speed[kind]:.1f}"]
        row.append(f"{speed[kind] / speed['tensorflow', 'f32']:.2f}")
        if kind[0] == "tensorflow":
            print("|", " | ".join([*row, "0", "", ""]), "|", flush=True)
            continue
        n = 96 if speed_only else len(sha256s)
        X = features(engines.open(*kind), pixels_of, sha256s[:n])
        error = np.linalg.norm(X[:96] - baseline) / np.linalg.norm(baseline)
        row.append(f"{error:.1e}" if error < 1e-3 else f"{error:.2f}")
        if speed_only:
            print("|", " | ".join([*row, "", ""]), "|", flush=True)
            continue
        resampled = resample(METRIC, out_of_fold(X, table), labels, groups, weights)
        exact = resampled if exact is None else exact
        estimate, low, high = (100 * value for value in interval(resampled))
        row.append(f"{estimate:.1f} ({low:.1f} to {high:.1f})")
        change = difference(resampled, exact)
        row.append(
            f"{100 * change.estimate:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
            if resampled is not exact
            else "0"
        )
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
