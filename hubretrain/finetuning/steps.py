"""The model that is trained, and the graphs of its steps and of its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hubretrain.arrays import Float32Array
from hubretrain.data.images import to_unit_tensor
from hubretrain.finetuning.devices import Devices
from hubretrain.finetuning.input_pipeline import (
    EVALUATION_BATCH_SIZE,
    InputSource,
    PixelSource,
    TrainingImages,
    split,
)
from hubretrain.finetuning.optimizers import Optimizer, depth_groups
from hubretrain.finetuning.options import FineTuneOptions
from hubretrain.finetuning.schedule import smaller
from hubretrain.modules import Classifier, Cut
from hubretrain.progress import Bar
from hubretrain.tensorflow import tf

N_INPUTS = 1024  # of most modules; a head on more inputs is trained more slowly
N_TO_SCALE_BY = 256  # images that the scale of inputs is measured on
SMALLEST_SCALE = 1e-3  # of an input, as a share of the median: one that is always 0 counts as this


class TrainedModel:
    """A classifier, and what training changes of it.

    On several devices a copy that is spread over them is trained, because variables belong to the
    distribution strategy that they were made in; `synchronize` brings its values to the
    classifier.

    Args:
        classifier: The model, with its fitted head.
        options: How to train it.
        devices: Where it is trained.

    Attributes:
        classifier: The model that is evaluated and exported.
        copy: The model that is trained: on one device the classifier itself.
        variables: All variables of `copy`, in the order of the classifier's.
        optimizers: Phase to the optimizer of what it trains: `head`, and `all` that is trained.
        start: Identity of each variable of `all` to the value that training started from.

    Raises:
        ModuleError: The backbone cannot be trained as the options say.
    """

    def __init__(self, classifier: Classifier, options: FineTuneOptions, devices: Devices) -> None:
        self.classifier = classifier
        if options.small_first:
            backbone = classifier.backbone
            backbone.check_size(smaller(backbone.stored.image_size), options.train_batchnorm)
        with devices.strategy.scope():
            self.copy = classifier if devices.n_replicas == 1 else classifier.replica()
            # BatchNorm's statistics are no trainable variables, so all of the backbone is kept.
            self.variables = self.copy.all_variables
            pairs = zip(classifier.all_variables, self.variables, strict=True)
            copy_of = {id(variable): copied for variable, copied in pairs}
            layers = [
                [copy_of[id(variable)] for variable in layer]
                for layer in classifier.trained_layers(options.unfreeze_last)
            ]
            matrices = self.copy.head_variables[::2]
            self.shares = {id(v): tf.Variable(tf.ones((v.shape[0], 1))) for v in matrices}
            groups = {
                "all": depth_groups(layers, options.depth_decay),
                "head": [(self.copy.head_variables, 1.0)],
            }
            self.optimizers = {
                phase: Optimizer(
                    of_phase,
                    self.shares,
                    momentum=options.ema,
                    is_scaled=options.mixed_precision,
                )
                for phase, of_phase in groups.items()
            }
        changed = self.variables if options.train_batchnorm else self.trained_variables
        is_needed = options.l2_sp or options.interpolate
        self.start = {id(v): tf.identity(v) for v in changed} if is_needed else {}
        self._predict = tf.function(
            lambda pixels: classifier.probabilities(to_unit_tensor(pixels)),
            input_signature=[pixels_spec(classifier.backbone.stored.image_size)],
        )

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """Every variable that training changes."""
        return self.optimizers["all"].trained

    @property
    def trained_backbone_variables(self) -> list[tf.Variable]:
        """Variables of the backbone that training changes."""
        head = {id(variable) for variable in self.copy.head_variables}
        return [variable for variable in self.trained_variables if id(variable) not in head]

    def scale_head(self, source: PixelSource, images: TrainingImages) -> None:
        """Set how fast the weights of each input of the head are trained: by its scale.

        A step of Adam changes each weight by about the rate, whatever its input. So one of a head
        on thousands of features, or on large ones, changes the scores as much more. With these
        shares the head is trained as on standardised inputs, and as on at most `N_INPUTS` of them.

        Args:
            source: Source of pixels.
            images: The training images; some of them, unaugmented, are taken.
        """
        n_images = min(len(images), N_TO_SCALE_BY)
        chosen = np.unique(np.linspace(0, len(images) - 1, n_images).astype(np.int64))
        batches = split(chosen, EVALUATION_BATCH_SIZE)
        arrays = source.batches(images, batches, [0 * batch for batch in batches])
        model, backbone = self.classifier, self.classifier.backbone
        inputs = [np.concatenate([backbone(to_unit_tensor(a)).numpy() for a in arrays])]
        if model.hidden_weight is not None and model.hidden_bias is not None:
            hidden = inputs[0] @ model.hidden_weight.numpy() + model.hidden_bias.numpy()
            inputs.append(np.maximum(hidden, 0))
        for share, rows in zip(self.shares.values(), inputs, strict=True):
            share.assign(shares_of_inputs(rows)[:, None])

    def interpolate(self, strength: float, ends: Mapping[int, tf.Tensor]) -> None:
        """Set the weights between those of the start, 0, and others, 1."""
        for variable in self.variables:
            if id(variable) in ends:
                start, end = self.start[id(variable)], ends[id(variable)]
                variable.assign(end if strength == 1 else start + strength * (end - start))
        self.synchronize()

    def ends(self) -> dict[int, tf.Tensor]:
        """Return the values of what `interpolate` sets: identity of each variable to its value."""
        return {id(v): tf.identity(v) for v in self.variables if id(v) in self.start}

    def synchronize(self) -> None:
        """Give the classifier the values of the copy that is trained."""
        if self.copy is not self.classifier:
            pairs = zip(self.classifier.all_variables, self.variables, strict=True)
            for variable, copied in pairs:
                variable.assign(copied.numpy())

    def probabilities(
        self, source: PixelSource, images: TrainingImages, *, what: str
    ) -> Float32Array:
        """Return the classifier's probabilities of unaugmented images.

        Args:
            source: Source of pixels.
            images: Images to predict.
            what: Name of the progress bar.

        Returns:
            float32 of shape (n_images, n_classes).
        """
        if not len(images):
            return np.zeros((0, int(self.classifier.bias.shape[0])), np.float32)
        batches = split(np.arange(len(images)), EVALUATION_BATCH_SIZE)
        probs = []
        with Bar(what, len(images)) as bar:
            for pixels in source.batches(images, batches, [0 * batch for batch in batches]):
                probs.append(self._predict(pixels).numpy())
                bar.advance(len(pixels))
        return np.concatenate(probs)


class Steps:
    """The graphs of a training.

    Args:
        model: The model that is trained.
        options: How to train it.
        devices: Where it is trained.
        cut: Where the frozen part ends, if inputs are activations instead of pixels.

    Attributes:
        evaluate: (inputs, labels, weights) to (weighted sum of losses, probabilities).
        train: Phase to a step: (inputs, labels, weights) to the loss.
        train_small: The same on smaller images; empty where there are none.
    """

    def __init__(
        self, model: TrainedModel, options: FineTuneOptions, devices: Devices, cut: Cut | None
    ) -> None:
        self._model, self._options, self._devices, self._cut = model, options, devices, cut
        inputs = pixels_spec(model.classifier.backbone.stored.image_size)
        if cut is not None:
            activations = tf.TensorSpec((None, *cut.activations_shape), tf.float16)
            inputs = (activations, tf.TensorSpec((None, cut.n_below), tf.float32))
        labels_spec = tf.TensorSpec((None,), tf.int64)
        if model.classifier.multi_label:
            labels_spec = tf.TensorSpec((None, None), tf.bool)
        per_image = [labels_spec, tf.TensorSpec((None, None), tf.float32)]
        signature = [inputs, *per_image]

        @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
        def evaluate(inputs: Any, labels: tf.Tensor, weights: tf.Tensor) -> Any:
            logits = self._logits(model.classifier, inputs)
            loss = model.classifier.loss(logits, labels, weights)
            return loss, model.classifier.to_probabilities(logits)

        self.evaluate = evaluate
        self.train = self._traced(signature)
        self.train_small: dict[str, Any] = {}
        if options.small_first:
            size = smaller(model.classifier.backbone.stored.image_size)
            self.train_small = self._traced([pixels_spec(size), *per_image])

    def _traced(self, signature: list[Any]) -> dict[str, Any]:
        return {
            phase: self._devices.traced(self._step_of(optimizer), signature)
            for phase, optimizer in self._model.optimizers.items()
        }

    def validate(self, source: InputSource, images: TrainingImages) -> tuple[float, Float32Array]:
        """Return the mean loss on the validation images, weighted by class, and probabilities."""
        batches = split(np.arange(len(images)), EVALUATION_BATCH_SIZE)
        total, probs = 0.0, []
        arrays = source.batches(images, batches, [0 * batch for batch in batches])
        for batch, inputs in zip(batches, arrays, strict=True):
            loss, of_batch = self.evaluate(inputs, images.labels[batch], images.weights[batch])
            total += float(loss)
            probs.append(of_batch.numpy())
        mean_weight = float(images.weights.mean(dtype=np.float64))
        return total / (mean_weight * len(images)), np.concatenate(probs)

    def _logits(self, model: Classifier, inputs: Any, training: bool = False) -> tf.Tensor:
        if self._cut is None:
            return model.logits(to_unit_tensor(inputs), training)
        activations, below = inputs
        activations = tf.cast(activations, tf.float32)
        if self._cut.n_below:
            activations = tf.concat([activations, below], axis=1)
        return model.head_logits(self._cut.top(activations))

    def _step_of(self, optimizer: Optimizer) -> Callable[..., Any]:
        """Return a step of an optimizer; the weights of an epoch's batches have the mean 1.

        Dropout and BatchNorm share one flag in TF-Hub's format, so dropout is off unless BatchNorm
        is trained. Few modules have any, and those have it behind their features.
        """
        model, options, n_replicas = self._model, self._options, self._devices.n_replicas
        pulled = model.trained_variables if options.l2_sp else []
        pulls = [(variable, model.start[id(variable)]) for variable in pulled]

        def step(inputs: Any, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                logits = self._logits(model.copy, inputs, options.train_batchnorm)
                loss = model.copy.loss(logits, labels, weights, options.label_smoothing)
                # Half the squared distance from the start: equation 4 of Li et al. 2018.
                pull = (
                    tf.add_n([tf.nn.l2_loss(v - origin) for v, origin in pulls]) if pulls else 0.0
                )
                # The optimizer sums the gradients of the devices, so each adds its share.
                objective = loss + options.l2_sp * pull / n_replicas
                if optimizer.loss_scale is not None:
                    objective *= optimizer.loss_scale
            optimizer.apply(tape.gradient(objective, optimizer.trained))
            return loss

        return step


def shares_of_inputs(rows: Float32Array) -> Float32Array:
    """Return the share of the learning rate for the weights of each input of a layer.

    It is 1 / (root mean square of the input), times `N_INPUTS` / (number of inputs) where there are
    more: then a step changes no score by more than it would with as many standardised inputs.

    Args:
        rows: Inputs of some images, float32 of shape (n_images, n_inputs).

    Returns:
        float32 of shape (n_inputs,): powers of 2, which rounding does not change.
    """
    scale = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=0))
    usual = float(np.median(scale[scale > 0])) if (scale > 0).any() else 1.0
    shares = min(1.0, N_INPUTS / len(scale)) / np.maximum(scale, SMALLEST_SCALE * usual)
    return np.exp2(np.round(np.log2(shares))).astype(np.float32)


def pixels_spec(size: int) -> tf.TensorSpec:
    """Return the signature of a batch of pixels: uint8 of shape (n_images, size, size, 3)."""
    return tf.TensorSpec((None, size, size, 3), tf.uint8)
