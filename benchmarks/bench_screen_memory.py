"""Memory of `screen` on two Ray workers, of the driver and of a worker, by the number of images.

    python benchmarks/bench_screen_memory.py [--sizes 1000 10000 50000]

Synthetic images of 16 x 16 pixels and a trivial module, all images in one slice. Near duplicates,
which have a benchmark of their own, are not searched.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from bench_cache_scale import write_images, write_module

MIB = 2**20
WARM_UP = 200  # images


def measure(workspace: Path, n: int) -> tuple[float, float, float]:
    """Return peak memory of this process and of a worker, MiB, and seconds."""
    from hubretrain.data import SplitOptions, open_dataset
    from hubretrain.extraction import Cluster
    from hubretrain.progress import progress_shown
    from hubretrain.racing import RaceOptions, race_modules

    peaks = {"driver": 0.0, "worker": 0.0}
    is_over = threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not is_over.wait(0.5):
            peaks["driver"] = max(peaks["driver"], own.memory_info().rss / MIB)
            for process in own.children(recursive=True):
                try:
                    if " ".join(process.cmdline()).startswith("ray::_Worker"):
                        used = process.memory_info()
                        # Without what it shares: the store of objects.
                        peaks["worker"] = max(peaks["worker"], (used.rss - used.shared) / MIB)
                except psutil.Error:  # it has ended
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    split = SplitOptions(keep_duplicates_together=False)
    options = RaceOptions(first=n, minutes=60, engine="tensorflow", split=split)
    with tempfile.TemporaryDirectory(dir=workspace) as folder, progress_shown(False):
        race_modules(
            open_dataset(workspace / str(n)),
            [str(workspace / "module")],
            Path(folder) / "run",
            options,
            cache=Path(folder) / "cache",
            cluster=Cluster(2),
        )
    seconds = time.monotonic() - started
    is_over.set()
    watcher.join()
    return peaks["driver"], peaks["worker"], seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 50_000])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), int(options.measure[1]))))
        return
    print("| images | driver, MiB | worker, MiB | seconds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        write_module(workspace / "module")
        for n in (WARM_UP, *options.sizes):
            write_images(workspace / str(n), n)
            command = [sys.executable, __file__, "--measure", workspace, str(n)]
            process = subprocess.run(command, check=True, capture_output=True, text=True)
            if n == WARM_UP:  # it probes the module, in TensorFlow
                continue
            driver, worker, seconds = json.loads(process.stdout.splitlines()[-1])
            print(f"| {n:,} | {driver:.0f} | {worker:.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
