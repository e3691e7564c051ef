"""Adam with learning rates by depth and by the scale of inputs, and averages of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hubretrain.tensorflow import tf

import tf_keras  # isort: skip  (behind the door: it imports TensorFlow)

# Rates by depth are rounded to this many, because each is an optimizer of its own: scaled
# gradients would not do, as Adam divides a scale out again.
N_RATES = 8
# Those of Keras' LossScaleOptimizer: first scale, and steps with finite gradients until it doubles.
FIRST_LOSS_SCALE, STEPS_TO_DOUBLE = 2.0**15, 2000


class _Changes:
    """What is done to a variable after a step of Adam; no object that checkpoints follow."""

    def __init__(self, share: tf.Variable | None, average: tf.Variable | None) -> None:
        self.share, self.average = share, average


class _Adam(tf_keras.optimizers.Adam):  # type: ignore[misc]
    """Adam whose steps are shortened, skipped or averaged, one variable at a time.

    Args:
        momentum: Momentum of the averages, [0, 1).
        may_skip: Whether a variable whose gradient is not finite is left as it is.
    """

    def __init__(self, momentum: float, *, may_skip: bool) -> None:
        # Without this, Keras uses XLA on a GPU, which may sum in another order in each build.
        super().__init__(jit_compile=False)
        self._momentum_of_averages, self._may_skip = momentum, may_skip
        changes: dict[str, _Changes] = {}
        self._changes_of = changes.get  # a method, as checkpoints would follow a dictionary
        self._add_changes = changes.__setitem__

    def add_changes(self, variable: tf.Variable, changes: _Changes) -> None:
        """Set what is done to a variable after a step."""
        self._add_changes(self._var_key(variable), changes)

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Make the step of one variable."""
        changes = self._changes_of(self._var_key(variable))
        share = None if changes is None else changes.share
        index = self._index_dict[self._var_key(variable)]
        moments = [self._momentums[index], self._velocities[index]] if self._may_skip else []
        states = [variable, *moments]
        before = [tf.identity(state) for state in states] if share is not None or moments else []
        super().update_step(gradient, variable)
        if share is not None:
            variable.assign(before[0] + share * (variable - before[0]))
        if moments:
            is_finite = tf.reduce_all(tf.math.is_finite(gradient))
            for state, old in zip(states, before, strict=True):
                state.assign(tf.where(is_finite, state, old))
        if changes is not None and changes.average is not None:
            # The first steps, which are of no other weights, count less: as in TensorFlow's
            # ExponentialMovingAverage with `num_updates`.
            step = tf.cast(self.iterations, variable.dtype)
            momentum = tf.minimum(self._momentum_of_averages, (1 + step) / (10 + step))
            average = changes.average
            average.assign_add((1 - momentum) * (variable - average))


class Optimizer(tf.Module):  # type: ignore[misc]
    """One Adam for each learning rate (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980).

    Checkpoints find the state of the Adams by the names of these attributes.

    Args:
        groups: Variables, and their learning rate as a share of the schedule's.
        shares: Identity of a variable to shares of the learning rate of its rows, which may be set
            later.
        momentum: Momentum of averages of the variables over the steps, [0, 1); 0 for none.
        is_scaled: Whether the loss is multiplied by `loss_scale`, so that gradients do not vanish
            in float16; a step whose gradients are not finite is skipped, and the scale is halved.

    Attributes:
        loss_scale: Factor of the loss whose gradients are applied; None for 1.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Sequence[tf.Variable], float]],
        shares: Mapping[int, tf.Variable] | None = None,
        *,
        momentum: float = 0.0,
        is_scaled: bool = False,
    ) -> None:
        super().__init__(name="optimizer")
        self.shares = [share for _, share in groups]
        self.variables_of = [list(variables) for variables, _ in groups]
        self.adams = [_Adam(momentum, may_skip=is_scaled) for _ in groups]
        self.shares_of_rows = list((shares or {}).values())
        self.averages = [tf.Variable(v) for v in self.trained] if momentum else []
        self.loss_scale = self.finite_steps = None
        if is_scaled:
            first = tf.VariableAggregation.ONLY_FIRST_REPLICA
            self.loss_scale = tf.Variable(FIRST_LOSS_SCALE, trainable=False, aggregation=first)
            self.finite_steps = tf.Variable(0, trainable=False, aggregation=first)
        averages = iter(self.averages)
        for adam, variables in zip(self.adams, self.variables_of, strict=True):
            adam.build(variables)
            for variable in variables:
                share = (shares or {}).get(id(variable))
                adam.add_changes(variable, _Changes(share, next(averages, None)))

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
            gradients: Gradients of the variables of `trained`, in their order: of the loss times
                `loss_scale`.
        """
        pairs = [p for p in zip(gradients, self.trained, strict=True) if p[0] is not None]
        if self.loss_scale is not None:
            pairs = self._unscaled(pairs)
        gradient_of = {id(variable): gradient for gradient, variable in pairs}
        for adam, variables in zip(self.adams, self.variables_of, strict=True):
            own = [(gradient_of[id(v)], v) for v in variables if id(v) in gradient_of]
            if own:
                adam.apply_gradients(own, skip_gradients_aggregation=self.loss_scale is not None)

    def _unscaled(self, pairs: list[tuple[Any, tf.Variable]]) -> list[tuple[Any, tf.Variable]]:
        """Divide the scale out of the sums of gradients, and set the next step's.

        If one gradient is infinite or NaN, all become NaN, which no variable is changed by.
        """
        scale, steps = self.loss_scale, self.finite_steps
        assert scale is not None
        assert steps is not None
        summed = list(self.adams[0].aggregate_gradients(pairs))
        is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g, _ in summed])
        factor = tf.where(is_finite, 1 / scale, float("nan"))
        unscaled = [(g * factor, variable) for g, variable in summed]
        count = tf.where(is_finite, steps + 1, 0)
        is_due = count >= STEPS_TO_DOUBLE
        doubled = tf.where(is_due & tf.math.is_finite(2 * scale), 2 * scale, scale)
        next_scale = tf.where(is_finite, doubled, tf.maximum(scale / 2, 1.0))
        scale.assign(next_scale)
        steps.assign(tf.where(is_due, 0, count))
        return unscaled

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the variables the averages over the steps, if there are any, for as long."""
        variables = self.trained if self.averages else []
        values = [variable.numpy() for variable in variables]
        for variable, average in zip(variables, self.averages, strict=True):
            variable.assign(average.numpy())
        try:
            yield
        finally:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)


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
