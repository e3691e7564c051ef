from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from hubretrain.bottlenecks import Bottlenecks, BottleneckWriter, layer_segments
from hubretrain.evaluation import DecisionRule, Evaluator
from hubretrain.heads.heads import Head, ModuleHeads
from hubretrain.report.depth import OUTPUT, depth_section, layer_effects
from hubretrain.report.report import write_report
from hubretrain.report.run_data import gather
from hubretrain.runs import Run
from hubretrain.screening import formatting
from tests.browsing import run as browse
from tests.report.samples import copied, data_of
from tests.samples import record_files

WIDTHS = {OUTPUT: 5, "early": 8, "deep": 6}


def head_of(kind: str) -> Head:
    random = np.random.default_rng(3)
    n_in, n_hidden = sum(WIDTHS.values()), 7
    first = random.normal(0, 0.2, (n_in, n_hidden if kind == "mlp" else 3)), random.normal(size=7)
    rule, equal = DecisionRule(0.5, (0.5, 0.3, 0.2)), np.ones(3)
    if kind != "mlp":
        return Head(kind, first[0], first[1][:3], rule, equal, layers=("early", "deep"))
    last = random.normal(size=(n_hidden, 3)), random.normal(size=3)
    hidden = {"hidden_weight": first[0], "hidden_bias": first[1]}
    return Head(kind, *last, rule, equal, layers=("early", "deep"), **hidden)


@pytest.mark.parametrize("kind", ["softmax", "logistic", "mlp"])
def test_a_layer_is_dropped_by_putting_its_means_in_its_place(kind: str) -> None:
    random = np.random.default_rng(0)
    labels, groups = random.integers(0, 3, 300), np.arange(300) // 2
    blocks = {
        name: random.normal(2, 1, (300, n)).astype(np.float32) + labels[:, None]
        for name, n in WIDTHS.items()
    }
    head, evaluator = head_of(kind), Evaluator(labels, groups)
    readers = {name: lambda name=name: blocks[name] for name in blocks}
    accuracies = layer_effects(head, readers, evaluator, "accuracy")
    losses = layer_effects(head, readers, evaluator, "log_loss")
    whole = head.probabilities(np.hstack(list(blocks.values())))
    for name in blocks:
        means = np.broadcast_to(blocks[name].mean(axis=0), blocks[name].shape)
        probs = head.probabilities(np.hstack([*{**blocks, name: means}.values()]))
        expected = [accuracy_score(labels, head.rule.decide(p)) for p in (probs, whole)]
        assert accuracies[name].estimate == pytest.approx(expected[0] - expected[1], abs=1e-9)
        assert accuracies[name].low <= accuracies[name].estimate <= accuracies[name].high
        expected = [log_loss(labels, p) for p in (probs, whole)]
        assert losses[name].estimate == pytest.approx(expected[0] - expected[1], abs=1e-4)


@pytest.fixture
def layered(fitted: Run, tmp_path: Path) -> Run:
    """The run with inner layers in its cache: noise, and what the module's output tells."""
    run = copied(fitted, tmp_path / "layered")
    fit, random = run.fit, np.random.default_rng(0)
    module = fit.shortlist[0]
    with Bottlenecks(fit.cache_folder / f"{module}.h5") as old:
        output = np.stack([old.rows(old.sha256s, v) for v in range(old.n_views)])
        n = old.n_features
        segments = layer_segments(n, [("stem<b>/Relu", 14, 14, 3), ("top/Relu", 7, 7, n)])
        noise = random.normal(size=(*output.shape[:2], 6))
        views = np.concatenate([output, noise, output, output], axis=2).astype(np.float32)
        path = tmp_path / "cache" / fit.data.name / f"{module}.h5"
        with BottleneckWriter(path, old.index, n, old.attributes, layers=segments) as writer:
            for v, values in enumerate(views):
                writer.write(np.full(len(values), v), np.arange(len(values)), values)
            writer.seal()
    run.write_fit(replace(fit, cache=tmp_path / "cache"))
    heads = ModuleHeads.load(run.heads_file(module))
    assert not heads.warm_start.layers
    weight, nothing = heads.warm_start.weight, np.zeros((6, 3))
    last = np.zeros_like(weight)  # all that it knows of the output it reads from the last layer
    head = replace(
        heads.warm_start,
        weight=np.vstack([last, nothing, weight, last]).astype(np.float32),
        layers=("stem<b>/Relu", "top/Relu"),
    )
    replace(heads, warm_start=head, deployed=head).save(run.heads_file(module), {})
    record_files(run)
    return run


def test_the_page_says_and_draws_what_each_layer_tells(layered: Run) -> None:
    values, charts = depth_section(gather(layered))
    stem, top, output = values["depth"]
    assert [row["layer"] for row in values["depth"]] == ["stem<b>/Relu", "top/Relu", OUTPUT]
    assert (stem["map_size"], stem["n_features"], output["map_size"]) == ("14 x 14", 6, "")
    assert stem["value"] == output["value"] == "+0.0"
    assert float(top["value"]) < -20
    assert float(top["ends"].split(" to ")[1]) < 0
    assert "images of the validation fold; the head was fitted without them" in values["depth_note"]
    points = charts["depth"]["series"][1]
    assert points["x"] == [1, 2, 3]
    assert points["y"][1] == pytest.approx(float(top["value"]), abs=0.05)


def test_the_chart_is_on_the_page_and_among_the_pictures(
    layered: Run, browser: str, tmp_path: Path
) -> None:
    report = write_report(layered, png=tmp_path / "png", n_saliency=0)
    assert "depth.png" in [path.name for path in report.pictures]
    assert "stem&lt;b&gt;/Relu" in report.page.read_text(encoding="utf-8")
    assert "depth" in data_of(report.page)["charts"]
    page = browse(browser, tmp_path / "profile", "--dump-dom", report.page.as_uri()).stdout
    assert f'aria-label="{formatting.metric_name(layered.fit.metric)} without each layer"' in page


def test_a_head_on_the_last_layer_or_a_cache_without_layers_is_a_sentence(
    fitted: Run, layered: Run
) -> None:
    values, charts = depth_section(gather(fitted))
    module = fitted.fit.shortlist[0]
    assert values["depth_missing"] == f"The head of {module} takes the module's own output alone."
    assert not charts
    layered.write_fit(replace(layered.fit, cache=fitted.fit.cache))
    values, charts = depth_section(gather(layered))
    assert values["depth_missing"].startswith("Not computed: ")
    assert "holds no layer stem<b>/Relu" in values["depth_missing"]
