"""Run the benchmarks that need no images of your own: `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (["bench_cache.py"], ["bench_intervals.py", "--repetitions", "100"])


def main() -> None:
    """Run the benchmarks one after the other, each in a process of its own."""
    for name, *arguments in BENCHMARKS:
        print(f"\n## {name} {' '.join(arguments)}", flush=True)
        subprocess.run(
            [sys.executable, Path(__file__).resolve().parent / name, *arguments], check=True
        )


if __name__ == "__main__":
    main()
