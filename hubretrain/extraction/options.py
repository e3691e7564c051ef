"""Options of the cache stage."""

from __future__ import annotations

from dataclasses import dataclass

from hubretrain.data.images import Augmentation
from hubretrain.errors import CacheError
from hubretrain.option_fields import check_options, option

ENGINES = ("auto", "tensorflow", "openvino", "onnxruntime")
PRECISIONS = ("f32", "bf16", "int8")
LAYERS = ("all", "last")
MAX_VIEWS = 1000


@dataclass(frozen=True)
class CacheOptions:
    """How bottlenecks are computed and stored.

    Attributes:
        n_views: Views per image: the image as it is, and `n_views - 1` augmented ones.
        minority_views: Views per image of the rarest class, at most; by default `n_views`. See
            `hubretrain.extraction.plan.wanted_rows`.
        augmentation: How the augmented views differ.
        seed: Random seed of the augmentation, in [-2^63, 2^63).
        engine: `auto`, `tensorflow`, `openvino` or `onnxruntime`; see
            `hubretrain.extraction.engines.choose_engine`.
        precision: `f32`; `bf16` or `int8` with OpenVINO.
        augment_on: `cpu`, or `gpu`: in batches, by TensorFlow; by default `gpu` where one is in
            sight and TensorFlow is the engine.
        batch_size: Images per forward pass; by default what suits the engine.
        dtype: `float32`, or `float16` to halve the files; by default that of the file, else
            `float32`.
        layers: `all` to keep, besides the module's own output, the mean and the standard deviation
            over positions of its inner layers' maps, from the same forward pass; `last` for the
            output alone; or at most how many inner layers. See `hubretrain.modules.choose_layers`.
            A file that has inner layers keeps them where only the last is required.
        strict: Whether to raise at the first image that cannot be decoded, instead of
            quarantining it.
        overwrite: Whether to compute anew what was computed with other settings.

    Examples:
        >>> from hubretrain import Augmentation, CacheOptions
        >>> options = CacheOptions(n_views=8, augmentation=Augmentation(rotate90=True))
        >>> CacheOptions(n_views=0)
        Traceback (most recent call last):
        hubretrain.errors.CacheError: `n_views` is 0; expected 1 to 1000.
    """

    n_views: int = option(
        4,
        "Views per image: the first is the image as it is, the others are augmented.",
        minimum=1,
        maximum=MAX_VIEWS,
        flag="views",
    )
    minority_views: int | None = option(
        None,
        "Largest number of views per image of rarer classes, rising smoothly with their rarity.",
        minimum=1,
        maximum=MAX_VIEWS,
        metavar="N",
    )
    augmentation: Augmentation = Augmentation()
    seed: int = option(0, "Random seed of the augmentation.")
    engine: str = option(
        "auto",
        "What runs the modules; auto: OpenVINO on a CPU if it is installed, else TensorFlow, or "
        "ONNX Runtime for ONNX files.",
        choices=ENGINES,
    )
    precision: str = option(
        "f32",
        "Arithmetic of the modules; bf16 and int8 (OpenVINO) are faster and coarser, good enough "
        "to screen.",
        choices=PRECISIONS,
    )
    augment_on: str = option(
        "auto",
        "Where augmented views are computed; gpu: in batches, by TensorFlow.",
        choices=("auto", "cpu", "gpu"),
    )
    batch_size: int | None = option(
        None, "Images per forward pass; by default what suits the engine.", minimum=1, maximum=4096
    )
    dtype: str | None = option(
        None,
        "Type of the stored bottlenecks; float16 halves the file. By default that of the file if "
        "it exists, else float32.",
        choices=("float32", "float16"),
    )
    layers: str | int = option(
        "all",
        "Layers of which features are kept, from one pass: all (up to 16,384 features), the last "
        "alone, or at most N inner ones beside it.",
        minimum=1,
        metavar="all|last|N",
    )
    strict: bool = option(False, "Stop at the first image that cannot be decoded.")
    overwrite: bool = option(False, "Recompute what was computed with other settings.")

    def __post_init__(self) -> None:
        check_options(self, CacheError)
        if not -(2**63) <= self.seed < 2**63:
            raise CacheError(f"`seed` is {self.seed}; expected an integer of 64 bits.")
        if isinstance(self.layers, str) and self.layers not in LAYERS:
            raise CacheError(
                f"`layers` is {self.layers!r}; expected all, last, or a number of inner layers."
            )
