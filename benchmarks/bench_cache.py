"""The cache against the bare forward pass, a 30-line script, and a loop like retrain.py's.

    python benchmarks/bench_cache.py DATA [--modules NAME ...] [--views K] [--images N]

All contenders take turns on the same images, `--repeats` rounds, each in a process of its own;
medians of images (forward passes) a second, start-up taken off by the difference of two runs.

- bare: the first module alone on pixels in memory, TensorFlow, batch 48: the bound.
- script: image_dataset_from_directory, hub.KerasLayer, predict; no antialiasing; once for each
  module and view.
- retrain: batch 1, a text file of floats for each image, as TF-Hub's retrain.py.
- ours: `hubretrain cache`, from files to HDF5, with an engine and precision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_FEW = 48
alone = 0.0  # images a second of the bare forward pass, without the loading of the module


def bare(images: list[Path], modules: list[str], n_views: int, _options: list[str]) -> int:
    """Forwards pixels that are there; the number of images only says how long."""
    from hubretrain.engines import open_engine
    from hubretrain.modules import resolve

    module = resolve(modules[0])
    engine = open_engine(module)
    size = module.image_size
    pixels = list(np.random.default_rng(0).integers(0, 256, (48, size, size, 3), dtype=np.uint8))
    engine(pixels)
    n_batches = len(images) * n_views // 48
    started = time.monotonic()
    for _ in range(n_batches):
        engine(pixels)
    global alone
    alone = 48 * n_batches / (time.monotonic() - started)
    return 48 * n_batches


def script(images: list[Path], modules: list[str], n_views: int, _options: list[str]) -> int:
    """What one writes in half an hour with Keras and TensorFlow Hub."""
    import tensorflow as tf
    import tensorflow_hub as hub
    import tf_keras

    from hubretrain.modules import resolve

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        for image in images:
            (Path(folder) / "images" / image.name).symlink_to(image)
        for name in modules:
            module = resolve(name)
            size = module.image_size
            backbone = tf_keras.Sequential([hub.KerasLayer(str(module.folder))])
            for _ in range(n_views):
                data = tf_keras.utils.image_dataset_from_directory(
                    folder, labels=None, image_size=(size, size), batch_size=32, shuffle=False
                )
                data = data.map(lambda x: x / 255.0, num_parallel_calls=tf.data.AUTOTUNE)
                features = backbone.predict(data.prefetch(tf.data.AUTOTUNE), verbose=0)
                np.save(Path(folder) / "features.npy", features)
    return len(images) * n_views * len(modules)


def retrain(images: list[Path], modules: list[str], n_views: int, _options: list[str]) -> int:
    """One image at a time, each bottleneck a text file."""
    import tensorflow as tf
    import tensorflow_hub as hub

    from hubretrain.modules import resolve

    with tempfile.TemporaryDirectory() as folder:
        for name in modules:
            module = resolve(name)
            loaded, size = hub.load(str(module.folder)), module.image_size

            @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
            def bottleneck(data, loaded=loaded, size=size):
                image = tf.cast(tf.image.decode_jpeg(data, channels=3), tf.float32) / 255.0
                return loaded(tf.image.resize(image[None], (size, size)))

            for v in range(n_views):
                for image in images:
                    values = bottleneck(image.read_bytes()).numpy()[0]
                    text = ",".join(str(x) for x in values)
                    (Path(folder) / f"{image.name}_{name}_{v}.txt").write_text(text)
    return len(images) * n_views * len(modules)


def ours(images: list[Path], modules: list[str], n_views: int, options: list[str]) -> int:
    """`hubretrain cache`, as its user would call it from Python."""
    import pandas as pd

    from hubretrain.cache import cache_bottlenecks
    from hubretrain.dataset import ImageDataset
    from hubretrain.modules import resolve
    from hubretrain.parallel import Cluster

    table = pd.DataFrame({"path": [str(image) for image in images], "group": map(str, images)})
    table["label"] = ["ab"[i % 2] for i in range(len(images))]
    table["split"] = ""
    dataset = ImageDataset("bench", Path("/"), table, ("a", "b"))
    engine, precision, *workers = options
    with tempfile.TemporaryDirectory() as folder:
        if precision == "int8":  # calibrated once for all runs, as for all views of a user's
            folder = tempfile.gettempdir() + f"/bench-{os.getpid()}"
            for file in Path(folder).glob("bench/*.h5"):
                file.unlink()
        found = cache_bottlenecks(
            dataset,
            [resolve(module) for module in modules],
            n_views=n_views,
            folder=Path(folder),
            engine=engine,
            precision=precision,
            cluster=Cluster(int(workers[0])) if workers else None,
            quiet=True,
        )
    return sum(one.n_computed for one in found)


CONTENDERS = {"bare": bare, "script": script, "retrain": retrain, "ours": ours}


def measured(contender: str, few: list[Path], images: list[Path], rest: list) -> float:
    """Images a second of the contender in this process: many images less few."""
    run = CONTENDERS[contender]
    seconds, counts = [], []
    for chosen in (few, few, images):  # the first one imports and warms up
        started = time.monotonic()
        counts.append(run(chosen, *rest))
        seconds.append(time.monotonic() - started)
    return alone or (counts[2] - counts[1]) / (seconds[2] - seconds[1])


def in_a_process(contender: str, *arguments: object) -> float:
    """Images a second of the contender in a process of its own."""
    text = json.dumps([contender, *arguments], default=str)
    ran = subprocess.run(
        [sys.executable, __file__, "--contender", text],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{contender}: {ran.stderr}")
    return float(ran.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--modules", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["bare", "script", "retrain", "ours:tensorflow:f32"],
        help="contenders; ours:ENGINE:PRECISION[:WORKERS]",
    )
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        contender, few, images, *rest = json.loads(asked.contender)
        print(measured(contender, [*map(Path, few)], [*map(Path, images)], rest))
        return
    if asked.data is None:
        parser.error("name a folder of JPEGs")
    images = sorted(asked.data.resolve().rglob("*.jpg"))[: asked.images]
    found: dict[str, list[float]] = {row: [] for row in asked.rows}
    for _ in range(asked.repeats):
        for row in asked.rows:
            contender, *options = row.split(":")
            few = images[: min(N_FEW, len(images) // 2)]
            found[row].append(
                in_a_process(contender, few, images, asked.modules, asked.views, options)
            )
            print(row, f"{found[row][-1]:.1f}", file=sys.stderr, flush=True)
    medians = {row: float(np.median(speeds)) for row, speeds in found.items()}
    print(f"{len(images)} images of {asked.data.name}, {asked.views} views, {asked.modules}")
    print(f"| | images/s | {' | '.join(f'of {row}' for row in asked.rows[:-1])} |")
    print("|---" * (len(asked.rows) + 1) + "|")
    for row, speed in medians.items():
        ratios = " | ".join(f"{speed / medians[other]:.2f}" for other in asked.rows[:-1])
        print(f"| {row} | {speed:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
