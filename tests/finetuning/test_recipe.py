"""The ablation of the recipe, benchmarks/bench_finetuning_recipe.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

from hubretrain.data.dataset import open_dataset
from tests.finetuning.runs import copied

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """Yields the benchmark."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("bench_finetuning_recipe")
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
def test_an_ablation_compares_each_ingredient_with_the_default_on_the_same_images(
    bench, fitted, tmp_path
):
    run, dataset, cache = (
        copied(fitted, tmp_path),
        open_dataset(fitted / "digits"),
        fitted / "cache",
    )
    rate = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3}

    def trained(name, **options):
        folder = tmp_path / name
        return bench.trained(run, folder, dataset, cache, "small", **rate, **options)

    runs = {
        bench.DEFAULT: [trained("a", seed=0), trained("b", seed=1)],
        "ema 0.99": [trained("c", seed=0, ema=0.99), trained("d", seed=1, ema=0.99)],
        "nothing": [trained("a", seed=0), trained("b", seed=1)],
    }
    images = bench.test_images(runs[bench.DEFAULT][0], dataset, cache, "small")
    rows, sentences = bench.ablation(runs, "small", images)
    metric = run.fit.metric
    figures = {
        name: [100 * copy.finetune.modules["small"].test[metric][0] for copy in copies]
        for name, copies in runs.items()
    }
    assert [row[0] for row in rows[3:]] == [f"**{name}**" for name in (bench.HEAD, bench.MEAN)]
    of_head = 100 * pd.read_csv(run.folder / "leaderboard.csv")[f"test_{metric}"][0]
    assert float(rows[3][1]) == pytest.approx(of_head, abs=0.051)
    for row, of_seeds in zip(rows[:3], figures.values(), strict=True):
        assert float(row[1]) == pytest.approx(sum(of_seeds) / 2, abs=0.051)  # of one digit
    change = (sum(figures["ema 0.99"]) - sum(figures[bench.DEFAULT])) / 2
    assert float(rows[1][2].split()[0]) == pytest.approx(change, abs=0.051)
    assert rows[2][2] == "+0.0 (+0.0 to +0.0)"
    assert len(sentences) == 2
