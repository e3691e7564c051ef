"""The manifest of an exported model, `export.json`, read and checked without TensorFlow.

An export folder holds the SavedModel (`saved_model.pb`, `variables/`), what was converted from
it (`model.tflite`, `model_int8.tflite`, `model.onnx`), `labels.txt`, a model card (`README.md`),
and `export.json`. That of ONNX modules holds `model.onnx` in the place of a SavedModel.

- `class_names`: in the order of the probabilities; `labels.txt` has one per line.
- `image_sizes`: heights and widths of the inputs: `pixels`, or `pixels_<size>` of several.
  Each is float32 (n, size, size, 3), RGB in [0, 1]: decoded upright, resized with an antialiased
  triangle filter in 8 bits, the aspect ratio not kept, divided by 255.
- `temperature`: temperature of the calibration; the graph applies it already.
- `calibration`: what the temperature was fitted on (`images`), and their mean log loss in nats
  without and with it (`log_loss_before`, `log_loss_after`).
- `adjust`, `priors`: the decision is the largest of probability / prior ** adjust.
- `multi_label`: true where an image may have any number of the classes, its labels. Then each
  probability is of its own, and rows do not sum to 1; absent otherwise.
- `thresholds`: of such a model, in the order of `class_names`: a label is decided where its
  probability is above its threshold, in (0, 1). `adjust` and `priors` are absent.
- `augmentation`: augmentation of the views that it was trained on.
- `bits`: bits that values of 16-bit images use (12: level 4095 is white); absent where it is 16.
- `tta`: names of the views that the model averages its probabilities over (test-time augmentation),
  see `hubretrain.export.views`; empty where it takes the image as it is.
- `heads_sha256`: sha256 of the head file of a fitted head, or of the ensemble's file; absent for a
  fine-tuned model.
- `fine_tuned`, `fine_tuned_module`: whether a module was fine-tuned, and which; of its mean with
  the ensemble, `module` is `ensemble` and the first of `members` the module that was fine-tuned.
- `validation_sha256`: sha256 of a fine-tuned model's predictions of the validation fold.
- `cross_validation` (`validation`, where that split was given), `test`: metrics of the leaderboard
  or of the fine-tuned model: estimate, low and high end of the 95 % interval; absent where the run
  has none.
- `data`, `folds_sha256`: name of the data set, and the digest of the run's `folds.csv`.
- `files`: sha256 of each model file.
- `sha256`: digest of all of the above.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from hubretrain.arrays import AnyArray, Float32Array
from hubretrain.data.images import MAX_BITS, Augmentation, Reading
from hubretrain.errors import RunError, unreadable
from hubretrain.evaluation import DecisionRule, LabelThresholds, Rule
from hubretrain.export.views import AveragedView, averaged_views
from hubretrain.files import conforming, file_sha256, open_regular, read_record, read_regular
from hubretrain.runs import FINE_TUNED, MEAN, Run

MANIFEST, LABELS = "export.json", "labels.txt"
MODEL_OF = {  # name of a format: the file that is run
    "litert": "model.tflite",
    "litert_int8": "model_int8.tflite",
    "onnx": "model.onnx",
    "savedmodel": "saved_model.pb",
}


_AGAIN = "copy the whole export folder again, or run `hubretrain export` again."


class _Manifest(TypedDict):
    """What `export.json` holds of what is read again."""

    class_names: list[str]
    image_sizes: list[int]
    files: dict[str, str]
    temperature: float
    module: str
    run: NotRequired[str]
    adjust: NotRequired[float | None]
    priors: NotRequired[list[float] | None]
    multi_label: NotRequired[bool]
    thresholds: NotRequired[list[float]]
    bits: NotRequired[int]
    tta: NotRequired[list[str] | None]
    augmentation: NotRequired[Augmentation | None]
    fine_tuned: NotRequired[bool]
    fine_tuned_module: NotRequired[str]
    head: NotRequired[str | None]
    heads_sha256: NotRequired[str | None]


@dataclass(frozen=True)
class Export:
    """An export folder, checked.

    Attributes:
        folder: Export folder.
        manifest: Contents of `export.json`.
    """

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Export:
        """Read and check the manifest.

        Args:
            folder: Export folder, or a run folder that holds one.

        Raises:
            RunError: The folder holds no export, or half of one, or another model's labels.
        """
        folder = export_of(Path(folder)) or Path(folder)
        manifest = read_manifest(folder)
        try:
            # As bytes, for a class name may hold what else counts as an end of line.
            labels = read_regular(folder / LABELS).decode("utf-8")
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / LABELS} cannot be read ({error}); {_AGAIN}") from error
        if labels != label_lines(manifest["class_names"]):
            raise RunError(f"{folder / LABELS} names other classes than {MANIFEST}; {_AGAIN}")
        return cls(folder, manifest)

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of the probabilities."""
        return [str(name) for name in self.manifest["class_names"]]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Heights and widths of the inputs, pixels, ascending."""
        return tuple(int(size) for size in self.manifest["image_sizes"])

    @property
    def name(self) -> str:
        """Name of the model: that of its run, or of its folder."""
        return str(self.manifest.get("run") or self.folder.resolve().name)

    @property
    def rule(self) -> Rule:
        """Decision rule of the model, for its probabilities."""
        return rule_of(self.manifest)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of the classes, its labels."""
        return bool(self.manifest.get("multi_label"))

    @property
    def reading(self) -> Reading:
        """How image files are read, as they were for training."""
        return Reading(bits=int(self.manifest.get("bits", MAX_BITS)))

    @property
    def n_views(self) -> int:
        """Number of views that the model averages over; 1 where it takes the image as it is."""
        return len(self.manifest.get("tta") or ()) or 1

    def views(self, n_views: int) -> tuple[AveragedView, ...]:
        """Return the first views of the augmentation that the model was trained on.

        Raises:
            DataError: The augmentation has fewer such views.
        """
        return averaged_views(
            conforming(self.manifest.get("augmentation") or {}, Augmentation), n_views
        )

    def has(self, format: str) -> bool:
        """Return whether the model is there in a format, a key of `MODEL_OF`."""
        return MODEL_OF[format] in self.manifest["files"]

    def model(self, format: str) -> Path:
        """Return the model file of a format, a key of `MODEL_OF`, with its bytes checked.

        Raises:
            RunError: It is missing, or has other bytes than were exported.
        """
        name = self._file_name(format)
        # Of a SavedModel, all files are checked but the one with a random number in it.
        for file in (file for file in self.manifest["files"] if _belongs(file, name)):
            self._checked(file)
        return self.folder / name

    def content(self, format: str) -> bytes:
        """Return the bytes of a model that is one file, so that what runs is what was checked.

        Raises:
            RunError: It is missing, or has other bytes than were exported.
        """
        return self._checked(self._file_name(format))

    def _file_name(self, format: str) -> str:
        if not self.has(format):
            raise RunError(
                f"{self.folder} holds no {MODEL_OF[format]}; run the `hubretrain export` that "
                f"wrote the folder again, with the format {format.partition('_')[0]}."
            )
        return MODEL_OF[format]

    def _checked(self, name: str) -> bytes:
        try:
            with open_regular(self.folder / name) as file:
                content = file.readall()
        except OSError as error:
            raise RunError(
                f"{self.folder / name} cannot be read ({error.strerror}); {_AGAIN}"
            ) from error
        if hashlib.sha256(content).hexdigest() != self.manifest["files"][name]:
            raise RunError(
                f"{self.folder / name} is not the file that {MANIFEST} was written for; {_AGAIN}"
            )
        return content

    def decisions(self, probs: Float32Array) -> AnyArray:
        """Return the class decided on for each row of (n_images, n_classes).

        Of several labels per image, bool (n_images, n_classes): the labels decided on.
        """
        return self.rule.decide(probs.astype(np.float64))


def rule_of(manifest: Mapping[str, Any]) -> Rule:
    """Return the decision rule that the entries of a manifest name."""
    if manifest.get("multi_label"):
        return LabelThresholds(tuple(map(float, manifest["thresholds"])))
    strength, priors = manifest.get("adjust") or 0.0, manifest.get("priors") or ()
    return DecisionRule(float(strength), tuple(map(float, priors)))


def rule_entries(rule: Rule) -> dict[str, Any]:
    """Return the entries of a manifest that name a decision rule.

    A threshold next to 0 or 1 may be rounded to it by the temperature; it is kept off both ends.
    """
    if isinstance(rule, LabelThresholds):
        ends = np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0)
        return {"multi_label": True, "thresholds": np.clip(rule.values, *ends).tolist()}
    return {"adjust": rule.strength, "priors": list(rule.priors)}


def _belongs(name: str, model: str) -> bool:
    is_saved_model = model == MODEL_OF["savedmodel"]
    return name == model or (is_saved_model and name.startswith(("variables/", "assets/")))


def export_of(path: Path) -> Path | None:
    """Return the export folder that a path is, or that it holds as a run folder; else None."""
    folders = (path, Run(path).export_folder)
    # os.path.exists, because Path.exists raises for a path that is too long.
    return next((folder for folder in folders if os.path.exists(folder / MANIFEST)), None)


def is_current(run: Run) -> bool:
    """Return whether a run's export is there, and is of its latest fit or fine-tuning.

    A fine-tuned model stays until another fine-tuning; an export of heads is outdated by a fit that
    gave others, or put another module first where nothing was fine-tuned.

    Raises:
        RunError: The run was fine-tuned on other classes than it was fitted on since.
    """
    if not (run.export_folder / MANIFEST).exists():
        return False
    manifest = read_manifest(run.export_folder)
    if not run.is_fitted:
        return True
    fit = run.fit
    if manifest.get("fine_tuned"):
        if manifest["class_names"] != list(fit.class_names):
            raise RunError(
                f"{run.export_folder} was fine-tuned on the classes "
                f"{', '.join(manifest['class_names'])}, the fit has {', '.join(fit.class_names)}; "
                "fine-tune again, or move that folder away."
            )
        return True
    name = default_heads(run)
    is_of_heads = manifest.get("heads_sha256") == heads_sha256(run, name)
    return manifest.get("module") == name and is_of_heads


def default_heads(run: Run) -> str:
    """Return the name of the heads that are exported by default: of a module, or of the ensemble.

    It is the one that fine-tuning found better than what it trained; without that, the first module
    of the shortlist.
    """
    exported = run.finetune.exported
    if exported is None or exported.kind in (FINE_TUNED, MEAN):
        return run.fit.shortlist[0]
    return exported.module


def identity_of(path: Path, module: str | None) -> str:
    """Return the identity of what is explained, without loading a model.

    Args:
        path: Export folder or run folder.
        module: Module whose fitted head is explained instead of the export.

    Raises:
        RunError: There is neither an export nor a finished fit.
    """
    folder = export_of(path)
    if folder is not None and module is None:
        left_out = ("fingerprint.pb", "README.md")  # the model card may be edited
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in left_out)
        return "\n".join(f"{p.name} {file_sha256(p)}" for p in files)
    name = module or Run(path).fit.shortlist[0]
    return f"{name} {heads_sha256(Run(path), name)}"


def heads_sha256(run: Run, name: str) -> str:
    """Return the digest of a module's head file, or the ensemble's file, '' where there is none.

    It is that of the last fit, which the file itself may not have: see `Run.checked`.
    """
    from hubretrain.heads import ENSEMBLE_NAME  # imports SciPy, which a prediction does without

    path = run.ensemble_file if name == ENSEMBLE_NAME else run.heads_file(name)
    return run.fit.files.get(path.relative_to(run.folder).as_posix(), "")


def check_replaceable(folder: Path) -> None:
    """Check that an export to a folder replaces nothing but an export.

    Raises:
        RunError: The folder is there, and is neither empty nor an export.
    """
    if folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir())):
        return
    if folder.exists() or folder.is_symlink():
        raise RunError(
            f"{folder} exists and is no export; move it away, or choose another `output`."
        )


def pixels_name(size: int, sizes: Sequence[int]) -> str:
    """Return the name of the input of one size."""
    return "pixels" if len(sizes) == 1 else f"pixels_{size}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the contents of `export.json`.

    Raises:
        RunError: The folder holds no export, or half of one.
    """
    path = folder / MANIFEST
    remedy = "run `hubretrain export` again"
    try:
        manifest = read_record(path)
        conforming(manifest, _Manifest)
        _check_thresholds(manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} is no export; run `hubretrain export` first.") from None
    except (OSError, ValueError) as error:
        raise RunError(unreadable(path, error, remedy)) from error
    return manifest


def _check_thresholds(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError unless there is a threshold in (0, 1) for each label, where labels are."""
    thresholds, names = manifest.get("thresholds"), manifest["class_names"]
    if bool(manifest.get("multi_label")) != (thresholds is not None):
        raise ValueError("'multi_label' and 'thresholds' belong together, and one is absent")
    if thresholds is None:
        return
    if len(thresholds) != len(names):
        raise ValueError(f"it holds {len(thresholds)} thresholds for {len(names)} labels")
    for name, threshold in zip(names, thresholds, strict=True):
        if not 0 < threshold < 1:
            raise ValueError(
                f"the threshold of {name} is {threshold:g}; expected a number above 0 and below 1"
            )


def label_lines(class_names: Sequence[str]) -> str:
    """Return the text of `labels.txt`: one class name per line."""
    return "".join(f"{name}\n" for name in class_names)
