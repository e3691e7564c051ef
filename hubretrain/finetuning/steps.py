"""What a training runs in each step, and to evaluate, as graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hubretrain.data.images import to_unit_tensor
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.optimizers import Optimizer
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.modules import Classifier, Cut
from hubretrain.tensorflow import tf


class Steps:
    """The graphs of a training.

    Args:
        classifier: What is evaluated.
        trained: What is trained: itself, or its copy on several devices.
        optimizers: Phase to what a step of it changes; `all` changes everything that is trained.
        start: Where the variables of `all` are pulled to; [] for no pull.
        devices: Where it runs.
        tuning: How.
        cut: Where the frozen part ends, if activations are given instead of pixels.

    Attributes:
        evaluate: (inputs, labels, weights) to the weighted sum of losses and the number of hits.
        train: Phase to a step: (inputs, labels, weights) to the loss.
    """

    def __init__(
        self,
        classifier: Classifier,
        trained: Classifier,
        optimizers: Mapping[str, Optimizer],
        start: Sequence[tf.Tensor],
        devices: Devices,
        tuning: FineTuneOptions,
        cut: Cut | None,
    ) -> None:
        self._trained, self._cut, self._devices, self._tuning = trained, cut, devices, tuning
        self._pulls = list(zip(optimizers["all"].trained, start, strict=True)) if start else []
        given = pixels_spec(classifier.backbone.stored.image_size)
        if cut is not None:
            given = tf.TensorSpec((None, *cut.shape), tf.float16)
        of_batch = [tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.float32)]

        @tf.function(input_signature=[given, *of_batch])  # type: ignore[untyped-decorator]
        def evaluate(given: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> Any:
            said = self._logits(classifier, given)
            hits = tf.reduce_sum(tf.cast(tf.argmax(said, axis=1) == labels, tf.float32))
            return classifier.loss(said, labels, weights), hits

        self.evaluate = evaluate
        self.train = {
            phase: devices.traced(self._step_of(optimizer), [given, *of_batch])
            for phase, optimizer in optimizers.items()
        }

    def _logits(self, model: Classifier, given: tf.Tensor, training: bool = False) -> tf.Tensor:
        if self._cut is None:
            return model.logits(to_unit_tensor(given), training)
        return model.head_logits(self._cut.top(tf.cast(given, tf.float32)))

    def _step_of(self, optimizer: Optimizer) -> Callable[..., Any]:
        """One step of some variables. Weights sum to 1 over the batch of all devices.

        Without BatchNorm in training mode dropout is off too: the few modules that have any have
        it behind their features.
        """
        tuning, pulls, scale = self._tuning, self._pulls, self._devices.loss_scale

        def step(given: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                said = self._logits(self._trained, given, tuning.train_batchnorm)
                loss = self._trained.loss(said, labels, weights, tuning.label_smoothing)
                # Half the squared distance from the start: equation 4 of Li et al. 2018.
                pull = tf.add_n([tf.nn.l2_loss(v - start) for v, start in pulls]) if pulls else 0.0
                aim = loss + tuning.l2_sp * pull / self._devices.n_replicas
                aim = scale * aim
            gradients = tape.gradient(aim, optimizer.trained)
            optimizer.apply([None if g is None else g / scale for g in gradients])
            return loss

        return step


def pixels_spec(size: int) -> tf.TensorSpec:
    """Of a batch of pixels: uint8 of shape (n_images, size, size, 3)."""
    return tf.TensorSpec((None, size, size, 3), tf.uint8)
