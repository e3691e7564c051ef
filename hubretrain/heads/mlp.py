"""Networks with one hidden layer on bottlenecks, for every fold, class weight and weight decay.

`softmax(max(z W1 + b1, 0) W2 + b2)` on standardised features or their components z; where an image
may have several labels, a sigmoid of each in the place of the softmax. Training is the
field's plain recipe: AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) with a
cosine rate, dropout of inputs and hidden units (Srivastava et al. 2014,
https://jmlr.org/papers/v15/srivastava14a.html). In an epoch each image shows one of its views, so
that an image weighs the same however many views it has.

Networks from several seeds are averaged by their logits, which is one network with as many times
the hidden units. Its logits are divided by a temperature, folded into the last layer: the log loss
of networks is mostly overconfidence. The temperature of a fold's networks comes from the images of
the other folds, that of a refitted network from all.

Every network is trained alone and from random numbers of its own, with BLAS on one thread and
several networks at a time, so its bytes depend neither on the number of threads nor on what else is
fitted. Those of another CPU differ by rounding, which training amplifies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hubretrain.arrays import AnyArray, FloatArray, IntArray
from hubretrain.errors import HeadError
from hubretrain.evaluation import sigmoid, softmax
from hubretrain.heads.features import Basis, FeatureBlocks
from hubretrain.heads.heads import Heads
from hubretrain.heads.inputs import ClassWeight, FitInputs, checked_l2, class_weight_name
from hubretrain.heads.path import ALL_IMAGES, NO_FOLDS
from hubretrain.heads.result import HeadPath
from hubretrain.heads.validation import fold_scores, log_loss, temperature_without
from hubretrain.parallel import ahead, one_blas_thread

DECAYS = (0.1, 3.0)
TIMED_STEPS = 8  # by which it is told how long networks take
MOST_COMPONENTS = 1024  # of a basis that networks take; time grows with their number
MOMENTUM, SQUARES_MOMENTUM, EPSILON = 0.9, 0.999, 1e-8  # of Adam


@dataclass(frozen=True)
class MLPOptions:
    """How networks are trained; the defaults were measured, see `README.md`.

    Attributes:
        n_hidden: Hidden units of each of the averaged networks.
        n_seeds: Networks that are averaged.
        dropout: Share of hidden units that are dropped at each step, [0, 1).
        input_dropout: Share of features that are dropped at each step, [0, 1).
        n_epochs: Passes over the images.
        n_steps: Fewest steps: few images make few steps per epoch, so they take more epochs.
        batch_size: Images per step.
        learning_rate: Of the first step; falls to 0 as a cosine.
        seed: Random seed.

    Raises:
        HeadError: One of them is out of range.
    """

    n_hidden: int = 256
    n_seeds: int = 2
    dropout: float = 0.5
    input_dropout: float = 0.2
    n_epochs: int = 15
    n_steps: int = 300
    batch_size: int = 256
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_hidden", "n_seeds", "n_epochs", "n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise HeadError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise HeadError(f"`{name}` is {getattr(self, name)}; expected [0, 1).")
        if not 0 < self.learning_rate < np.inf:
            raise HeadError(f"`learning_rate` is {self.learning_rate}; expected above 0.")


class Network(NamedTuple):
    """The arrays of one network, or their gradients.

    Attributes:
        hidden_weight: (n_features, n_hidden).
        hidden_bias: (n_hidden,).
        weight: (n_hidden, n_classes).
        bias: (n_classes,).
    """

    hidden_weight: AnyArray
    hidden_bias: AnyArray
    weight: AnyArray
    bias: AnyArray

    def logits(self, rows: AnyArray) -> AnyArray:
        """Return logits (n_rows, n_classes) of rows (n_rows, n_features)."""
        hidden = np.maximum(rows @ self.hidden_weight + self.hidden_bias, 0)
        return np.asarray(hidden @ self.weight + self.bias)

    def raw(self, rows: FeatureBlocks) -> Network:
        """Return the network for the features as they were given, not standardised."""
        weight = self.hidden_weight / rows.scale[:, None]
        bias = self.hidden_bias - rows.mean @ weight
        dtype = self.weight.dtype
        return self._replace(hidden_weight=weight.astype(dtype), hidden_bias=bias.astype(dtype))

    def cooled(self, temperature: float) -> Network:
        """Return the network whose logits are divided by a temperature."""
        divisor = self.weight.dtype.type(temperature)
        return self._replace(weight=self.weight / divisor, bias=self.bias / divisor)


class Training(NamedTuple):
    """What one network is trained on.

    Attributes:
        rows: Standardised features, or components.
        rows_of_image: Rows of each image, each an int64 array.
        labels: Class of each image, int64 (n_images,); or bool (n_images, n_classes).
        weight: Weight of each image in the loss, float64 (n_images,); where it may have several
            labels, of each of them, (n_images, n_classes).
        n_classes: Number of classes.
    """

    rows: FeatureBlocks
    rows_of_image: Sequence[IntArray]
    labels: AnyArray
    weight: FloatArray
    n_classes: int

    def targets(self, dtype: npt.DTypeLike) -> AnyArray:
        """Return what the outputs are to be, 0 or 1, (n_images, n_classes)."""
        if self.labels.ndim == 2:
            return self.labels.astype(dtype)
        return np.eye(self.n_classes, dtype=dtype)[self.labels]

    @property
    def images(self) -> IntArray:
        """The images that take part."""
        return np.flatnonzero(self.weight.reshape(len(self.weight), -1).any(axis=1))

    def start(self, network: Network) -> Network:
        """Return a network to start from: of several labels, with biases of their log odds.

        From 0, Adam's steps would not reach those of a rare label (Lin et al. 2017,
        https://arxiv.org/abs/1708.02002, section 3.3).
        """
        if self.labels.ndim == 1:
            return network
        with_label = np.maximum((self.weight * self.labels).sum(axis=0), 0.5)
        without = np.maximum((self.weight * ~self.labels).sum(axis=0), 0.5)
        return network._replace(bias=np.log(with_label / without).astype(network.bias.dtype))


def differentiate(
    network: Network, rows: AnyArray, targets: AnyArray, weight: AnyArray, kept: AnyArray
) -> tuple[float, Network]:
    """Return the weighted sum of the cross-entropies of a batch, in nats, and its gradients.

    Args:
        network: Where to differentiate.
        rows: Features (n, n_features).
        targets: Probabilities of the classes, 0 or 1, (n, n_classes).
        weight: Weight of each row (n,); of several labels, whose outputs are sigmoids, of each
            (n, n_classes).
        kept: What each hidden unit is multiplied by, (n, n_hidden): 0 where it is dropped.
    """
    hidden = rows @ network.hidden_weight
    hidden += network.hidden_bias
    kept = kept * (hidden > 0)
    hidden *= kept
    logits = hidden @ network.weight + network.bias
    if weight.ndim == 2:
        by_logits = (sigmoid(logits) - targets) * weight
        loss = float((weight * np.logaddexp(0, np.where(targets > 0, -logits, logits))).sum())
    else:
        probs = softmax(logits)
        likely = np.maximum((probs * targets).sum(axis=1), np.finfo(probs.dtype).tiny)
        by_logits = (probs - targets) * weight[:, None]
        loss = float(-(weight @ np.log(likely)))
    by_hidden = by_logits @ network.weight.T
    by_hidden *= kept
    gradients = Network(
        rows.T @ by_hidden,
        by_hidden.sum(axis=0),
        hidden.T @ by_logits,
        by_logits.sum(axis=0),
    )
    return loss, gradients


class Adam:
    """AdamW on the arrays of a network, in place.

    Args:
        network: The arrays to train.
        decay: Share of the weights, not of the biases, that a step takes off, times its rate.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self._network, self._decay, self._n_steps = network, decay, 0
        self._mean = [np.zeros_like(values) for values in network]
        self._square = [np.zeros_like(values) for values in network]
        self._scratch = [np.empty_like(values) for values in network]

    def step(self, gradients: Network, rate: float) -> None:
        """Take one step; the gradients are overwritten."""
        self._n_steps += 1
        corrected = rate * np.sqrt(1 - SQUARES_MOMENTUM**self._n_steps)
        corrected /= 1 - MOMENTUM**self._n_steps
        arrays = zip(self._network, gradients, self._mean, self._square, self._scratch, strict=True)
        for values, gradient, mean, square, scratch in arrays:
            np.subtract(gradient, mean, out=scratch)
            scratch *= 1 - MOMENTUM
            mean += scratch
            gradient *= gradient
            gradient -= square
            gradient *= 1 - SQUARES_MOMENTUM
            square += gradient
            np.sqrt(square, out=scratch)
            scratch += EPSILON
            np.divide(mean, scratch, out=scratch)
            scratch *= corrected
            if values.ndim == 2:
                values *= 1 - rate * self._decay
            values -= scratch


def train(training: Training, decay: float, options: MLPOptions, seed: int) -> Network:
    """Train one network.

    Args:
        training: Rows, labels and weights; images of weight 0 take no part.
        decay: Weight decay.
        options: How to train.
        seed: Number of the network among those that are averaged.
    """
    rows, dtype = training.rows, training.rows.dtype
    random = np.random.default_rng([options.seed, seed])
    network = _start(rows.n_features, options.n_hidden, training.n_classes, dtype, random)
    network, images = training.start(network), training.images
    weight = (training.weight / training.weight[images].mean()).astype(dtype)
    targets = training.targets(dtype)
    per_epoch = -(-len(images) // options.batch_size)
    n_epochs = n_steps(len(images), options) // per_epoch
    adam, n_done = Adam(network, decay), 0
    for _ in range(n_epochs):
        for batch in np.array_split(random.permutation(images), per_epoch):
            drawn = [training.rows_of_image[i] for i in batch.tolist()]
            view = random.random(len(batch))
            index = np.array([of[int(v * len(of))] for of, v in zip(drawn, view, strict=True)])
            inputs = rows.take(index)
            inputs *= _dropout(random, inputs.shape, options.input_dropout, dtype)
            kept = _dropout(random, (len(batch), options.n_hidden), options.dropout, dtype)
            share = weight[batch] / len(batch)
            _, gradients = differentiate(network, inputs, targets[batch], share, kept)
            rate = options.learning_rate * (1 + np.cos(np.pi * n_done / (n_epochs * per_epoch))) / 2
            adam.step(gradients, rate)
            n_done += 1
    return network


def n_steps(n_images: int, options: MLPOptions = MLPOptions()) -> int:
    """Return the steps of one network that is trained on some images."""
    per_epoch = -(-n_images // options.batch_size)
    return max(options.n_epochs, -(-options.n_steps // per_epoch)) * per_epoch


def seconds_of_step(n_features: int, n_classes: int, options: MLPOptions = MLPOptions()) -> float:
    """Return how long a step of one network takes here, by some steps on random numbers."""
    n_timed = TIMED_STEPS * options.batch_size
    random = np.random.default_rng(0)
    values = random.standard_normal((n_timed, n_features), np.float32)
    images = np.arange(n_timed)
    rows = FeatureBlocks([values], images, standardize=False, memory=0, as_they_are=True)
    labels = random.integers(0, n_classes, n_timed)
    of_images = np.split(images, n_timed)
    training = Training(rows, of_images, labels, np.ones(n_timed), n_classes)
    with one_blas_thread:
        started = time.perf_counter()
        train(training, DECAYS[0], replace(options, n_epochs=1, n_steps=1), seed=0)
        return (time.perf_counter() - started) / TIMED_STEPS


def _start(
    n_features: int,
    n_hidden: int,
    n_classes: int,
    dtype: npt.DTypeLike,
    random: np.random.Generator,
) -> Network:
    """Return random weights (He et al. 2015, https://arxiv.org/abs/1502.01852), biases of 0."""
    first = random.standard_normal((n_features, n_hidden)) * np.sqrt(2 / n_features)
    last = random.standard_normal((n_hidden, n_classes)) * np.sqrt(1 / n_hidden)
    biases = np.zeros(n_hidden, dtype), np.zeros(n_classes, dtype)
    return Network(first.astype(dtype), biases[0], last.astype(dtype), biases[1])


def _dropout(
    random: np.random.Generator, shape: tuple[int, ...], share: float, dtype: npt.DTypeLike
) -> AnyArray:
    """Return 0 for a share of some units, to 1 / 256, and for the others what keeps their mean."""
    n_dropped = min(255, round(256 * share))
    is_kept = random.integers(0, 256, shape, dtype=np.uint8) >= n_dropped
    return is_kept * np.array(256 / (256 - n_dropped), dtype)


def averaged(networks: Sequence[Network]) -> Network:
    """Return the network whose logits are the mean of those of some networks."""
    return Network(
        np.concatenate([network.hidden_weight for network in networks], axis=1),
        np.concatenate([network.hidden_bias for network in networks]),
        np.concatenate([network.weight for network in networks]) / len(networks),
        np.mean([network.bias for network in networks], axis=0, dtype=networks[0].bias.dtype),
    )


class MLPFitter:
    """Fits networks as `PathFitter` fits linear heads: over the folds, then to all images.

    Args:
        inputs: Labels, folds and weights.
        rows: Standardised features, or components of `Projection`; several fitters may share them.
        class_weights: Class weights; see `weights_by_class`.
        options: How to train.
        bases: Bases of the networks without each fold, and of those of all images: they are
            trained on rows in the first columns of these; None: on whole rows.
    """

    def __init__(
        self,
        inputs: FitInputs,
        rows: FeatureBlocks,
        class_weights: Sequence[ClassWeight] = (None,),
        options: MLPOptions = MLPOptions(),
        bases: Mapping[int, Basis] | None = None,
    ) -> None:
        self._inputs, self._rows, self._options = inputs, rows, options
        self._class_weights, self._bases = tuple(class_weights), bases
        order = np.argsort(rows.row_image, kind="stable")
        counts = np.bincount(rows.row_image, minlength=len(inputs.labels))
        self._rows_of_image = np.split(order, np.cumsum(counts)[:-1])
        self._temperature: dict[tuple[int, float], float] = {}

    def fit_folds(
        self,
        decay: npt.ArrayLike,
        *,
        mean_over_views: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> HeadPath:
        """Train the networks of all folds.

        Args:
            decay: Weight decays, one number or more: `l2` of the result.
            mean_over_views: Whether to average out-of-fold logits over the views of each image too.
            advance: Function that is called with the number of heads fitted since the last call.

        Returns:
            A result of kind `mlp`, whose logits and heads are divided by their temperatures, and
            whose `objective` is NaN.
        """
        inputs, decays = self._inputs, checked_l2(decay)
        grid = (len(self._class_weights), len(inputs.folds), len(decays))
        shape = (len(inputs.labels), grid[0], grid[2], inputs.n_classes)
        out_of_fold = np.full(shape, np.nan, np.float32)
        mean = np.full(shape, np.nan, np.float32) if mean_over_views else None
        problems = [
            (w, fold, level)
            for w in range(grid[0])
            for fold in inputs.folds.tolist()
            for level in decays.tolist()
        ]
        networks = self._trained(problems, advance)
        for (w, f, i), network in zip(np.ndindex(grid), networks, strict=True):
            scores = fold_scores(network.logits, self._rows, inputs, int(inputs.folds[f]))
            if scores is not None:
                out_of_fold[scores.images, w, i] = scores.of_view_0
                if mean is not None:
                    mean[scores.images, w, i] = scores.mean
        path = HeadPath(
            kind="mlp",
            l2=decays,
            class_weights=tuple(class_weight_name(weight) for weight in self._class_weights),
            folds=inputs.folds,
            heads=self._heads(problems, networks),
            objective=np.full(grid, np.nan),
            validation_loss=np.full(grid, np.nan),
            iterations=np.full(grid, self._options.n_epochs),
            converged=np.ones(grid, dtype=bool),
            stopped_early=np.zeros(grid, dtype=bool),
            out_of_fold=out_of_fold,
            out_of_fold_mean=mean,
        )
        if inputs.folds[0] != ALL_IMAGES:
            self._calibrate(path)
        return path

    def refit(self, decay: npt.ArrayLike) -> Heads:
        """Train networks on the images of all folds; `fit_folds` with these decays comes first.

        Args:
            decay: Weight decays, one number or more.

        Returns:
            Heads of each class weight at each decay, in C order.

        Raises:
            HeadError: There were no folds, so the heads are fitted to all images already.
        """
        if self._inputs.folds[0] == ALL_IMAGES:
            raise HeadError(NO_FOLDS)
        problems = [
            (w, ALL_IMAGES, level)
            for w in range(len(self._class_weights))
            for level in checked_l2(decay).tolist()
        ]
        networks = [
            network.cooled(self._temperature[w, level])
            for (w, _, level), network in zip(problems, self._trained(problems, None), strict=True)
        ]
        return self._heads(problems, networks)

    def _trained(
        self, problems: Sequence[tuple[int, int, float]], advance: Callable[[int], None] | None
    ) -> list[Network]:
        """Return the network of each class weight, fold that is left out, and decay.

        Rows are in the basis of one fold at a time.
        """
        seeds = range(self._options.n_seeds)
        networks: dict[tuple[int, int, float], list[Network]] = {of: [] for of in problems}
        n_threads = os.cpu_count() or 1
        for fold in dict.fromkeys(fold for _, fold, _ in problems):
            rows, columns = self._rows, None
            if self._bases is not None:
                columns = self._bases[fold].columns[:, :MOST_COMPONENTS]
                rows = self._rows.turned(columns)
            trained = partial(self._trained_on, rows, columns)
            tasks = [(of, seed) for of in problems if of[1] == fold for seed in seeds]
            with one_blas_thread:
                for (of, _), network in ahead(trained, tasks, n_threads, n_threads):
                    networks[of].append(network)
                    if advance and len(networks[of]) == len(seeds):
                        advance(1)
        return [averaged(networks[of]) for of in problems]

    def _trained_on(
        self,
        rows: FeatureBlocks,
        columns: AnyArray | None,
        task: tuple[tuple[int, int, float], int],
    ) -> Network:
        """Return the network of one problem and seed, trained on `rows`, for `self._rows`."""
        (w, fold, decay), seed = task
        inputs = self._inputs
        weights = inputs.problem_weights([self._class_weights[w]], np.array([fold]), "softmax")
        is_training = (inputs.fold >= 0) & (inputs.fold != fold)
        if inputs.multi_label:
            without, positive = np.where(weights == 0, 1, weights)[0, 0].T
            of_label = np.where(inputs.labels, positive, without)
            weight = of_label * (inputs.weight * is_training)[:, None]
        else:
            weight = inputs.weight * weights[0, 0, 0][inputs.labels] * is_training
        training = Training(rows, self._rows_of_image, inputs.labels, weight, inputs.n_classes)
        network = train(training, decay, self._options, seed)
        if columns is None:
            return network
        return network._replace(hidden_weight=columns @ network.hidden_weight)

    def _heads(
        self, problems: Sequence[tuple[int, int, float]], networks: Sequence[Network]
    ) -> Heads:
        raw = [network.raw(self._rows) for network in networks]
        hidden_weight, hidden_bias, weight, bias = zip(*raw, strict=True)
        names = [class_weight_name(weight) for weight in self._class_weights]
        return Heads(
            "mlp",
            np.stack(weight, axis=1),
            np.stack(bias),
            {
                "class_weight": np.array([names[w] for w, _, _ in problems]),
                "fold": np.array([fold for _, fold, _ in problems]),
                "l2": np.array([level for _, _, level in problems]),
            },
            self._inputs.class_names,
            np.stack(hidden_weight, axis=1),
            np.stack(hidden_bias),
            self._inputs.multi_label,
        )

    def _calibrate(self, path: HeadPath) -> None:
        """Divide logits and heads by their temperatures, and write the validation losses."""
        inputs = self._inputs
        weight = path.heads.weight.reshape(-1, *path.objective.shape, inputs.n_classes)
        bias = path.heads.bias.reshape(*path.objective.shape, inputs.n_classes)
        for w, i in np.ndindex(len(path.class_weights), len(path.l2)):
            before = path.out_of_fold[:, w, i].copy()
            self._temperature[w, float(path.l2[i])] = temperature_without(before, inputs, None)
            for f, fold in enumerate(path.folds):
                temperature = np.float32(temperature_without(before, inputs, fold))
                images = inputs.fold == fold
                path.out_of_fold[images, w, i] /= temperature
                if path.out_of_fold_mean is not None:
                    path.out_of_fold_mean[images, w, i] /= temperature
                weight[:, w, f, i] /= temperature  # views: this divides the heads
                bias[w, f, i] /= temperature
                path.validation_loss[w, f, i] = log_loss(
                    path.out_of_fold[images, w, i], inputs.labels[images], inputs.weight[images]
                )
