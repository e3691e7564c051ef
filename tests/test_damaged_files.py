"""Every small file that is read, mutated: one sentence, or a value of the type it should be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubretrain.bottlenecks.costs import ForwardPassLog
from hubretrain.csv_tables import write_table
from hubretrain.data import digests, quarantine
from hubretrain.data.near_duplicates import table as copies
from hubretrain.data.splitting.folds import read_folds
from hubretrain.errors import HubretrainError
from hubretrain.export.manifest import read_manifest
from hubretrain.files import _own_digest, read_record, write_record
from hubretrain.finetuning.options import FineTuneOptions, saved_options
from hubretrain.heads.ensemble import Ensemble
from hubretrain.modules.store import _measured, _read_metadata
from hubretrain.runs import EFFECTS, LEADERBOARD, PER_CLASS, PREDICTIONS, Run
from tests.samples import fit_record

SHA = "ab" * 32


def read_run(path):
    run = Run(path.parent)
    return run.is_fitted and (run.fit, run.finetune)


def read_run_table(table):
    def read(path):
        found = table.read(path.parent)
        for name in table.columns:
            found[name].tolist()
        return found

    return read


def read_store(path):
    return _measured(_read_metadata(path))


def read_quarantine(path):
    return quarantine.Quarantine(path.parent).listed()


MODULE = {
    "module": "small",
    "handle": "x",
    "module_sha256": SHA,
    "image_size": 8,
    "value_range": "[0.0, 1.0]",
    "n_views": 2,
    "minority_views": 2,
}


def json_samples():
    """Name, text and reader of each kind of JSON file."""
    files = {"folds.csv": SHA, "heads/small.h5": SHA}
    fit = {**fit_record().to_json(), "modules": {"small": MODULE}, "files": files}
    figures = {"accuracy": [0.5, None, 1.0]}
    tuned = {
        "versions": {},
        "modules": {
            "small": {
                **dict.fromkeys(("test", "head_test"), figures),
                **dict.fromkeys(("validation", "head_validation"), figures),
                "adjust": 1.0,
                "priors": [0.5, 0.5],
                "identity": {},
                "kept_epoch": 1,
                "temperature": 1.1,
                "uncalibrated_log_loss": {"test": 0.3},
                "over_head": figures,
                "files": {"predictions.csv": SHA},
            }
        },
        "chosen": "small",
        "order": {
            "screening": ["small", "other"],
            "finetuned": ["small", "other"],
            "kendall_tau": None,
            "regret": 0.0,
            "metric": "accuracy",
            "regret_ends": [0.0, None],
        },
        "exported": {
            "kind": "head",
            "module": "small",
            "name": "head of small",
            "metric": "accuracy",
            "on_validation": {"head of small": 0.5, "small": None},
            "gain": [-0.1, None, 0.1],
        },
        "test_looked_at": [{"small": SHA}],
    }
    calibration = {"temperature": 1.0, "log_loss_before": None, "log_loss_after": None}
    yield "run.json", {"fit": fit, "finetune": tuned}, read_run
    yield (
        "ensemble.json",
        {
            "format": "hubretrain ensemble 2",
            "weights": {"a": 0.5, "b": 0.5},
            "adjust": 0.5,
            "priors": [0.5, 0.5],
            "calibration": calibration,
        },
        Ensemble.load,
    )
    yield (
        "export.json",
        {
            "class_names": ["a", "b"],
            "image_sizes": [8],
            "files": {"model.tflite": SHA},
            "temperature": 1.0,
            "module": "small",
            "adjust": 0.0,
            "tta": [],
            "augmentation": {},
        },
        lambda path: read_manifest(path.parent),
    )
    yield (
        "module.json",
        {
            "name": "small",
            "handle": "x",
            "sha256": SHA,
            "image_size": 8,
            "n_features": 4,
            "value_range": [0, 1],
            "gflops": 0.1,
            "files": {"saved_model.pb": 3},
            "layer_points": [{"name": "a", "height": 1, "width": 1, "n_channels": 4}],
        },
        read_store,
    )


def columns_of(table):
    """Two rows of a table."""
    is_text = {name: kind in ("name", "text") for name, kind in table.columns.items()}
    return {name: ["x", "y, z"] if is_text[name] else [1, 2] for name in is_text}


def csv_samples():
    """Name, table and reader of each kind of CSV file."""
    image = {"path": ["a/1.png", "b/2.png"], "sha256": [SHA, SHA], "label": ["a", "b"]}
    yield "predictions.csv", {**image, "p(a)": [0.5, 0.25]}, read_run_table(PREDICTIONS)
    effects = columns_of(EFFECTS)
    yield "effects.csv", effects, read_run_table(EFFECTS)
    per_class = {"module": ["m"] * 2, "class": ["a", "NA"], "n_images": [1, 2], "n_groups": [1, 2]}
    yield "per_class.csv", {**per_class, "recall": [0.5, 1.0]}, read_run_table(PER_CLASS)
    board = {**columns_of(LEADERBOARD), "tied": [True, False], "accuracy": [0.5, 0.25]}
    yield "leaderboard.csv", board, read_run_table(LEADERBOARD)
    yield "folds.csv", {**image, "group": ["1", "2"], "fold": ["test", "0"]}, read_folds
    times = {"size": [1, 2], "mtime_ns": [1, 2], "ctime_ns": [1, 2]}
    stamps = {"path": image["path"], **times, "sha256": image["sha256"]}
    yield "digests.csv", stamps, digests._read
    names = quarantine.COLUMNS
    yield "quarantine.csv", {name: ["x", "y"] for name in names}, read_quarantine
    rows = {name: ["x", ""] for name in copies.COLUMNS} | {"similarity": [0.95, np.nan]}
    rows["search"] = [copies.SEARCH] * 2
    yield copies.FILE_NAME, rows, lambda path: copies._read(path.parent)
    passes = {"finished_at": ["t"] * 2, "module": ["m", "2024"], "engine": ["e"] * 2}
    passes |= {"precision": ["f32"] * 2, "n_forward": [3, 4], "seconds": [0.5, 1.5]}
    yield "passes.csv", passes, lambda path: ForwardPassLog(path.parent).table


def signed(name, value):
    """A record as text, with its own digest; in a module's, `sha256` is the module's."""
    key = "record_sha256" if name == "module.json" else "sha256"
    content = {key_: item for key_, item in value.items() if key_ != key}
    return json.dumps({**content, key: _own_digest(content)}, indent=2).encode()


def resigned(name, data):
    """The same content with the digest of it, so that more than the digest is checked."""
    if name.endswith(".json"):
        value = json.loads(data)
        return signed(name, value) if isinstance(value, dict) else data
    if name not in DIGESTED:
        return data
    data = re.sub(rb"(sha256 of this table: )[0-9a-f]{64}", rb"\g<1>" + b"0" * 64, data, count=1)
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def as_csv(columns, digested):
    """A table as text, perhaps with its own digest."""
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "table.csv", pd.DataFrame(columns), digested=digested)
        return (Path(folder) / "table.csv").read_bytes()


DIGESTED = ("digests.csv", "quarantine.csv", copies.FILE_NAME, "passes.csv", "history.csv")
SAMPLES = {name: (signed(name, value), read) for name, value, read in json_samples()} | {
    name: (as_csv(columns, name in DIGESTED), read) for name, columns, read in csv_samples()
}
ODD = [None, True, 3, -1, 10**30, 1e308, "", "x", "NaN", [], [[]], {}, {"x": None}, ["a", 1]]


def places(value, path=()):
    """The path of every value inside a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


@st.composite
def damaged(draw, name: str):
    """A file cut short, with bytes changed or zeroed, or with a value of another type, or gone.

    What has other values has the digest of these, so that types are checked too.
    """
    data = SAMPLES[name][0]
    kind = draw(st.sampled_from(["cut", "flip", "zero", "insert", "swap", "drop"]))
    at = draw(st.integers(0, len(data) - 1))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    if kind == "zero":
        n = draw(st.integers(1, 64))
        return data[:at] + bytes(len(data[at : at + n])) + data[at + n :]
    if kind == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at:]
    if data.startswith(b"{"):
        value = json.loads(data)
        path = draw(st.sampled_from(list(places(value))[1:]))
        owner = value
        for key in path[:-1]:
            owner = owner[key]
        if kind == "swap":
            owner[path[-1]] = draw(st.sampled_from(ODD))
        else:
            del owner[path[-1]]
        return signed(name, value)
    rows = [line.split(b",") for line in data.split(b"\n")]
    row = draw(st.sampled_from(rows))
    field = draw(st.integers(0, len(row) - 1))
    if kind == "swap":
        row[field] = json.dumps(draw(st.sampled_from(ODD))).encode()
    else:
        del row[field]
    return resigned(name, b"\n".join(b",".join(row) for row in rows))


def check(name: str, content: bytes, folder: Path) -> None:
    path = folder / name
    path.write_bytes(content)
    try:
        SAMPLES[name][1](path)
    except HubretrainError as error:
        text = str(error)
        assert str(folder) in text
        assert "\n" not in text
        assert text.endswith(".")


@pytest.mark.parametrize("name", SAMPLES)
def test_an_undamaged_file_is_read(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(SAMPLES[name][0])
    assert len(SAMPLES[name][1](path)) > 0 if name != "ensemble.json" else SAMPLES[name][1](path)


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=60, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_is_one_sentence_or_is_read(name, tmp_path, data):
    check(name, data.draw(damaged(name)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=5_000, deadline=None, suppress_health_check=QUIET)
@given(data=st.data())
def test_thousands_of_damaged_files_are_sentences_or_are_read(name, tmp_path, data):
    check(name, data.draw(damaged(name)), tmp_path)


def test_a_key_that_no_layer_has_does_not_keep_a_stored_module_from_being_read(tmp_path):
    path = tmp_path / "module.json"
    values = json.loads(SAMPLES["module.json"][0])
    del values["record_sha256"]
    (first, *_) = values["layer_points"]
    write_record(path, {**values, "layer_points": [{**first, "odd": 1}]}, "record_sha256")
    assert read_store(path)["layer_points"][0].name == first["name"]


def test_a_file_without_permission_is_not_to_be_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "run.json").touch()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HubretrainError) as raised:
        _ = Run(tmp_path).fit
    assert str(raised.value) == (
        f"{tmp_path / 'run.json'} cannot be read (Permission denied); "
        "make it readable and run this again."
    )


def test_options_of_a_fine_tuning_come_back_and_wrong_ones_are_one_sentence(tmp_path):
    options = FineTuneOptions(unfreeze_last=3, learning_rate=0.5)
    options.save(tmp_path)
    assert saved_options(tmp_path) == options
    path = tmp_path / "options.json"
    values = read_record(path)
    for name in values:
        for odd in ODD:
            write_record(path, {**values, name: odd})
            with contextlib.suppress(HubretrainError):
                saved_options(tmp_path)
