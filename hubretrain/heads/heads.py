"""Heads on bottlenecks, and the file that keeps the three heads of a module.

On disk, `heads/<module>.h5`: `class_names`, the attributes of the module's bottleneck file, and one
group per role. A group holds `weight` (feature or hidden unit, class), `bias` (class), of a network
also `hidden_weight` (feature, hidden unit) and `hidden_bias` (hidden unit), the `layers` whose
features it takes beside the module's output, `weight_of_class` and `priors`; its attributes are the
other settings. Where images may have several labels, the attribute `multi_label` says so, and
`thresholds` stand in the place of `priors` and of the attribute `adjust`. The first 512 bytes of
the file hold the digest of the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hubretrain.arrays import AnyArray, FloatArray
from hubretrain.errors import HeadError
from hubretrain.evaluation import (
    UNCALIBRATED,
    Calibration,
    DecisionRule,
    LabelThresholds,
    Rule,
    sigmoid,
    softmax,
)
from hubretrain.files import whole_file
from hubretrain.hdf5 import array_in, check_digest_block, open_hdf5, write_digest_block

FORMAT = "hubretrain heads 6"
DIGEST_BLOCK = 512
ROLES = ("deployed", "warm_start", "ensemble_member")
ARRAYS = ("weight", "bias", "hidden_weight", "hidden_bias")
SETTINGS = ("kind", "trained_on", "class_weight", "l2", "aim")
CALIBRATION = ("temperature", "log_loss_before", "log_loss_after")


def probabilities(logits: AnyArray, kind: str, multi_label: bool = False) -> AnyArray:
    """Return class probabilities from logits, of the same shape and type.

    Args:
        logits: float (..., n_classes).
        kind: `softmax` or `mlp`; or `logistic`: each class on its own, then normalised to sum to
            1, as scikit-learn's `OneVsRestClassifier` does.
        multi_label: Whether an image may have several labels: each has a probability of its own,
            of either kind, and nothing is normalised.
    """
    if multi_label:
        return sigmoid(logits)
    if kind != "logistic":
        return softmax(logits)
    scores = sigmoid(logits)
    return np.asarray(scores / scores.sum(axis=-1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Heads:
    """Fitted heads of one kind, for the rows that they were fitted on.

    Those are features as they are cached, or their components: `Projection.raw_head` makes of a
    head on components one on features.

    Attributes:
        kind: `softmax`, `logistic` or `mlp`.
        weight: float (n_features, n_heads, n_classes); of networks (n_hidden, n_heads, n_classes).
        bias: float (n_heads, n_classes).
        settings: What each head was fitted with, such as its l2 and fold: name to an array
            (n_heads,).
        class_names: Class names in class order.
        hidden_weight: float (n_features, n_heads, n_hidden) of networks, else None.
        hidden_bias: float (n_heads, n_hidden) of networks, else None.
        multi_label: Whether an image may have several labels.
    """

    kind: str
    weight: AnyArray
    bias: AnyArray
    settings: Mapping[str, AnyArray]
    class_names: tuple[str, ...] = ()
    hidden_weight: AnyArray | None = None
    hidden_bias: AnyArray | None = None
    multi_label: bool = False

    def __len__(self) -> int:
        return int(self.weight.shape[1])

    def arrays(self, index: int) -> dict[str, Any]:
        """Return the arrays of one head: those of `Head` with these names."""
        arrays: dict[str, Any] = {"weight": self.weight[:, index], "bias": self.bias[index]}
        if self.hidden_weight is not None and self.hidden_bias is not None:
            arrays["hidden_weight"] = self.hidden_weight[:, index]
            arrays["hidden_bias"] = self.hidden_bias[index]
        return arrays

    def logits(self, features: AnyArray) -> AnyArray:
        """Return logits (n_images, n_heads, n_classes) of features (n_images, n_features)."""
        if self.hidden_weight is None:
            return np.tensordot(features, self.weight, axes=1) + self.bias
        hidden = np.tensordot(features, self.hidden_weight, axes=1) + self.hidden_bias
        return np.einsum("nph,hpk->npk", np.maximum(hidden, 0), self.weight) + self.bias

    def probabilities(self, features: AnyArray) -> AnyArray:
        """Return probabilities (n_images, n_heads, n_classes) of (n_images, n_features)."""
        return probabilities(self.logits(features), self.kind, self.multi_label)


@dataclass(frozen=True, eq=False)
class Head:
    """One fitted head and its decision rule.

    Attributes:
        kind: `softmax`, `logistic` or `mlp`.
        weight: float (n_features, n_classes), for features as they are cached; of a network
            (n_hidden, n_classes), for its hidden units.
        bias: float (n_classes,).
        rule: Decision rule: of a multi-label head `LabelThresholds`, else `DecisionRule`.
        weight_of_class: Weight in the loss of an image of each class, float64 (n_classes,); of a
            multi-label head that of an image with the label, where one without it weighs 1.
        trained_on: Views that it was trained on, `view 0` or `all views`.
        class_weight: Name of the class weights.
        l2: Penalty, 1 / C of scikit-learn; the weight decay of a network.
        aim: Metric that it was chosen by.
        calibration: Temperature of the probabilities when it is used, fitted on out-of-fold
            probabilities of heads of the same settings; `probabilities` are without it.
        layers: Names of the inner layers whose features follow the module's output, shallow to
            deep; () for the output alone.
        hidden_weight: float (n_features, n_hidden), for features as they are cached; None for a
            linear head.
        hidden_bias: float (n_hidden,); None for a linear head.
        multi_label: Whether an image may have several labels, each with a probability of its own.
    """

    kind: str
    weight: AnyArray
    bias: AnyArray
    rule: Rule
    weight_of_class: FloatArray
    trained_on: str = ""
    class_weight: str = ""
    l2: float = np.nan
    aim: str = ""
    calibration: Calibration = UNCALIBRATED
    layers: tuple[str, ...] = ()
    hidden_weight: AnyArray | None = None
    hidden_bias: AnyArray | None = None
    multi_label: bool = False

    @property
    def n_features(self) -> int:
        """Number of features that it takes."""
        first = self.weight if self.hidden_weight is None else self.hidden_weight
        return int(first.shape[0])

    def logits(self, features: AnyArray) -> AnyArray:
        """Return logits (n_images, n_classes) of features (n_images, n_features)."""
        if self.hidden_weight is not None:
            features = np.maximum(features @ self.hidden_weight + self.hidden_bias, 0)
        return features @ self.weight + self.bias

    def probabilities(self, features: AnyArray) -> AnyArray:
        """Return probabilities (n_images, n_classes) of features, without the temperature."""
        return probabilities(self.logits(features), self.kind, self.multi_label)

    def calibrated(self) -> Head:
        """Return the head whose probabilities are those of this one at its temperature.

        Its logits are divided by the temperature, and its rule decides as before. Normalised
        sigmoids at a temperature are no sigmoids, so a `logistic` head of one class per image is
        returned as it is.
        """
        temperature = self.calibration.temperature
        if temperature == 1 or (self.kind == "logistic" and not self.multi_label):
            return self
        return replace(
            self,
            weight=(self.weight / temperature).astype(self.weight.dtype),
            bias=(self.bias / temperature).astype(self.bias.dtype),
            rule=self.rule.at_temperature(temperature),
            calibration=UNCALIBRATED,
        )


@dataclass(frozen=True, eq=False)
class ModuleHeads:
    """The heads of one module that are kept; they may differ in kind and layers.

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
        ...     layers = heads.deployed.layers or "last"
        ...     features = bottlenecks.rows(bottlenecks.sha256s[:4], layers=layers)
        >>> probs = heads.deployed.probabilities(features)
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
        with digested_hdf5(path) as file:
            self.write(file)
            for name, value in module.items():
                file.attrs.setdefault(name, value)

    def write(self, group: h5py.Group) -> None:
        """Write the heads into a group of an open HDF5 file."""
        group.attrs["format"] = FORMAT
        group["class_names"] = _texts(self.class_names)
        for role in ROLES:
            _write(group.create_group(role), getattr(self, role))

    @classmethod
    def load(cls, path: Path) -> ModuleHeads:
        """Read a head file.

        Raises:
            HeadError: It is missing, or no head file of this version.
        """
        try:
            check_digest_block(path)
            with open_hdf5(path) as file:
                if not cls.are_in(file):
                    raise HeadError(
                        f"{path} is no head file of this version; run `hubretrain fit` again."
                    )
                return cls.read(file)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise HeadError(
                f"{path} cannot be read ({error}); run `hubretrain fit` again."
            ) from error

    @classmethod
    def read(cls, group: h5py.Group) -> ModuleHeads:
        """Read the heads that `are_in` a group of an open HDF5 file."""
        heads = {role: _read(group[role]) for role in ROLES}
        class_names = tuple(array_in(group, "class_names", "O", 1).asstr()[:])
        if any(len(head.bias) != len(class_names) for head in heads.values()):
            raise ValueError(f"it names {len(class_names)} classes, and its heads have others")
        return cls(**heads, class_names=class_names)

    @staticmethod
    def are_in(group: h5py.Group) -> bool:
        """Return whether a group of an open HDF5 file holds heads of this version."""
        written = group.attrs.get("format")
        return isinstance(written, str) and written == FORMAT


@contextlib.contextmanager
def digested_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file to write, which appears whole, with its digest in its first bytes.

    Raises:
        WriteError: The file cannot be written.
    """
    with whole_file(path) as aside:
        # In memory first: where a disk is full, HDF5 fails at close, and may crash afterwards.
        in_memory = {"driver": "core", "backing_store": False}
        with h5py.File(aside, "w", userblock_size=DIGEST_BLOCK, **in_memory) as file:
            yield file
            file.flush()
            content = file.id.get_file_image()  # without the bytes that are reserved for the digest
        aside.write_bytes(bytes(DIGEST_BLOCK) + content)
        write_digest_block(aside, DIGEST_BLOCK)


def _write(group: h5py.Group, head: Head) -> None:
    for name in ARRAYS:
        if (values := getattr(head, name)) is not None:
            group[name] = values.astype(np.float32)
    group["weight_of_class"] = head.weight_of_class
    if isinstance(head.rule, LabelThresholds):
        group["thresholds"] = np.array(head.rule.values)
    else:
        group["priors"] = np.array(head.rule.priors)
    group["layers"] = _texts(head.layers)
    for name in SETTINGS:
        group.attrs[name] = getattr(head, name)
    for name in CALIBRATION:
        group.attrs[name] = getattr(head.calibration, name)
    if isinstance(head.rule, DecisionRule):
        group.attrs["adjust"] = head.rule.strength
    else:
        group.attrs["multi_label"] = True


def _read(group: h5py.Group) -> Head:
    values: dict[str, Any] = {
        name: array_in(group, name, "f", 1 if name.endswith("bias") else 2)[:]
        for name in ARRAYS
        if name in group
    }
    values |= {name: str(group.attrs[name]) for name in SETTINGS}
    values["l2"] = float(values["l2"])
    multi_label = bool(group.attrs.get("multi_label", False))
    head = Head(
        **values,
        rule=_rule(group, multi_label),
        weight_of_class=array_in(group, "weight_of_class", "f", 1)[:],
        calibration=Calibration(*(float(group.attrs[name]) for name in CALIBRATION)),
        layers=tuple(array_in(group, "layers", "O", 1).asstr()[:]),
        multi_label=multi_label,
    )
    _check_head(head)
    return head


def _rule(group: h5py.Group, multi_label: bool) -> Rule:
    if multi_label:
        return LabelThresholds(tuple(array_in(group, "thresholds", "f", 1)[:].tolist()))
    priors = array_in(group, "priors", "f", 1)[:]
    return DecisionRule(float(group.attrs["adjust"]), tuple(priors.tolist()))


def _check_head(head: Head) -> None:
    """Raise ValueError where arrays of a head do not fit together."""
    kinds = ("mlp",) if head.hidden_weight is not None else ("softmax", "logistic")
    n_classes = len(head.bias)
    fits = head.kind in kinds and head.weight.shape[1] == n_classes
    of_rule = head.rule.values if isinstance(head.rule, LabelThresholds) else head.rule.priors
    fits &= n_classes == len(of_rule) == len(head.weight_of_class)
    fits &= not (head.multi_label and head.kind == "softmax")
    if head.hidden_weight is not None and fits:
        n_hidden = head.weight.shape[0]
        fits = head.hidden_bias is not None and head.hidden_bias.shape == (n_hidden,)
        fits &= head.hidden_weight.shape[1] == n_hidden
    if not fits:
        raise ValueError(f"the arrays of a head of kind {head.kind!r} do not fit together")


def _texts(values: Sequence[str]) -> AnyArray:
    return np.array(values, dtype=h5py.string_dtype())
