"""What `run.json` holds, as typed records: one object per stage, `fit` and `finetune`.

Keys that are not known are left unread, so that a later version may add some.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from hubretrain._version import __version__
from hubretrain.errors import RunError
from hubretrain.files import Number, conforming

VALIDATION_FOLD = 0  # what fine-tuning stops by; it trains on the other folds
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
        multi_label: Whether an image may have several labels; written where it may.
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
    multi_label: bool = False

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
        if not self.multi_label:
            del fields["multi_label"]
        return {"versions": fields.pop("versions"), **fields, "modules": modules}


@dataclass(frozen=True)
class EnsembleMeanRecord:
    """The mean of a fine-tuned model's probabilities and the ensemble's, half each.

    Attributes:
        test: Metrics on the test split, {} without one.
        validation: Metrics on the validation fold.
        adjust: Strength of the decision rule's logit adjustment, of probabilities without the
            temperature.
        priors: Share of each class that the decision rule adjusts by.
        temperature: Temperature of the mean; all figures are with it.
        uncalibrated_log_loss: Log loss without it, see `FineTunedModuleRecord`.
        over_head: Metric of choice minus that of the head that training started from, of `test` and
            `validation`, with paired intervals.
        over_fine_tuned: The same minus that of the fine-tuned model alone.
        thresholds: See `FineTunedModuleRecord`.
    """

    test: Figures
    validation: Figures
    adjust: Number
    priors: tuple[Number, ...]
    temperature: Number
    uncalibrated_log_loss: Mapping[str, Number]
    over_head: Figures
    over_fine_tuned: Figures
    thresholds: tuple[Number, ...] = ()


@dataclass(frozen=True)
class FineTunedModuleRecord:
    """The result of fine-tuning one module.

    Attributes:
        test: Metrics on the test split, {} without one; with `all_folds` of what they trained.
        head_test: The same of the head that training started from.
        validation: Metrics on the validation fold, of what was trained without it.
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
        thresholds: Where images may have several labels, the threshold of each, of probabilities
            without the temperature; written there alone.
        all_folds: Whether the model was trained once more, on all folds.
        with_ensemble: The mean of its probabilities and the ensemble's; None where the run has no
            ensemble that could be exported, or no epoch was better than the head.
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
    thresholds: tuple[Number, ...] = ()
    all_folds: bool = False
    with_ensemble: EnsembleMeanRecord | None = None


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


FINE_TUNED, HEAD, MEAN = "fine-tuned", "head", "mean"


@dataclass(frozen=True)
class ExportedRecord:
    """Which of a run's models its fine-tuning exported: the best on the validation fold.

    Attributes:
        kind: `fine-tuned`, `head`, `ensemble`, or `mean` of a fine-tuned module and the ensemble.
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
        chosen: Module whose fine-tuned model is exported, alone or in a mean; None where there was
            none, or where a head or the ensemble is better.
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
        for module in fields["modules"].values():
            if not module["thresholds"]:
                del module["thresholds"]
        return {"versions": fields.pop("versions"), **fields}


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
