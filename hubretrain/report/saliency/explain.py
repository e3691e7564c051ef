"""The explanation stage: saliency maps of any images, as PNG files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hubretrain.data.images import read_image, to_unit, view
from hubretrain.errors import DataError, HeadError
from hubretrain.files import StrPath, whole_file
from hubretrain.report.saliency.gradients import METHODS, saliency
from hubretrain.report.saliency.model import ExplainedModel, open_explained
from hubretrain.report.saliency.overlay import eight_bits, overlaid, side_by_side


@dataclass(frozen=True)
class Explanation:
    """The explanation of one class, or label, of an image.

    Attributes:
        path: The image.
        of_class: The class whose score is explained.
        probability: Probability of that class, in [0, 1].
        pictures: The PNG files: one per method, then all side by side.
        error: Why there are no pictures, or ''.
    """

    path: Path
    of_class: str = ""
    probability: float = 0.0
    pictures: tuple[Path, ...] = ()
    error: str = ""


def explain_images(
    model: StrPath,
    images: Sequence[StrPath],
    folder: StrPath,
    *,
    methods: Sequence[str] = (),
    of_class: str | None = None,
    head: str | None = None,
    seed: int = 0,
) -> list[Explanation]:
    """Draw saliency maps over images.

    Args:
        model: An export folder or a run folder.
        images: Image files. An image that cannot be read gets an error in place of its pictures;
            the others are explained.
        folder: The folder of the PNG files.
        methods: Names of `METHODS`; by default all that the model allows.
        of_class: The class, or label, to explain; by default the most probable of each image, or
            the labels that are decided on: see `ExplainedModel.shown`.
        head: The module of a run whose head is explained, instead of the run's export.
        seed: Random seed of SmoothGrad's noise.

    Returns:
        One explanation per image, in order; of several labels that are explained, one for each.

    Raises:
        RunError: `model` holds neither an export nor a fitted run.
        WriteError: The folder cannot be written.
        HeadError: The model has no class `of_class`.
        ModuleError: The model has no gradients, or no feature map for Grad-CAM.

    Examples:
        >>> from hubretrain import explain_images
        >>> (explanation,) = explain_images("runs/digits", ["data/digits/0/0000.png"], "explained")
    """
    explained = open_explained(Path(model), head)
    if of_class is not None and of_class not in explained.class_names:
        names = ", ".join(explained.class_names)
        raise HeadError(f"`of_class` is {of_class!r}; expected one of {names}.")
    has_map = explained.model.map_shape is not None
    methods = methods or [name for name in METHODS if name != "gradcam" or has_map]
    paths = [Path(image) for image in images]
    stems = _file_names(paths)
    explanations = []
    for path in paths:
        try:
            image = read_image(path.parent, path.name, reading=explained.reading)
        except DataError as error:
            explanations.append(Explanation(path, error=str(error)))
        else:
            stem = Path(folder) / stems[path]
            explanations += _explain(explained, path, image, stem, methods, of_class, seed)
    return explanations


def _explain(
    explained: ExplainedModel,
    path: Path,
    image: Image.Image,
    stem: Path,
    methods: Sequence[str],
    of_class: str | None,
    seed: int,
) -> list[Explanation]:
    model, names = explained.model, explained.class_names
    pixels = view(image, model.size)
    unit = to_unit(pixels)
    probs = explained.probabilities(unit[np.newaxis])[0]
    shown = [names.index(of_class)] if of_class else explained.shown(probs)
    explanations = []
    for c in shown:
        overlays = [
            overlaid(pixels, eight_bits(saliency(model, unit, c, method, seed), method))
            for method in methods
        ]
        sheet = side_by_side([Image.fromarray(pixels), *overlays], ["image", *methods])
        ends = [*methods, "saliency"]
        if len(shown) > 1:  # by number, for names may hold anything
            ends = [f"{c}_{end}" for end in ends]
        files = tuple(
            _save(picture, stem.with_name(f"{stem.name}_{end}.png"))
            for picture, end in zip([*overlays, sheet], ends, strict=True)
        )
        explanations.append(Explanation(path, names[c], float(probs[c]), files))
    return explanations


def _file_names(images: Sequence[Path]) -> dict[Path, str]:
    """Return a file name for each image: its stem, with a number where several share one."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(images):
        candidates = (path.stem if n == 1 else f"{path.stem}_{n}" for n in itertools.count(1))
        names[path] = next(name for name in candidates if name not in taken)
        taken.add(names[path])
    return names


def _save(picture: Image.Image, path: Path) -> Path:
    with whole_file(path) as aside:
        picture.save(aside, "PNG")
    return path
