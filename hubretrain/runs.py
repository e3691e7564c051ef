"""The run folder: its paths, and `run.json` as typed records.

`run.json` holds one object per stage, `fit` and `finetune`, under the names of the records'
fields. Keys that are not known are left unread, so that a later version may add some.

The files of a fit appear together: they are written aside, moved to `.fitted/` at once, and from
there to their places, `run.json` last, which names the digest of each. Whoever reads a run that
was stopped in between finishes that first. `Run.checked` compares a file with its digest.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from hubretrain._version import __version__
from hubretrain.errors import RunError, WriteError, unreadable
from hubretrain.files import (
    Number,
    conforming,
    file_sha256,
    folder_aside,
    read_record,
    write_record,
)
from hubretrain.locks import only_writer

_FITTED = ".fitted"  # a fit whose files are on the way to their places
VALIDATION_FOLD = 0  # what fine-tuning stops by; it trains on the other folds
_REMEDY = "remove it and run `hubretrain fit` again"
Figures = Mapping[str, tuple[Number, Number, Number]]
"""Name of a metric: estimate, and low and high end of its 95 % interval."""


@dataclass(frozen=True)
class ModuleRecord:
    """A module as it was when its bottlenecks were computed.

    Attributes:
        module: Name of the module.
        handle: Where the module came from.
        module_sha256: Digest of its SavedModel.
        image_size: Height and width of its input, pixels.
        value_range: Least and largest input value.
        n_views: Views per image; None where it is not recorded.
        minority_views: Views per image of the rarest class; None where it is not recorded.
        attributes: Everything that is recorded, such as the engine and the augmentation: the
            attributes of its bottleneck file.
    """

    module: str
    handle: str
    module_sha256: str
    image_size: int
    value_range: tuple[float, float]
    n_views: int | None
    minority_views: int | None
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> ModuleRecord:
        """Return the record in the attributes of a bottleneck file.

        Raises:
            KeyError: An attribute is missing.
            ValueError: An attribute is damaged.
        """
        low, high = (float(end) for end in str(attributes["value_range"]).strip("[]").split(","))
        n_views, minority_views = (attributes.get(key) for key in ("n_views", "minority_views"))
        return cls(
            module=str(attributes["module"]),
            handle=str(attributes["handle"]),
            module_sha256=str(attributes["module_sha256"]),
            image_size=int(attributes["image_size"]),
            value_range=(low, high),
            n_views=None if n_views is None else int(n_views),
            minority_views=None if minority_views is None else int(minority_views),
            attributes=dict(attributes),
        )


@dataclass(frozen=True)
class FitRecord:
    """The options of a fit and what it chose.

    Attributes:
        data: Folder of the images.
        data_options: How the data set was opened.
        cache: Cache folder.
        class_names: Class names in class order.
        metric: Metric of choice.
        class_weights: Class weights that were compared: `none`, `balanced`, or weight by name.
        l2: Penalties that were compared.
        adjust: Strengths of logit adjustment that were compared.
        views: Whether training on all cached views was compared.
        layers: Layers whose features heads were fitted on, `last` or `all`; None for both.
        heads: Kinds of heads that were compared on every module; None for the linear ones, and
            `mlp` on those that tied with the best.
        n_folds: Folds of the cross-validation.
        test_fraction: Share of the images in the test split.
        top: Length that the shortlist may have.
        duplicates_kept_together: Whether near duplicates were kept in one part.
        seed: Random seed of the split and the resamples.
        shortlist: Modules that tie with the best, by estimate, the best first; at least one.
        test_looked_at: Each different look at the test split: module name to the identity of
            its screening.
        modules: Module name to its record.
        notes: Sentences that a reader of the leaderboard should know.
        files: Each file of the fit, by its path in the run folder: its sha256.
        versions: Library name to its version.
    """

    data: Path
    data_options: Mapping[str, Any]
    cache: Path
    class_names: tuple[str, ...]
    metric: str
    class_weights: tuple[str | Mapping[str, float], ...]
    l2: tuple[float, ...]
    adjust: tuple[float, ...]
    views: bool
    layers: str | None
    heads: tuple[str, ...] | None
    n_folds: int
    test_fraction: float
    top: int
    duplicates_kept_together: bool
    seed: int
    shortlist: tuple[str, ...]
    test_looked_at: tuple[Mapping[str, str], ...]
    modules: Mapping[str, ModuleRecord]
    notes: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    @classmethod
    def of_json(cls, stage: Any) -> FitRecord:
        """Return the record of the stage `fit` of `run.json`.

        Raises:
            ValueError: It is none.
        """
        stage = conforming(stage, dict[str, Any])
        attributes = conforming(stage.get("modules"), dict[str, dict[str, Any]])
        try:
            modules = {name: ModuleRecord.of(values) for name, values in attributes.items()}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a module's attributes: {error}") from error
        record = replace(conforming({**stage, "modules": {}}, cls), modules=modules)
        if not record.shortlist:
            raise ValueError("the shortlist is empty")
        return record

    @property
    def cache_folder(self) -> Path:
        """Folder of the data set in the cache."""
        return self.cache / self.data.name

    def module(self, name: str) -> ModuleRecord:
        """Return the record of a module of the run.

        Raises:
            RunError: The run was not fitted on it.
        """
        if name not in self.modules:
            raise RunError(
                f"{name} was not fitted in this run (there are: {', '.join(self.modules)}); "
                "cache it and fit again, or name one of them."
            )
        return self.modules[name]

    def to_json(self) -> dict[str, Any]:
        """Return the stage `fit` of `run.json`."""
        modules = {name: dict(record.attributes) for name, record in self.modules.items()}
        fields = {**asdict(self), "data": str(self.data), "cache": str(self.cache)}
        return {"versions": fields.pop("versions"), **fields, "modules": modules}


@dataclass(frozen=True)
class FineTunedModuleRecord:
    """The result of fine-tuning one module.

    Attributes:
        test: Metrics on the test split, {} without one.
        head_test: The same of the head that training started from.
        validation: Metrics on the validation fold.
        head_validation: The same of the head that training started from.
        adjust: Strength of the decision rule's logit adjustment, of probabilities without the
            temperature.
        priors: Share of each class that the decision rule adjusts by.
        identity: What the training followed from, such as its options and its images.
        kept_epoch: Epoch whose weights were kept; 0 is the head that training started from.
        temperature: Temperature of the model's probabilities; all figures are with it.
        uncalibrated_log_loss: Log loss without it of `test` and `validation`, nats; a part without
            images is absent.
        over_head: Metric of choice minus that of the head that training started from, of `test` and
            `validation`, with paired intervals.
        files: Each table of predictions, by its name in the folder of the fine-tuning: its sha256.
    """

    test: Figures
    head_test: Figures
    validation: Figures
    head_validation: Figures
    adjust: Number
    priors: tuple[Number, ...]
    identity: Mapping[str, Any]
    kept_epoch: int
    temperature: Number
    uncalibrated_log_loss: Mapping[str, Number]
    over_head: Figures = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OrderRecord:
    """Whether modules rank after fine-tuning as they did when they were screened.

    Attributes:
        screening: Modules, the best when screened first.
        finetuned: The same modules, the best on the validation fold first.
        kendall_tau: Agreement of the two orders, -1 to 1 (tau-b, Kendall 1945); None where all
            are tied in one of them.
        regret: By how much the best fine-tuned module beats the one that screening put first,
            in the metric's unit, at least 0.
        metric: Name of the metric.
        regret_ends: 95 % interval of the regret, paired on the validation fold; None where it is 0
            or predictions are missing. The best was chosen by that fold, which favours it.
    """

    screening: tuple[str, ...]
    finetuned: tuple[str, ...]
    kendall_tau: float | None
    regret: Number
    metric: str
    regret_ends: tuple[Number, Number] | None = None


FINE_TUNED, HEAD = "fine-tuned", "head"
"""Values of `ExportedRecord.kind`, beside `ensemble`."""


@dataclass(frozen=True)
class ExportedRecord:
    """Which of a run's models its fine-tuning exported: the best on the validation fold.

    Attributes:
        kind: `fine-tuned`, `head` or `ensemble`.
        module: Its module, or `ensemble`.
        name: Name for people, one of `on_validation`.
        metric: Name of the metric that they were compared by.
        on_validation: Name of each model that was compared to its metric on the validation fold.
        gain: Metric of the best fine-tuned model minus that of the best head or ensemble, and the
            ends of the paired 95 % interval; None where one of them is absent.
    """

    kind: str
    module: str
    name: str
    metric: str
    on_validation: Mapping[str, Number]
    gain: tuple[Number, Number, Number] | None


@dataclass(frozen=True)
class FineTuneRecord:
    """The results of fine-tuning so far.

    Attributes:
        modules: Module name to its result; {} where there was none.
        chosen: Module whose fine-tuned model is exported; None where there was none, or where a
            head or the ensemble is better.
        order: Whether the order of the screening held; None for fewer than two modules.
        exported: Which model is exported; None where there was none.
        test_looked_at: Each different look at the test split: module name to the identity of the
            fine-tuned model.
        versions: Library name to its version.
    """

    modules: Mapping[str, FineTunedModuleRecord] = field(default_factory=dict)
    chosen: str | None = None
    order: OrderRecord | None = None
    exported: ExportedRecord | None = None
    test_looked_at: tuple[Mapping[str, str], ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def to_json(self) -> dict[str, Any]:
        """Return the stage `finetune` of `run.json`."""
        fields = asdict(self)
        return {"versions": fields.pop("versions"), **fields}


@dataclass(frozen=True)
class Run:
    """A screening and what followed it: a folder and the paths in it.

    The tables of a run are in `run_tables`.

    Attributes:
        folder: Run folder.

    Examples:
        >>> from pathlib import Path
        >>> from hubretrain import Run
        >>> from hubretrain.run_tables import LEADERBOARD
        >>> run = Run(Path("runs/digits"))
        >>> run.fit.metric, run.fit.shortlist
        ('accuracy', ('small',))
        >>> LEADERBOARD.read(run.folder)["module"].tolist()
        ['small', '1-nearest-neighbour of small', 'majority class']
    """

    folder: Path

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.name

    @property
    def record_file(self) -> Path:
        """`run.json`: options, versions, seeds, digests, choices."""
        return self.folder / "run.json"

    @property
    def folds_file(self) -> Path:
        """`folds.csv`: part and fold of each image."""
        return self.folder / "folds.csv"

    def heads_file(self, module: str) -> Path:
        """Return the path `heads/<module>.h5`: the heads of a module that are kept."""
        return self.folder / heads_name(module)

    @property
    def ensemble_file(self) -> Path:
        """`ensemble.json`: members and weights of the ensemble."""
        return self.folder / "ensemble.json"

    def screened_file(self, module: str, heads: str) -> Path:
        """Return the path `screened/<heads>/<module>.h5`: a module's sweep, to resume from.

        Args:
            module: Name of the module.
            heads: Heads of the sweep, `linear` or `mlp`.
        """
        return self.folder / "screened" / heads / f"{module}.h5"

    def finetune_folder(self, module: str) -> Path:
        """Return the path `finetune/<module>/`: history, checkpoints, predictions."""
        return self.folder / "finetune" / module

    @property
    def export_folder(self) -> Path:
        """`export/`: the model that turns images into probabilities."""
        return self.folder / "export"

    @property
    def is_fitted(self) -> bool:
        """Whether a fit of the run was finished.

        Raises:
            RunError: `run.json` is damaged.
        """
        return "fit" in self._stages()

    @property
    def fit(self) -> FitRecord:
        """What the last fit recorded.

        Raises:
            RunError: The run was not fitted, or `run.json` is damaged.
        """
        stage = self._stages().get("fit")
        if stage is None:
            raise RunError(f"{self.folder} holds no finished fit; run `hubretrain fit` first.")
        try:
            return FitRecord.of_json(stage)
        except ValueError as error:
            raise self._damaged(error) from error

    @property
    def finetune(self) -> FineTuneRecord:
        """What fine-tuning recorded so far, an empty record where there was none.

        Raises:
            RunError: `run.json` is damaged.
        """
        stage = self._stages().get("finetune")
        if stage is None:
            return FineTuneRecord()
        try:
            return conforming(stage, FineTuneRecord)
        except ValueError as error:
            raise self._damaged(error) from error

    def looks_at_test(self) -> str:
        """Return a sentence on the looks at the test split so far, '' for one at most."""
        fit = len(self.fit.test_looked_at) if self.is_fitted else 0
        finetune = len(self.finetune.test_looked_at)
        if fit + finetune < 2:
            return ""
        return (
            f"The test split of this run was looked at {fit + finetune} times (fit {fit}, finetune "
            f"{finetune}): what is chosen by these figures looks better than it is."
        )

    def refuse_new_split(self) -> None:
        """Raise if a model of the run was fine-tuned, so that a new test split is not unseen.

        Raises:
            RunError: There is a fine-tuning, finished or not.
        """
        folders = sorted(path.parent.name for path in self.folder.glob("finetune/*/options.json"))
        if names := folders or list(self.finetune.modules):
            raise RunError(
                f"{self.folder} holds fine-tunings ({', '.join(names)}), which trained on images "
                "that a new test split would take; choose another `run` for a new split."
            )

    def checked(self, path: Path) -> Path:
        """Return the path of a file of the fit, after its bytes were compared with `run.json`.

        Raises:
            RunError: The run is not fitted, or the file is missing, damaged or of another fit.
        """
        return check_file(path, self.fit.files.get(self._name(path)), "hubretrain fit")

    def checked_heads(self, module: str) -> Path:
        """Return the path of the head file of a module, checked as by `checked`."""
        return self.checked(self.heads_file(module))

    def checked_ensemble(self) -> Path:
        """Return the path of `ensemble.json`, checked as by `checked` unless it is missing."""
        path = self.ensemble_file
        return self.checked(path) if path.exists() else path

    def changed_folds(self) -> bool:
        """Return whether `folds.csv` is another one than that of the fit, if there was one."""
        if not self.is_fitted or not self.folds_file.exists():
            return False
        return file_sha256(self.folds_file) != self.fit.files.get(self._name(self.folds_file))

    @contextlib.contextmanager
    def writing_fit(self) -> Iterator[Run]:
        """Yield a run in a folder aside, to write the files of a fit to for `publish_fit`.

        Raises:
            WriteError: It cannot be made.
        """
        with folder_aside(self.folder / "heads") as aside:
            yield Run(aside / "fit")

    def publish_fit(self, written: Run, record: FitRecord) -> None:
        """Move the files of a fit into the run and put the record of them into `run.json`.

        A file that is as before stays. Files of the former fit that this one has not are removed.

        Args:
            written: The run of `writing_fit`, with the files of the fit.
            record: What the fit recorded, without `files`.

        Raises:
            WriteError: They cannot be moved.
        """
        with self.locked():
            self._publish(written, replace(record, files={}))

    def publish_changes(self, written: Run) -> None:
        """Move changed files of the fit into the run, as `publish_fit` does; the others stay.

        The caller holds `locked`.
        """
        self._publish(written, self.fit)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of `run.json`, for which others wait; a fit that was stopped is finished.

        Raises:
            WriteError: The folder cannot be written.
        """
        with only_writer(self.record_file, wait=True):
            self._finish_publication()
            yield

    def _publish(self, written: Run, record: FitRecord) -> None:
        paths = sorted(path for path in written.folder.rglob("*") if path.is_file())
        digests = {written._name(path): file_sha256(path) for path in paths}
        written.write_fit(replace(record, files={**record.files, **digests}))
        with self._moving():
            os.replace(written.folder, self.folder / _FITTED)  # from here on the fit counts
        self._finish_publication()

    def write_fit(self, record: FitRecord) -> None:
        """Put the record of a fit into `run.json`, leaving the other stage as it is."""
        self._write("fit", record.to_json())

    def write_finetune(self, record: FineTuneRecord) -> None:
        """Put the record of fine-tuning into `run.json`, leaving the other stage as it is."""
        self._write("finetune", record.to_json())

    def _write(self, stage: str, values: dict[str, Any]) -> None:
        write_record(self.record_file, {**self._stages(), stage: values})

    def _stages(self) -> dict[str, Any]:
        if (self.folder / _FITTED).exists():
            with self.locked():
                pass
        return self._read_stages()

    def _read_stages(self) -> dict[str, Any]:
        try:
            return read_record(self.record_file)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _finish_publication(self) -> None:
        """Move the files of a fit that is published to their places, `run.json` last."""
        new = Run(self.folder / _FITTED)
        if not new.record_file.exists():  # nothing, or what a stopped removal left
            shutil.rmtree(new.folder, ignore_errors=True)
            return
        stages = self._read_stages()
        fit = new._read_stages()["fit"]
        with self._moving():
            for name, digest in fit["files"].items():
                path = self.folder / name
                if not (path.is_file() and file_sha256(path) == digest):
                    path.parent.mkdir(exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # moved before it was stopped
                        os.replace(new.folder / name, path)
            for name in set(_former_files(stages)) - set(fit["files"]):
                (self.folder / name).unlink(missing_ok=True)
            write_record(self.record_file, {**stages, "fit": fit})
            shutil.rmtree(new.folder)

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"{self.folder}/ cannot be written ({error.strerror or error}); free disk space "
                "or fix permissions, and run `hubretrain fit` again."
            ) from error

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _damaged(self, error: OSError | ValueError) -> RunError:
        return RunError(unreadable(self.record_file, error, _REMEDY))


def heads_name(module: str) -> str:
    """Return the path of the head file of a module in its run."""
    return f"heads/{module}.h5"


def check_file(path: Path, sha256: str | None, command: str) -> Path:
    """Return the path of a file, after its bytes were compared with a digest.

    Args:
        path: The file.
        sha256: Its digest; None where it belongs to nothing that was recorded.
        command: Command that writes it.

    Raises:
        RunError: It is missing, or has other bytes.
    """
    try:
        actual = file_sha256(path)
    except FileNotFoundError:
        raise RunError(f"{path} is missing; run `{command}` again.") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}).") from error
    if actual != sha256:
        raise RunError(
            f"{path} is damaged or another one than the run recorded; restore it, or run "
            f"`{command}` again."
        )
    return path


def _former_files(stages: Mapping[str, Any]) -> list[str]:
    """Return the files of a fit that stands in `run.json`, none where it is of another version."""
    fit = stages.get("fit")
    files = fit.get("files") if isinstance(fit, dict) else None
    return list(files) if isinstance(files, dict) else []


def latest_run(runs: Path) -> Run:
    """Return the run that was written last.

    Raises:
        RunError: There is none.
    """
    files = list(runs.glob("*/run.json")) if runs.is_dir() else []
    if not files:
        raise RunError(f"{runs}/ holds no run; run `hubretrain fit` first.")
    return Run(max(files, key=lambda file: (file.stat().st_mtime_ns, file.parent.name)).parent)


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform, and the libraries that results depend on."""
    names = (
        "tensorflow",
        "tensorflow-hub",
        "tf-keras",
        "numpy",
        "h5py",
        "pandas",
        "Pillow",
        "scikit-learn",
    )
    installed = {
        "hubretrain": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
