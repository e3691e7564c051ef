"""Adam, with one learning rate for all layers or with rates that grow with depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hubretrain.tensorflow import tf

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)

# Rates by depth are rounded to this many, because each is an optimizer of its own: scaled
# gradients would not do, as Adam divides a scale out again.
N_RATES = 8


class Optimizer(tf.Module):  # type: ignore[misc]
    """One Adam for each learning rate (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980).

    Checkpoints find the state of the Adams by the names of these attributes.

    Args:
        groups: Variables, and their learning rate as a share of the schedule's.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[tf.Variable], float]]) -> None:
        super().__init__(name="optimizer")
        self.shares = [share for _, share in groups]
        self.variables_of = [list(variables) for variables, _ in groups]
        # Without this, Keras uses XLA on a GPU, which may sum in another order in each build.
        self.adams = [tf_keras.optimizers.Adam(jit_compile=False) for _ in groups]
        for adam, variables in zip(self.adams, self.variables_of, strict=True):
            adam.build(variables)

    @property
    def trained(self) -> list[tf.Variable]:
        """All variables that a step changes."""
        return [v for variables in self.variables_of for v in variables]

    def set_rate(self, rate: float) -> None:
        """Set the schedule's learning rate for the next steps."""
        for adam, share in zip(self.adams, self.shares, strict=True):
            adam.learning_rate.assign(rate * share)

    def apply(self, gradients: Sequence[Any]) -> None:
        """Make a step; the gradients of several devices are summed.

        Args:
            gradients: Gradients of the variables of `trained`, in their order.
        """
        rest = list(gradients)
        for adam, variables in zip(self.adams, self.variables_of, strict=True):
            own, rest = rest[: len(variables)], rest[len(variables) :]
            adam.apply_gradients(zip(own, variables, strict=True))


def depth_groups(
    layers: Sequence[Sequence[tf.Variable]], first_share: float
) -> list[tuple[list[tf.Variable], float]]:
    """Return the variables in groups by depth, each with its share of the learning rate.

    Args:
        layers: Variables by layer, in network order, the head last.
        first_share: Share of the first layer, (0, 1]. The last layer has 1, and the shares of
            those in between rise geometrically.
    """
    if first_share == 1.0 or len(layers) < 2:
        return [([v for variables in layers for v in variables], 1.0)]
    groups: dict[float, list[tf.Variable]] = {}
    for i, variables in enumerate(layers):
        depth = round((N_RATES - 1) * i / (len(layers) - 1)) / (N_RATES - 1)
        groups.setdefault(first_share ** (1 - depth), []).extend(variables)
    return [(variables, share) for share, variables in groups.items()]
