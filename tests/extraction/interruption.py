"""Stops at any line of the package's code, and files that are filled until one comes.

Imported by processes that are forked, so it imports nothing that starts threads.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

import numpy as np

import hubretrain
from hubretrain.bottlenecks import BottleneckWriter, RowIndex, layer_segments

HOUSE = str(Path(hubretrain.__file__).parent)
N_FEATURES = 5
LAYERS = layer_segments(N_FEATURES, [("a", 3, 3, 1), ("b", 2, 2, 2)])
FACTS = {"module": "m", "module_sha256": "m", "seed": 0}


class Stop:
    """Does something when the main thread comes to the n-th line of the package's code."""

    def __init__(self, n, action):
        self.left, self.action = n, action

    def __enter__(self):
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _enter(self, frame, _event, _argument):
        return self._line if frame.f_code.co_filename.startswith(HOUSE) else None

    def _line(self, _frame, event, _argument):
        self.left -= event == "line"
        if self.left == 0:
            self.action()
        return self._line


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


def wanted(names, n_views):
    sha256s = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    return RowIndex(tuple(names), tuple(sha256s), np.array(n_views, np.int16))


def features_of(known, n_columns):
    """Features that follow from a text; the output's last bits depend on the layers beside it."""
    size = 4 * N_FEATURES
    output = np.frombuffer(hashlib.sha256(known.encode()).digest()[:size], "u4").astype(np.float32)
    if n_columns == N_FEATURES:
        return np.nextafter(output, np.float32(0))
    return np.concatenate([output, np.resize(output / 2, n_columns - N_FEATURES)])


def fill(path, rows, order_seed, layers=None):
    """Fills a bottleneck file in batches of a random order."""
    random = np.random.default_rng(order_seed)
    with BottleneckWriter(path, rows, N_FEATURES, FACTS, layers=layers) as writer:
        n_columns = writer.segments[-1].stop
        todo = random.permutation(np.argwhere(writer.todo))
        for first in range(0, len(todo), 7):
            r, v = todo[first : first + 7].T
            known = [f"{writer.rows.sha256[row]}{view}" for row, view in zip(r, v, strict=True)]
            writer.write(v, r, np.array([features_of(text, n_columns) for text in known]))
        writer.seal()


def fill_until_killed(path, rows, order_seed, layers, n_lines):
    with Stop(n_lines, kill):
        fill(path, rows, order_seed, layers)
