"""The trials, and what counts as which outcome."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import numpy as np

from tests.faults.chain import COMMANDS, Chain
from tests.faults.damage import damage
from tests.faults.disturbances import DISTURBANCES, SIZE, Trial
from tests.faults.processes import (
    CRASH,
    HANG,
    TRACEBACK,
    Ended,
    failure_of,
    run,
    sentence_of,
)

EQUAL, REFUSED, TOLD = "equal", "refused", "told"
FINE = (EQUAL, REFUSED, TOLD)
DIFFERENT, WORDLESS = "different in silence", "exit code without a sentence"
DEFECTS = (DIFFERENT, WORDLESS, TRACEBACK, HANG, CRASH)

REPORT = ("report", "short report")
# Files: the commands that read them, of which one is run.
READERS: dict[str, tuple[str, ...]] = {
    "cache/*/*.h5": (*REPORT, "verify", "fit", "fit anew", "cache more", "status"),
    "cache/*/passes.csv": (*REPORT, "status", "cache more"),
    "cache/*/*": ("fit", "fit anew", "data check", "evaluate"),
    "runs/*/run.json": (*REPORT, "fit", "predict", "evaluate", "resume", "export"),
    "runs/*/folds.*": (*REPORT, "fit", "fit again", "evaluate", "resume", "finetune more"),
    "runs/*/screened/*": ("fit", "fit again"),
    "runs/*/heads/*": (*REPORT, "fit", "export", "export ensemble", "resume"),
    "runs/*/ensemble.json": (*REPORT, "fit", "export ensemble", "resume"),
    "runs/*/*.csv": (*REPORT, "fit", "evaluate"),
    "runs/*/finetune/*": (*REPORT, "resume", "finetune more"),
    "runs/*/export/*": ("predict", "evaluate", "predict savedmodel", "resume"),
    "runs/*/report/*": ("report",),
    "modules/*": ("cache more", "finetune more", "export"),
    "store/*": ("cache more", "finetune more", "export"),
}
PRELOADED = (
    *("hubretrain.report.report", "hubretrain.screening.fit"),
    *("hubretrain.export.predict", "ai_edge_litert.interpreter", "tensorflow", "tf_keras"),
    # With all of the standard library that it needs: where that is root's, others cannot read it.
    *("hubretrain.modules.backbone", "hubretrain.modules.classifier", "hubretrain.modules.cut"),
)
# What no command reads again.
UNREAD = (
    "*.html",
    "*/data_check.json",
    "*/tensorboard/*",
    "evaluated/*",
    "*/label_errors.csv",
    "*.lock",
)


@dataclass
class Campaign:
    """Trials on a chain, counted.

    Attributes:
        chain: The chain.
        random: What every trial is chosen by.
        counts: Number of trials by group, kind and outcome.
        defects: Each defect, as text.
    """

    chain: Chain
    random: np.random.Generator
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    _undisturbed: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)

    def go(self, n_kills: int, n_others: int, n_damaged: int) -> None:
        """Do trials, in a random order.

        Args:
            n_kills: Trials of each kind of kill.
            n_others: Trials of each other kind of disturbance.
            n_damaged: Damaged files.
        """
        kinds = ["damage"] * n_damaged
        for kind in DISTURBANCES:
            kinds += [kind] * (n_kills if "kill" in kind else n_others)
        for kind in self.random.permutation(kinds).tolist():
            if kind == "damage":
                self.damage_a_file()
            else:
                self.disturb_a_command(kind)

    def table(self) -> str:
        """Return the counts as a table of Markdown."""
        outcomes = [*FINE, *DEFECTS]
        lines = [
            f"| disturbed | what | trials | {' | '.join(outcomes)} |",
            "|---" * (3 + len(outcomes)) + "|",
        ]
        for group, kind in sorted({key[:2] for key in self.counts}):
            counts = [self.counts[group, kind, outcome] for outcome in outcomes]
            cells = [group, f"`{kind}`", str(sum(counts)), *map(str, counts)]
            lines.append(f"| {' | '.join(cells)} |")
        totals = [sum(n for key, n in self.counts.items() if key[2] == o) for o in outcomes]
        lines.append(f"| all | | {' | '.join(map(str, [sum(totals), *totals]))} |")
        return "\n".join(lines)

    def undisturbed(self, state: str, command: str) -> Mapping[str, str]:
        """Return the result of a command on a state that nothing disturbed.

        It is computed twice, to see that it is the same; once where time is short.
        """
        if (state, command) not in self._undisturbed:
            results = []
            for _ in range(1 if self.chain.is_short else 2):
                self.chain.restore(state)
                ended = run(COMMANDS[command])
                assert ended.code == 0, f"{command} on {state}: {ended.text}"
                results.append(self.chain.result(command, ended))
                self._seconds[command] = ended.seconds
            first, last = results[0], results[-1]
            differ = [name for name in first.keys() | last if first.get(name) != last.get(name)]
            assert not differ, f"{command} on {state} differs by itself: {differ}"
            self._undisturbed[state, command] = results[0]
        return self._undisturbed[state, command]

    def count(self, group: str, kind: str, outcome: str, story: str, ended: Ended) -> None:
        """Count a trial, and keep the story of a defect."""
        self.counts[group, kind, outcome] += 1
        print(f"{outcome}: {group}, {kind}: {story} ({ended.seconds:.1f} s)", flush=True)
        if outcome not in FINE:
            tail = "\n    ".join(ended.text.strip().splitlines()[-12:])
            self.defects.append(f"{outcome}: {group}, {kind}: {story}\n    {tail}")
            print(f"    {tail}", flush=True)

    def judged(self, state: str, command: str, ended: Ended, name: str = "") -> str:
        """Return the outcome of a command that ended.

        Args:
            state: The state that it began at, but for what was disturbed.
            command: The command.
            ended: How it ended.
            name: Name of the file that was damaged, which a message may name.
        """
        if failure := failure_of(ended):
            return failure
        if ended.code == 130:
            return REFUSED
        names_it = bool(name) and name in re.sub(r"\s+", "", ended.text)
        if ended.code:
            return REFUSED if sentence_of(ended) or names_it else WORDLESS
        if self.chain.result(command, ended) == self._undisturbed[state, command]:
            return EQUAL
        return TOLD if names_it else DIFFERENT

    def damage_a_file(self) -> None:
        """Damage a file of the finished chain and run a command that reads it."""
        state = self.chain.states[-1]
        readers = {name: self.chain.commands(_readers(name)) for name in self.chain.files(state)}
        files = [name for name, commands in readers.items() if commands]
        kinds = sorted({_kind(name) for name in files})
        kind = str(self.random.choice(kinds))
        name = str(self.random.choice([name for name in files if _kind(name) == kind]))
        command = str(self.random.choice(readers[name]))
        self.undisturbed(state, command)
        self.chain.restore(state)
        path = self.chain.folder / name
        others = [self.chain.folder / other for other in files if _kind(other) == kind]
        how = damage(path, self.random, others)
        ended = run(COMMANDS[command])
        outcome = self.judged(state, command, ended, path.name)
        is_gone_or_new = not path.is_file()
        if command == "verify" and outcome == EQUAL and not is_gone_or_new:
            outcome = DIFFERENT  # it says that a damaged file is undamaged
        self.count("damaged files", kind, outcome, f"{name}, {how}, {command}", ended)

    def disturb_a_command(self, kind: str) -> None:
        """Disturb a command, perhaps again and again, and run it to its end."""
        more = ("fit again", "cache more", "fit anew", "export")
        choices = self.chain.commands([*self.chain.states, *more])
        command = str(self.random.choice(choices))
        state = self.chain.before(command)
        self.undisturbed(state, command)
        self.chain.restore(state)
        trial = Trial(command, self.chain.folder, self.random, self._seconds[command])
        story = f"{command}:"
        for _ in range(int(self.random.integers(1, 4)) if "kill" in kind else 1):
            ended, how = DISTURBANCES[kind](trial)
            story += f" {how};"
            was_killed = ended.code == -signal.SIGKILL
            is_sound = was_killed or ended.code == 0 or sentence_of(ended)
            outcome = (not was_killed and failure_of(ended)) or (EQUAL if is_sound else WORDLESS)
            if outcome not in FINE:
                self.count(kind, command, outcome, story, ended)
                return
        ended = run(COMMANDS[command])
        outcome = self.judged(state, command, ended)
        if outcome == REFUSED:  # nothing disturbs it any more
            outcome = DIFFERENT
        self.count(kind, command, outcome, story, ended)


def _readers(name: str) -> tuple[str, ...]:
    if any(fnmatch(name, pattern) for pattern in UNREAD):
        return ()
    return next((READERS[pattern] for pattern in READERS if fnmatch(name, pattern)), ())


def _kind(name: str) -> str:
    """Return the kind of a file: its path with * for names of data sets, modules and the like."""
    name = re.sub(r"^(cache|runs)/[^/]+/", r"\1/*/", name)
    name = re.sub(r"^modules/[^/]+/", "modules/*/", name)
    name = re.sub(r"/(p|r)(_tsne|_umap)?\.(h5|json)$", r"/*.\3", name)
    name = re.sub(r"/finetune/[^/]+/", "/finetune/*/", name)
    name = re.sub(r"[0-9a-f]{16,}", "*", name)
    name = re.sub(r"(checkpoint/.*?)[\d-]+(\.|$)", r"\1*\2", name)
    return re.sub(r"map_\w+\.json", "map_*.json", name)


@contextlib.contextmanager
def campaign_of(folder: Path, seed: int, is_short: bool) -> Iterator[Campaign]:
    """Yield a campaign on a new chain, in a file system of its own.

    What commands import is imported here, once, and nothing that starts threads.

    Args:
        folder: Folder of the chain and its copies; one that is there already is used again.
        seed: Seed of all that is random.
        is_short: See `Chain`.
    """
    for name in PRELOADED[: 2 if is_short else None]:
        import_module(name)
    here = folder / "here"
    here.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # so that commands without the permissions of root come in
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "faults", str(here)], check=True)
    before = Path.cwd()
    os.chdir(here)
    os.environ["HUBRETRAIN_STORE"] = str(here / "store")
    try:
        chain = Chain(here, folder / ("short" if is_short else "whole"), is_short)
        chain.build()
        yield Campaign(chain, np.random.default_rng(seed))
    finally:
        os.chdir(before)
        subprocess.run(["umount", str(here)], check=True)
