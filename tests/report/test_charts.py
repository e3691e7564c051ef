from __future__ import annotations

from pathlib import Path

import numpy as np

from hubretrain.report import charts
from hubretrain.report.report import write_report
from hubretrain.runs import HISTORY, Run
from tests.report.samples import copied, data_of


def test_the_pareto_front_holds_what_nothing_cheaper_beats() -> None:
    costs, values = [1.0, 2.0, 3.0, 2.0, 4.0], [0.5, 0.7, 0.6, 0.4, 0.9]
    assert charts.pareto(costs, values) == [0, 1, 4]


def test_a_loss_that_became_infinite_is_left_out_of_its_curve(tuned: Run, tmp_path: Path) -> None:
    run = copied(tuned, tmp_path / "run")
    history = HISTORY.read(run.finetune_folder("pixels"))
    history["loss"] = history["loss"].replace(0.5, np.inf)
    HISTORY.write(run.finetune_folder("pixels"), history)
    found = write_report(run, n_saliency=0)
    (line, *_) = data_of(found.page)["charts"]["training-0-loss"]["series"]
    assert line["x"] == [2.0]
    assert line["y"] == [0.2]
