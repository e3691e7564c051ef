"""Heads on features of inner layers, made by hand and put into a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from hubretrain.data.images.decoding import decode, view
from hubretrain.heads.heads import Head, ModuleHeads
from hubretrain.modules import choose_layers, resolve
from hubretrain.modules.backbone import Backbone
from hubretrain.runs import Run
from tests.samples import record_files

N_HIDDEN = 6
KINDS = [("softmax", False), ("softmax", True), ("logistic", True), ("mlp", True)]


def pixels_of(folder, paths, size):
    """Images of the data set `digits` in a folder: float32 (n_images, size, size, 3) in [0, 1]."""
    pixels = [view(decode((folder / "digits" / path).read_bytes()), size) for path in paths]
    return np.stack(pixels).astype(np.float32) / 255


def give_head(run: Run, stored, images, kind: str, *, has_layers: bool, seed: int = 0) -> Head:
    """Let fine-tuning of a run start from a head of random weights that has opinions on images."""
    points = choose_layers(stored.layer_points, "all", stored.n_features, stored.image_size)
    layers = tuple(point.name for point in points) if has_layers else ()
    backbone, random = Backbone(stored, layers), np.random.default_rng(seed)
    rows = backbone(images).numpy().astype(np.float64)
    hidden = {}
    if kind == "mlp":
        weight, bias = _affine(rows, N_HIDDEN, random)
        hidden = {"hidden_weight": weight, "hidden_bias": bias}
        rows = np.maximum(rows @ weight + bias, 0)
    path = run.heads_file(stored.name)
    heads = ModuleHeads.load(path)
    weight, bias = _affine(rows, len(heads.class_names), random)
    head = replace(heads.warm_start, kind=kind, layers=layers, weight=weight, bias=bias, **hidden)
    replace(heads, warm_start=head).save(path, {})
    record_files(run)
    return head


def give_network(fitted, *runs: Run) -> None:
    """Let fine-tuning of `small` in runs start from a hidden layer on features of all layers."""
    stored = resolve(str(fitted / "small"))
    paths = pd.read_csv(runs[0].folds_file)["path"]
    images = pixels_of(fitted, paths, stored.image_size)
    for run in runs:
        head = give_head(run, stored, images, "mlp", has_layers=True)
        assert head.layers


def weaken(run: Run, name: str, **changes) -> None:
    """Let fine-tuning of a module start from a tenth of its head: there is something to gain."""
    heads = ModuleHeads.load(run.heads_file(name))
    weaker = replace(heads.warm_start, weight=heads.warm_start.weight * 0.1, **changes)
    replace(heads, warm_start=weaker).save(run.heads_file(name), {})
    record_files(run)


def _affine(rows, n_outputs, random):
    """Weight and bias, float32, that give each output mean 0 and deviation 1 on the rows."""
    scale = np.maximum(rows.std(axis=0), 1e-3 * np.abs(rows).max())
    weight = random.normal(size=(rows.shape[1], n_outputs)) / scale[:, None]
    weight /= (rows @ weight).std(axis=0)
    return weight.astype(np.float32), -(rows @ weight).mean(axis=0).astype(np.float32)
