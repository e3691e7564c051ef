"""Images, modules and runs that saliency maps are known of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.heads.heads import Head, ModuleHeads
from hubretrain.runs import ModuleRecord, Run
from hubretrain.tensorflow import tf
from tests.samples import fit_record, record_files

SIZE = 16


def red_square(row: int, column: int, seed: int = 0) -> np.ndarray:
    """A grey, noisy image with a red square of 5 x 5 pixels."""
    random = np.random.default_rng(seed)
    image = (0.45 + 0.1 * random.random((SIZE, SIZE, 1))).repeat(3, axis=2).astype(np.float32)
    image[row : row + 5, column : column + 5] = (0.9, 0.1, 0.1)
    return image


def write_flat(folder: Path) -> Path:
    """A module without a feature map: a matrix product of the pixels."""
    flat = tf.Module()
    matrix = np.random.default_rng(0).normal(0, 0.1, (SIZE * SIZE * 3, 20))
    flat.matrix = tf.Variable(matrix, dtype=tf.float32)
    spec = tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32)
    flat.__call__ = tf.function(
        lambda images: tf.reshape(images, (-1, SIZE * SIZE * 3)) @ flat.matrix,
        input_signature=[spec],
    )
    tf.saved_model.save(flat, str(folder))
    return folder


def fitted_head(folder: Path, place: Path, *, all_layers: bool = False) -> Run:
    """A run whose one module has a head, as far as explain reads it."""
    from hubretrain.modules import resolve
    from hubretrain.modules.backbone import Backbone

    stored = Backbone(resolve(str(folder))).stored
    layers = tuple(point.name for point in stored.layer_points) if all_layers else ()
    n_features = Backbone(stored, layers).n_features
    run = Run(place / "run")
    random = np.random.default_rng(0)
    rule, weight = DecisionRule(0.0, (0.5, 0.5)), random.normal(0, 3, (n_features, 2))
    head = Head("softmax", weight, np.zeros(2), rule, np.ones(2), layers=layers)
    ModuleHeads(head, head, head, ("a", "b")).save(run.heads_file(folder.name), {})
    module = {"handle": str(folder), "image_size": SIZE, "value_range": "[0, 1]"}
    module |= {"module": folder.name, "module_sha256": stored.sha256}
    modules = {folder.name: ModuleRecord.of(module)}
    run.write_fit(fit_record(class_names=("a", "b"), shortlist=(folder.name,), modules=modules))
    record_files(run)
    return run
