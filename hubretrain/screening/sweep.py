"""What is compared on every module: the sweep over heads, and the effects that it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hubretrain.arrays import AnyArray
from hubretrain.data import targets
from hubretrain.errors import HeadError
from hubretrain.evaluation import METRICS, STRENGTHS, metrics_of
from hubretrain.heads import ClassWeight, Kind
from hubretrain.screening.candidates import ALL_LAYERS, ALL_VIEWS, LAST_LAYER, VIEW_0
from hubretrain.screening.options import L2, L2_BEYOND, ClassWeightByName, ScreenOptions

Mask = Callable[[pd.DataFrame], "pd.Series[bool]"]

LINEAR: tuple[Kind, ...] = ("softmax", "logistic")
MLP: Kind = "mlp"
OF_LABELS: tuple[Kind, ...] = ("logistic",)  # where an image may have several
SEVERAL = "where images may have several labels"
UNBALANCED = 1.5  # the largest class has this many times an equal share


@dataclass(frozen=True)
class Effect:
    """A question that two choices from the same candidates answer.

    Attributes:
        name: What is changed, as the start of a sentence.
        with_it: Which rows of the table of candidates have it.
        without_it: Which rows do not.
    """

    name: str
    with_it: Mask
    without_it: Mask


EFFECTS: Mapping[str, Effect] = {
    "layers": Effect(
        "all layers instead of the last",
        lambda t: t["layers"] == ALL_LAYERS,
        lambda t: t["layers"] == LAST_LAYER,
    ),
    "views": Effect(
        "augmented views",
        lambda t: t["trained_on"] == ALL_VIEWS,
        lambda t: t["trained_on"] == VIEW_0,
    ),
    "class_weights": Effect(
        "class weights",
        lambda t: (t["class_weight"] != "none") & (t["adjust"] == 0),
        lambda t: (t["class_weight"] == "none") & (t["adjust"] == 0),
    ),
    "adjustment": Effect(
        "logit adjustment instead of class weights",
        lambda t: (t["class_weight"] == "none") & (t["adjust"].max() > 0),
        lambda t: t["adjust"] == 0,
    ),
    "softmax": Effect(
        "softmax instead of logistic heads",
        lambda t: t["head"] == "softmax",
        lambda t: t["head"] == "logistic",
    ),
}


@dataclass(frozen=True)
class Sweep:
    """What is compared on every module.

    Attributes:
        metric: Metric to choose by, a name in `metrics_of(multi_label)`.
        class_names: Class names in class order.
        class_weights: Each None, `balanced`, or a weight for each class by number.
        l2: Penalties, 1 / C of scikit-learn.
        strengths: Strengths of logit adjustment, ascending from 0.
        views: Whether to train on all cached views too.
        layers: Layers whose features are compared, of `last` and `all`.
        kinds: Kinds of heads on every module.
        mlp_where_tied: Whether the modules that tie with the best by these get networks too.
        multi_label: Whether an image may have several labels; then `strengths` are of no use.
    """

    metric: str
    class_names: tuple[str, ...]
    class_weights: tuple[ClassWeight, ...] = (None, "balanced")
    l2: tuple[float, ...] = L2
    strengths: tuple[float, ...] = STRENGTHS
    views: bool = True
    layers: tuple[str, ...] = (LAST_LAYER, ALL_LAYERS)
    kinds: tuple[Kind, ...] = LINEAR
    mlp_where_tied: bool = False
    multi_label: bool = False

    def targets(self, images: pd.DataFrame) -> AnyArray:
        """Return the class index of each image, int (n_images,); or indicators of its labels."""
        if self.multi_label:
            return targets(images["label"], self.class_names, True)
        return images["class_index"].to_numpy()

    @property
    def l2_beyond(self) -> tuple[float, ...]:
        """Penalties that the default ones go on to; none of those that the user has named."""
        return L2_BEYOND if self.l2 == L2 else ()

    @classmethod
    def of(cls, options: ScreenOptions, class_names: tuple[str, ...], labels: AnyArray) -> Sweep:
        """Return the sweep of some options, with the defaults that the labels ask for.

        Args:
            options: The options of the fit.
            class_names: Class names in class order.
            labels: int (n_images,), of the images outside of the test split; bool (n_images,
                n_classes) where an image may have several.

        Raises:
            HeadError: The options name a metric, a class or a kind of head that there is not.
        """
        multi_label, metric = labels.ndim == 2, options.metric
        if metric is None:
            metric = _default_metric(labels, len(class_names))
        if metric not in metrics_of(multi_label):
            of_classes = multi_label and metric in METRICS
            what = f"{metric}, which does not apply {SEVERAL}" if of_classes else repr(metric)
            names = ", ".join(metrics_of(multi_label))
            raise HeadError(f"`metric` is {what}; expected one of {names}.")
        if metric == "top_3" and len(class_names) <= 3:
            raise HeadError(
                f"`metric` is top_3, which is 1 for any head of {len(class_names)} classes; choose "
                "another."
            )
        adjust = options.adjust
        if multi_label and any(adjust or ()):
            raise HeadError(
                f"`adjust` does not apply {SEVERAL}, for each has a threshold of its own; leave it "
                "out."
            )
        if multi_label:
            adjust = (0.0,)
        elif adjust is None:  # of decisions without a mean over the classes, top-1 is the best rule
            is_mean = METRICS[metric].is_of_decision and METRICS[metric].is_mean_over_classes
            adjust = STRENGTHS if is_mean else (0.0,)
        return cls(
            metric,
            class_names,
            tuple(_by_class(weight, class_names) for weight in options.class_weights),
            tuple(map(float, options.l2)),
            tuple(sorted({0.0, *map(float, adjust)})),
            options.views,
            (LAST_LAYER, ALL_LAYERS) if options.layers is None else (options.layers,),
            _kinds(options.heads, multi_label),
            options.heads is None,
            multi_label,
        )


def _default_metric(labels: AnyArray, n_classes: int) -> str:
    if labels.ndim == 2:
        return "mean_average_precision"
    share = np.bincount(labels).max() / len(labels)
    return "balanced_accuracy" if share * n_classes > UNBALANCED else "accuracy"


def _kinds(names: Sequence[str] | None, multi_label: bool) -> tuple[Kind, ...]:
    """Return kinds of heads by their names, each once, the simplest first; None for the linear."""
    linear = OF_LABELS if multi_label else LINEAR
    if names is None:
        return linear
    kinds = (*linear, MLP)
    if multi_label and "softmax" in names:
        raise HeadError(
            f"`heads` names softmax, which does not apply {SEVERAL}, for its classes exclude one "
            f"another; expected some of {', '.join(kinds)}."
        )
    if not names or set(names) - set(kinds):
        raise HeadError(
            f"`heads` is {', '.join(names) or 'empty'}; expected some of {', '.join(kinds)}."
        )
    return tuple(kind for kind in kinds if kind in names)


def _by_class(weight: ClassWeightByName, class_names: Sequence[str]) -> ClassWeight:
    """Return weights by class name as weights in class order, 1 for a class that is not named."""
    if not isinstance(weight, dict):
        return weight
    for name, value in weight.items():
        if name not in class_names:
            raise HeadError(
                f"`class_weights` names the class {name!r}; expected one of "
                f"{', '.join(class_names)}."
            )
        if not 0 < value < np.inf:
            raise HeadError(f"`class_weights` gives {name} {value:g}; expected above 0.")
    return tuple(float(weight.get(name, 1.0)) for name in class_names)
