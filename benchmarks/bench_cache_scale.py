"""Time per image and memory of the cache, from 1,000 to 100,000 images.

    python benchmarks/bench_cache_scale.py [--sizes 1000 10000 100000]

Synthetic images of 16 x 16 pixels and a trivial module, so that all but the forward pass is
measured: listing, digests, decoding, writing, sealing; a run of 48 images measures start-up, which
is subtracted.
Wall time, and CPU time, which a shared machine disturbs less. The sizes take turns.
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

from hubretrain.extraction import CacheOptions


def write_images(folder: Path, n: int) -> None:
    """Write `n` small noisy BMP files, all different, in two class folders."""
    from PIL import Image

    random = np.random.default_rng(n)
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for i in range(n):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i:06}.bmp")


def write_module(folder: Path) -> None:
    """Write a module in TF-Hub's format that does next to nothing."""
    import tensorflow as tf

    module = tf.Module()
    kernel = tf.constant(np.random.default_rng(0).random((3, 64)), tf.float32)
    spec = tf.TensorSpec((None, 16, 16, 3), tf.float32)
    module.__call__ = tf.function(
        lambda images: tf.reduce_mean(images, (1, 2)) @ kernel, input_signature=[spec]
    )
    tf.saved_model.save(module, str(folder))


def measure_run(workspace: Path, n: int) -> tuple[float, float, float]:
    """Return wall and CPU microseconds per image after start-up, and peak memory so far in MiB."""
    from dataclasses import replace

    from hubretrain.data.dataset import open_dataset
    from hubretrain.extraction.cache import cache_bottlenecks
    from hubretrain.modules import resolve
    from hubretrain.progress import progress_shown

    whole = open_dataset(workspace / str(n))
    few = replace(whole, images=whole.images.iloc[:48].reset_index(drop=True))
    seconds = []
    for dataset in (few, few, whole):  # the first warms up
        with tempfile.TemporaryDirectory(dir=workspace) as folder, progress_shown(False):
            started = np.array([time.monotonic(), time.process_time()])
            cache_bottlenecks(
                dataset,
                [resolve(str(workspace / "module"))],
                CacheOptions(n_views=1, engine="tensorflow"),
                cache=Path(folder),
            )
            seconds.append(np.array([time.monotonic(), time.process_time()]) - started)
    wall, cpu = 1e6 * (seconds[2] - seconds[1]) / (n - 48)
    return wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds_without_work(workspace: Path, n: int) -> float:
    """Return the seconds of the command with nothing to do, start-up included."""
    command = [sys.executable, "-m", "hubretrain", "cache", workspace / str(n), "--views", "1"]
    command += [
        "--module",
        workspace / "module",
        "--cache",
        workspace / "cache",
        "--engine",
        "tensorflow",
    ]
    subprocess.run(command, check=True, capture_output=True)
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_run(Path(options.measure[0]), int(options.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        write_module(workspace / "module")
        for n in options.sizes:
            write_images(workspace / str(n), n)
        results: dict[int, list[list[float]]] = {n: [] for n in options.sizes}
        for _ in range(options.rounds):
            for n, rows in results.items():
                command = [sys.executable, __file__, "--measure", workspace, str(n)]
                process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(process.stdout.splitlines()[-1]))
        print("| images | us per image | CPU us per image | peak memory, MiB | nothing to do, s |")
        print("|---|---|---|---|---|")
        for n, rows in results.items():
            wall, cpu, peak = np.median(rows, axis=0)
            again = seconds_without_work(workspace, n)
            print(f"| {n:,} | {wall:.0f} | {cpu:.0f} | {peak:.0f} | {again:.2f} |", flush=True)


if __name__ == "__main__":
    main()
