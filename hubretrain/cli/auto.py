"""hubretrain auto: the ordinary commands one after another, within a time that is granted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hubretrain.cli.command import Command, echo, next_command, this_command_without
from hubretrain.cli.options import (
    DataSource,
    cache_option,
    data_options,
    named_modules,
    offline_option,
    run_of_data,
    run_option,
)
from hubretrain.errors import RunError
from hubretrain.files import read_json, write_record

if TYPE_CHECKING:
    from hubretrain.data import ImageDataset
    from hubretrain.racing import Portion
    from hubretrain.runs import Run

FILE_NAME = "auto.json"
LEAST_TRAINING = 120.0  # seconds; less is not worth loading the network for
QUICK_HEADS = ("--layers", "all", "--heads", "softmax", "--class-weight", "none")
LEAST = 300.0  # seconds; starting the commands takes as much
MARGIN = 0.9  # of the time that is left, for estimates that were too short


@dataclass(frozen=True)
class Done:
    """A command of `auto`.

    Attributes:
        stage: Its stage.
        words: What follows `hubretrain` on the command line.
        seconds: What it took, with earlier calls that were stopped; its beginning counts, too.
        is_finished: Whether it ended.
    """

    stage: str
    words: tuple[str, ...]
    seconds: float = 0.0
    is_finished: bool = False


@dataclass(frozen=True)
class Diary:
    """`auto.json` of a run: the commands so far, from which `auto` resumes.

    Attributes:
        commands: The commands, in order.
    """

    commands: tuple[Done, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Time of all commands."""
        return sum(command.seconds for command in self.commands)

    def of(self, stage: str) -> Done | None:
        """Return the latest command of a stage, None for none."""
        return next((c for c in reversed(self.commands) if c.stage == stage), None)

    def with_command(self, command: Done) -> Diary:
        """Return the diary with a command, in the place of the same one of before."""
        others = [c for c in self.commands if c.words != command.words or c.stage != command.stage]
        return Diary((*others, command))


@click.command(cls=Command, short_help="Everything, from images to a report, within some hours.")
@data_options
@named_modules(
    "Module to consider; may be repeated, and all is the whole catalogue. By default all that are "
    "on this machine."
)
@cache_option
@run_option
@click.option(
    "--hours",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Time to take.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@offline_option
def auto(
    source: DataSource,
    modules: tuple[str, ...],
    cache: Path,
    run: Path | None,
    hours: float,
    dry_run: bool,
) -> None:
    """Check DATA, screen modules, cache and fit the best, fine-tune, export and report.

    Each stage is an ordinary command, which is shown, with its ordinary files: any can be repeated
    by hand. Rerun the command to resume.
    """
    dataset = source.open(cache)
    chosen = run_of_data(dataset, run, cache)
    automatic = _Auto(dataset, chosen, source.folders, modules, cache, 3600 * hours)
    if dry_run:
        automatic.print_plan()
        echo(f"Next: {this_command_without('--dry-run')}")
        return
    automatic.go()


class _Auto:
    """The stages of one run."""

    def __init__(
        self,
        dataset: ImageDataset,
        run: Run,
        folders: Sequence[Path],
        modules: Sequence[str],
        cache: Path,
        seconds: float,
    ) -> None:
        self.dataset, self.run, self.cache, self.granted = dataset, run, cache, seconds
        self._data = [str(folder) for folder in folders]
        self._modules = [word for name in modules for word in ("--module", name)]
        self._where = ["--cache", str(cache), "--run", str(run.folder)]
        self.diary = _read_diary(run)
        self._began = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left of those that were granted."""
        return self.granted - self.diary.seconds

    @property
    def stages(self) -> dict[str, Callable[[], list[str] | None]]:
        """Stage to what returns the words of its command, None where it is left out."""
        return {
            "data check": lambda: ["data", "check", *self._data, *self._where],
            "screen": self._screen,
            "cache": self._cache,
            "fit": self._fit,
            "finetune": self._finetune,
            "report": lambda: ["report", str(self.run.folder)],
        }

    def print_plan(self) -> None:
        """Print how the time is divided."""
        from hubretrain.racing import SHARES

        of_images = f"{len(self.dataset.images):,} images"
        echo(f"Plan for {_minutes(self.granted)} (minutes:seconds) with {of_images}:")
        for stage, share in SHARES.items():
            echo(f"  hubretrain {stage}: about {_minutes(share * self.granted)}")
        if self.granted < LEAST:
            echo("That is less than starting the commands takes: expect some minutes all the same.")
        echo("What a stage leaves is for the later ones; what is cached and trained depends on how")
        echo("the modules do.")

    def go(self) -> None:
        """Do what is not done yet."""
        if not self.diary.commands:
            self.print_plan()
        for stage, words_of in self.stages.items():
            command = self.diary.of(stage)
            if command is not None and command.is_finished:
                continue
            words = list(command.words) if command is not None else words_of()
            if words is None:
                continue
            code = self._do(stage, words)
            if code and stage == "finetune":  # such as a time that is enough for no epoch
                echo("Fine-tuning did not succeed; the best head is exported instead.", err=True)
                code = self._do("finetune", ["export", str(self.run.folder)])
            if code:
                raise click.exceptions.Exit(code)
        self._print_end()

    def _do(self, stage: str, words: list[str]) -> int:
        """Run a command; return its exit code."""
        spent = _minutes(self.diary.seconds)
        echo(f"\n{spent} of {_minutes(self.granted)} spent. $ {next_command(*words)}")
        before = self.diary.of(stage)
        taken = before.seconds if before is not None and list(before.words) == words else 0.0
        command, started = Done(stage, tuple(words), taken), time.monotonic()
        self._keep(command)
        try:
            code = subprocess.run([sys.executable, "-m", "hubretrain", *words]).returncode
        finally:
            command = replace(command, seconds=taken + time.monotonic() - started)
            self._keep(command)
        if code == 0:
            self._keep(replace(command, is_finished=True))
        return code

    def _keep(self, command: Done) -> None:
        self.diary = self.diary.with_command(command)
        write_record(self.run.folder / FILE_NAME, asdict(self.diary))

    def _screen(self) -> list[str]:
        minutes = self._share_of("screen") / 60
        budget = ["--budget", f"{max(minutes, 0.1):.1f}m"]
        return ["screen", *self._data, *self._modules, *self._where, *budget]

    def _cache(self) -> list[str]:
        portion = self._portion()
        flags = [word for name in portion.modules for word in ("--module", name)]
        views = ["--views", str(portion.n_views)]
        return ["cache", *self._data, *flags, *views, "--cache", str(self.cache)]

    def _fit(self) -> list[str]:
        portion = self._portion()
        quick = list(QUICK_HEADS) if portion.is_quick else []
        return ["fit", *self._data, *self._where, *quick]

    def _finetune(self) -> list[str]:
        """Return fine-tuning for the time that is left, or the export of a head."""
        from hubretrain.racing import SHARES

        left = MARGIN * (self.left - SHARES["report"] * self.granted)
        if left < LEAST_TRAINING:
            echo(f"{_minutes(self.left)} are left, too little to fine-tune: a head is exported.")
            return ["export", str(self.run.folder)]
        return ["finetune", str(self.run.folder), "--hours", f"{left / 3600:.3f}", "--all-folds"]

    def _share_of(self, stage: str) -> float:
        """Return the seconds for a stage: its share of what is left for it and the later ones."""
        from hubretrain.racing import SHARES

        names = list(SHARES)
        later = sum(SHARES[name] for name in names[names.index(stage) :])
        return max(0.0, self.left) * SHARES[stage] / later

    def _portion(self) -> Portion:
        from hubretrain.racing import portion_of, read_race

        race = read_race(self.run)
        if race is None:
            raise RunError(f"{self.run.race_file} is missing; run `hubretrain screen` again.")
        n_images, to_cache = len(self.dataset.images), self._share_of("cache")
        return portion_of(race, n_images, to_cache, self._share_of("fit"))

    def _print_end(self) -> None:
        times = ", ".join(f"{c.words[0]} {_minutes(c.seconds)}" for c in self.diary.commands)
        echo(f"\n{_minutes(self.diary.seconds)} of {_minutes(self.granted)} spent: {times}.")
        echo(f"Next: {next_command('predict', self.run.folder)} IMAGE")


def _read_diary(run: Run) -> Diary:
    """Return what `auto` has done in a run.

    Raises:
        RunError: Its file is damaged.
    """
    try:
        return read_json(run.folder / FILE_NAME, Diary, RunError, "remove it and start again")
    except FileNotFoundError:
        return Diary()


def _minutes(seconds: float) -> str:
    """Return a time as minutes and seconds, such as `12:05`."""
    whole = round(max(0.0, seconds))
    return f"{whole // 60}:{whole % 60:02d}"
