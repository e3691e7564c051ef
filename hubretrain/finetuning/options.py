"""Options of a fine-tuning, and the file that keeps them for resuming: `options.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubretrain.data.images import Augmentation
from hubretrain.errors import RunError
from hubretrain.files import read_json, write_record
from hubretrain.option_fields import check_options, option

OPTIONS = "options.json"
SCHEDULES = ("cosine", "plateau")


@dataclass(frozen=True)
class FineTuneOptions:
    """Options of a fine-tuning.

    The names of the fields are those in `options.json` and in the identity of checkpoints.

    Attributes:
        unfreeze_last: Number of layers of the backbone to train; None for all, 0 for the head
            alone.
        epochs: Maximum number of epochs; None for the training policy's, or for the plan's.
        hours: Time for which network, number of epochs and `small_first` are planned; None for the
            training policy.
        batch_size: Images per step; None for the training policy's.
        learning_rate: Peak learning rate; None for the training policy's.
        schedule: Course of the learning rate, `cosine` or `plateau`.
        warmup_head: Epochs in which the head alone is trained before the backbone is.
        depth_decay: Learning rate of the first trained layer as a share of the head's; rates in
            between rise geometrically (discriminative fine-tuning, Howard and Ruder 2018,
            https://arxiv.org/abs/1801.06146). 1 for one rate.
        label_smoothing: Share of each label that is spread over all classes, [0, 1)
            (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567).
        balanced_sampling: Whether an epoch draws every class equally often, instead of class
            weights.
        l2_sp: Strength of the pull back to the weights that training started from
            (Li et al. 2018, https://arxiv.org/abs/1802.01483).
        ema: Momentum of an average of the weights over the steps, [0, 1), which is evaluated and
            kept instead of the weights of the last step (Polyak and Juditsky 1992); 0 for none.
        interpolate: Whether the weights that are kept lie between those that training started from
            and those of the best epoch, wherever the validation fold finds them best (WiSE-FT,
            Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).
        small_first: Whether the first two thirds of the epochs show smaller images, 0.7 times as
            high and wide, which a step takes half the time for (Touvron et al. 2019,
            https://arxiv.org/abs/1906.06423; Tan and Le 2021, https://arxiv.org/abs/2104.00298).
        all_folds: Whether, once the epoch is chosen, the head of all folds is trained for as many
            epochs on all folds, which is what is exported then.
        train_batchnorm: Whether BatchNorm uses and updates the statistics of the batches.
        mixed_precision: Whether to compute in float16, which needs a GPU.
        trunk_views: Number of augmented views per image whose activations behind the frozen part
            are computed once and cached. 0 runs the frozen part in each epoch.
        augmentation: How an epoch's view of an image differs from the image.
        seed: Random seed of the order of the images and of the augmentation.

    Examples:
        >>> from hubretrain import FineTuneOptions
        >>> options = FineTuneOptions(unfreeze_last=23, epochs=5, label_smoothing=0.1)
        >>> options.schedule
        'cosine'
    """

    unfreeze_last: int | None = option(
        None,
        "Train only the last N layers of the backbone, and the head. The frozen part runs once per "
        "view and its activations are kept, if the module can be cut.",
        minimum=0,
        metavar="N",
    )
    epochs: int | None = None  # the command line takes `+N`, too
    hours: float | None = option(
        None,
        "Plan for so much time: network of the shortlist, number of epochs, size of images.",
        above=0,
    )
    batch_size: int | None = option(
        None, "Images per step; by default by the size of the data set.", minimum=1
    )
    learning_rate: float | None = option(
        None, "Peak learning rate; by default by the policy.", above=0
    )
    schedule: str = option(
        "cosine",
        "The learning rate falls to zero over the epochs, or by half at each plateau.",
        choices=SCHEDULES,
    )
    warmup_head: int = option(0, "Train the head alone for N epochs first.", minimum=0, metavar="N")
    depth_decay: float = option(
        1.0,
        "Learning rate of the first layer as a share of the head's, geometric in between.",
        above=0,
        maximum=1,
    )
    label_smoothing: float = option(
        0.0, "Share of each label that is spread over all classes.", minimum=0, below=1
    )
    balanced_sampling: bool = option(
        False, "Draw each class equally often, instead of class weights and adjustment."
    )
    l2_sp: float = option(
        0.0,
        "Strength of the pull of weights back to where they started from, such as 0.01.",
        minimum=0,
    )
    ema: float = option(
        0.0,
        "Momentum of an average of the weights over the steps, such as 0.99, which is evaluated "
        "and kept instead of the last weights.",
        minimum=0,
        below=1,
    )
    interpolate: bool = option(
        True,
        "Keep the weights that are best on the validation fold among those between the start and "
        "the best epoch.",
        flag="interpolate/no-interpolate",
    )
    small_first: bool = option(
        False,
        "Show smaller images in the first two thirds of the epochs, for half the time of each.",
    )
    all_folds: bool = option(
        False,
        "Train once more, on all folds, for the epochs that were best, and export that: of five "
        "folds a quarter more images, for about twice the time.",
    )
    train_batchnorm: bool = option(False, "Let BatchNorm follow the statistics of the batches.")
    mixed_precision: bool = option(False, "Compute in float16, on a GPU.")
    trunk_views: int = option(
        4,
        "With `unfreeze_last`: augmented views per image whose activations are kept; epochs use "
        "them in turn. 0 runs the frozen part in each epoch.",
        minimum=0,
        metavar="N",
    )
    augmentation: Augmentation = Augmentation()
    seed: int = option(0, "Random seed of the order of the images and of the augmentation.")

    def __post_init__(self) -> None:
        check_options(self, RunError)
        if self.all_folds and self.schedule != "cosine":
            raise RunError(
                f"`all_folds` repeats the learning rates of a cosine, but `schedule` is "
                f"{self.schedule}, which follows a validation fold; leave out one of them."
            )
        if self.small_first and self.unfreeze_last is not None and self.trunk_views:
            raise RunError(
                "`small_first` does not go with cached activations, which are of one size; leave "
                "it out, or `unfreeze_last`, or set `trunk_views` to 0."
            )

    def identity(self) -> dict[str, Any]:
        """Return what the choice of an epoch depends on, as JSON has it: not its length."""
        values = asdict(self)
        del values["epochs"], values["hours"], values["all_folds"]
        return json.loads(json.dumps(values))

    def save(self, folder: Path) -> None:
        """Write `options.json`, from which the fine-tuning is resumed."""
        write_record(folder / OPTIONS, asdict(self))


def saved_options(folder: Path) -> FineTuneOptions:
    """Return the options that a fine-tuning was begun with.

    Raises:
        RunError: There is no fine-tuning to resume, or its options cannot be read.
    """
    remedy = "start again with `restart=True`"
    try:
        return read_json(folder / OPTIONS, FineTuneOptions, RunError, remedy)
    except FileNotFoundError:
        raise RunError(
            f"{folder} holds no fine-tuning to resume: {OPTIONS} is missing; leave out `resume`, "
            "or fine-tune with `restart=True`."
        ) from None
