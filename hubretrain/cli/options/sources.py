"""Options that say where the labelled images, their cache and their split are."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from hubretrain.cli.options.derived import options_from
from hubretrain.data import SplitOptions, TableOptions

if TYPE_CHECKING:
    from hubretrain.data import ImageDataset
    from hubretrain.runs import Run

F = TypeVar("F", bound=Callable[..., Any])


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
        type=click.Path(path_type=Path, readable=False),
        metavar="FILE",
        help="A CSV, TSV, JSON lines or parquet file that labels the images.",
    )
    argument = click.argument("data", nargs=-1, type=click.Path(path_type=Path, readable=False))
    return typing.cast(F, argument(labels_option(with_source)))


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path, readable=False),
    default=Path("cache"),
    show_default=True,
    help="Folder of the bottlenecks.",
)


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
