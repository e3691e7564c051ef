"""Exports whose images may have several labels, or none."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn import metrics

from hubretrain.cli import main
from hubretrain.data import TableOptions, open_dataset
from hubretrain.data.images.decoding import to_unit
from hubretrain.errors import DataError, RunError
from hubretrain.evaluation.label_thresholds import LabelThresholds
from hubretrain.evaluation.temperature import at_temperature
from hubretrain.export.evaluate import evaluate_export
from hubretrain.export.manifest import Export, rule_entries
from hubretrain.export.predict import predict_images
from hubretrain.export.runtimes import FORMATS, open_runtime
from hubretrain.export.views import AveragedView
from hubretrain.files import read_record, write_record
from hubretrain.modules import resolve
from tests.samples import encoded, photo_crops, small_head

NAMES = ["a", "<b>", "ç é"]
RULE = LabelThresholds((0.7, 0.9, 0.5))
VIEWS = (AveragedView(), AveragedView(mirror=True))


def sigmoids(pixels, pooled_module):
    """Probabilities without the temperature, by module, head and formula."""
    from hubretrain.modules.backbone import Backbone

    backbone = Backbone(resolve(str(pooled_module)))
    weight, bias = small_head(backbone)
    return 1 / (1 + np.exp(-(backbone(pixels).numpy() @ weight + bias).astype(np.float64)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Small photographs whose labels are none, one and several."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, pixels in enumerate(photo_crops(40)):
        (folder / f"{i:02d}.png").write_bytes(encoded(pixels))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_the_sigmoids_and_the_temperature_are_in_every_format(label_export, pooled_module, form):
    pixels = to_unit(photo_crops(40))
    probs = open_runtime(Export.open(label_export), form)({8: pixels})
    logits = np.log(1 / sigmoids(pixels, pooled_module) - 1)
    expected = 1 / (1 + np.exp(logits / 1.6))
    assert np.abs(expected.sum(axis=1) - 1).max() > 0.1
    assert np.abs(probs - expected).max() < (0.1 if form == "litert_int8" else 1e-4)


def test_the_thresholds_decide_the_same_at_the_temperature(label_export, pooled_module):
    export, pixels = Export.open(label_export), to_unit(photo_crops(40))
    decided = export.decisions(open_runtime(export, "litert")({8: pixels}))
    assert (decided == RULE.decide(sigmoids(pixels, pooled_module))).all()
    assert set(decided.sum(axis=1)) > {0, 1}
    assert export.multi_label
    assert not {"adjust", "priors"} & export.manifest.keys()


def test_a_threshold_next_to_an_end_stays_off_it_at_a_low_temperature():
    rule = LabelThresholds((1e-30, 0.25, 1 - 1e-7)).at_temperature(0.1)
    thresholds = rule_entries(rule)["thresholds"]
    assert all(0 < threshold < 1 for threshold in thresholds)
    assert thresholds[1] == pytest.approx(1 / (1 + 3**10))


@pytest.mark.parametrize("form", ["savedmodel", "onnx"])
def test_views_are_averaged_before_the_temperature_inside_of_the_model_and_outside(
    label_export, pooled_module, tmp_path, form
):
    from hubretrain.export.writer import rewrite_export

    pixels = to_unit(photo_crops(20))
    mean = np.mean([sigmoids(p, pooled_module) for p in (pixels, pixels[:, :, ::-1])], axis=0)
    expected = at_temperature(mean, 1.6, True)
    rewrite_export(label_export, tmp_path / "views", ["onnx"], VIEWS)
    inside = open_runtime(Export.open(tmp_path / "views"), form)({8: pixels})
    assert np.abs(inside - expected).max() < 1e-4
    copy = shutil.copytree(label_export, tmp_path / "copy")
    facts = read_record(copy / "export.json")
    write_record(copy / "export.json", {**facts, "augmentation": {"flips": "horizontal"}})
    outside = open_runtime(Export.open(copy), form, tta=2)({8: pixels})
    assert np.abs(outside - expected).max() < 1e-4


def test_an_ensemble_of_labels_averages_the_sigmoids(pooled_module, tmp_path):
    from hubretrain.export.writer import Member, write_export
    from hubretrain.modules.backbone import Backbone
    from hubretrain.modules.classifier import Classifier

    backbone, random = Backbone(resolve(str(pooled_module))), np.random.default_rng(0)
    arrays = (random.normal(size=shape).astype("f4") for shape in ((4, 3), 3, (8, 4), 4))
    first, bias, hidden, hidden_bias = arrays
    weight, small_bias = small_head(backbone)
    hidden = random.normal(size=(weight.shape[0], 4)).astype("f4")
    members = [
        Member(Classifier(backbone, "logistic", weight, small_bias, multi_label=True), 0.25),
        Member(
            Classifier(backbone, "mlp", first, bias, hidden, hidden_bias, multi_label=True), 0.75
        ),
    ]
    facts = {"multi_label": True, "thresholds": [0.5, 0.5, 0.5]}
    write_export(members, NAMES, tmp_path / "export", facts, formats=["onnx"])
    pixels = to_unit(photo_crops(20))
    network = np.maximum(backbone(pixels).numpy() @ hidden + hidden_bias, 0) @ first + bias
    expected = 0.25 * sigmoids(pixels, pooled_module) + 0.75 / (1 + np.exp(-network))
    for form in ("savedmodel", "litert", "onnx"):
        probs = open_runtime(Export.open(tmp_path / "export"), form)({8: pixels})
        assert np.abs(probs - expected).max() < 1e-4


def test_an_image_is_predicted_with_all_labels_above_their_thresholds(label_export, pictures):
    export = Export.open(label_export)
    probs = open_runtime(export)({8: to_unit(photo_crops(40))})
    predictions = list(predict_images(label_export, pictures, top=1))
    for prediction, row in zip(predictions, probs, strict=True):
        decided = export.decisions(row[np.newaxis])[0]
        order = np.argsort(-row, kind="stable")
        assert prediction.labels == tuple(NAMES[c] for c in order if decided[c])
        assert prediction.decision == "|".join(np.array(NAMES)[decided])
        shown = [NAMES[c] for rank, c in enumerate(order) if decided[c] or rank < 1]
        assert [name for name, _ in prediction.classes] == shown
    assert {len(prediction.labels) for prediction in predictions} > {0, 1}


def test_predictions_of_labels_are_printed_as_text_json_and_csv(label_export, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    files = [*map(str, pictures), str(broken)]
    arguments = ["predict", str(label_export), *files]
    text, as_json, as_csv = (
        CliRunner().invoke(main, [*arguments, *options])
        for options in ((), ("--json",), ("--csv",))
    )
    assert (text.exit_code, as_json.exit_code, as_csv.exit_code) == (1, 1, 1)
    predictions = list(predict_images(label_export, files, top=3))
    lines = text.stdout.splitlines()
    for prediction, line in zip(predictions, lines, strict=False):
        probs = dict(prediction.classes)
        labels = ", ".join(f"{name} {probs[name]:.1%}" for name in prediction.labels)
        nearest = "{} {:.1%}".format(*prediction.classes[0])
        words = labels or f"no label; most probable: {nearest}"
        assert line == f"{prediction.path}: {words}"
    assert sum("no label" in line for line in lines) > 0
    for prediction, row in zip(predictions, json.loads(as_json.stdout), strict=True):
        if prediction.error:
            assert row == {"path": str(broken), "error": prediction.error}
        else:
            assert row["labels"] == list(prediction.labels)
            assert row["classes"] == dict(prediction.classes)
    rows = list(csv.DictReader(io.StringIO(as_csv.stdout)))
    assert list(rows[0]) == ["path", "decision", *(f"p({name})" for name in NAMES), "error"]
    for prediction, row in zip(predictions, rows, strict=True):
        assert (row["path"], row["decision"]) == (prediction.path, prediction.decision)
        if not prediction.error:
            assert {name: float(row[f"p({name})"]) for name in NAMES} == pytest.approx(
                dict(prediction.classes), abs=1e-5
            )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"thresholds": [0.5, 0.5]}, "it holds 2 thresholds for 3 labels"),
        ({"thresholds": [0.5, 1.0, 0.5]}, "the threshold of <b> is 1; expected a number above 0"),
        ({"thresholds": [0.0, 0.5, 0.5]}, "the threshold of a is 0; expected a number above 0"),
        ({"thresholds": None}, "'multi_label' and 'thresholds' belong together, and one is absent"),
        ({"multi_label": False}, "'multi_label' and 'thresholds' belong together"),
    ],
)
def test_thresholds_that_do_not_fit_the_labels_are_refused(
    label_export, tmp_path, changes, sentence
):
    copy = shutil.copytree(label_export, tmp_path / "copy")
    facts = {**read_record(copy / "export.json"), **changes}
    write_record(copy / "export.json", {k: v for k, v in facts.items() if v is not None})
    with pytest.raises(RunError) as caught:
        Export.open(copy)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith("run `hubretrain export` again.")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Photographs with a table of labels: of most several or none."""
    folder, random = tmp_path_factory.mktemp("labelled") / "images", np.random.default_rng(0)
    folder.mkdir()
    rows = ["path,labels,group"]
    for i, pixels in enumerate(photo_crops(60)):
        (folder / f"{i:02d}.png").write_bytes(encoded(pixels))
        labels = [name for name in NAMES if random.random() < 0.4]
        rows.append(f"{i:02d}.png,{'|'.join(labels)},{i // 2}")
    (folder.parent / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def evaluated(label_export, labelled, tmp_path_factory):
    table = TableOptions(label_column="labels", group_column="group", multi_label=True)
    dataset = open_dataset(labelled, labels=labelled.parent / "labels.csv", table=table)
    return evaluate_export(label_export, dataset, cache=tmp_path_factory.mktemp("cache"))


def test_the_metrics_of_labels_are_those_of_scikit_learn(evaluated):
    table = evaluated.predictions
    probs = table[[f"p({name})" for name in NAMES]].to_numpy(np.float64)
    truth = np.array([[name in row.split("|") for name in NAMES] for row in table["label"]])
    decided = np.array([[name in row.split("|") for name in NAMES] for row in table["decision"]])
    expected = {
        "mean_average_precision": metrics.average_precision_score(truth, probs),
        "micro_average_precision": metrics.average_precision_score(truth, probs, average="micro"),
        "macro_f1": metrics.f1_score(truth, decided, average="macro"),
        "micro_f1": metrics.f1_score(truth, decided, average="micro"),
        "subset_accuracy": metrics.accuracy_score(truth, decided),
        "hamming_loss": metrics.hamming_loss(truth, decided),
        "roc_auc": metrics.roc_auc_score(truth, probs),
    }
    values = {name: evaluated.figures[name].estimate for name in expected}
    assert values == pytest.approx(expected, abs=1e-6)
    assert "accuracy" not in evaluated.figures
    counts = evaluated.label_counts.set_index("label")
    for name, matrix in zip(
        NAMES, metrics.multilabel_confusion_matrix(truth, decided), strict=True
    ):
        columns = ["true_negatives", "false_positives", "false_negatives", "true_positives"]
        assert counts.loc[name, columns].tolist() == matrix.ravel().tolist()
    assert evaluated.per_class["threshold"].tolist() == list(evaluated.thresholds)


def test_the_tables_of_labels_are_written_and_the_command_prints_each_label(
    evaluated, label_export, labelled, tmp_path, monkeypatch
):
    evaluated.save(tmp_path / "saved")
    written = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert written == ["label_counts.csv", "metrics.csv", "per_class.csv", "predictions.csv"]
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", str(label_export), str(labelled), "--multi-label", "--cache", "cache"]
    command += ["--labels", str(labelled.parent / "labels.csv"), "--label-column", "labels"]
    ran = CliRunner().invoke(main, [*command, "--group-column", "group"])
    assert ran.exit_code == 0, ran.output
    lines = [line.split() for line in ran.stdout.splitlines()]
    (head,) = [line for line in lines if line[:1] == ["label"]]
    assert head[:6] == ["label", "images", "threshold", "precision", "recall", "F1"]
    rows = {name: next(line for line in lines if line[:1] == [name]) for name in ("a", "<b>")}
    for _, row in evaluated.per_class.iterrows():
        if row["class"] in rows:
            shown = [100 * row[name] for name in ("threshold", "precision", "recall", "f1")]
            assert rows[row["class"]][2:6] == [f"{value:.1f}" for value in shown]
    again = CliRunner().invoke(main, ["evaluate", str(label_export), str(labelled)])
    assert again.stdout == ran.stdout, again.output  # how the images were read is remembered


def test_one_class_per_image_and_several_labels_are_not_mixed_up(
    label_export, small_export, labelled, tmp_path
):
    table = TableOptions(label_column="labels", multi_label=True)
    several = open_dataset(labelled, labels=labelled.parent / "labels.csv", table=table)
    with pytest.raises(DataError) as caught:
        evaluate_export(small_export, several, cache=tmp_path)
    assert str(caught.value) == (
        f"{small_export} chooses one class per image, but images of {labelled} may have several "
        "labels; expected one class per image."
    )
    for i, name in enumerate(["a", "<b>"]):
        (tmp_path / "classes" / name).mkdir(parents=True)
        shutil.copy(labelled / f"{i:02d}.png", tmp_path / "classes" / name)
    with pytest.raises(
        DataError, match=r"gives an image any number of labels, but .* has one class"
    ):
        evaluate_export(label_export, open_dataset(tmp_path / "classes"), cache=tmp_path)
