"""What an image costs, and how much memory the cache takes, from 1,000 to 100,000 images.

    python benchmarks/bench_cache_scale.py [--sizes 1000 10000 100000]

Synthetic images of 16 x 16 pixels and a trivial module, so that all but the forward pass is
measured: listing, digests, decoding, writing, sealing; start-up is taken off by a run of 48 images.
Wall time, and processor time, which a machine that others use disturbs less. The sizes take turns.
Then the same command once more, with nothing to do, as a user types it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def write_images(folder: Path, n: int) -> None:
    """Writes `n` small noisy BMP files, all different, in two class folders."""
    from PIL import Image

    random = np.random.default_rng(n)
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for i in range(n):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i:06}.bmp")


def write_module(folder: Path) -> None:
    """A module in TF-Hub's format that does next to nothing."""
    import tensorflow as tf

    module = tf.Module()
    kernel = tf.constant(np.random.default_rng(0).random((3, 64)), tf.float32)
    spec = tf.TensorSpec((None, 16, 16, 3), tf.float32)
    module.__call__ = tf.function(
        lambda images: tf.reduce_mean(images, (1, 2)) @ kernel, input_signature=[spec]
    )
    tf.saved_model.save(module, str(folder))


def one_run(place: Path, n: int) -> tuple[float, float, float]:
    """Microseconds an image after start-up, wall and processor; peak memory, MiB, so far."""
    from dataclasses import replace

    from hubretrain.data.dataset import open_dataset
    from hubretrain.extraction.cache import cache_bottlenecks
    from hubretrain.modules import resolve

    whole = open_dataset(place / str(n))
    few = replace(whole, images=whole.images.iloc[:48].reset_index(drop=True))
    seconds = []
    for dataset in (few, few, whole):  # the first warms up
        with tempfile.TemporaryDirectory(dir=place) as folder:
            started = np.array([time.monotonic(), time.process_time()])
            cache_bottlenecks(
                dataset,
                [resolve(str(place / "module"))],
                n_views=1,
                engine="tensorflow",
                folder=Path(folder),
            )
            seconds.append(np.array([time.monotonic(), time.process_time()]) - started)
    wall, processor = 1e6 * (seconds[2] - seconds[1]) / (n - 48)
    return wall, processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def no_work(place: Path, n: int) -> float:
    """Seconds of the command with nothing to do, start-up and all."""
    command = [sys.executable, "-m", "hubretrain", "cache", place / str(n), "--views", "1"]
    command += ["--module", place / "module", "--cache", place / "cache", "--engine", "tensorflow"]
    subprocess.run(command, check=True, capture_output=True)
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one_run(Path(asked.one[0]), int(asked.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_module(place / "module")
        for n in asked.sizes:
            write_images(place / str(n), n)
        found: dict[int, list[list[float]]] = {n: [] for n in asked.sizes}
        for _ in range(asked.rounds):
            for n, rows in found.items():
                command = [sys.executable, __file__, "--one", place, str(n)]
                ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(ran.stdout.splitlines()[-1]))
        print("| images | us an image | of processor time | peak memory, MiB | nothing to do, s |")
        print("|---|---|---|---|---|")
        for n, rows in found.items():
            wall, processor, peak = np.median(rows, axis=0)
            again = no_work(place, n)
            print(
                f"| {n:,} | {wall:.0f} | {processor:.0f} | {peak:.0f} | {again:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
