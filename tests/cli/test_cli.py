from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner

from hubretrain.cli import main
from hubretrain.cli.options import Format
from hubretrain.evaluation import METRICS
from tests.samples import write_digits

LINEAR = ("--heads", "softmax,logistic")  # where small networks are not the subject


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data" / "digits", 180)
    return tmp_path


def invoke(*arguments, code=0):
    ran = CliRunner().invoke(main, [str(a) for a in arguments])
    assert ran.exit_code == code, ran.output
    assert "Traceback" not in ran.output
    return ran


def test_the_three_commands_as_written_lead_from_images_to_predictions(place, small_module):
    cached = invoke("cache", "--module", small_module, "--views", 2)
    line = "cache/digits/small.h5: 180 images, 360 bottlenecks of 21 features from 2 layers, 360 "
    assert f"{line}computed now." in cached.stdout
    assert cached.stdout.endswith("\nNext: hubretrain fit\n")
    fitted = invoke("fit")
    assert "images leaked: 0" in fitted.stdout
    assert "Next: hubretrain finetune runs/digits" in fitted.stdout
    board = pd.read_csv("runs/digits/leaderboard.csv")
    assert board["module"][0] == "small"
    assert board["shortlist"].tolist()[0] == 1
    assert set(board["kind"][1:]) == {"reference"}
    assert 0.3 < board["accuracy_low"][0] <= board["accuracy"][0] <= board["accuracy_high"][0]
    tuned = invoke("finetune", "--epochs", 2)
    assert "runs/digits/export/ holds small, " in tuned.stdout
    tuned = invoke("finetune", "--resume", "--export", "fine-tuned")
    kept = "head" if "no epoch was better than the fitted head" in tuned.stdout else "fine-tuned"
    assert f"runs/digits/export/ holds small, {kept}." in tuned.stdout
    image = sorted((place / "data" / "digits" / "2").iterdir())[0]
    said = json.loads(invoke("predict", "runs/digits", image, "--json", "--top", 3).stdout)
    assert said[0]["path"] == str(image)
    assert set(said[0]["classes"]) == {"0", "1", "2"}
    assert sum(said[0]["classes"].values()) == pytest.approx(1, abs=1e-5)
    again = invoke("predict", "runs/digits/export", image)
    assert again.stdout.startswith(f"{image}: ")
    assert invoke("predict", "digits", image).stdout == again.stdout
    of_latest = invoke("predict", image, image)
    assert of_latest.stdout == 2 * again.stdout
    assert of_latest.stderr == "hubretrain: with runs/digits, the latest run\n"
    judged = json.loads(invoke("evaluate", "digits", "data/digits", "--json").stdout)
    n_test = (pd.read_csv("runs/digits/folds.csv")["fold"] == "test").sum()
    assert (judged["n_images"], judged["n_known"], judged["n_failed"]) == (n_test, 180 - n_test, 0)
    of_test = json.loads(Path("runs/digits/export/export.json").read_text())["test"]
    assert judged["metrics"]["accuracy"]["estimate"] == pytest.approx(of_test["accuracy"][0])
    for only_a_model in ("runs/digits", "runs/digits/export"):
        assert "Missing argument 'IMAGE...'" in invoke("predict", only_a_model, code=2).stderr


def test_fit_as_json_holds_what_the_table_shows(place, small_module):
    invoke("cache", "--module", small_module, "--views", 2)
    options = ["--class-weight", "none", "--class-weight", "2=3", "--l2", "1,10", "--adjust", "0,1"]
    options += LINEAR
    said = json.loads(invoke("fit", "--json", "--metric", "macro_f1", *options).stdout)
    assert said["metric"] == "macro_f1"
    assert said["shortlist"] == ["small"]
    row = said["leaderboard"][0]
    assert row["kind"] == "module"
    assert row["macro_f1_low"] <= row["macro_f1"] <= row["macro_f1_high"]
    assert row["gflops"] == 7e-06
    assert row["class_weight"] in ("none", "0: 1, 1: 1, 2: 3")
    assert any(effect["effect"] == "augmented views" for effect in said["effects"])
    shown = invoke("fit", "--metric", "macro_f1", *options).stdout
    assert f"{100 * row['macro_f1']:.1f}" in shown
    assert "Augmented views: " in shown
    assert "Class weights: " in shown


def test_a_broken_image_does_not_keep_predict_from_the_others(place, small_module):
    invoke("cache", "--module", small_module, "--views", 1)
    invoke("fit", *LINEAR)
    invoke("finetune", "--unfreeze-last", 0, "--epochs", 1)
    (place / "broken.jpg").write_bytes(b"nothing")
    image = sorted((place / "data" / "digits" / "1").iterdir())[0]
    ran = invoke("predict", "runs/digits", "broken.jpg", image, "gone.png", code=1)
    assert f"{image}: " in ran.stdout
    assert "broken.jpg: no image of a known type" in ran.stderr
    assert "gone.png: No such file or directory" in ran.stderr


def test_a_mistyped_command_gets_the_nearest_one(place):
    assert "No such command 'fitt'. Did you mean fit or finetune?" in invoke("fitt", code=2).stderr
    assert "Did you mean fetch?" in invoke("modules", "fecth", "x", code=2).stderr
    assert "Did you mean" not in invoke("zzz", code=2).stderr


def test_without_a_run_a_model_is_asked_for(place):
    for command in (("serve",), ("predict", "data"), ("explain", "data")):
        told = invoke(*command, code=2).stderr
        assert "Missing argument 'RUN_OR_EXPORT': runs/ holds no run; run `hubretrain fit`" in told


def test_a_run_that_is_not_there_gets_the_nearest_name_or_where_to_look(place):
    for command in (["report", "digit"], ["predict", "runs/digit", "x.png"], ["serve", "nothing"]):
        assert invoke(*command, code=1).stderr.endswith(": run `hubretrain fit` first.\n")
    invoke("data", "split")
    (place / "runs" / "digits" / "run.json").write_text("{}")
    for command in (["report", "digit"], ["predict", "runs/digit", "x.png"], ["explain", "digit"]):
        assert invoke(*command, code=1).stderr.endswith(": did you mean runs/digits?\n")
    told = "the latest is runs/digits, and `hubretrain runs` lists all."
    assert told in invoke("serve", "nothing", code=1).stderr


def test_formats_are_known_by_the_names_of_their_files_too():
    of_export = Format(["savedmodel", "litert", "onnx"])
    names = ("tflite", ".TFLite", "saved_model", "onnx", "litert")
    given = [of_export.convert(name, None, None) for name in names]
    assert given == ["litert", "litert", "savedmodel", "onnx", "litert"]
    assert "did you mean litert?" in invoke("export", "--format", "lite", code=2).stderr
    assert "is not one of" in invoke("export", "--format", "keras", code=2).stderr


def test_usage_shows_cache_as_it_is_typed():
    assert invoke("cache", "--help").stdout.startswith("Usage: main cache [OPTIONS] [DATA]...\n")
    assert "Try 'main cache --help' for help" in invoke("cache", "--nothing", code=2).stderr
    assert "Usage: main cache gc" in invoke("cache", "gc", "--help").stdout


def test_the_help_names_every_metric():
    text = " ".join(invoke("fit", "--help").stdout.split())
    metrics = re.search(r"Metric to choose by: (.*?)\. By default", text)[1]
    assert re.split(", | or ", metrics) == list(METRICS)


def test_modules_in_a_pipe_are_lines_of_columns_separated_by_tabs(place):
    titles, *rows = (line.split("\t") for line in invoke("modules").stdout.splitlines())
    assert titles[:3] == ["module", "also", "size"]
    assert {len(row) for row in rows} == {len(titles)}
    row = dict(zip(titles, next(r for r in rows if r[0] == "mobilenet_v2_100"), strict=True))
    assert row["also"].split()[0] == "mobilenet_v2"
    assert (row["size"], row["parameters"]) == ("224", "2,257,984")


def test_modules_lists_the_catalogue(place):
    rows = json.loads(invoke("modules", "--json").stdout)
    (lite0,) = (row for row in rows if row["name"] == "efficientnet_lite0")
    assert (lite0["image_size"], lite0["n_features"]) == (224, 1280)
    shown = invoke("modules", "--search", "nasnet").stdout
    assert "nasnet_mobile" in shown
    assert "inception" not in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cache", "nowhere", "-m", "x"], "nowhere does not exist; expected a folder of images"),
        (["cache", "-m", "mobilnet_v2"], "Did you mean mobilenet_v2"),
        (["cache", "-m", "data"], "holds no saved_model.pb"),
        (["fit"], "holds no bottlenecks; run `hubretrain cache` first."),
        (["finetune"], "runs/ holds no run; run `hubretrain fit` first"),
        (
            ["finetune", "runs/none"],
            "runs/none does not exist; expected a run or what was exported",
        ),
        (["predict", "nowhere", "x.png"], "nowhere does not exist; expected a run or what was"),
    ],
)
def test_foreseen_errors_are_one_sentence_and_exit_code_1(place, arguments, sentence):
    ran = invoke(*arguments, code=1)
    assert ran.stderr.startswith("hubretrain: ")
    assert sentence in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["cache"],
        ["fit", "--nonsense"],
        ["fit", "--class-weight", "heavy"],
        ["fit", "--class-weight", "0=two"],
        ["fit", "--l2", "1,-1"],
        ["fit", "--adjust", "some"],
        ["fit", "--top", "0"],
        ["predict", "x"],
    ],
)
def test_usage_errors_exit_with_2(place, arguments):
    invoke(*arguments, code=2)


def test_paths_that_cannot_be_read_are_no_usage_errors():
    """They are foreseen errors, which name what to do; click would exit with 2."""

    def parameters(command):
        yield from command.params
        for name in getattr(command, "commands", {}) or command_names(command):
            yield from parameters(command.get_command(click.Context(command), name))

    def command_names(command):
        is_group = isinstance(command, click.Group)
        return command.list_commands(click.Context(command)) if is_group else ()

    paths = [one for one in parameters(main) if isinstance(one.type, click.Path)]
    assert len(paths) > 20
    assert [one.name for one in paths if one.type.readable] == []


def test_an_output_folder_that_cannot_be_written_is_one_sentence(place, small_module):
    (place / "file").write_text("in the way")
    ran = invoke("cache", "--module", small_module, "--cache", "file/x", code=1)
    assert "cannot be written" in ran.stderr
    invoke("cache", "--module", small_module, "--views", 1)
    ran = invoke("fit", "--run", "file/run", code=1)
    assert re.search(r"file/run/\S+ cannot be written: Not a directory", ran.stderr)


def test_help_and_import_load_neither_tensorflow_nor_pandas():
    script = (
        "import sys, hubretrain, hubretrain.cli\n"
        "from click.testing import CliRunner\n"
        "for c in ([], ['data'], ['data', 'check'], ['cache'], ['fit'], ['finetune'],\n"
        "          ['predict'], ['modules']):\n"
        "    assert CliRunner().invoke(hubretrain.cli.main, [*c, '--help']).exit_code == 0\n"
        "print([m for m in ('tensorflow', 'pandas', 'h5py', 'sklearn') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert ran.stdout.strip() == "[]"


def test_a_class_too_small_for_the_folds_is_named(place, small_module):
    for image in sorted((place / "data" / "digits" / "2").iterdir())[3:]:
        image.unlink()
    sentence = (
        "hubretrain: Class '2' has 3 groups of images, too few for 5 folds and a test split: ask "
        "for at most 2 folds, merge it with another by --merge or leave it out by --exclude-class "
        "2.\n"
    )
    assert invoke("cache", "--module", small_module, code=1).stderr == sentence
    assert [path.name for path in (place / "cache" / "digits").iterdir()] == ["dataset.json"]
    invoke("cache", "--module", small_module, "--views", 1, "--folds", 0)
    assert sentence in invoke("fit", code=1).stderr
    invoke("fit", "--folds", 2, *LINEAR)
    out = invoke("cache", "--module", small_module, "--exclude-class", 2).stdout
    assert "0 computed now" in out
    invoke("fit", "--exclude-class", 2, "--run", "two", *LINEAR)
