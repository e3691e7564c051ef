"""What an image costs, and how much memory the cache takes, from 1,000 to 100,000 images.

    python benchmarks/bench_cache_scale.py [--sizes 1000 10000 100000]

Synthetic images of 16 x 16 pixels and a trivial module, so that all but the forward pass is
measured: listing, digests, decoding, writing, sealing; start-up is taken off by a run of 48 images.
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
    """Writes ``n`` small noisy BMP files, all different, in two class folders."""
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


def one_size(place: Path, n: int, repeats: int) -> tuple[float, float]:
    """Microseconds an image after start-up, and peak memory in MiB, in this process."""
    from dataclasses import replace

    from hubretrain.cache import cache_bottlenecks
    from hubretrain.dataset import open_dataset
    from hubretrain.modules import resolve

    whole = open_dataset(place / str(n))
    few = replace(whole, images=whole.images.iloc[:48].reset_index(drop=True))
    seconds = {"few": [], "whole": []}
    for _ in range(repeats + 1):
        for name, dataset in (("few", few), ("whole", whole)):
            with tempfile.TemporaryDirectory(dir=place) as folder:
                started = time.monotonic()
                cache_bottlenecks(
                    dataset,
                    [resolve(str(place / "module"))],
                    n_views=1,
                    engine="tensorflow",
                    folder=Path(folder),
                    quiet=True,
                )
                seconds[name].append(time.monotonic() - started)
    spent = np.median(seconds["whole"][1:]) - np.median(seconds["few"][1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return 1e6 * float(spent) / (n - 48), peak


def no_work(place: Path, n: int) -> float:
    """Seconds of the command with nothing to do, start-up and all."""
    command = [sys.executable, "-m", "hubretrain.cli", "cache", place / str(n), "--views", "1"]
    command += ["--module", place / "module", "--cache", place / "cache", "--engine", "tensorflow"]
    subprocess.run(command, check=True, capture_output=True)
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        place, n, repeats = asked.one
        print(json.dumps(one_size(Path(place), int(n), int(repeats))))
        return
    print("| images | microseconds an image | peak memory, MiB | nothing to do, s |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_module(place / "module")
        for n in asked.sizes:
            write_images(place / str(n), n)
            repeats = max(1, min(9, 50_000 // n))
            command = [sys.executable, __file__, "--one", place, str(n), str(repeats)]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            cost, peak = json.loads(ran.stdout.splitlines()[-1])
            print(f"| {n:,} | {cost:.0f} | {peak:.0f} | {no_work(place, n):.2f} |", flush=True)


if __name__ == "__main__":
    main()
