"""What features of all layers cost beside those of the last: time and bytes per image.

    python benchmarks/bench_cache_layers.py [--module NAME ...] [--engine ENGINE:PRECISION ...]

One row per module and engine. Both passes are opened in one process and take turns, `--rounds`
times; the ratio is the median of the rounds' ratios. Time is the CPU time of the process per image,
on pixels in memory, because a shared machine leaves that alone more than it leaves the clock. Bytes
are those of one view in float32. Values do not matter, so pixels are noise, also those that
calibrate int8.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hubretrain.extraction.engines import Engine, calibrate, open_engine
from hubretrain.extraction.engines.openvino_library import can_bf16
from hubretrain.modules import StoredModule, choose_layers, resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.progress import progress_shown


def cpu_milliseconds(engine: Engine, images: Sequence[np.ndarray], seconds: float) -> float:
    """Return the CPU time per image of an engine that always has batches waiting."""
    started, n_done = time.process_time(), 0
    waiting = [engine.submit(images) for _ in range(engine.n_ahead)]
    while waiting:
        waiting.pop(0).result()
        n_done += len(images)
        if time.process_time() - started < seconds:
            waiting.append(engine.submit(images))
    return 1e3 * (time.process_time() - started) / n_done


def compare(
    module: StoredModule, kind: str, layers: Sequence[str], options: argparse.Namespace
) -> str:
    """Return the row of a module and an engine."""
    name, precision = kind.split(":")
    random = np.random.default_rng(0)
    shape = (48, module.image_size, module.image_size, 3)
    pixels = list(random.integers(0, 256, shape, dtype=np.uint8))
    with contextlib.ExitStack() as stack:
        quantised = None
        if precision == "int8":
            quantised = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "module.int8"
            contents = {str(i): image for i, image in enumerate(pixels)}
            calibrate(module, quantised, contents, contents.get, layers=layers)
        last, every = (
            stack.enter_context(open_engine(module, name, precision, None, quantised, layers=names))
            for names in ((), layers)
        )
        images = pixels[: last.batch_size]
        n_last, n_every = (engine(images).shape[1] for engine in (last, every))
        rounds = np.array(
            [
                [cpu_milliseconds(engine, images, options.seconds) for engine in (last, every)]
                for _ in range(options.rounds)
            ]
        )
    ratios = rounds[:, 1] / rounds[:, 0]
    low, high = np.quantile(ratios, (0.25, 0.75))
    milliseconds = " | ".join(f"{value:.2f}" for value in np.median(rounds, axis=0))
    return (
        f"| {module.name} | {name} {precision} | {milliseconds} | **{np.median(ratios):.2f}** "
        f"({low:.2f} to {high:.2f}) | {4 * n_last:,} | {4 * n_every:,} |"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--module", action="append", help="default: efficientnet_lite0")
    engines = ["tensorflow:f32", "openvino:f32", "openvino:bf16", "openvino:int8"]
    parser.add_argument("--engine", action="append", choices=engines, help="default: all")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time of a round")
    options = parser.parse_args()
    kinds = [k for k in options.engine or engines if can_bf16() or k != "openvino:bf16"]
    print(
        "| module | engine | last, CPU ms | all, CPU ms | ratio (quartiles) | bytes | bytes, all |"
    )
    print("|---|---|---|---|---|---|---|")
    for handle in options.module or ["efficientnet_lite0"]:
        module = Backbone(resolve(handle)).stored
        points = module.layer_points or ()
        chosen = choose_layers(points, "all", module.n_features, module.image_size)
        for kind in kinds:
            with progress_shown(False):
                row = compare(module, kind, [point.name for point in chosen], options)
            print(row, flush=True)


if __name__ == "__main__":
    main()
