"""Options that several commands share, and options that are made from the library's dataclasses."""

from __future__ import annotations

import functools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from hubretrain.cli.command import echo
from hubretrain.data import SplitOptions, TableOptions
from hubretrain.option_fields import Option, flag_of, option_of

if TYPE_CHECKING:
    from hubretrain.data import ImageDataset
    from hubretrain.runs import Run

RUNS = Path("runs")
F = TypeVar("F", bound=Callable[..., Any])


def options_from(
    cls: type,
    name: str = "options",
    *,
    only: tuple[str, ...] = (),
    param_types: Mapping[str, click.ParamType[Any]] | None = None,
) -> Callable[[F], F]:
    """Return a decorator that gives a command the options of a dataclass, as one object.

    Fields that are dataclasses contribute their options, too. What is not given on the command
    line has the default of its field.

    Args:
        cls: Dataclass with fields made by `hubretrain.option_fields.option`.
        name: Parameter of the command that takes the object.
        only: Names of the fields to offer; by default all.
        param_types: Types of values that do not follow from a field's type.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_options(*args: Any, **values: Any) -> Any:
            chosen = _instance(cls, values, only)
            return command(*args, **{name: chosen}, **values)

        decorated: Any = with_options
        for owner, of_field in reversed(list(_option_fields(cls, only))):
            decorated = _click_option(owner, of_field, param_types or {})(decorated)
        return typing.cast(F, decorated)

    return decorate


def _option_fields(cls: type, only: tuple[str, ...] = ()) -> Iterator[tuple[type, Field[Any]]]:
    for of_field in fields(cls):
        if is_dataclass(of_field.default):
            yield from _option_fields(type(of_field.default))
        elif option_of(of_field) is not None and (not only or of_field.name in only):
            yield cls, of_field


def _instance(cls: type, values: dict[str, Any], only: tuple[str, ...]) -> Any:
    """Return an object of the values of its options, which are taken out of `values`."""
    chosen: dict[str, Any] = {}
    for of_field in fields(cls):
        if is_dataclass(of_field.default):
            chosen[of_field.name] = _instance(type(of_field.default), values, ())
        elif option_of(of_field) is not None and (not only or of_field.name in only):
            value = values.pop(of_field.name)
            if value is not None and value != ():  # else the field's own default
                chosen[of_field.name] = value
    return cls(**chosen)


def _click_option(
    cls: type, of_field: Field[Any], param_types: Mapping[str, click.ParamType[Any]]
) -> Callable[[Any], Any]:
    described = option_of(of_field)
    assert described is not None
    flag, default = flag_of(of_field), of_field.default
    details: dict[str, Any] = {"help": _help(cls, described.help), "metavar": described.metavar}
    if isinstance(default, bool):
        details |= {"default": default, "is_flag": True, "show_default": "/" in flag}
        return click.option(flag, of_field.name, **details)
    details["type"] = param_types.get(of_field.name) or _param_type(
        typing.get_type_hints(cls)[of_field.name], described
    )
    if described.repeatable:
        return click.option(flag, of_field.name, multiple=True, **details)
    if default is not None and default is not MISSING and not isinstance(default, tuple):
        details |= {"default": default, "show_default": True}
    return click.option(flag, of_field.name, **details)


def _help(cls: type, text: str) -> str:
    """Return a help sentence with flags for the fields that it names in backticks."""
    flags = {of_field.name: flag_of(of_field).split("/")[0] for _, of_field in _option_fields(cls)}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)


def _param_type(hint: Any, described: Option) -> Any:
    if described.choices:
        return click.Choice(described.choices)
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    kind = kinds[0] if isinstance(hint, types.UnionType) else hint
    if kind is Path:
        return click.Path(path_type=Path)
    if typing.get_origin(kind) is tuple:
        return str if typing.get_args(kind)[0] is str else Numbers()
    low = described.minimum if described.above is None else described.above
    high = described.maximum if described.below is None else described.below
    if low is None and high is None:
        return kind
    if kind is int:
        return click.IntRange(_whole(low), _whole(high))
    return click.FloatRange(
        low, high, min_open=described.above is not None, max_open=described.below is not None
    )


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers of at least 0, separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers."""
        try:
            numbers = tuple(float(number) for number in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers, such as 1,10,100", param, ctx)
        if not all(0 <= number < float("inf") for number in numbers):
            self.fail(f"{value!r}: expected numbers of at least 0", param, ctx)
        return numbers


@dataclass(frozen=True)
class DataSource:
    """The data set that the command line names.

    Attributes:
        folders: The folders of the images; none for the data set in `data/`.
        labels: A table of labels.
        table: How the table is read.
    """

    folders: tuple[Path, ...]
    labels: Path | None
    table: TableOptions

    def open(self, cache: Path | None = None) -> ImageDataset:
        """Open the data set; with a cache, options that are not given are those of before."""
        from hubretrain.data import open_as_before, open_dataset

        data, *others = self.folders or (None,)
        more_roots = tuple(root for root in others if root)
        if cache is None:
            return open_dataset(data, more_roots=more_roots, labels=self.labels, table=self.table)
        return open_as_before(
            data, cache, more_roots=more_roots, labels=self.labels, table=self.table
        )


def data_options(command: F) -> F:
    """Add the options that say where images and labels are; the command gets one `source`."""

    @options_from(TableOptions, "table")
    @functools.wraps(command)
    def with_source(
        *args: Any,
        data: tuple[Path, ...],
        labels: Path | None,
        table: TableOptions,
        **rest: Any,
    ) -> Any:
        return command(*args, source=DataSource(data, labels, table), **rest)

    labels_option = click.option(
        "--labels",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A CSV, TSV, JSON lines or parquet file that labels the images.",
    )
    argument = click.argument("data", nargs=-1, type=click.Path(path_type=Path))
    return typing.cast(F, argument(labels_option(with_source)))


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("cache"),
    show_default=True,
    help="Folder of the bottlenecks.",
)

modules_option = click.option(
    "--module",
    "-m",
    "modules",
    multiple=True,
    metavar="NAME",
    help="Name of the catalogue, a handle, or a folder; may be repeated.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def out_option(default: str, text: str) -> Callable[[F], F]:
    """Return the option for the folder of a command's files, the parameter `folder`."""
    return click.option(
        "--out",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(default),
        show_default=True,
        metavar="DIR",
        help=text,
    )


run_option = click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    callback=lambda _context, _parameter, value: _run_folder(value),
    help="Folder of the results; a plain name is a folder in runs/. By default runs/<data set>.",
)

run_argument = click.argument(
    "run",
    required=False,
    metavar="[RUN]",
    type=click.Path(path_type=Path),
    callback=lambda _context, _parameter, value: value and _in_runs(value),
)

images_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the images, if they have moved since the run was fitted.",
)

format_option = click.option(
    "--format",
    type=click.Choice(["litert", "litert_int8", "onnx", "savedmodel"]),
    help="Format of the model to run; by default LiteRT if the export holds it.",
)

model_argument = click.argument(
    "model",
    required=False,
    metavar="[RUN_OR_EXPORT]",
    type=click.Path(path_type=Path),
    callback=lambda _context, _parameter, value: _in_runs(value) if value else _latest_model(),
)

model_and_images_argument = click.argument(
    "model_and_images",
    metavar="[RUN_OR_EXPORT] IMAGE...",
    nargs=-1,
    required=True,
    callback=lambda _context, _parameter, value: _model_and_images(*value),
)

tta_option = click.option(
    "--tta",
    type=click.IntRange(1, 8),
    metavar="K",
    help="Average over K views: the image, then flips, quarter turns and centred crops such as the "
    "model was trained on. By default as it was exported.",
)

offline_option = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    callback=lambda _context, _parameter, value: _go_offline(value),
    help="Never use the network for modules; HUBRETRAIN_OFFLINE=1 does the same.",
)


trust_option = click.option(
    "--trust",
    is_flag=True,
    callback=lambda _context, _parameter, value: _trusting(value),
    help="Take a module from outside the catalogue, which may read and write files; without it a "
    "terminal asks, once per module.",
)


def _trusting(value: bool) -> bool | Callable[[str], bool]:
    """Return True, or a function that asks where there is someone to answer."""

    def ask(sentence: str) -> bool:
        return sys.stdin.isatty() and click.confirm(f"{sentence}. Trust it?", err=True)

    return value or ask


def input_options(command: F) -> F:
    """Add the options for a module that does not say what images it takes."""
    value_range = click.option(
        "--value-range",
        nargs=2,
        type=float,
        metavar="LOW HIGH",
        help="Input range of a module that does not take [0, 1].",
    )
    image_size = click.option(
        "--image-size",
        type=click.IntRange(8, 4096),
        help="Height and width of the input, for a module that does not fix them.",
    )
    return image_size(value_range(command))


def _model_and_images(first: str, *rest: str) -> tuple[Path, tuple[str, ...]]:
    """Return the model and the images that arguments name; the model may be left out."""
    if not rest:
        if _is_model(Path(first)):
            raise click.UsageError("Missing argument 'IMAGE...'.")
        return _latest_model(), (first,)
    model = _in_runs(Path(first))
    if first == "-" or "://" in first or (os.path.exists(first) and not _is_model(model)):
        return _latest_model(), (first, *rest)
    return model, rest


def _latest_model() -> Path:
    """Return the folder of the latest run, and say which it is."""
    from hubretrain.errors import HubretrainError
    from hubretrain.runs import latest_run

    try:
        folder = latest_run(RUNS).folder
    except HubretrainError as error:
        raise click.UsageError(f"Missing argument 'RUN_OR_EXPORT': {error}") from error
    echo(f"hubretrain: with {folder}, the latest run", err=True)
    return folder


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


def chosen_run(run: Path | None) -> Run:
    """Return the run that is named, or the latest.

    Raises:
        RunError: None is named and there is none.
    """
    from hubretrain.runs import Run, latest_run

    return Run(run) if run else latest_run(RUNS)


def export_first(model: Path) -> None:
    """Export a run's fitted head where there is no export of it as it is now."""
    from hubretrain.export import export_of, is_current
    from hubretrain.runs import Run

    run = Run(model)
    if export_of(model) == model or not os.path.exists(run.record_file) or is_current(run):
        return
    from hubretrain.export import export_run

    echo(f"hubretrain: exporting the fitted head of {model}, once", err=True)
    export_run(run)


def _go_offline(value: bool) -> None:
    if value:
        os.environ["HUBRETRAIN_OFFLINE"] = "1"  # for processes that this one starts, too


def _run_folder(value: Path | None) -> Path | None:
    """Return the folder of a run; a plain name is a folder in `runs/`."""
    return RUNS / value if value is not None and len(value.parts) == 1 else value


def split_as_cut(run: Run, split: SplitOptions) -> SplitOptions:
    """Return the options that a run's folds were cut with; where they are not cut, those given.

    Raises:
        RunError: Another value is given on the command line.
    """
    from hubretrain.data.splitting import read_cut_with
    from hubretrain.errors import RunError

    cut = read_cut_with(run.folds_file)
    if cut is None and run.is_fitted and run.folds_file.exists():
        cut = SplitOptions(run.fit.n_folds, run.fit.test_fraction, run.fit.seed)
    if cut is None:
        return split
    context = click.get_current_context()
    names = ("n_folds", "test_fraction", "seed")
    for name in names:
        value, before = getattr(split, name), getattr(cut, name)
        if value != before and context.get_parameter_source(name) != ParameterSource.DEFAULT:
            raise RunError(
                f"{run.folds_file} was cut with `{name}={before}`, not {value}; leave it out, "
                "choose another folder with `run`, or remove the file to cut a new split."
            )
    return replace(split, **{name: getattr(cut, name) for name in names})
