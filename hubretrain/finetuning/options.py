"""What is asked of a fine-tuning, and the file that remembers it: `options.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hubretrain.data.images import Augmentation
from hubretrain.errors import RunError
from hubretrain.files import write_json
from hubretrain.option_fields import check_options, option

OPTIONS = "options.json"
SCHEDULES = ("cosine", "plateau")


@dataclass(frozen=True)
class FineTuneOptions:
    """The options of a fine-tuning; every default needs no flag.

    Attributes:
        unfreeze_last: Layers of the backbone to train; None for all, 0 for the head alone.
        epochs: Instead of the policy's own.
        batch_size: Images a step, instead of the policy's own.
        learning_rate: The peak, instead of the policy's own.
        schedule: `cosine` or `plateau`.
        warmup_head: Epochs of the head alone before the backbone joins.
        depth_decay: Learning rate of the first trained layer as a share of the head's; those
            between get geometrically more (discriminative rates, Howard and Ruder 2018,
            https://arxiv.org/abs/1801.06146). 1: all the same.
        label_smoothing: Share of each label spread over all classes, [0, 1)
            (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567).
        balanced_sampling: Draw as many images of each class an epoch, instead of class weights.
        l2_sp: Strength of the pull back to the weights that training started from
            (Li et al. 2018, https://arxiv.org/abs/1802.01483).
        train_batchnorm: Let BatchNorm use and update the statistics of the batches.
        mixed_precision: Compute in float16 where a GPU gains by it.
        trunk_views: Augmented views an image that the frozen part is run for, once; epochs then
            train only the top. 0: the frozen part runs in each epoch.
        augmentation: How each epoch's view of an image differs from it.
        seed: Of order and augmentation.

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
    train_batchnorm: bool = option(False, "Let BatchNorm follow the statistics of the batches.")
    mixed_precision: bool = option(False, "Compute in float16, on a GPU.")
    trunk_views: int = option(
        4,
        "With `unfreeze_last`: augmented views per image whose activations are kept; epochs use "
        "them in turn. 0 runs the frozen part anew in each epoch.",
        minimum=0,
        metavar="N",
    )
    augmentation: Augmentation = Augmentation()
    seed: int = option(0, "Random seed of the order of the images and of the augmentation.")

    def __post_init__(self) -> None:
        check_options(self, RunError)

    def identity(self) -> dict[str, Any]:
        """What a result depends on: all options but the length, as JSON knows them."""
        chosen = asdict(self)
        del chosen["epochs"]
        return json.loads(json.dumps(chosen))

    def save(self, folder: Path) -> None:
        """Writes `options.json`, for a fine-tuning that is resumed."""
        write_json(folder / OPTIONS, asdict(self))


def saved_options(folder: Path) -> FineTuneOptions:
    """The options that a fine-tuning was begun with.

    Raises:
        RunError: There is none to go on with, or its options cannot be read.
    """
    path = folder / OPTIONS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["augmentation"] = Augmentation(**found["augmentation"])
        return FineTuneOptions(
            **{f.name: found[f.name] for f in fields(FineTuneOptions) if f.name in found}
        )
    except FileNotFoundError:
        raise RunError(
            f"{folder} holds no fine-tuning to resume; begin one without `resume`."
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}); begin anew with `restart`.") from error
