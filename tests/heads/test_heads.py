"""The heads of a module in their file."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from hubretrain.errors import HeadError
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.heads.heads import ROLES, Head, ModuleHeads, digested_hdf5


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


def test_fitting_heads_needs_no_tensorflow():
    code = "import sys, hubretrain.heads.path; print('tensorflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
