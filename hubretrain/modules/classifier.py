"""A backbone with one head: pixels in, class probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hubretrain.errors import ModuleError
from hubretrain.tensorflow import tf

if TYPE_CHECKING:
    from hubretrain.modules.backbone import Backbone


class Classifier(tf.Module):  # type: ignore[misc]
    """A backbone and a head, as one model with one list of variables.

    Args:
        backbone: A loaded module.
        kind: `softmax` or `logistic`; logistic classes are scored each on its own and
            then normalised to sum to 1.
        weight: float32 of shape (n_features, n_classes).
        bias: float32 of shape (n_classes,).
    """

    def __init__(
        self,
        backbone: Backbone,
        kind: str,
        weight: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
    ) -> None:
        super().__init__(name="classifier")
        self.backbone, self.kind = backbone, kind
        self.weight = tf.Variable(weight, name="head/weight", dtype=tf.float32)
        self.bias = tf.Variable(bias, name="head/bias", dtype=tf.float32)

    def logits(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Class scores.

        Args:
            images: float32 of shape (n_images, image_size, image_size, 3), RGB in [0, 1].
            training: Run the backbone as in training.

        Returns:
            float32 of shape (n_images, n_classes).
        """
        return self.head_logits(self.backbone(images, training))

    def head_logits(self, features: tf.Tensor) -> tf.Tensor:
        """Class scores of bottlenecks, float32 of shape (n_images, n_features)."""
        return tf.linalg.matmul(features, self.weight) + self.bias

    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Class probabilities, float32 of shape (n_images, n_classes), rows sum to 1."""
        return self.to_probabilities(self.logits(images))

    def to_probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Class probabilities from scores, both float32 of shape (n_images, n_classes)."""
        if self.kind == "softmax":
            return tf.nn.softmax(logits)
        each = tf.nn.sigmoid(logits)
        return each / tf.reduce_sum(each, axis=1, keepdims=True)

    def loss(
        self, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, smoothing: float = 0.0
    ) -> tf.Tensor:
        """The weighted sum of the loss that the head was fitted with: cross-entropy.

        Args:
            logits: float32 of shape (n_images, n_classes).
            labels: int64 of shape (n_images,).
            weights: float32 of shape (n_images,).
            smoothing: Share of each label that is spread over all classes; of a logistic head,
                over yes and no of each class.
        """
        n_classes = logits.shape[1]
        targets = (1 - smoothing) * tf.one_hot(labels, n_classes, dtype=logits.dtype)
        if self.kind == "softmax":
            targets += smoothing / n_classes
            each = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        else:
            targets += smoothing / 2
            each = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), axis=1)
        return tf.reduce_sum(weights * each)

    def replica(self) -> Classifier:
        """A copy whose module is loaded anew, in the distribution strategy whose scope this is."""
        backbone = type(self.backbone)(self.backbone.stored)
        copy = Classifier(backbone, self.kind, self.weight.numpy(), self.bias.numpy())
        for new, old in zip(copy.all_variables, self.all_variables, strict=True):
            new.assign(old.numpy())
        return copy

    @property
    def all_variables(self) -> list[tf.Variable]:
        """What predictions depend on: those that training changes, BatchNorm's, and frozen ones."""
        every = (*self.backbone.variables, *self.backbone.trainable_variables)
        return [*{id(v): v for v in every}.values(), *self.head_variables]

    @property
    def head_variables(self) -> list[tf.Variable]:
        """The head's weight and bias."""
        return [self.weight, self.bias]

    def trained_layers(self, unfreeze_last: int | None) -> list[list[tf.Variable]]:
        """What fine-tuning changes, by layer: the last ones of the backbone, then the head.

        Args:
            unfreeze_last: How many layers of the backbone; None for all of them.

        Raises:
            ModuleError: The backbone cannot be trained, or has fewer layers.
        """
        if unfreeze_last == 0:
            return [self.head_variables]
        layers = self.backbone.layers()
        name = self.backbone.stored.name
        if not layers:
            raise ModuleError(
                f"{name} {self.backbone.why_not_trainable}, so it can be cached and screened but "
                "not fine-tuned; choose another with --module, or train only the head with "
                "--unfreeze-last 0."
            )
        if unfreeze_last is not None and unfreeze_last > len(layers):
            raise ModuleError(
                f"--unfreeze-last is {unfreeze_last} and {name} has {len(layers)} trainable "
                "layers; choose at most that many."
            )
        chosen: Sequence[tuple[str, list[tf.Variable]]] = layers[-(unfreeze_last or len(layers)) :]
        return [*(list(variables) for _, variables in chosen), self.head_variables]
