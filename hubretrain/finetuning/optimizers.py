"""Adam, at one learning rate for all or at rates that grow with depth. A door to tf-keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hubretrain.tensorflow import tf

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)

N_RATES = 8  # rates by depth are rounded to so many: each is an optimizer of its own


class Optimizer(tf.Module):  # type: ignore[misc]
    """One Adam for each learning rate (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980).

    Args:
        groups: Variables, and their learning rate as a share of the schedule's.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[tf.Variable], float]]) -> None:
        super().__init__(name="optimizer")
        self.shares = [share for _, share in groups]
        self.variables_of = [list(variables) for variables, _ in groups]
        # XLA would be chosen on a GPU, and sums in another order from build to build.
        self.adams = [tf_keras.optimizers.Adam(jit_compile=False) for _ in groups]
        for adam, variables in zip(self.adams, self.variables_of, strict=True):
            adam.build(variables)

    @property
    def trained(self) -> list[tf.Variable]:
        """What it changes."""
        return [v for variables in self.variables_of for v in variables]

    def set_rate(self, rate: float) -> None:
        """Sets the schedule's learning rate for the steps to come."""
        for adam, share in zip(self.adams, self.shares, strict=True):
            adam.learning_rate.assign(rate * share)

    def apply(self, gradients: Sequence[Any]) -> None:
        """Makes a step; where several devices train, their gradients are summed.

        Args:
            gradients: One for each variable of `trained`, in its order.
        """
        rest = list(gradients)
        for adam, variables in zip(self.adams, self.variables_of, strict=True):
            mine, rest = rest[: len(variables)], rest[len(variables) :]
            adam.apply_gradients(zip(mine, variables, strict=True))


def depth_groups(
    layers: Sequence[Sequence[tf.Variable]], first_share: float
) -> list[tuple[list[tf.Variable], float]]:
    """Groups layers by depth; the last one learns at the full rate, the first at a share of it.

    Args:
        layers: Variables by layer, in network order, the head last.
        first_share: The first layer's share, (0, 1]; those between follow geometrically.
    """
    if first_share == 1.0 or len(layers) < 2:
        return [([v for variables in layers for v in variables], 1.0)]
    groups: dict[float, list[tf.Variable]] = {}
    for i, variables in enumerate(layers):
        depth = round((N_RATES - 1) * i / (len(layers) - 1)) / (N_RATES - 1)
        groups.setdefault(first_share ** (1 - depth), []).extend(variables)
    return [(variables, share) for share, variables in groups.items()]
