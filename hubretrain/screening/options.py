"""Options of the fit stage."""

from __future__ import annotations

from dataclasses import dataclass

from hubretrain.data import SplitOptions
from hubretrain.errors import HeadError
from hubretrain.option_fields import check_options, option

ClassWeightByName = str | dict[str, float] | None
L2 = tuple(10.0 ** (k / 2) for k in range(11))  # 1 / C of scikit-learn
L2_BEYOND = tuple(10.0 ** (k / 2) for k in (*range(-8, 0), *range(11, 17)))
"""Where the default penalties go on to if the best is at an end of them."""


@dataclass(frozen=True)
class ScreenOptions:
    """What heads are compared, and by what.

    Attributes:
        metric: A name of `METRICS` to choose by, or of `LABEL_METRICS` where images may have
            several labels. By default balanced accuracy where the classes are unbalanced, else
            accuracy; with several labels mean average precision.
        class_weights: Class weights to compare: None, `balanced`, weights by class name (1 for
            the others).
        adjust: Strengths of logit adjustment to choose from; (0,) for none. By default up to 1.5
            for decisions whose metric is a mean over classes, else none: the top-1 class is the
            rule of the best accuracy. It does not apply to several labels per image, which have
            a threshold each.
        l2: Penalties to compare, 1 / C of scikit-learn; the default ones continue where the best is
            at an end of them.
        views: Whether to train on all cached views too, besides view 0 only.
        layers: `last` for the features of the last layer, `all` for those of every layer; by
            default both are compared where they are cached.
        heads: Kinds of heads to compare, of `softmax`, `logistic` and `mlp`. By default the two
            linear ones on every module, then `mlp` on the modules that tie with the best.
            `softmax` does not apply to several labels per image.
        learning_curve: Whether to say what more images would bring.
        split: How the images are split; a run that has folds keeps them.
        top: Largest number of modules in the shortlist.

    Examples:
        >>> from hubretrain import ScreenOptions, SplitOptions
        >>> options = ScreenOptions(metric="macro_f1", split=SplitOptions(n_folds=10))
        >>> options.class_weights
        (None, 'balanced')
    """

    metric: str | None = option(
        None,
        "Metric to choose by: accuracy, balanced_accuracy, top_3, macro_f1, roc_auc, "
        "mean_average_precision, log_loss or calibration_error. By default balanced_accuracy if "
        "the classes are unbalanced, else accuracy. Where images may have several labels: "
        "mean_average_precision (the default), micro_average_precision, macro_f1, micro_f1, "
        "subset_accuracy, hamming_loss, roc_auc, log_loss or calibration_error.",
        metavar="NAME",
    )
    class_weights: tuple[ClassWeightByName, ...] = option(
        (None, "balanced"),
        "Class weights to compare: none, balanced, or NAME=2,OTHER=0.5 per class (1 where not "
        "named); may be repeated. By default none and balanced.",
        flag="class-weight",
        metavar="WEIGHT",
        repeatable=True,
    )
    adjust: tuple[float, ...] | None = option(
        None,
        "Strengths of logit adjustment to choose from, such as 0,0.5,1; 0 is none. By default 0 "
        "to 1.5 for balanced accuracy and macro F1, else 0.",
        metavar="STRENGTHS",
    )
    l2: tuple[float, ...] = option(
        L2,
        "L2 penalties to compare, 1 / C of scikit-learn. By default 11 from 1 to 100,000, and "
        "more of them where the best is at an end.",
        metavar="L2",
    )
    views: bool = option(True, "Compare training on all cached views with training on view 0.")
    layers: str | None = option(
        None,
        "Layers whose features heads are fitted on; by default those of the last layer and of all "
        "are compared.",
        choices=("last", "all"),
    )
    heads: tuple[str, ...] | None = option(
        None,
        "Kinds of heads to compare, such as softmax,logistic,mlp. By default softmax and logistic "
        "on every module, and mlp on the modules that tie with the best.",
        metavar="KINDS",
    )
    learning_curve: bool = option(
        True, "Say what twice the images would bring, by heads on fewer of them."
    )
    split: SplitOptions = SplitOptions()
    top: int = option(3, "Largest number of modules in the shortlist.", minimum=1)

    def __post_init__(self) -> None:
        check_options(self, HeadError)
