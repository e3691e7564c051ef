"""The heads of a module in their file."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

from hubretrain.errors import HeadError
from hubretrain.evaluation.logit_adjustment import DecisionRule
from hubretrain.heads.heads import ROLES, Head, ModuleHeads


def test_the_heads_of_a_module_come_back_from_their_file(tmp_path):
    random = np.random.default_rng(0)
    features = random.normal(size=(20, 6)).astype(np.float32)

    def head(kind, strength):
        rule = DecisionRule(strength, (0.5, 0.3, 0.2))
        weight, bias = random.normal(size=(6, 3)).astype("f4"), np.ones(3, "f4")
        settings = ("all views", "2024: 1, NA: 2", 100.0, "log_loss")
        return Head(kind, weight, bias, rule, np.array([1.0, 2.0, 0.5]), *settings)

    path = tmp_path / "heads" / "module.h5"
    for kind in ("softmax", "logistic"):
        heads = ModuleHeads(*(head(kind, s) for s in (0.0, 0.5, 1.0)), ("2024", "NA", ""))
        heads.save(path, {"module": "pixels", "image_size": 8})
        read = ModuleHeads.load(path)
        assert read.class_names == heads.class_names
        for role in ROLES:
            written, back = getattr(heads, role), getattr(read, role)
            for name in ("weight", "bias", "weight_of_class"):
                np.testing.assert_array_equal(getattr(back, name), getattr(written, name))
            for name in ("kind", "rule", "trained_on", "class_weight", "l2", "aim"):
                assert getattr(back, name) == getattr(written, name)
            np.testing.assert_allclose(
                back.probabilities(features), written.probabilities(features), rtol=1e-6
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
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "hubretrain heads 2"
    with pytest.raises(HeadError, match=r"is no head file of this version; run `hubretrain fit`"):
        ModuleHeads.load(path)


def test_fitting_heads_needs_no_tensorflow():
    code = "import sys, hubretrain.heads.path; print('tensorflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
