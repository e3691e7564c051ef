"""Saliency maps of any images, as PNG files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hubretrain.data.images import read_image, to_unit, view
from hubretrain.errors import DataError, HeadError
from hubretrain.files import whole_file
from hubretrain.report.saliency.gradients import METHODS, saliency
from hubretrain.report.saliency.model import ExplainedModel, open_explained
from hubretrain.report.saliency.overlay import eight_bits, overlaid, side_by_side


@dataclass(frozen=True)
class Explanation:
    """What one image came to.

    Attributes:
        path: The image.
        of_class: The class that is explained.
        probability: Of it, in [0, 1].
        pictures: The PNG files: one a method, then all side by side.
        error: Why there are none, or ''.
    """

    path: Path
    of_class: str = ""
    probability: float = 0.0
    pictures: tuple[Path, ...] = ()
    error: str = ""


def explain_images(
    place: Path,
    images: Sequence[Path],
    folder: Path,
    *,
    methods: Sequence[str] = (),
    of_class: str | None = None,
    head: str | None = None,
    seed: int = 0,
) -> list[Explanation]:
    """Draws saliency maps over images.

    Args:
        place: An export folder or a run folder.
        images: Image files. One that cannot be read gets its error, and the rest go on.
        folder: Where the PNG files go.
        methods: Names of `METHODS`; by default all that the model allows.
        of_class: Which class to explain instead of the likeliest.
        head: The head on this module of a run instead of its export.
        seed: Of SmoothGrad's noise.

    Raises:
        RunError: There is no model there.
        WriteError: The folder cannot be written.
        HeadError: There is no such class.
        ModuleError: The model has no gradients, or Grad-CAM is asked of one without a feature map.
    """
    explained = open_explained(place, head)
    if of_class is not None and of_class not in explained.class_names:
        names = ", ".join(explained.class_names)
        raise HeadError(f"--class is {of_class!r}; expected one of {names}.")
    has_map = explained.model.map_shape is not None
    methods = methods or [one for one in METHODS if one != "gradcam" or has_map]
    stems = _file_names(images)
    found = []
    for path in images:
        try:
            image = read_image(path.parent, path.name)
        except DataError as error:
            found.append(Explanation(path, error=str(error)))
        else:
            stem = folder / stems[path]
            found.append(_explained(explained, path, image, stem, methods, of_class, seed))
    return found


def _explained(
    explained: ExplainedModel,
    path: Path,
    image: Image.Image,
    stem: Path,
    methods: Sequence[str],
    of_class: str | None,
    seed: int,
) -> Explanation:
    model = explained.model
    seen = view(image, model.size)
    pixels = to_unit(seen)
    probabilities = model.probabilities(pixels[np.newaxis])[0]
    c = explained.class_names.index(of_class) if of_class else int(probabilities.argmax())
    drawn = [
        overlaid(seen, eight_bits(saliency(model, pixels, c, method, seed), method))
        for method in methods
    ]
    files = [
        _save(one, stem.with_name(f"{stem.name}_{method}.png"))
        for one, method in zip(drawn, methods, strict=True)
    ]
    sheet = side_by_side([Image.fromarray(seen), *drawn], ["image", *methods])
    files.append(_save(sheet, stem.with_name(f"{stem.name}_saliency.png")))
    name = explained.class_names[c]
    return Explanation(path, name, float(probabilities[c]), tuple(files))


def _file_names(images: Sequence[Path]) -> dict[Path, str]:
    """A file name for each image: its stem, with a number where several share one."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(images):
        numbered = (path.stem if n == 1 else f"{path.stem}_{n}" for n in itertools.count(1))
        names[path] = next(name for name in numbered if name not in taken)
        taken.add(names[path])
    return names


def _save(picture: Image.Image, file: Path) -> Path:
    with whole_file(file) as aside:
        picture.save(aside, "PNG")
    return file
