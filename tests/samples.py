"""Small but real inputs of tests: images, modules, heads."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from hubretrain.files import file_sha256
from hubretrain.runs import FitRecord, Run

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE = 300.0  # seconds until a test calls something hung; none passes or fails by less


def encoded(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


PIXEL = encoded(np.zeros((2, 2, 3), np.uint8))


@contextlib.contextmanager
def web_server(
    folder: Path, handler: type[http.server.SimpleHTTPRequestHandler], host: str = "127.0.0.1"
) -> Iterator[str]:
    """Serve a folder at the URL that is yielded."""
    address = (host, 0)
    make = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(address, make) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{host}:{server.server_address[1]}"
        server.shutdown()


def write_pixels(root: Path, *paths: str) -> Path:
    """Write the same small picture to each path in a folder."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PIXEL)
    return root


def write_digits(folder: Path, n_images: int, classes: tuple[int, ...] = (0, 1, 2)) -> Path:
    """Some of scikit-learn's handwritten digits as PNG files in class folders."""
    digits = load_digits()
    chosen = [i for i in range(len(digits.target)) if digits.target[i] in classes][:n_images]
    for i in chosen:
        place = folder / str(digits.target[i])
        place.mkdir(parents=True, exist_ok=True)
        pixels = (255 - digits.images[i] * 255 / 16).astype(np.uint8)
        (place / f"{i:04d}.png").write_bytes(encoded(pixels))
    return folder


def write_unbalanced(folder: Path) -> Path:
    """Noise of two classes: 24 images of `many`, 3 of `few`."""
    random = np.random.default_rng(0)
    for name, n in (("many", 24), ("few", 3)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            (folder / name / f"{i}.png").write_bytes(encoded(pixels))
    return folder


def write_module(
    folder: Path,
    size: int = 8,
    n_features: int = 5,
    seed: int = 0,
    give: str = "features",
    trainable: bool = True,
) -> Path:
    """A small but real module in TF-Hub's format: a convolution, a pool, a dense layer.

    `give`: `features`, `nan` features, or a `map` of features, to be refused.
    """
    from hubretrain.tensorflow import tf

    random = np.random.default_rng(seed)
    small = tf.__internal__.tracking.AutoTrackable()
    kernel = tf.Variable(random.normal(0, 0.3, (3, 3, 3, 8)), dtype=tf.float32, name="conv/kernel")
    dense = tf.Variable(
        random.normal(0, 0.3, (32, n_features)), dtype=tf.float32, name="dense/kernel"
    )
    small.variables = [kernel, dense]
    small.trainable_variables = [kernel, dense] if trainable else []
    small.regularization_losses = []

    def features(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = tf.nn.relu(tf.nn.conv2d(images - 0.5, kernel, 2, "SAME"))
        if training:
            x = x * 1.5
        if give == "map":
            return x
        x = tf.reshape(tf.image.resize(x, (2, 2), antialias=True), (-1, 32)) @ dense
        return x / 0.0 if give == "nan" else x

    small.__call__ = tf.function(features)
    spec = tf.TensorSpec((None, size, size, 3), tf.float32)
    for training in (False, True):
        small.__call__.get_concrete_function(spec, training)
    tf.saved_model.save(small, str(folder))
    return folder


def write_pooled(folder: Path, size: int | None = 8, seed: int = 0) -> Path:
    """A small but real module of operations that both engines know."""
    from hubretrain.tensorflow import tf

    random = np.random.default_rng(seed)
    pooled = tf.Module()
    pooled.kernels = [
        tf.Variable(random.normal(0, 0.3, shape), dtype=tf.float32)
        for shape in ((3, 3, 3, 16), (3, 3, 16, 32), (32, 20))
    ]

    def features(images: tf.Tensor) -> tf.Tensor:
        first, second, last = pooled.kernels
        x = tf.nn.relu6(tf.nn.conv2d(images - 0.5, first, 2, "SAME"))
        x = tf.nn.relu6(tf.nn.conv2d(x, second, 1, "SAME"))
        return tf.reduce_mean(x, (1, 2)) @ last

    spec = tf.TensorSpec((None, size, size, 3), tf.float32)
    pooled.__call__ = tf.function(features, input_signature=[spec])
    tf.saved_model.save(pooled, str(folder))
    return folder


def write_residual(folder: Path, size: int = 16) -> Path:
    """A Keras network with a shortcut, as a module: stem, residual block, head, pool."""
    import tf_keras
    from tf_keras import layers

    from hubretrain.modules.builders.keras_export import export_keras

    tf_keras.utils.set_random_seed(3)
    images = layers.Input((size, size, 3), name="images")
    x = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(images)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = stem = layers.ReLU(6.0, name="stem_relu")(x)
    x = layers.Conv2D(8, 1, name="block_expand")(x)
    x = layers.ReLU(6.0, name="block_relu")(x)
    x = layers.Conv2D(6, 3, padding="same", name="block_project")(x)
    x = layers.Add(name="block_add")([stem, x])
    x = layers.Conv2D(10, 1, name="head_conv")(x)
    x = layers.ReLU(6.0, name="head_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    export_keras(tf_keras.Model(images, x, name="residual"), folder)
    return folder


def photo_crops(n: int, size: int = 8) -> np.ndarray:
    """Small pieces of two photographs, uint8 (n, size, size, 3)."""
    photos = load_sample_images().images
    corners = np.random.default_rng(1).integers(0, 300, (n, 2))
    return np.stack([photos[i % 2][y:, x:][:size, :size] for i, (y, x) in enumerate(corners)])


def small_head(backbone: object) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a head of three classes that has an opinion on `photo_crops`."""
    features = backbone(photo_crops(40).astype("f4") / 255).numpy()
    weight = np.random.default_rng(0).normal(size=(20, 3))
    weight *= 2 / (features @ weight).std(axis=0)
    return weight.astype("f4"), -(features @ weight).mean(axis=0).astype("f4")


def at_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities at a temperature by its formula: p ** (1 / T), normalised."""
    odds = probs.astype(np.float64) ** (1 / temperature)
    return odds / odds.sum(axis=1, keepdims=True)


def fit_record(**changes: object) -> FitRecord:
    """The record of a fit with the usual options."""
    record = FitRecord(
        data=Path("data/digits"),
        data_options={"skip_unmatched": False},
        cache=Path("cache"),
        class_names=("0", "1", "2"),
        metric="balanced_accuracy",
        class_weights=("none", "balanced"),
        l2=(1.0, 10.0),
        adjust=(0.0, 1.0),
        views=True,
        layers=None,
        heads=("softmax", "logistic"),
        n_folds=5,
        test_fraction=0.2,
        top=3,
        duplicates_kept_together=True,
        seed=0,
        shortlist=("small",),
        test_looked_at=(),
        modules={},
        notes=(),
    )
    return replace(record, **changes)


def record_files(run: Run) -> None:
    """Let `run.json` name the digests of the files of the fit as they are now."""
    paths = [*run.folder.glob("*.csv"), *run.folder.glob("heads/*"), run.ensemble_file]
    files = {
        path.relative_to(run.folder).as_posix(): file_sha256(path)
        for path in paths
        if path.exists()
    }
    run.write_fit(replace(run.fit, files=files))


@contextlib.contextmanager
def threads_take_turns() -> Iterator[None]:
    """Let threads that are started now change at every line, so that races between them show."""

    def let_others_run(*_: object) -> Callable[..., object]:
        time.sleep(0)
        return let_others_run

    threading.settrace(let_others_run)
    try:
        yield
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
