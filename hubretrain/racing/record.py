"""What a race knows: its rungs, kept in the run's `race.json`, and where modules stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pandas as pd

from hubretrain.errors import RunError
from hubretrain.evaluation import metric_named
from hubretrain.files import read_json, write_record
from hubretrain.racing.pace import Lap
from hubretrain.runs import Run

ALIVE, LEFT_OUT, FAILED, NOT_REACHED = "alive", "left out", "failed", "not reached"


@dataclass(frozen=True)
class Rung:
    """A slice on which all modules that were alive were compared.

    Attributes:
        n_images: Images of the slice.
        estimates: Module name to the metric of choice and the ends of its 95 % interval.
        errors: Module name to the standard error of its distance to the mean of all.
        alive: The modules that may still become the best, best first.
        seconds: Time of the race until its end.
        n_passes: Forward passes until its end; those that were cached before count as well.
    """

    n_images: int
    estimates: Mapping[str, tuple[float, float, float]]
    errors: Mapping[str, float]
    alive: tuple[str, ...]
    seconds: float
    n_passes: int


@dataclass(frozen=True)
class Standing:
    """Where a module stands.

    Attributes:
        module: Name of the module.
        status: `alive`, `left out`, `failed` or `not reached`.
        n_images: Images of the largest slice that it was compared on; 0 for none.
        estimate: Metric of choice there, and the ends of its 95 % interval; NaN for none.
        low: Lower end.
        high: Upper end.
        reason: Why it failed.
    """

    module: str
    status: str
    n_images: int = 0
    estimate: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    reason: str = ""


@dataclass(frozen=True)
class Race:
    """What a race knows so far.

    Attributes:
        identity: Digest of the images, folds and options that its rungs depend on.
        metric: Metric of choice.
        modules: Names of all modules, in the order in which they are taken.
        n_images: Images outside of the test split.
        rungs: The slices that were finished.
        failed: Module name to why it cannot be used.
        laps: Module name to what it took for the last slice.
        top: Largest number of modules in the shortlist.
        end: Why it ended, a clause; blank while it runs.

    Examples:
        >>> from hubretrain import Race
        >>> race = Race("", "accuracy", ("a", "b"), n_images=1000)
        >>> race.alive, race.table()["status"].tolist()
        (('a', 'b'), ['not reached', 'not reached'])
    """

    identity: str
    metric: str
    modules: tuple[str, ...]
    n_images: int
    rungs: tuple[Rung, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    laps: Mapping[str, Lap] = field(default_factory=dict)
    top: int = 3
    end: str = ""

    @property
    def alive(self) -> tuple[str, ...]:
        """The modules that may still become the best: best first, once they were compared."""
        if self.rungs:
            return tuple(name for name in self.rungs[-1].alive if name not in self.failed)
        return tuple(name for name in self.modules if name not in self.failed)

    @property
    def shortlist(self) -> tuple[str, ...]:
        """The best of those that are alive, at most `top`."""
        return self.alive[: self.top] if self.rungs else ()

    @property
    def seconds(self) -> float:
        """Time of all finished rungs."""
        return self.rungs[-1].seconds if self.rungs else 0.0

    def standings(self) -> list[Standing]:
        """Return where each module stands, the best first, those that were never compared last."""
        alive = set(self.alive)
        compared: dict[str, Standing] = {}
        for rung in self.rungs:
            for name, (estimate, low, high) in rung.estimates.items():
                status = ALIVE if name in alive else LEFT_OUT
                compared[name] = Standing(name, status, rung.n_images, estimate, low, high)
        standings = []
        for name in self.modules:
            if name in self.failed:
                standings.append(Standing(name, FAILED, reason=self.failed[name]))
            else:
                standings.append(compared.get(name, Standing(name, NOT_REACHED)))
        place = {name: i for i, name in enumerate(self.alive)}
        order = (ALIVE, LEFT_OUT, NOT_REACHED, FAILED)
        sign = -1.0 if metric_named(self.metric).higher_is_better else 1.0
        return sorted(
            standings,
            key=lambda of: (
                order.index(of.status),
                place.get(of.module, 0),
                -of.n_images,
                sign * of.estimate if of.n_images else 0.0,
            ),
        )

    def table(self) -> pd.DataFrame:
        """Return `standings` as a table: one row per module."""
        return pd.DataFrame([asdict(standing) for standing in self.standings()])

    def save(self, run: Run) -> None:
        """Write `race.json` of a run.

        Raises:
            WriteError: It cannot be written.
        """
        write_record(run.race_file, asdict(self))


def read_race(run: Run, identity: str | None = None) -> Race | None:
    """Return the race that a run keeps; None where there is none of this identity.

    Args:
        run: The run.
        identity: Its identity; by default any.

    Raises:
        RunError: Its file is damaged.
    """
    remedy = "remove it and run `hubretrain screen` again"
    try:
        race = read_json(run.race_file, Race, RunError, remedy)
    except FileNotFoundError:
        return None
    return race if identity in (None, race.identity) else None
