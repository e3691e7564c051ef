"""Errors and messages of the library, in the words of the command line."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from hubretrain import cli
from hubretrain.cli import command
from hubretrain.cli.command import Group, in_flags, messages_shown
from hubretrain.errors import DataError
from tests.samples import write_digits, write_module


@click.group(cls=Group)
@click.option("--workers", "n_workers", type=int)
def main(n_workers: int | None) -> None:
    """Run a program."""


@main.command(aliases={"more_epochs": "--epochs +{}"})
@click.argument("images", metavar="IMAGE...", nargs=-1)
@click.option("--module", "-m", "modules", multiple=True)
@click.option("--restart", is_flag=True)
@click.option("--views/--no-views", default=True)
def fail(images: tuple[str, ...], **_: object) -> None:
    """Fail with a sentence."""
    with messages_shown():
        logging.getLogger("hubretrain.test").info("`modules` is %s", "a")
    raise DataError(images[0])


@pytest.mark.parametrize(
    ("sentence", "printed"),
    [
        ("`modules` is 'x'; expected a name.", "--module is 'x'; expected a name."),
        ("`images` are none.", "IMAGE are none."),
        ("begin anew with `restart`.", "begin anew with --restart."),
        ("begin anew with `restart=True`.", "begin anew with --restart."),
        ("or `modules=keras:VGG16`.", "or --module keras:VGG16."),
        ("leave out `views=False`.", "leave out --no-views."),
        ("add some with `more_epochs`.", "add some with --epochs +N."),
        ("begin with `more_epochs=2`.", "begin with --epochs +2."),
        ("choose fewer `n_workers`.", "choose fewer --workers."),
        ("`n_views` is of another command.", "`n_views` is of another command."),
        ("run `hubretrain fit` first.", "run `hubretrain fit` first."),
    ],
)
def test_parameters_become_the_flags_of_the_command(sentence: str, printed: str) -> None:
    ran = CliRunner().invoke(main, ["fail", sentence])
    assert ran.exit_code == 1
    assert ran.stderr == f"hubretrain: --module is a\nhubretrain: {printed}\n"


def test_a_message_is_printed_once_where_a_library_has_set_up_logging(caplog) -> None:
    assert CliRunner().invoke(main, ["fail", "x"]).stderr.startswith("hubretrain: --module is a\n")
    assert caplog.text == ""  # caplog stands for the handler that TensorFlow gives the root


def test_after_a_command_logging_is_as_it_was() -> None:
    logger = logging.getLogger("hubretrain")
    before = list(logger.handlers), logger.level, logger.propagate
    CliRunner().invoke(cli.main, ["data", "check", "nowhere"])
    assert (logger.handlers, logger.level, logger.propagate) == before


def test_without_a_command_a_sentence_stays_as_it_is() -> None:
    assert in_flags("`modules` is 'x'.") == "`modules` is 'x'."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cache", "d", "-m", "m", "--part", "3"], "--part is '3'; expected a number and how many"),
        (
            ["cache", "d", "--label-column", "x", "-m", "m"],
            "--label-column is 'x', but there is",
        ),
        (["cache", "d", "-m", "m", "--seed", 2**70], "--seed is 1180591620717411303424; expected"),
        (["data", "check", "d", "--label-column", "x"], "name it: --labels."),
        (["finetune", "--resume"], "run `hubretrain fit` first."),
    ],
)
def test_commands_print_their_own_flags(
    arguments: list[object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "d", 60)
    write_module(tmp_path / "m")
    ran = CliRunner().invoke(cli.main, [str(word) for word in arguments])
    assert ran.exit_code == 1, ran.output
    assert sentence in ran.stderr


@main.command()
@click.argument("number", type=int)
def touch(number: int) -> None:
    """Fail as the operating system does."""
    raise OSError(number, os.strerror(number), "there/it")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_what_the_machine_lacks_is_one_sentence_wherever_it_shows(number):
    ran = CliRunner().invoke(main, ["touch", str(number)])
    assert ran.exit_code == 1
    sentence = f"hubretrain: there/it cannot be used ({os.strerror(number)}); fix permissions"
    assert ran.stderr.startswith(sentence)
    assert ran.stderr.count("\n") == 1


def test_what_is_no_fault_of_the_machine_is_not_hidden():
    ran = CliRunner().invoke(main, ["touch", str(errno.ENOENT)])
    assert isinstance(ran.exception, FileNotFoundError)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    console = Console(width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(command, "terminal", lambda **_: console)


def test_a_table_too_wide_wraps_between_words_and_keeps_numbers_and_titles_whole(
    narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "MobileNetV2_alpha0.35-mobilenet_v2_035_224_notop"
    rows = [(name, "left out", "193", "80.8 (74.5-85.9)"), ("b", "alive", "1", "9.0 (8.0-9.9)")]
    command.print_table(("module", "", "images", "estimate"), rows, numbers=("images",))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == [name, "left", "out", "193", "80.8"]
    assert lines[2].split() == ["(74.5-85.9)"]
    titles = ("module", "s for 192 images", "s for all", "bytes of all")
    command.print_table(titles, [(name, "2.2", "3", "15.7 MB")], numbers=titles[1:])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert {"images", "bytes", name} <= set(printed.split())


def test_a_table_goes_without_spare_columns_before_its_first_one_is_cut(
    narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    titles, row = ("module", "also", "here"), ("m" * 60, "a" * 30, "yes")
    command.print_table(titles, [row], spare=("also",))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["module", "here"], ["m" * 60, "yes"]]
    command.print_table(titles, [row])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert (printed.count("m"), printed.count("a")) == (61, 31)
