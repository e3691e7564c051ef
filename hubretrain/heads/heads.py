"""Linear heads on bottlenecks, and the file that keeps the three heads of a module.

On disk, `heads/<module>.h5`: `weight` (feature, head, class), `bias` (head, class),
`class_names`, `roles` (what each head is for), one array per setting of the heads in `facts/`,
and the attributes of the module's bottleneck file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hubretrain.arrays import AnyArray, FloatArray
from hubretrain.errors import HeadError
from hubretrain.evaluation import LOWEST_EXPONENT, DecisionRule, softmax
from hubretrain.files import whole_file

FORMAT = "hubretrain heads 3"
ROLES = ("deployed", "warm_start", "ensemble_member")


def probabilities(logits: AnyArray, kind: str) -> AnyArray:
    """Return class probabilities from logits, of the same shape and type.

    Args:
        logits: float (..., n_classes).
        kind: `softmax`, or `logistic`: each class on its own, then normalised to sum to 1,
            as scikit-learn's `OneVsRestClassifier` does.
    """
    if kind == "softmax":
        return softmax(logits)
    scores = 1 / (1 + np.exp(-np.clip(logits, LOWEST_EXPONENT, -LOWEST_EXPONENT)))
    return scores / scores.sum(axis=-1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Heads:
    """Fitted heads of one kind on one module.

    Attributes:
        kind: `softmax` or `logistic`.
        weight: float (n_features, n_heads, n_classes), for features as they are cached.
        bias: float (n_heads, n_classes).
        settings: What each head was fitted with, such as its l2 and fold: name to an array
            (n_heads,).
        class_names: Class names in class order.
    """

    kind: str
    weight: AnyArray
    bias: AnyArray
    settings: Mapping[str, AnyArray]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.weight.shape[1])

    def logits(self, features: AnyArray) -> AnyArray:
        """Return logits (n_images, n_heads, n_classes) of features (n_images, n_features)."""
        return np.tensordot(features, self.weight, axes=1) + self.bias

    def probabilities(self, features: AnyArray) -> AnyArray:
        """Return probabilities (n_images, n_heads, n_classes) of (n_images, n_features)."""
        return probabilities(self.logits(features), self.kind)


@dataclass(frozen=True, eq=False)
class Head:
    """One fitted head and its decision rule.

    Attributes:
        kind: `softmax` or `logistic`.
        weight: float (n_features, n_classes), for features as they are cached.
        bias: float (n_classes,).
        rule: Decision rule.
        weight_of_class: Weight in the loss of an image of each class, float64 (n_classes,).
        trained_on: Views that it was trained on, `view 0` or `all views`.
        class_weight: Name of the class weights.
        l2: Penalty, 1 / C of scikit-learn.
        aim: Metric that it was chosen by.
    """

    kind: str
    weight: AnyArray
    bias: AnyArray
    rule: DecisionRule
    weight_of_class: FloatArray
    trained_on: str = ""
    class_weight: str = ""
    l2: float = np.nan
    aim: str = ""

    def probabilities(self, features: AnyArray) -> AnyArray:
        """Return probabilities (n_images, n_classes) of features (n_images, n_features)."""
        return probabilities(features @ self.weight + self.bias, self.kind)


@dataclass(frozen=True, eq=False)
class ModuleHeads:
    """The heads of one module that are kept, all of one kind.

    Attributes:
        deployed: The best by the metric of choice, fitted on all folds: for use.
        warm_start: The same, fitted without the validation fold: fine-tuning starts from it.
        ensemble_member: The best by log loss, fitted on all folds.
        class_names: Class names in class order.

    Examples:
        >>> from pathlib import Path
        >>> from hubretrain import Bottlenecks, ModuleHeads, Run
        >>> heads = ModuleHeads.load(Run(Path("runs/digits")).heads_file("small"))
        >>> with Bottlenecks("cache/digits/small.h5") as bottlenecks:
        ...     probs = heads.deployed.probabilities(bottlenecks.rows(bottlenecks.sha256s[:4]))
        >>> probs.shape, bool(np.allclose(probs.sum(axis=1), 1))
        ((4, 3), True)
    """

    deployed: Head
    warm_start: Head
    ensemble_member: Head
    class_names: tuple[str, ...]

    def save(self, path: Path, module: Mapping[str, Any]) -> None:
        """Write the head file, whole or not at all.

        Args:
            path: Path of the file.
            module: Attributes of the module's bottleneck file: strings and numbers.

        Raises:
            WriteError: The file cannot be written.
        """
        heads = [getattr(self, role) for role in ROLES]
        with whole_file(path) as aside, h5py.File(aside, "w") as file:
            file.attrs["format"], file.attrs["kind"] = FORMAT, self.deployed.kind
            for name, value in module.items():
                file.attrs.setdefault(name, value)
            file["weight"] = np.stack([head.weight for head in heads], axis=1).astype(np.float32)
            file["bias"] = np.stack([head.bias for head in heads]).astype(np.float32)
            file["class_names"] = _texts(self.class_names)
            file["roles"] = _texts(ROLES)
            for name in ("trained_on", "class_weight", "aim"):
                file[f"facts/{name}"] = _texts([getattr(head, name) for head in heads])
            file["facts/l2"] = np.array([head.l2 for head in heads])
            file["facts/adjust"] = np.array([head.rule.strength for head in heads])
            file["facts/priors"] = np.array([head.rule.priors for head in heads])
            file["facts/weight_of_class"] = np.stack([head.weight_of_class for head in heads])

    @classmethod
    def load(cls, path: Path) -> ModuleHeads:
        """Read a head file.

        Raises:
            HeadError: It is missing, or no head file of this version.
        """
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != FORMAT:
                    raise HeadError(
                        f"{path} is no head file of this version; run `hubretrain fit` again."
                    )
                roles = file["roles"].asstr()[:].tolist()
                heads = {role: _head(file, roles.index(role)) for role in ROLES}
                return cls(**heads, class_names=tuple(file["class_names"].asstr()[:]))
        except (OSError, KeyError, ValueError) as error:
            raise HeadError(
                f"{path} cannot be read ({error}); run `hubretrain fit` again."
            ) from error


def _head(file: h5py.File, index: int) -> Head:
    settings = file["facts"]
    priors = tuple(settings["priors"][index].tolist())
    trained_on, class_weight, aim = (
        str(settings[name].asstr()[index]) for name in ("trained_on", "class_weight", "aim")
    )
    return Head(
        kind=str(file.attrs["kind"]),
        weight=file["weight"][:, index],
        bias=file["bias"][index],
        rule=DecisionRule(float(settings["adjust"][index]), priors),
        weight_of_class=settings["weight_of_class"][index],
        trained_on=trained_on,
        class_weight=class_weight,
        l2=float(settings["l2"][index]),
        aim=aim,
    )


def _texts(values: Sequence[str]) -> AnyArray:
    return np.array(values, dtype=h5py.string_dtype())
