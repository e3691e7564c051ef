"""What stands beside an exported model: `export.json`. Reading it imports no TensorFlow.

An export folder holds the SavedModel (`saved_model.pb`, `variables/`), what was converted from
it (`model.tflite`, `model_int8.tflite`, `model.onnx`), `labels.txt`, and `export.json`:

- `class_names`: in the order of the probabilities; `labels.txt` has one a line.
- `image_sizes`: heights and widths of the inputs: `pixels`, or `pixels_<size>` of several.
  Each is float32 (n, size, size, 3), RGB in [0, 1]: decoded upright, resized with an antialiased
  triangle filter in 8 bits, the aspect ratio not kept, divided by 255.
- `temperature`: of the calibration; it is in the graph already.
- `adjust`, `priors`: the decision is the largest of probability / prior ** adjust.
- `augmentation`: how the views differed that it was trained on.
- `heads_sha256`: of the head file that a fitted head came from; none of a fine-tuned model.
- `files`: sha256 of each model file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubretrain.errors import RunError
from hubretrain.evaluation import DecisionRule
from hubretrain.files import file_sha256
from hubretrain.runs import Run

FACTS, LABELS = "export.json", "labels.txt"
MODEL_OF = {  # format: the file that is run
    "litert": "model.tflite",
    "litert_int8": "model_int8.tflite",
    "onnx": "model.onnx",
    "savedmodel": "saved_model.pb",
}


@dataclass(frozen=True)
class Export:
    """An export folder, checked.

    Attributes:
        folder: The folder.
        facts: What `export.json` holds.
    """

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Export:
        """Reads and checks the facts.

        Args:
            folder: The export folder, or a run folder that holds one.

        Raises:
            RunError: The folder holds no export, or half of one, or another model's labels.
        """
        folder = export_of(Path(folder)) or Path(folder)
        facts = read_facts(folder)
        if not isinstance(facts.get("image_sizes"), list) or "files" not in facts:
            raise RunError(f"{folder / FACTS} is of another version; export again.")
        try:
            labels = (folder / LABELS).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / LABELS} cannot be read ({error}); {_COPY}") from error
        if labels != facts["class_names"]:
            raise RunError(f"{folder / LABELS} names other classes than {FACTS}; {_COPY}")
        return cls(folder, facts)

    @property
    def class_names(self) -> list[str]:
        """In the order of the probabilities."""
        return [str(name) for name in self.facts["class_names"]]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Heights and widths of the inputs, pixels, ascending."""
        return tuple(int(size) for size in self.facts["image_sizes"])

    @property
    def name(self) -> str:
        """What to call the model: its run, or its folder."""
        return str(self.facts.get("run") or self.folder.resolve().name)

    def has(self, form: str) -> bool:
        """Whether the model is there in a format, a key of `MODEL_OF`."""
        return MODEL_OF[form] in self.facts["files"]

    def model(self, form: str) -> Path:
        """The model file of a format, a key of `MODEL_OF`: the very bytes that were exported.

        Raises:
            RunError: It is not there, or not those bytes.
        """
        name = self._name(form)
        # Of a SavedModel, all files but the one with a random number in it are looked at.
        for one in (n for n in self.facts["files"] if _belongs(n, name)):
            self._checked(one)
        return self.folder / name

    def content(self, form: str) -> bytes:
        """The bytes of a model that is one file: what is run is then what was checked.

        Raises:
            RunError: It is not there, or not the bytes that were exported.
        """
        return self._checked(self._name(form))

    def _name(self, form: str) -> str:
        if not self.has(form):
            raise RunError(
                f"{self.folder} holds no {MODEL_OF[form]}; make it with the hubretrain export that "
                f"made the folder, and --format {form.partition('_')[0]}."
            )
        return MODEL_OF[form]

    def _checked(self, name: str) -> bytes:
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise RunError(
                f"{self.folder / name} cannot be read ({error.strerror}); {_COPY}"
            ) from error
        if hashlib.sha256(data).hexdigest() != self.facts["files"][name]:
            raise RunError(
                f"{self.folder / name} is not the file that {FACTS} was written for; {_COPY}"
            )
        return data

    def decisions(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """The class that the decision rule takes for each row of (n_images, n_classes)."""
        strength, priors = self.facts.get("adjust") or 0.0, self.facts.get("priors") or ()
        rule = DecisionRule(float(strength), tuple(map(float, priors)))
        return rule.decide(probabilities.astype(np.float64))


_COPY = "copy the whole export folder again, or export again."


def _belongs(name: str, model: str) -> bool:
    is_saved_model = model == MODEL_OF["savedmodel"]
    return name == model or (is_saved_model and name.startswith(("variables/", "assets/")))


def export_of(place: Path) -> Path | None:
    """The export folder that a place is, or that a run folder holds."""
    places = (place, Run(place).export_folder)
    return next((p for p in places if os.path.exists(p / FACTS)), None)  # Path's raises


def is_current(run: Run) -> bool:
    """Whether a run's export is there, and of what the run found last.

    What was fine-tuned stays until another fine-tuning; a head's export is outdated by a fit that
    found another head, or put another module first.

    Raises:
        RunError: The run was fine-tuned on other classes than it was fitted on since.
    """
    if not (run.export_folder / FACTS).exists():
        return False
    facts = read_facts(run.export_folder)
    if not run.is_fitted:
        return True
    fit = run.fit
    if facts.get("fine_tuned"):
        if facts["class_names"] != list(fit.class_names):
            raise RunError(
                f"{run.export_folder} was fine-tuned on the classes "
                f"{', '.join(facts['class_names'])}, the fit has {', '.join(fit.class_names)}; "
                "fine-tune again, or move that folder away."
            )
        return True
    module = fit.shortlist[0]
    known = ("", facts.get("heads_sha256"))  # '': the export was copied without the heads
    return facts.get("module") == module and heads_sha256(run, module) in known


def identity_of(path: Path, module: str | None) -> str:
    """Return what an explanation follows from besides the images, without loading a model.

    Args:
        path: Export folder or run folder.
        module: Module whose fitted head is explained instead of the export.

    Raises:
        RunError: There is neither an export nor a finished fit.
    """
    folder = export_of(path)
    if folder is not None and module is None:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "fingerprint.pb")
        return "\n".join(f"{p.name} {file_sha256(p)}" for p in files)
    name = module or Run(path).fit.shortlist[0]
    return f"{name} {heads_sha256(Run(path), name)}"


def heads_sha256(run: Run, module: str) -> str:
    """The digest of a module's head file, '' where there is none."""
    try:
        return file_sha256(run.heads_file(module))
    except OSError:
        return ""


def refuse_other(folder: Path) -> None:
    """Raises where an export would take the place of something else.

    Raises:
        RunError: The folder is there, and is neither empty nor an export.
    """
    if folder.is_dir() and ((folder / FACTS).is_file() or not any(folder.iterdir())):
        return
    if folder.exists() or folder.is_symlink():
        raise RunError(
            f"{folder} holds something else than an export; move it away, or choose another "
            "--output."
        )


def pixels_name(size: int, sizes: Sequence[int]) -> str:
    """The name of the input of one size."""
    return "pixels" if len(sizes) == 1 else f"pixels_{size}"


def read_facts(folder: Path) -> dict[str, Any]:
    """What `export.json` says.

    Raises:
        RunError: The folder holds no export, or half of one.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} is no export ({FACTS}: {error}); make one with: hubretrain export RUN"
        ) from error
    if not isinstance(facts, dict) or not isinstance(facts.get("class_names"), list):
        raise RunError(f"{folder / FACTS} names no classes; export again.")
    return facts
