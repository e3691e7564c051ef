"""The training loop against a bare step, and the cached trunk against running it each epoch.

    python benchmarks/bench_finetune.py step [--module efficientnet_lite0] [--layers]
    python benchmarks/bench_finetune.py trunk [--unfreeze-last 23]
    python benchmarks/bench_finetune.py tune DATA --cache CACHE --run RUN [--epochs 2]

`step`: steps per second of the whole loop (files decoded, cropped and augmented, steps counted)
against a bare `tf.GradientTape` step with Keras' Adam on pixels in memory, with the same module,
batch size and variables. With `--layers` both have a head on the features of all layers, and the
bare step is also compared with one on the module's own output. `trunk`: seconds of an epoch that
trains the last layers, with and without cached activations. Contenders take turns within one
process and each ratio is the median over neighbouring rounds, because a shared machine changes its
speed within minutes. Images are noise, written as JPEG files of 320 x 240 pixels.
`tune` is a short fine-tuning of a fitted run, to measure a change by: seconds and validation loss.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from hubretrain.finetuning.devices import available_devices
from hubretrain.finetuning.input_pipeline import (
    PixelSource,
    TrainingImages,
    shuffled,
    split,
)
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.trainer import Trainer
from hubretrain.modules import choose_layers, resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.modules.classifier import Classifier
from hubretrain.tensorflow import tf

N_CLASSES = 5


def noise(folder: Path, n_images: int) -> TrainingImages:
    """Write noise as smooth as photographs: JPEG files of 320 x 240 pixels."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n_images):
        small = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((320, 240)).save(folder / f"{i:04d}.jpg", quality=85)
    names = [f"{i:04d}.jpg" for i in range(n_images)]
    labels = random.integers(0, N_CLASSES, n_images)
    weights = np.ones((n_images, 1), np.float32)
    return TrainingImages(folder, names, [f"{i:064x}" for i in range(n_images)], labels, weights)


def loaded(module: str, *, has_layers: bool = False) -> Backbone:
    """Return a module, with the layers that `hubretrain cache` takes or without."""
    stored = Backbone(resolve(module)).stored
    points = choose_layers(
        stored.layer_points or (),
        "all" if has_layers else "last",
        stored.n_features,
        stored.image_size,
    )
    return Backbone(stored, [point.name for point in points])


def training(backbone: Backbone, folder: Path, tuning: FineTuneOptions) -> Trainer:
    """Return a trainer that starts from a random head."""
    weight = np.random.default_rng(1).normal(0, 0.01, (backbone.n_features, N_CLASSES))
    classifier = Classifier(
        backbone, "softmax", weight.astype(np.float32), np.zeros(N_CLASSES, np.float32)
    )
    return Trainer(classifier, folder, tuning, available_devices())


def bare_step(classifier: Classifier, variables: list) -> object:
    """Return the training step that anyone would write."""
    import tf_keras

    adam = tf_keras.optimizers.Adam(1e-6, jit_compile=False)
    adam.build(variables)

    @tf.function
    def step(pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = classifier.logits(tf.cast(pixels, tf.float32) / 255.0)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        adam.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def bench_step(options: argparse.Namespace) -> None:
    """Measure the loop against the bare step."""
    with tempfile.TemporaryDirectory() as folder:
        n_images = options.batch_size * options.steps
        images = noise(Path(folder) / "images", n_images)
        backbone = loaded(options.module, has_layers=options.layers)
        tuning = FineTuneOptions(epochs=10_000, batch_size=options.batch_size, learning_rate=1e-6)
        loop = training(backbone, Path(folder) / "run", tuning)
        loop.begin(n_images)
        loop.prepare(None)
        bare = bare_step(loop.model.classifier, loop.model.trained_variables)
        contenders = [bare]
        if options.layers:
            plain = training(loaded(options.module), Path(folder) / "plain", tuning).model
            contenders.append(bare_step(plain.classifier, plain.trained_variables))
        order = shuffled(n_images, 0, 1)
        source = PixelSource(backbone.stored.image_size, tuning.augmentation, 0)
        batches = split(order, options.batch_size)
        ready = list(
            source.batches(images, batches, split(source.epoch_views(order, 1), options.batch_size))
        )
        ratios, speeds, costs = [], [], []
        for round_number in range(options.rounds + 1):
            seconds = []
            for step in contenders:
                started = time.monotonic()
                for pixels, batch in zip(ready, batches, strict=True):
                    float(step(pixels, images.labels[batch]))
                seconds.append(time.monotonic() - started)
            started = time.monotonic()
            loop.state.batch, loop.state.loss_sum = 0, 0.0
            loop.epochs.train(1, "all", images, loop.state, loop.schedule)
            in_loop = time.monotonic() - started
            if round_number:  # the first one traces
                ratios.append(seconds[0] / in_loop)
                speeds.append(n_images / in_loop)
                costs.append(seconds[0] / seconds[-1])
        print("| module | batch | loop, images/s | loop / bare, steps/s | rounds |")
        print("|---|---|---|---|---|")
        print(
            f"| {options.module} | {options.batch_size} | {np.median(speeds):.1f} | "
            f"{np.median(ratios):.3f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )
        if options.layers:
            print(
                f"{backbone.n_features:,} features instead of {backbone.stored.n_features:,}: a "
                f"bare step takes {np.median(costs):.3f} times as long "
                f"({min(costs):.2f} to {max(costs):.2f})."
            )


def bench_trunk(options: argparse.Namespace) -> None:
    """Measure an epoch on cached activations against one on pixels."""
    with tempfile.TemporaryDirectory() as folder:
        images = noise(Path(folder) / "images", options.batch_size * options.steps)
        backbone = Backbone(resolve(options.module))
        loops = []
        for views in (0, 1):
            tuning = FineTuneOptions(
                epochs=10_000,
                batch_size=options.batch_size,
                learning_rate=1e-6,
                unfreeze_last=options.unfreeze_last,
                trunk_views=views,
            )
            loop = training(backbone, Path(folder) / f"run{views}", tuning)
            loop.begin(len(images))
            activations = loop._activations(images, images)
            if activations is not None:
                cut = activations.cut
                n_bytes = 2 * int(np.prod(cut.shape))
                print(f"cut at {cut.name}, {cut.shape}, {n_bytes:,} bytes per view")
            loop.prepare(activations)
            loops.append(loop)
        ratios = []
        for round_number in range(options.rounds + 1):
            seconds = []
            for loop in loops:
                started = time.monotonic()
                loop.state.batch, loop.state.loss_sum = 0, 0.0
                loop.epochs.train(1, "all", images, loop.state, loop.schedule)
                seconds.append(time.monotonic() - started)
            if round_number:  # the first one traces, and computes the activations
                ratios.append(seconds[0] / seconds[1])
        print("| module | layers trained | without / with cached activations | rounds |")
        print("|---|---|---|---|")
        print(
            f"| {options.module} | {options.unfreeze_last} | {np.median(ratios):.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} |"
        )


def bench_tune(options: argparse.Namespace) -> None:
    """Fine-tune a copy of a fitted run for a few epochs."""
    from hubretrain.data.dataset import open_dataset
    from hubretrain.finetuning.finetune import finetune_module
    from hubretrain.runs import Run

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(options.run, Path(folder) / "run")
        tuning = FineTuneOptions(epochs=options.epochs, unfreeze_last=options.unfreeze_last)
        started = time.monotonic()
        result = finetune_module(
            open_dataset(options.data),
            Run(Path(folder) / "run"),
            cache=options.cache,
            options=tuning,
        )
        print(f"{result.module}: {time.monotonic() - started:.0f} s")
        print(result.history.to_string(index=False))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, function in (("step", bench_step), ("trunk", bench_trunk), ("tune", bench_tune)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--unfreeze-last", type=int, default=23)
        if name == "tune":
            command.add_argument("data", type=Path)
            command.add_argument("--cache", type=Path, required=True)
            command.add_argument("--run", type=Path, required=True)
            command.add_argument("--epochs", type=int, default=2)
        else:
            command.add_argument("--module", default="efficientnet_lite0")
            command.add_argument("--batch-size", type=int, default=16)
            command.add_argument("--steps", type=int, default=4)
            command.add_argument("--rounds", type=int, default=5)
            command.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
