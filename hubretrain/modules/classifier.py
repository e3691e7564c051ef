"""A backbone with one head: pixels in, class probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubretrain.arrays import Float32Array
from hubretrain.errors import ModuleError, NotTrainableError
from hubretrain.tensorflow import tf

if TYPE_CHECKING:
    from hubretrain.modules.backbone import Backbone


class Classifier(tf.Module):  # type: ignore[misc]
    """A backbone and a head, as one model with one list of variables.

    Args:
        backbone: A loaded module.
        kind: `softmax`, `logistic` or `mlp`. Logistic classes are scored independently, and their
            probabilities then divided by their sum. `mlp` is softmax on a hidden layer.
        weight: float32 of shape (n_features, n_classes); of `mlp` (n_hidden, n_classes).
        bias: float32 of shape (n_classes,).
        hidden_weight: float32 of shape (n_features, n_hidden), of `mlp` only. The hidden layer is
            `max(features @ hidden_weight + hidden_bias, 0)`.
        hidden_bias: float32 of shape (n_hidden,), of `mlp` only.
        multi_label: Whether an image may have any number of the classes, its labels: each score
            then becomes a probability of its own, by a sigmoid.
    """

    hidden_weight: tf.Variable | None = None
    hidden_bias: tf.Variable | None = None

    def __init__(
        self,
        backbone: Backbone,
        kind: str,
        weight: Float32Array,
        bias: Float32Array,
        hidden_weight: Float32Array | None = None,
        hidden_bias: Float32Array | None = None,
        *,
        multi_label: bool = False,
    ) -> None:
        super().__init__(name="classifier")
        self.backbone, self.kind, self.multi_label = backbone, kind, multi_label
        self.weight = tf.Variable(weight, name="head/weight", dtype=tf.float32)
        self.bias = tf.Variable(bias, name="head/bias", dtype=tf.float32)
        if (hidden_weight is None) != (kind != "mlp"):
            raise ValueError("a hidden layer belongs to the kind `mlp`, and to no other")
        if hidden_weight is not None:
            self.hidden_weight = tf.Variable(hidden_weight, name="head/hidden_weight")
            self.hidden_bias = tf.Variable(hidden_bias, name="head/hidden_bias")

    def logits(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the class scores of images.

        Args:
            images: float32 of shape (n_images, image_size, image_size, 3), RGB in [0, 1].
            training: Whether to run the backbone as in training.

        Returns:
            float32 of shape (n_images, n_classes).
        """
        return self.head_logits(self.backbone(images, training))

    def head_logits(self, features: tf.Tensor) -> tf.Tensor:
        """Return the class scores of bottlenecks, float32 of shape (n_images, n_features)."""
        if self.hidden_weight is not None:
            hidden = tf.linalg.matmul(features, self.hidden_weight) + self.hidden_bias
            features = tf.nn.relu(hidden)
        return tf.linalg.matmul(features, self.weight) + self.bias

    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Return class probabilities, float32 of shape (n_images, n_classes).

        Rows sum to 1, but where images may have several labels.
        """
        return self.to_probabilities(self.logits(images))

    def to_probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the probabilities of scores, both float32 of shape (n_images, n_classes)."""
        if self.multi_label:
            return tf.nn.sigmoid(logits)
        if self.kind != "logistic":
            return tf.nn.softmax(logits)
        scores = tf.nn.sigmoid(logits)
        return scores / tf.reduce_sum(scores, axis=1, keepdims=True)

    def loss(
        self, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, smoothing: float = 0.0
    ) -> tf.Tensor:
        """Return the weighted sum of the loss that the head was fitted with: cross-entropy.

        Label smoothing is that of Szegedy et al. 2016, https://arxiv.org/abs/1512.00567: with a
        share s of n classes, targets of 1 and 0 become 1 - s + s/n and s/n. A logistic head, and
        one of several labels per image, makes a yes-no decision per class, so there n is 2.

        Args:
            logits: float32 of shape (n_images, n_classes).
            labels: int64 of shape (n_images,), class indices; of several labels per image bool of
                shape (n_images, n_classes).
            weights: float32 of shape (n_images,); or of shape (n_images, n_classes) where there are
                yes-no decisions, which may weigh differently.
            smoothing: Share s of each label that is spread over the classes, [0, 1).
        """
        n_classes = logits.shape[1]
        if self.multi_label:
            targets = tf.cast(labels, logits.dtype)
        else:
            targets = tf.one_hot(labels, n_classes, dtype=logits.dtype)
        targets = (1 - smoothing) * targets
        if self.kind != "logistic" and not self.multi_label:
            targets += smoothing / n_classes
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)[:, None]
        else:
            targets += smoothing / 2
            losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        weights = tf.reshape(weights, (tf.shape(logits)[0], -1))
        return tf.reduce_sum(weights * losses)

    def replica(self) -> Classifier:
        """Return a copy with a module of its own, in the distribution strategy of this scope."""
        hidden = [v.numpy() for v in self.head_variables[:-2]]
        backbone = self.backbone.replica()
        arrays = (self.weight.numpy(), self.bias.numpy(), *hidden)
        copy = Classifier(backbone, self.kind, *arrays, multi_label=self.multi_label)
        for new, old in zip(copy.all_variables, self.all_variables, strict=True):
            new.assign(old.numpy())
        return copy

    @property
    def all_variables(self) -> list[tf.Variable]:
        """All that predictions depend on: trained and frozen variables, and BatchNorm's."""
        variables = (*self.backbone.variables, *self.backbone.trainable_variables)
        return [*{id(v): v for v in variables}.values(), *self.head_variables]

    @property
    def head_variables(self) -> list[tf.Variable]:
        """The head's weight and bias, after those of a hidden layer."""
        hidden = [] if self.hidden_weight is None else [self.hidden_weight, self.hidden_bias]
        return [*hidden, self.weight, self.bias]

    def trained_layers(self, unfreeze_last: int | None) -> list[list[tf.Variable]]:
        """Return the variables that fine-tuning changes, by layer in network order, the head last.

        Args:
            unfreeze_last: Number of layers of the backbone to train; None for all.

        Raises:
            NotTrainableError: The backbone cannot be trained.
            ModuleError: It has fewer layers.
        """
        if unfreeze_last == 0:
            return [self.head_variables]
        layers = self.backbone.layers()
        name = self.backbone.stored.name
        if not layers:
            raise NotTrainableError(
                f"{name} {self.backbone.why_not_trainable}, so it can be cached and screened but "
                "not fine-tuned; choose another module, or train only the head with "
                "`unfreeze_last=0`."
            )
        if unfreeze_last is not None and unfreeze_last > len(layers):
            raise ModuleError(
                f"`unfreeze_last` is {unfreeze_last}; expected at most {len(layers)}, as many as "
                f"{name} has trainable layers."
            )
        last = layers[-(unfreeze_last or len(layers)) :]
        return [*(variables for _, variables in last), self.head_variables]
