"""One step of training, against its gradient by hand."""

from __future__ import annotations

import numpy as np

from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.modules import Backbone, Classifier, resolve
from tests.samples import write_module

STRENGTH, N_FEATURES = 0.3, 12


def test_the_pull_adds_its_strength_times_the_distance_from_the_start_to_each_gradient(tmp_path):
    from hubretrain.finetuning.devices import available_devices
    from hubretrain.finetuning.steps import Steps, TrainedModel

    stored = resolve(str(write_module(tmp_path / "small", n_features=N_FEATURES)))
    random, devices = np.random.default_rng(0), available_devices()
    head = random.normal(size=(N_FEATURES, 3)).astype(np.float32), np.zeros(3, np.float32)
    pixels = random.integers(0, 256, (6, 8, 8, 3), np.uint8)
    labels, weights = np.arange(6) % 3, np.full((6, 1), 1 / 6, np.float32)

    def gradients_of(l2_sp):
        """Shifts of the variables, and their gradients: Adam's first moments are a tenth."""
        options, shifts = FineTuneOptions(l2_sp=l2_sp), []
        model = TrainedModel(Classifier(Backbone(stored), "softmax", *head), options, devices)
        moved = np.random.default_rng(1)
        for variable in model.trained_variables:
            shifts.append(moved.normal(0, 0.1, variable.shape).astype(np.float32))
            variable.assign_add(shifts[-1])
        steps = Steps(model, options, devices, None)
        devices.run(steps.train["all"], [(pixels, labels, weights)])
        adams = model.optimizers["all"].adams
        return shifts, [10 * moment.numpy() for adam in adams for moment in adam._momentums]

    shifts, pulled = gradients_of(STRENGTH)
    _, free = gradients_of(0.0)
    assert len(shifts) == len(pulled) == 4  # convolution, dense layer, weight and bias of the head
    for shift, with_pull, without in zip(shifts, pulled, free, strict=True):
        np.testing.assert_allclose(with_pull - without, STRENGTH * shift, atol=2e-5)
        assert np.abs(without).max() > 1e-3
