"""Options of the screen stage."""

from __future__ import annotations

from dataclasses import dataclass

from hubretrain.data import SplitOptions
from hubretrain.errors import HeadError
from hubretrain.option_fields import check_options, option


@dataclass(frozen=True)
class RaceOptions:
    """How modules are screened on growing slices of the images.

    Attributes:
        minutes: Time to take; what is known then is the answer.
        confidence: That the best module is not left out, of each comparison, (.5, 1).
        first: Images of the first slice; by default a sixteenth of them, at least 200.
        growth: How many times as large each slice is as the one before.
        metric: Metric of choice; by default as of a fit.
        layers: `last` for features of the last layer, `all` for those of every layer.
        engine: What runs the modules; see `CacheOptions`.
        precision: Arithmetic of the modules; see `CacheOptions`.
        top: Largest number of modules in the shortlist.
        split: How the images are split; a run that has folds keeps them.

    Examples:
        >>> from hubretrain import RaceOptions
        >>> RaceOptions(minutes=5).growth
        2.0
    """

    minutes: float = option(
        10.0,
        "Time to take, such as 10m, 90s or 1h30m; a number alone is of minutes.",
        above=0,
        flag="budget",
        metavar="TIME",
    )
    confidence: float = option(
        0.95, "That the best module is not left out, of each comparison.", above=0.5, below=1
    )
    first: int | None = option(
        None,
        "Images of the first slice; by default a sixteenth of them, at least 200.",
        minimum=2,
        metavar="N",
    )
    growth: float = option(2.0, "How many times as large each slice is.", above=1)
    metric: str | None = option(
        None, "Metric of choice; by default as of hubretrain fit.", metavar="NAME"
    )
    layers: str = option(
        "all", "Layers whose features are computed and compared.", choices=("last", "all")
    )
    engine: str = option(
        "auto",
        "What runs the modules; auto: OpenVINO on a CPU if it is installed, else TensorFlow.",
        choices=("auto", "tensorflow", "openvino"),
    )
    precision: str = option(
        "f32",
        "Arithmetic of the modules. What is computed in another one than hubretrain cache is told "
        "to use later is computed again there.",
        choices=("f32", "bf16", "int8"),
    )
    top: int = option(3, "Largest number of modules in the shortlist.", minimum=1)
    split: SplitOptions = SplitOptions()

    def __post_init__(self) -> None:
        check_options(self, HeadError)
