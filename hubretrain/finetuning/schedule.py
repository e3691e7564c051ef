"""The training policy: epochs, batch size and learning rates, from the number of images.

After BiT's HyperRule (Kolesnikov et al. 2020, https://arxiv.org/abs/1912.11370): few images
train briefly, many train longer, nothing is tuned by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hubretrain.errors import RunError
from hubretrain.finetuning.options import SCHEDULES

# Factor of the learning rate each time that the validation loss stays on a plateau.
REDUCTION = 0.5
# Of images that are shown first: how much smaller they are, and the share of the epochs.
SMALLER, SMALL_SHARE = 0.7, 2 / 3
STRIDE = 32  # of the last maps of most modules; a multiple leaves none of their input out


@dataclass(frozen=True)
class Speed:
    """Seconds that a module takes for an image, timed.

    Attributes:
        step: Of a training step.
        small_step: Of one on smaller images; None where there are none.
        evaluation: Of an evaluation of the whole module.
        n_cached_views: Augmented views of which the frozen part is evaluated once; 0 where it is a
            part of each step.
    """

    step: float
    small_step: float | None
    evaluation: float
    n_cached_views: int = 0


@dataclass(frozen=True)
class Schedule:
    """The course of a fine-tuning.

    Attributes:
        epochs: Maximum number of epochs; those in which the head alone is trained come before.
        batch_size: Images per step.
        learning_rate: Peak learning rate of Adam.
        warmup_steps: Steps over which the learning rate rises to its peak.
        patience: Epochs without a better validation loss after which training stops; None where it
            never does: the loss of a cosine falls when the rate does, at the end.
        kind: `cosine`: the rate falls to zero at the last epoch. `plateau`: it stays, and is
            halved after `reduce_after` epochs without a better validation loss.
        reduce_after: Epochs without a better validation loss after which the rate is halved.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    patience: int | None
    kind: str = "cosine"
    reduce_after: int = 2

    def learning_rate_at(self, step: int, steps_per_epoch: int, scale: float = 1.0) -> float:
        """Return the learning rate of a step: a linear warm-up, then the course of `kind`.

        The cosine is that of Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983.

        Args:
            step: Number of the step, from 0.
            steps_per_epoch: Steps per epoch.
            scale: Factor that plateaus have reduced the rate by; a cosine has none.
        """
        if step < self.warmup_steps:
            return scale * self.learning_rate * (step + 1) / self.warmup_steps
        if self.kind == "plateau":
            return scale * self.learning_rate
        total = max(1, self.epochs * steps_per_epoch - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / total)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def schedule_for(
    n_images: int,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    kind: str = "cosine",
) -> Schedule:
    """Return the policy for a number of training images, with the chosen values as they are.

    About 1,500 steps below 20,000 images and 5,000 above, in 3 to 30 epochs.

    Args:
        n_images: Number of training images.
        epochs: Maximum number of epochs; None for the policy's.
        batch_size: Images per step; None for the policy's.
        learning_rate: Peak learning rate; None for the policy's.
        kind: Course of the learning rate, one of `SCHEDULES`.

    Raises:
        RunError: `kind` is not one of `SCHEDULES`.
    """
    if kind not in SCHEDULES:
        raise RunError(f"`schedule` is {kind!r}; expected {' or '.join(SCHEDULES)}.")
    batch_size = batch_size or (32 if n_images >= 256 else 8)
    steps_per_epoch = max(1, math.ceil(n_images / batch_size))
    steps = 1_500 if n_images < 20_000 else 5_000
    epochs = epochs or min(30, max(3, round(steps / steps_per_epoch)))
    patience = max(3, epochs // 5)
    return Schedule(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate or 1e-4 * math.sqrt(batch_size / 32),
        warmup_steps=min(100, max(1, epochs * steps_per_epoch // 10)),
        patience=2 * patience if kind == "plateau" else None,
        kind=kind,
        reduce_after=max(1, patience // 2),
    )


def smaller(image_size: int) -> int:
    """Return the height and width of smaller images: half the area, a multiple of 32 if large."""
    if image_size < 2 * STRIDE:
        return max(1, round(SMALLER * image_size))
    return STRIDE * round(SMALLER * image_size / STRIDE)


def n_small_epochs(epochs: int) -> int:
    """Return how many of some epochs show smaller images first: the last does not."""
    return min(epochs - 1, round(SMALL_SHARE * epochs))
