"""The training policy: how long and how fast to fine-tune, from the data's size.

After BiT's HyperRule (Kolesnikov et al. 2020, https://arxiv.org/abs/1912.11370): few images
train briefly, many train longer, nothing is tuned by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hubretrain.errors import RunError
from hubretrain.finetuning.options import SCHEDULES

REDUCTION = 0.5  # of the learning rate, each time that the validation loss stays on a plateau


@dataclass(frozen=True)
class Schedule:
    """How a fine-tuning goes.

    Attributes:
        epochs: Passes over the training images, at most; those of the head alone come before.
        batch_size: Images a step.
        learning_rate: Its peak, for Adam.
        warmup_steps: Steps over which the learning rate grows to its peak.
        patience: Epochs without a better validation loss before it stops.
        kind: `cosine`: the rate falls to zero at the last epoch; `plateau`: it stays, and is
            halved whenever `reduce_after` epochs bring no better validation loss.
        reduce_after: Epochs without a better validation loss before a plateau halves the rate.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    patience: int
    kind: str = "cosine"
    reduce_after: int = 2

    def learning_rate_at(self, step: int, steps_per_epoch: int, scale: float = 1.0) -> float:
        """Linear warm-up, then a half cosine to zero (https://arxiv.org/abs/1608.03983).

        Args:
            step: Steps done, from 0.
            steps_per_epoch: Steps an epoch.
            scale: What plateaus have left of the peak; a cosine needs none.
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
    """The policy for `n_images` training images; what is given is taken as it is.

    About 1,500 steps below 20,000 images and 5,000 above, in 3 to 30 epochs.

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
        patience=2 * patience if kind == "plateau" else patience,
        kind=kind,
        reduce_after=max(1, patience // 2),
    )
