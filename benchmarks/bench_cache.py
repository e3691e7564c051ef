"""How much of the bare forward pass the cache keeps, end to end, and what the allocator gives.

    python benchmarks/bench_cache.py [DATA] [--module NAME] [--views K] [--images N]

Prints one table: images a second of the module alone on pixels in memory (the bound), of
`hubretrain cache` from files to HDF5 (after start-up), of the bare pass with TensorFlow's default
allocator, and their ratios to the bound. Bound and cache take turns in one run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

BARE = """
import sys, time
import numpy as np
from hubretrain.engines import TensorFlowEngine
from hubretrain.modules import resolve
from hubretrain.modules.backbone import Backbone
backbone = Backbone(resolve(sys.argv[1]))
engine = TensorFlowEngine(backbone)
size = backbone.stored.image_size
images = list(np.random.default_rng(0).integers(0, 256, (48, size, size, 3), dtype=np.uint8))
engine(images)
started, done = time.monotonic(), 0
while time.monotonic() - started < 10:
    engine(images)
    done += len(images)
print(done / (time.monotonic() - started))
"""


def bare(module: str, *, keep_memory: bool) -> float:
    """Images a second of the module alone, in a process of its own."""
    environment = {**os.environ, "TF_CPU_ALLOCATOR_USE_BFC": str(int(keep_memory))}
    command = [sys.executable, "-c", BARE, module]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(ran.stdout)


def cached(data: Path, module: str, n_views: int) -> float:
    """Images a second from files to HDF5, what start-up costs taken off.

    Two caches are made, one of all images and one of 48: their difference has no start-up.
    """
    from hubretrain.cache import cache_bottlenecks
    from hubretrain.dataset import open_dataset
    from hubretrain.modules import resolve

    whole = open_dataset(data)
    few = replace(whole, images=whole.images.iloc[:48].reset_index(drop=True))
    seconds, forward_passes = [], []
    for dataset in (few, few, whole):  # the first one imports and warms up
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            (found,) = cache_bottlenecks(
                dataset, [resolve(module)], n_views=n_views, folder=Path(folder), quiet=True
            )
            seconds.append(time.monotonic() - started)
            forward_passes.append(found.n_computed)
    return (forward_passes[2] - forward_passes[1]) / (seconds[2] - seconds[1])


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--module", default="efficientnet_lite0")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = asked.data or Path(folder) / "digits"
        if asked.data is None:
            digits = Path(__file__).resolve().parent.parent / "examples" / "digits.py"
            subprocess.run([sys.executable, digits, data], check=True, capture_output=True)
        rows = [
            (
                bare(asked.module, keep_memory=True),
                cached(data, asked.module, asked.views),
                bare(asked.module, keep_memory=False),
            )
            for _ in range(asked.repeats)
        ]
    bound, ours, default = np.median(rows, axis=0)
    print(f"| {asked.module}, {asked.views} views | images/s | of the bound |")
    print("|---|---|---|")
    print(f"| the module alone (the bound) | {bound:.1f} | 1.00 |")
    print(f"| hubretrain cache, files to HDF5 | {ours:.1f} | {ours / bound:.2f} |")
    print(f"| the module alone, default allocator | {default:.1f} | {default / bound:.2f} |")


if __name__ == "__main__":
    main()
