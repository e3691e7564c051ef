"""Which modules get networks, and how long those take."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pandas as pd
import pytest

from hubretrain.heads import mlp
from hubretrain.runs import Run
from hubretrain.screening import stages
from hubretrain.screening.options import ScreenOptions
from hubretrain.screening.screen import screen
from hubretrain.screening.stages import Stages, seconds_of_networks
from hubretrain.screening.sweep import Sweep
from tests.screening.samples import images_of, write_features


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, pd.DataFrame, Sweep]:
    images, features = images_of(40, n_folds=2)
    file = write_features(tmp_path / "m.h5", images, [features])
    options = ScreenOptions(heads=("mlp",), metric="accuracy")
    return file, images, Sweep.of(options, ("a", "b", "c"), images["class_index"].to_numpy())


def test_a_long_time_of_networks_is_told_before_they_are_fitted(
    inputs: tuple[Path, pd.DataFrame, Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert seconds_of_networks(*inputs) > 0
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(stages, "seconds_of_step", lambda *_: 0.1)
    file, images, sweep = inputs
    # 2 folds, 2 decays, 2 seeds, of all images and without each of 2 parts: 300 steps each.
    assert seconds_of_networks(*inputs) == pytest.approx(8 * 3 * 300 * 0.1)
    with caplog.at_level(logging.INFO, "hubretrain"):
        Stages(images, sweep, Run(tmp_path / "run"), seed=0)._tell_time([file])
    assert "Networks on m take about 12 minutes; `heads=softmax` does without." in caplog.text
    caplog.clear()
    monkeypatch.setattr(stages, "seconds_of_step", lambda *_: 0.008)
    with caplog.at_level(logging.INFO, "hubretrain"):
        Stages(images, sweep, Run(tmp_path / "run"), seed=0)._tell_time([file])
    assert not caplog.text


@pytest.mark.slow
def test_the_steps_of_networks_are_those_that_were_counted_before_and_of_kept_ones_none(
    inputs: tuple[Path, pd.DataFrame, Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(stages, "seconds_of_step", lambda *_: 1.0)
    file, images, sweep = inputs
    taken: list[int] = []
    step = mlp.Adam.step

    def counted(self: mlp.Adam, *args: object) -> None:
        taken.append(1)
        step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(mlp.Adam, "step", counted)
    result, heads = screen(file, images, sweep)
    n_refitted = len(taken) - seconds_of_networks(*inputs)
    assert n_refitted in [n * 2 * mlp.n_steps(40) for n in (1, 2, 3)]  # of two seeds, some roles
    run = Run(tmp_path / "run")
    result.save(run.screened_file("m", "mlp"), heads)
    with caplog.at_level(logging.INFO, "hubretrain"):
        Stages(images, sweep, run, seed=0)._tell_time([file])
    assert not caplog.text
