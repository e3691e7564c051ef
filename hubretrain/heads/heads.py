"""Linear heads on bottlenecks: what they say, and the file that keeps them.

On disk, `heads/<module>.h5`: `weight` (feature, head, class), `bias` (head, class),
`class_names`, one array a fact in `facts/`, and the module's own facts as attributes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hubretrain.errors import HeadError
from hubretrain.evaluation import LOWEST_EXPONENT, softmax
from hubretrain.files import whole_file

Array = npt.NDArray[Any]
FORMAT = "hubretrain heads 2"  # 2: with decision rules and the weight of each class


def probabilities(logits: Array, kind: str) -> Array:
    """Class probabilities from scores.

    Args:
        logits: float (..., n_classes).
        kind: `softmax`, or `logistic`: each class on its own, then normalised to sum to 1,
            as scikit-learn's `OneVsRestClassifier` does.

    Returns:
        Of the same shape and type, summing to 1 over the classes.
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
        facts: What is known of each head, arrays (n_heads,), such as its l2 and fold.
        class_names: In class order.
    """

    kind: str
    weight: Array
    bias: Array
    facts: Mapping[str, Array]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.weight.shape[1])

    def logits(self, features: Array) -> Array:
        """Scores of features (n_images, n_features): (n_images, n_heads, n_classes)."""
        return np.tensordot(features, self.weight, axes=1) + self.bias

    def probabilities(self, features: Array) -> Array:
        """Probabilities of features (n_images, n_features): (n_images, n_heads, n_classes)."""
        return probabilities(self.logits(features), self.kind)

    def select(self, heads: Sequence[int]) -> Heads:
        """Some of the heads."""
        index = np.asarray(heads)
        facts = {name: np.asarray(values)[index] for name, values in self.facts.items()}
        return Heads(self.kind, self.weight[:, index], self.bias[index], facts, self.class_names)

    def joined(self, other: Heads) -> Heads:
        """These heads, then the others; both of one kind, on one module."""
        facts = {
            name: np.concatenate([values, other.facts[name]]) for name, values in self.facts.items()
        }
        return Heads(
            self.kind,
            np.concatenate([self.weight, other.weight], axis=1),
            np.concatenate([self.bias, other.bias]),
            facts,
            self.class_names,
        )

    def save(self, path: str | os.PathLike[str], module: Mapping[str, Any]) -> None:
        """Writes the head file, whole or not at all.

        Args:
            path: Of the file.
            module: Facts of the module: strings and numbers.

        Raises:
            WriteError: It cannot be written.
        """
        with whole_file(Path(path)) as aside, h5py.File(aside, "w") as file:
            file.attrs["format"], file.attrs["kind"] = FORMAT, self.kind
            for name, value in module.items():
                file.attrs.setdefault(name, value)
            file["weight"] = self.weight.astype(np.float32)
            file["bias"] = self.bias.astype(np.float32)
            file["class_names"] = np.array(self.class_names, dtype=h5py.string_dtype())
            for name, values in self.facts.items():
                values = np.asarray(values)
                is_text = values.dtype.kind in "UO"
                file[f"facts/{name}"] = values.astype(h5py.string_dtype()) if is_text else values

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Heads:
        """Reads a head file.

        Raises:
            HeadError: It is missing, or no head file.
        """
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != FORMAT:
                    raise HeadError(f"{path} is no head file; fit again with: hubretrain fit")
                facts = {
                    name: values.asstr()[:] if h5py.check_string_dtype(values.dtype) else values[:]
                    for name, values in file["facts"].items()
                }
                return cls(
                    str(file.attrs["kind"]),
                    file["weight"][:],
                    file["bias"][:],
                    facts,
                    tuple(file["class_names"].asstr()[:]),
                )
        except (OSError, KeyError) as error:
            raise HeadError(
                f"{path} holds no heads ({error}); fit again with: hubretrain fit"
            ) from error
