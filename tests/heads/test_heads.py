"""The heads of a module in their file."""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from hubretrain.errors import HeadError, WriteError
from hubretrain.evaluation import Calibration, at_temperature
from hubretrain.evaluation.label_thresholds import LabelThresholds
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.heads.heads import ROLES, Head, ModuleHeads, digested_hdf5

NAMES = ("2024", "NA", "")


def linear(random, kind, strength, n_features):
    rule = DecisionRule(strength, (0.5, 0.3, 0.2))
    weight, bias = random.normal(size=(n_features, 3)).astype("f4"), np.ones(3, "f4")
    settings = ("all views", "2024: 1, NA: 2", 100.0, "log_loss")
    return Head(kind, weight, bias, rule, np.array([1.0, 2.0, 0.5]), *settings)


def network(random, n_features, n_hidden=7):
    """A head with a hidden layer, on features of two inner layers too."""
    return replace(
        linear(random, "mlp", 0.0, n_hidden),
        layers=("block_1/relu", "block_2/relu"),
        hidden_weight=random.normal(size=(n_features, n_hidden)).astype("f4"),
        hidden_bias=random.normal(size=n_hidden).astype("f4"),
    )


def test_heads_of_different_kinds_and_layers_come_back_from_their_file(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "heads" / "module.h5"
    softmax, logistic = (linear(random, k, 0.5, 6) for k in ("softmax", "logistic"))
    heads = ModuleHeads(softmax, logistic, network(random, 20), ("2024", "NA", ""))
    heads.save(path, {"module": "pixels", "image_size": 8})
    read = ModuleHeads.load(path)
    assert read.class_names == heads.class_names
    for role in ROLES:
        written, back = getattr(heads, role), getattr(read, role)
        for name in ("weight", "bias", "weight_of_class", "hidden_weight", "hidden_bias"):
            np.testing.assert_array_equal(getattr(back, name), getattr(written, name))
        for name in ("kind", "rule", "trained_on", "class_weight", "l2", "aim", "layers"):
            assert getattr(back, name) == getattr(written, name)
        features = random.normal(size=(20, written.n_features)).astype(np.float32)
        np.testing.assert_array_equal(back.probabilities(features), written.probabilities(features))


def test_heads_of_several_labels_come_back_with_their_thresholds(tmp_path):
    random = np.random.default_rng(4)
    rule = LabelThresholds((0.5, 0.25, 0.125))
    made = (linear(random, "logistic", 0.0, 6), network(random, 20), network(random, 9))
    heads = ModuleHeads(*(replace(head, rule=rule, multi_label=True) for head in made), NAMES)
    heads.save(tmp_path / "module.h5", {"module": "pixels"})
    read = ModuleHeads.load(tmp_path / "module.h5")
    for role in ROLES:
        back = getattr(read, role)
        assert back.multi_label
        assert back.rule == rule
        features = random.normal(size=(20, back.n_features)).astype(np.float32)
        probs = back.probabilities(features)
        np.testing.assert_allclose(probs, expit(back.logits(features)), rtol=1e-6)
        np.testing.assert_array_equal(probs, getattr(heads, role).probabilities(features))


def test_a_head_file_of_classes_says_nothing_of_several_labels(tmp_path):
    head = linear(np.random.default_rng(5), "softmax", 0.5, 6)
    ModuleHeads(head, head, head, NAMES).save(tmp_path / "module.h5", {"module": "pixels"})
    with h5py.File(tmp_path / "module.h5") as file:
        for role in ROLES:
            assert "multi_label" not in file[role].attrs
            assert "thresholds" not in file[role]
    assert not ModuleHeads.load(tmp_path / "module.h5").deployed.multi_label


def test_a_network_is_what_scikit_learn_computes_with_its_weights():
    random = np.random.default_rng(1)
    head = network(random, 20)
    features = random.normal(size=(9, 20))
    oracle = MLPClassifier((7,), max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        oracle.fit(features, np.arange(9) % 3)
    oracle.coefs_ = [head.hidden_weight, head.weight]
    oracle.intercepts_ = [head.hidden_bias, head.bias]
    assert head.n_features == 20
    np.testing.assert_allclose(
        head.probabilities(features), oracle.predict_proba(features), atol=1e-12
    )


@pytest.mark.parametrize(
    ("kind", "multi_label"), [("softmax", False), ("mlp", False), ("logistic", True)]
)
def test_a_calibrated_head_is_the_head_at_its_temperature(kind, multi_label):
    random = np.random.default_rng(0)
    rule = LabelThresholds((0.2, 0.5, 0.6)) if multi_label else DecisionRule(0.5, (0.1, 0.3, 0.6))
    calibration = Calibration(0.3, 1.0, 1.0)
    head = replace(
        network(random, 5) if kind == "mlp" else linear(random, kind, 1.0, 5),
        rule=rule,
        calibration=calibration,
        multi_label=multi_label,
    )
    rows = random.normal(size=(40, 5))
    expected = at_temperature(head.probabilities(rows), 0.3, multi_label)
    calibrated = head.calibrated()
    np.testing.assert_allclose(calibrated.probabilities(rows), expected, rtol=1e-4, atol=1e-7)
    decisions = head.rule.decide(head.probabilities(rows))
    assert (calibrated.rule.decide(calibrated.probabilities(rows)) == decisions).all()
    assert calibrated.calibration.temperature == 1
    assert calibrated.calibrated() is calibrated


def test_normalised_sigmoids_keep_their_temperature():
    head = replace(
        linear(np.random.default_rng(0), "logistic", 1.0, 5), calibration=Calibration(0.3, 1.0, 1.0)
    )
    assert head.calibrated() is head


def test_a_head_file_that_is_missing_damaged_or_of_another_version_is_one_sentence(tmp_path):
    path = tmp_path / "module.h5"
    with pytest.raises(
        HeadError, match=r"module\.h5 cannot be read .*; run `hubretrain fit` again"
    ):
        ModuleHeads.load(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(
        HeadError, match=r"module\.h5 cannot be read .*; run `hubretrain fit` again"
    ):
        ModuleHeads.load(path)
    with digested_hdf5(path) as file:
        file.attrs["format"] = "hubretrain heads 3"
    with pytest.raises(HeadError, match=r"is no head file of this version; run `hubretrain fit`"):
        ModuleHeads.load(path)


def test_heads_for_which_there_is_no_room_are_one_sentence(tmp_path):
    path, random = tmp_path / "small.h5", np.random.default_rng(0)
    heads = ModuleHeads(
        **{role: linear(random, "softmax", 0.0, 900) for role in ROLES}, class_names=NAMES
    )
    heads.save(path, {})
    size = path.stat().st_size
    path.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # wherever it ends: the last bytes are written when the file is closed
        for limit in range(0, size, size // 40):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(WriteError, match=r"small\.h5 cannot be written"):
                heads.save(path, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(tmp_path.iterdir())


def test_fitting_heads_needs_no_tensorflow():
    code = "import sys, hubretrain.heads.path; print('tensorflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
