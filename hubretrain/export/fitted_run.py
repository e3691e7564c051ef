"""A run as programs use it: with its paths and records, and predictions of images."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hubretrain.export.export import export_run
from hubretrain.export.manifest import is_current
from hubretrain.export.predict import Prediction, predict_images
from hubretrain.files import StrPath
from hubretrain.runs import Run as RunFolder


class Run(RunFolder):
    """A screening and what followed it: a folder, the paths in it, and its model.

    Attributes:
        folder: Run folder; it is given as text or as a path.

    Examples:
        >>> from hubretrain import Run
        >>> from hubretrain.runs import LEADERBOARD
        >>> run = Run("runs/digits")
        >>> run.fit.metric, run.fit.shortlist
        ('accuracy', ('small',))
        >>> LEADERBOARD.read(run.folder)["module"].tolist()
        ['small', '1-nearest-neighbour of small', 'majority class']
        >>> (prediction,) = run.predict("data/digits/0/0000.png")
        >>> len(prediction.classes)
        3
    """

    def predict(
        self,
        images: StrPath | Iterable[StrPath],
        top: int = 3,
        *,
        tta: int | None = None,
        format: str | None = None,
    ) -> list[Prediction]:
        """Predict the most probable classes of images, as `hubretrain predict` does.

        Where the run has no export of its model as it is now, that is written first.

        Args:
            images: Image files, folders of them, or URLs; or one of them.
            top: Number of classes per image.
            tta: See `predict_images`.
            format: See `predict_images`.

        Raises:
            RunError: The run is not fitted, or damaged.
            EngineError: The library that runs the format is not installed.
        """
        if not is_current(self):
            export_run(self)
        given = [images] if isinstance(images, str | os.PathLike) else images
        return list(predict_images(self.export_folder, given, top, tta=tta, format=format))
