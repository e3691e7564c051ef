"""Options and arguments that say which run, which export, and which images of theirs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hubretrain.cli.command import echo
from hubretrain.cli.options.completion import RUNS, complete_runs

if TYPE_CHECKING:
    from hubretrain.data import ImageDataset
    from hubretrain.runs import Run

F = TypeVar("F", bound=Callable[..., Any])


class Format(click.Choice[str]):
    """The name of a format, or what its file is called: `.tflite` is `litert`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        name = str(value).lower().lstrip(".").replace("tflite", "litert")
        name = name.replace("saved_model", "savedmodel")
        near = difflib.get_close_matches(name, self.choices)
        if name not in self.choices and near:
            expected = ", ".join(self.choices)
            self.fail(f"{value!r} is none of {expected}; did you mean {near[0]}?", param, ctx)
        return super().convert(name if name in self.choices else value, param, ctx)


run_option = click.option(
    "--run",
    type=click.Path(path_type=Path, readable=False),
    metavar="FOLDER",
    callback=lambda _context, _parameter, value: _run_folder(value),
    help="Folder of the results; a plain name is a folder in runs/. By default runs/<data set>.",
    shell_complete=complete_runs,
)

run_argument = click.argument(
    "run",
    required=False,
    metavar="[RUN]",
    type=click.Path(path_type=Path, readable=False),
    callback=lambda _context, _parameter, value: value and existing_model(value),
    shell_complete=complete_runs,
)


def named_run_argument(name: str) -> Callable[[F], F]:
    """Return an argument that names a run; a plain name is a folder in `runs/`."""
    return click.argument(
        name,
        type=click.Path(path_type=Path, readable=False),
        callback=lambda _context, _parameter, value: _in_runs(value),
        shell_complete=complete_runs,
    )


images_option = click.option(
    "--data",
    type=click.Path(path_type=Path, readable=False),
    metavar="FOLDER",
    help="Folder of the images, if they have moved since the run was fitted.",
)

format_option = click.option(
    "--format",
    type=Format(["litert", "litert_int8", "onnx", "savedmodel"]),
    help="Format of the model to run; by default LiteRT if the export holds it.",
)

model_argument = click.argument(
    "model",
    required=False,
    metavar="[RUN_OR_EXPORT]",
    type=click.Path(path_type=Path, readable=False),
    callback=lambda _context, _parameter, value: (
        existing_model(value) if value else _latest_model()
    ),
    shell_complete=complete_runs,
)

model_and_images_argument = click.argument(
    "model_and_images",
    metavar="[RUN_OR_EXPORT] IMAGE...",
    nargs=-1,
    required=True,
    callback=lambda _context, _parameter, value: _model_and_images(*value),
    shell_complete=complete_runs,
)

tta_option = click.option(
    "--tta",
    type=click.IntRange(1, 8),
    metavar="K",
    help="Average over K views: the image, then flips, quarter turns and centred crops such as the "
    "model was trained on. By default as it was exported.",
)


def _model_and_images(first: str, *rest: str) -> tuple[Path, tuple[str, ...]]:
    """Return the model and the images that arguments name; the model may be left out."""
    if not rest:
        if _is_model(Path(first)):
            raise click.UsageError("Missing argument 'IMAGE...'.")
        is_name = first != "-" and "://" not in first and not Path(first).suffix
        if is_name and any(RUNS.glob("*/run.json")):
            existing_model(Path(first))
        return _latest_model(), (first,)
    model = _in_runs(Path(first))
    if first == "-" or "://" in first or (os.path.exists(first) and not _is_model(model)):
        return _latest_model(), (first, *rest)
    return model, rest  # commands refuse one that does not exist, after wrong options


def _latest_model() -> Path:
    """Return the folder of the latest run, and say which it is."""
    from hubretrain.errors import HubretrainError

    try:
        folder = _latest()
    except HubretrainError as error:
        raise click.UsageError(f"Missing argument 'RUN_OR_EXPORT': {error}") from error
    echo(f"hubretrain: with {folder}, the latest run", err=True)
    return folder


def _latest() -> Path:
    from hubretrain.runs import latest_run

    return latest_run(RUNS).folder


def _is_model(path: Path) -> bool:
    """Return whether a path is a run or an export."""
    from hubretrain.export import export_of
    from hubretrain.runs import Run

    return export_of(path) is not None or os.path.exists(Run(path).record_file)


def _in_runs(path: Path) -> Path:
    """Return a path, or the folder in `runs/` where it is a plain name of one and no model."""
    in_runs = RUNS / path
    if len(path.parts) == 1 and os.path.isdir(in_runs) and not _is_model(path):
        return in_runs
    return path


def existing_model(path: Path) -> Path:
    """Return a path, or the folder in `runs/` that a plain name means.

    Raises:
        RunError: It does not exist.
    """
    from hubretrain.errors import RunError

    path = _in_runs(path)
    if os.path.lexists(path):
        return path
    names = sorted(file.parent.name for file in RUNS.glob("*/run.json"))
    near = difflib.get_close_matches(path.name, names, 1)
    if near:
        advice = f"did you mean {RUNS / near[0]}?"
    elif names:
        advice = f"the latest is {_latest()}, and `hubretrain runs` lists all."
    else:
        advice = "run `hubretrain fit` first."
    raise RunError(f"{path} does not exist; expected a run or what was exported of one: {advice}")


def chosen_run(run: Path | None) -> Run:
    """Return the run that is named, or the latest.

    Raises:
        RunError: None is named and there is none.
    """
    from hubretrain.runs import Run, latest_run

    return Run(run) if run else latest_run(RUNS)


def run_of_data(dataset: ImageDataset, run: Path | None, cache: Path) -> Run:
    """Return the run that is named, or the one that is called as the data set.

    Raises:
        RunError: It is of another data set, of which this one has no image.
    """
    from hubretrain.data.splitting import read_folds
    from hubretrain.errors import RunError
    from hubretrain.runs import Run

    chosen = Run(run or RUNS / dataset.name)
    if not chosen.folds_file.exists():
        return chosen
    contents = set(read_folds(chosen.folds_file)["sha256"]) - {""}
    if contents and contents.isdisjoint(dataset.digests(cache)):
        if chosen.is_fitted and chosen.fit.data == dataset.root.resolve():
            return chosen  # all of its images were edited
        raise RunError(
            f"{chosen.folds_file} holds none of these images, so the run belongs to another data "
            "set; choose another folder with `run`, or remove the file to cut a new split."
        )
    return chosen


def export_first(model: Path) -> None:
    """Export a run's fitted head where there is no export of it as it is now.

    Raises:
        RunError: There is no such file or folder.
    """
    existing_model(model)
    from hubretrain.export import export_of, is_current
    from hubretrain.runs import Run

    run = Run(model)
    if export_of(model) == model or not os.path.exists(run.record_file) or is_current(run):
        return
    from hubretrain.export import export_run

    echo(f"hubretrain: exporting the fitted head of {model}, once", err=True)
    export_run(run)


def _run_folder(value: Path | None) -> Path | None:
    """Return the folder of a run; a plain name is a folder in `runs/`."""
    return RUNS / value if value is not None and len(value.parts) == 1 else value
