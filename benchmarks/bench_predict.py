"""Prediction: how long one image takes from a cold start, how fast many go, and who agrees.

    python benchmarks/bench_predict.py RUN DATA [--export FOLDER] [--files 1000]

Cold: whole processes, the median of 10, in turns with `python -c pass` and with the SavedModel in
TensorFlow. Many: `predict` over files, in turns with the bare interpreter, which finds its pixels
in memory and does nothing else; the baseline. Parity, on the run's test split: each format against
the SavedModel on the same pixels, and the SavedModel's own decoder against `predict` on the same
bytes.
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
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(11):  # the first is for the page cache
        for name, command in contenders.items():
            if "savedmodel" in name and number > 3:
                continue
            before, begun = _used(), time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:
                seconds[name].append(time.perf_counter() - begun)
                processor[name].append(_used() - before)
    print("| one image, a process of its own | seconds, median | range | of the processor |")
    print("|---|---|---|---|")
    for name, found in seconds.items():
        shown = f"{min(found):.2f} to {max(found):.2f}, {len(found)} times"
        used = np.median(processor[name])
        print(f"| {name} | {np.median(found):.2f} | {shown} | {used:.2f} |", flush=True)


def _used() -> float:
    """Seconds of the processor that children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def many(exported: Export, files: list[Path], rounds: int) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model = str(exported.model("litert"))
    one = Interpreter(model, num_threads=os.cpu_count())
    runner = one.get_signature_runner("pixels")
    size = exported.sizes[0]
    some = [to_unit(view(decode(path.read_bytes()), size)[np.newaxis]) for path in files[:64]]
    runner(pixels=some[0])
    bare, ours = [], []
    share = len(files) // rounds
    for number in range(rounds):
        begun = time.perf_counter()
        for i in range(share):
            runner(pixels=some[i % len(some)])
        bare.append(share / (time.perf_counter() - begun))
        mine = files[number * share : (number + 1) * share]
        begun = time.perf_counter()
        n = sum(not found.error for found in predict_images(exported.folder, mine))
        ours.append(n / (time.perf_counter() - begun))
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

    def said(form: str) -> np.ndarray:
        runner = open_runtime(exported, form)
        parts = range(0, len(files), 16)
        return np.concatenate(
            [runner({s: p[i : i + 16] for s, p in pixels.items()}) for i in parts]
        )

    truth = said("savedmodel")
    serve = tf.saved_model.load(str(exported.folder)).signatures["serving_default"]
    graph = np.concatenate(
        [
            serve(image_bytes=tf.constant(contents[i : i + 16]))["probabilities"].numpy()
            for i in range(0, len(contents), 16)
        ]
    )
    rows = {"SavedModel, its own decoder, same bytes": graph}
    rows |= {f"{form}, same pixels": said(form) for form in FORMATS if exported.has(form)}
    print(f"\n| {len(files):,} test images | same top class | largest difference | mean |")
    print("|---|---|---|---|")
    for name, found in rows.items():
        same = (found.argmax(axis=1) == truth.argmax(axis=1)).sum()
        off = np.abs(found - truth)
        print(
            f"| {name} | {same} of {len(files)} | {off.max():.1e} | {off.mean():.1e} |", flush=True
        )


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["cold", "many", "parity"], action="append")
    asked = parser.parse_args()
    folder = asked.export or Run(asked.run).export_folder
    exported = Export.open(folder)
    folds = read_folds(Run(asked.run).folds_file)
    tests = [asked.data / path for path in folds.loc[folds["fold"] == TEST, "path"]]
    every = [asked.data / path for path in folds["path"]][: asked.files]
    wanted = asked.only or ["cold", "many", "parity"]
    if "cold" in wanted:
        cold(folder, tests[0])
    if "many" in wanted:
        many(exported, every, asked.rounds)
    if "parity" in wanted:
        parity(exported, tests)


if __name__ == "__main__":
    main()
