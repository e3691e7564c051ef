"""Prediction: one image from a cold start, the rate over many files, and agreement of formats.

    python benchmarks/bench_predict.py RUN DATA [--export FOLDER] [--files 1000]

Cold: whole processes, the median of 10, in turns with `python -c pass` and with the SavedModel in
TensorFlow. Many: `predict` over files, in turns with the baseline, the bare interpreter on pixels
in memory. Parity, on the run's test split: each format against the SavedModel on the same pixels,
and the SavedModel's own decoder against `predict` on the same bytes.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hubretrain.data.images.decoding import decode, to_unit, view
from hubretrain.data.splitting.folds import TEST, read_folds
from hubretrain.export.manifest import Export
from hubretrain.export.predict import predict_images
from hubretrain.export.runtimes import FORMATS, open_runtime
from hubretrain.runs import Run


def cold(export: Path, image: Path) -> None:
    predict = [sys.executable, "-m", "hubretrain", "predict", str(export), str(image)]
    contenders = {
        "`python -c pass`": [sys.executable, "-c", "pass"],
        "`python -c 'import numpy'`": [sys.executable, "-c", "import numpy"],
        "`hubretrain predict`": predict,
        "the same, `--format savedmodel`": [*predict, "--format", "savedmodel"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(11):  # the first fills the page cache
        for name, command in contenders.items():
            if "savedmodel" in name and number > 3:
                continue
            cpu_before, started = _child_cpu_seconds(), time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:
                seconds[name].append(time.perf_counter() - started)
                cpu_seconds[name].append(_child_cpu_seconds() - cpu_before)
    print("| one image, a process of its own | seconds, median | range | CPU seconds |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        shown = f"{min(times):.2f} to {max(times):.2f}, {len(times)} times"
        used = np.median(cpu_seconds[name])
        print(f"| {name} | {np.median(times):.2f} | {shown} | {used:.2f} |", flush=True)


def _child_cpu_seconds() -> float:
    """Return the CPU seconds that child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def many(exported: Export, files: list[Path], rounds: int) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model = str(exported.model("litert"))
    interpreter = Interpreter(model, num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner("pixels")
    size = exported.sizes[0]
    pixels = [to_unit(view(decode(path.read_bytes()), size)[np.newaxis]) for path in files[:64]]
    runner(pixels=pixels[0])
    bare, ours = [], []
    share = len(files) // rounds
    for number in range(rounds):
        started = time.perf_counter()
        for i in range(share):
            runner(pixels=pixels[i % len(pixels)])
        bare.append(share / (time.perf_counter() - started))
        share_files = files[number * share : (number + 1) * share]
        started = time.perf_counter()
        n = sum(not prediction.error for prediction in predict_images(exported.folder, share_files))
        ours.append(n / (time.perf_counter() - started))
    ratios = np.array(ours) / bare
    print(f"\n| {share * rounds:,} files | images/s | of the bare interpreter |\n|---|---|---|")
    print(f"| bare interpreter, pixels in memory | {np.median(bare):.1f} | 1.00 |")
    spread = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
    print(f"| `predict`, with opening it | {np.median(ours):.1f} | {spread} |")


def parity(exported: Export, files: list[Path]) -> None:
    from hubretrain.tensorflow import tf

    sizes = exported.sizes
    contents = [path.read_bytes() for path in files]
    pixels = {s: to_unit(np.stack([view(decode(data), s) for data in contents])) for s in sizes}

    def probabilities(format: str) -> np.ndarray:
        runner = open_runtime(exported, format)
        parts = range(0, len(files), 16)
        return np.concatenate(
            [runner({s: p[i : i + 16] for s, p in pixels.items()}) for i in parts]
        )

    expected = probabilities("savedmodel")
    serve = tf.saved_model.load(str(exported.folder)).signatures["serving_default"]
    graph = np.concatenate(
        [
            serve(image_bytes=tf.constant(contents[i : i + 16]))["probabilities"].numpy()
            for i in range(0, len(contents), 16)
        ]
    )
    rows = {"SavedModel, its own decoder, same bytes": graph}
    rows |= {f"{name}, same pixels": probabilities(name) for name in FORMATS if exported.has(name)}
    print(f"\n| {len(files):,} test images | same top-1 | largest difference | mean |")
    print("|---|---|---|---|")
    for name, probs in rows.items():
        same = (probs.argmax(axis=1) == expected.argmax(axis=1)).sum()
        gap = np.abs(probs - expected)
        print(
            f"| {name} | {same} of {len(files)} | {gap.max():.1e} | {gap.mean():.1e} |", flush=True
        )


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["cold", "many", "parity"], action="append")
    options = parser.parse_args()
    folder = options.export or Run(options.run).export_folder
    exported = Export.open(folder)
    folds = read_folds(Run(options.run).folds_file)
    tests = [options.data / path for path in folds.loc[folds["fold"] == TEST, "path"]]
    every = [options.data / path for path in folds["path"]][: options.files]
    benchmarks = options.only or ["cold", "many", "parity"]
    if "cold" in benchmarks:
        cold(folder, tests[0])
    if "many" in benchmarks:
        many(exported, every, options.rounds)
    if "parity" in benchmarks:
        parity(exported, tests)


if __name__ == "__main__":
    main()
