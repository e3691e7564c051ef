"""What the tests of the engines share."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from hubretrain.extraction.engines import choice
from hubretrain.modules import resolve
from tests.samples import PATIENCE

needs_openvino = pytest.mark.skipif(
    not (choice._is_installed("openvino") and choice._is_installed("nncf")), reason="no OpenVINO"
)


def probed(folder):
    from hubretrain.modules.backbone import Backbone

    return Backbone(resolve(str(folder))).stored


def noise(n, size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return list(pixels)


def run_python(script, *arguments, **environment):
    """Run a script in a process of its own and return what it printed; one that hangs is killed."""
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return process.stdout.strip()


def relative_error(features, expected):
    return np.linalg.norm(features - expected) / np.linalg.norm(expected)


def segments(module, layers):
    """The columns of the module's own output, and of each layer's means and deviations."""
    widths = {point.name: point.n_channels for point in module.layer_points}
    ends = np.cumsum([module.n_features, *(widths[name] for name in layers for _ in range(2))])
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def relative_errors(features, expected, columns):
    differences = [np.linalg.norm(features[:, c] - expected[:, c]) for c in columns]
    return np.array(differences) / [np.linalg.norm(expected[:, c]) for c in columns]
