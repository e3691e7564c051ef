"""Options that are made from the fields of dataclasses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hubretrain import CacheOptions, FineTuneOptions, ScreenOptions, SplitOptions, TableOptions
from hubretrain.cli.cache import LayersType
from hubretrain.cli.command import Command
from hubretrain.cli.fit import ClassWeight
from hubretrain.cli.options import options_from
from hubretrain.errors import DataError
from hubretrain.option_fields import check_options, flags_of, option


@dataclass(frozen=True)
class Inner:
    rate: float = option(0.5, "Rate of it.", above=0, maximum=1)


@dataclass(frozen=True)
class Outer:
    n_views: int = option(4, "Views per image.", minimum=1, maximum=9, flag="views")
    strict: bool = option(False, "Stop at the first, see `n_views`.")
    mirror: bool = option(True, "Mirror half.")
    kind: str | None = option(None, "Kind of it.", choices=("a", "b"))
    table: Path | None = option(None, "Table of it.", metavar="FILE")
    strengths: tuple[float, ...] | None = option(None, "Strengths of it.")
    inner: Inner = Inner()
    internal: int = 7

    def __post_init__(self) -> None:
        check_options(self, DataError)


@click.command(cls=Command)
@options_from(Outer)
def show(options: Outer) -> None:
    """Show the options."""
    click.echo(repr(options))


def shown(*words: str) -> str:
    ran = CliRunner().invoke(show, words)
    assert ran.exit_code == 0, ran.output
    return ran.stdout.strip()


def test_a_command_without_options_has_the_defaults_of_the_fields() -> None:
    assert shown() == repr(Outer())


def test_every_kind_of_option_arrives_in_one_object() -> None:
    words = "--views 2 --strict --no-mirror --kind b --table t.csv --strengths 0,0.5 --rate 0.25"
    expected = Outer(2, True, False, "b", Path("t.csv"), (0.0, 0.5), Inner(0.25))
    assert shown(*words.split()) == repr(expected)
    assert flags_of(expected) == words.split()


@pytest.mark.parametrize(
    "words",
    [("--views", "0"), ("--kind", "c"), ("--rate", "0"), ("--rate", "1.1"), ("--strengths", "-1")],
)
def test_what_is_out_of_bounds_is_a_usage_error(words: tuple[str, str]) -> None:
    assert CliRunner().invoke(show, words).exit_code == 2


def test_the_help_tells_defaults_bounds_and_the_flags_of_other_options() -> None:
    text = " ".join(CliRunner().invoke(show, ["--help"]).stdout.split())
    assert "--views INTEGER RANGE Views per image. [default: 4; 1<=x<=9]" in text
    assert "--strict Stop at the first, see --views." in text
    assert "--mirror / --no-mirror Mirror half. [default: mirror]" in text
    assert "Rate of it. [default: 0.5; 0<x<=1]" in text
    assert "internal" not in text


def test_options_out_of_bounds_name_the_parameter() -> None:
    with pytest.raises(DataError, match=r"`n_views` is 10; expected 1 to 9\."):
        Outer(n_views=10)
    with pytest.raises(DataError, match=r"`kind` is 'c'; expected one of a, b\."):
        Outer(kind="c")


@pytest.mark.parametrize(
    "options",
    [
        CacheOptions(2, minority_views=5, seed=-3, precision="int8", overwrite=True),
        CacheOptions(layers=3),
        CacheOptions(layers="last"),
        ScreenOptions(
            "macro_f1",
            class_weights=(None, {"a": 2.0, "b": 0.1 + 0.2}),
            adjust=(0.0, 1 / 3),
            split=SplitOptions(3, 0.1, keep_duplicates_together=False),
        ),
        FineTuneOptions(unfreeze_last=0, learning_rate=1e-5, mixed_precision=True),
        TableOptions(label_column="dx", multi_label=False),
        TableOptions(label_column=("dx", "sex"), multi_label=True, label_separator="|"),
        TableOptions(exclude_class=("a b", "c")),
    ],
)
def test_the_flags_of_options_give_these_options_again(options: object) -> None:
    read = []
    param_types = {"class_weights": ClassWeight()}
    if isinstance(options, CacheOptions):
        param_types["layers"] = LayersType()

    @click.command()
    @options_from(type(options), param_types=param_types)
    def command(options: object) -> None:
        read.append(options)

    ran = CliRunner().invoke(command, flags_of(options))
    assert ran.exit_code == 0, ran.output
    assert read == [options]


def test_the_help_of_a_command_imports_nothing_heavy() -> None:
    script = (
        "import sys; from hubretrain.cli import main\n"
        "for name in ('cache', 'fit', 'finetune', 'serve', 'data', 'report'):\n"
        "    main([name, '--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'pandas', 'h5py', 'scipy', 'sklearn', 'PIL', 'tensorflow'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
