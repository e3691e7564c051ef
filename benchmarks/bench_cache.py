"""The cache against the bare forward pass, a 30-line script, and a loop like retrain.py's.

    python benchmarks/bench_cache.py DATA [--modules NAME ...] [--views K] [--images N]

The contenders take turns in one process, `--rounds` times; a shared machine changes its speed
within minutes, so each ratio is the median of the rounds' ratios. A contender's speed is that
between its first and last batch, without start-up.

- bare: the first module alone on pixels in memory, TensorFlow, batch 48: the bound.
- script: image_dataset_from_directory, hub.KerasLayer, predict; no antialiasing; once per module
  and view.
- retrain: batch 1, one text file of floats per image, as TF-Hub's retrain.py.
- ours:ENGINE:PRECISION[:WORKERS]: `hubretrain cache`, from files to HDF5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hubretrain.extraction import CacheOptions

Marks = Iterator[int]  # yields the number of forward passes just done


class Contest:
    """The images, the modules and the models that contenders have loaded."""

    def __init__(self, images: list[Path], modules: list[str], n_views: int, folder: Path) -> None:
        from hubretrain.modules import resolve
        from hubretrain.modules.backbone import Backbone

        self.images, self.n_views, self.folder = images, n_views, folder
        self.modules = [resolve(name) for name in modules]
        self.modules = [m if m.probed else Backbone(m).stored for m in self.modules]
        (folder / "linked" / "images").mkdir(parents=True)
        for image in images:
            (folder / "linked" / "images" / image.name).symlink_to(image)
        self.loaded: dict[str, object] = {}

    def once(self, name: str, make: Callable[[], object]) -> object:
        """Return the result of `make`, which is called once per name."""
        if name not in self.loaded:
            self.loaded[name] = make()
        return self.loaded[name]

    def bare(self) -> Marks:
        """Run the module alone, TensorFlow, batch 48."""
        from hubretrain.extraction.engines import open_engine

        size = self.modules[0].image_size
        random = np.random.default_rng(0)
        pixels = list(random.integers(0, 256, (48, size, size, 3), dtype=np.uint8))
        engine = self.once("bare", lambda: open_engine(self.modules[0]))
        for _ in range(max(3, len(self.images) * self.n_views // 48)):
            engine(pixels)
            yield 48

    def script(self) -> Marks:
        """Run the script that one writes in half an hour with Keras and TensorFlow Hub."""
        import tensorflow_hub as hub
        import tf_keras
        from tensorflow import data as tf_data

        for module in self.modules:

            def make(folder: str = str(module.folder)) -> object:
                return tf_keras.Sequential([hub.KerasLayer(folder)])

            backbone = self.once(f"script {module.name}", make)
            for _ in range(self.n_views):
                images = tf_keras.utils.image_dataset_from_directory(
                    self.folder / "linked",
                    labels=None,
                    image_size=(module.image_size, module.image_size),
                    batch_size=32,
                    shuffle=False,
                )
                images = images.map(lambda x: x / 255.0, num_parallel_calls=tf_data.AUTOTUNE)
                features = backbone.predict(images.prefetch(tf_data.AUTOTUNE), verbose=0)
                np.save(self.folder / "features.npy", features)
                yield len(features)

    def retrain(self) -> Marks:
        """Run one image at a time and write each bottleneck to a text file."""
        import tensorflow as tf
        import tensorflow_hub as hub

        for module in self.modules:

            def make(folder: str = str(module.folder), size: int = module.image_size) -> object:
                loaded = hub.load(folder)

                @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
                def bottleneck(data: tf.Tensor) -> tf.Tensor:
                    image = tf.cast(tf.image.decode_jpeg(data, channels=3), tf.float32) / 255.0
                    return loaded(tf.image.resize(image[None], (size, size)))

                return bottleneck

            forward = self.once(f"retrain {module.name}", make)
            for v in range(self.n_views):
                for image in self.images:
                    values = forward(image.read_bytes()).numpy()[0]
                    text = ",".join(str(x) for x in values)
                    (self.folder / f"{image.name}_{module.name}_{v}.txt").write_text(text)
                    yield 1

    def ours(self, engine: str, precision: str, workers: str = "") -> Marks:
        """Run `hubretrain cache` as from Python; marks are batches written."""
        import pandas as pd

        from hubretrain.bottlenecks import BottleneckWriter
        from hubretrain.data.dataset import ImageDataset
        from hubretrain.extraction.cache import cache_bottlenecks
        from hubretrain.extraction.ray import Cluster
        from hubretrain.progress import progress_shown

        paths = [str(image) for image in self.images]
        table = pd.DataFrame({"path": paths, "group": paths, "split": ""})
        table["label"] = ["ab"[i % 2] for i in range(len(paths))]
        dataset = ImageDataset("bench", Path("/"), table, ("a", "b"))
        cache = self.folder / f"cache {engine} {precision}"  # keeps what int8 was calibrated to
        for file in cache.glob("bench/*.h5"):
            file.unlink()
        marks: list[tuple[float, int]] = []
        write = BottleneckWriter.write

        def written(writer: BottleneckWriter, views, rows, features) -> None:
            write(writer, views, rows, features)
            marks.append((time.perf_counter(), len(rows)))

        BottleneckWriter.write = written
        try:
            with progress_shown(False):
                cache_bottlenecks(
                    dataset,
                    self.modules,
                    CacheOptions(n_views=self.n_views, engine=engine, precision=precision),
                    cache=cache,
                    cluster=Cluster(int(workers)) if workers else None,
                )
        finally:
            BottleneckWriter.write = write
        yield marks

    def speed(self, row: str) -> float:
        """Return the forward passes per second of a contender, from its first batch to its last."""
        name, *options = row.split(":")
        marks: list[tuple[float, int]] = []
        if name == "script":  # its batches are hidden in predict: all but start-up is timed
            started = time.perf_counter()
            counts = list(self.script())
            return sum(counts) / (time.perf_counter() - started)
        for mark in getattr(self, name)(*options):
            marks += mark if isinstance(mark, list) else [(time.perf_counter(), mark)]
        (first, _), (last, _) = marks[0], marks[-1]
        return sum(n for _, n in marks[1:]) / (last - first)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--modules", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=["bare", "ours:tensorflow:f32"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:  # `make bench`, without images of one's own
            import subprocess

            digits = Path(__file__).resolve().parent.parent / "examples" / "digits.py"
            options.data = Path(folder) / "digits"
            subprocess.run([sys.executable, digits, options.data], check=True, capture_output=True)
        images = sorted(
            p for p in options.data.resolve().rglob("*") if p.suffix in (".jpg", ".png")
        )
        contest = Contest(
            images[: options.images], options.modules, options.views, Path(folder) / "bench"
        )
        rounds = []
        for _ in range(options.rounds + 1):
            rounds.append([contest.speed(row) for row in options.rows])
            print(*(f"{speed:.1f}" for speed in rounds[-1]), file=sys.stderr, flush=True)
        speeds = np.array(rounds[1:])  # the first round loads and warms up
    print(f"{len(contest.images)} images, {options.views} views, {', '.join(options.modules)}")
    print(f"| | images/s | {' | '.join(f'of {row}' for row in options.rows[:-1])} |")
    print("|---" * (len(options.rows) + 1) + "|")
    for i, row in enumerate(options.rows):
        ratios = np.median(speeds[:, i, None] / speeds[:, :-1], axis=0)
        shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {row} | {np.median(speeds[:, i]):.1f} | {shown} |")


if __name__ == "__main__":
    main()
