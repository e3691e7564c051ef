"""How large the next slice may be: the time that modules take for one, by what they took before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

LEAST_GROWTH = 1.25  # a slice that is hardly larger than the last would tell little more


@dataclass(frozen=True)
class Lap:
    """What one module took for one slice.

    Attributes:
        n_images: Images of the slice.
        passes: Seconds of a forward pass, of the latest slice that took any; 0 for none.
        loading: Seconds of the rest of computing features there: loading module and images.
        heads: Seconds of fitting heads.
    """

    n_images: int
    passes: float
    loading: float
    heads: float

    def seconds(self, n_before: int, n_images: int) -> float:
        """Return the estimated time for another slice.

        Args:
            n_before: Images of the slice before, whose features are there.
            n_images: Images of the slice.
        """
        computing = self.loading + self.passes * max(0, n_images - n_before)
        return computing + self.heads * n_images / self.n_images


@dataclass(frozen=True)
class Pace:
    """The latest lap of each module.

    Attributes:
        laps: Module name to its latest lap.
    """

    laps: Mapping[str, Lap] = field(default_factory=dict)

    def with_lap(self, module: str, lap: Lap) -> Pace:
        """Return the pace with a further lap; one that computed no features keeps their times."""
        before = self.laps.get(module)
        if lap.passes == 0 and before is not None:
            lap = replace(lap, passes=before.passes, loading=before.loading)
        return Pace({**self.laps, module: lap})

    def seconds(self, module: str, n_before: int, n_images: int) -> float:
        """Return the estimated time of a module for a slice, see `Lap`; 0 for one without a lap."""
        lap = self.laps.get(module)
        return 0.0 if lap is None else lap.seconds(n_before, n_images)

    def largest(
        self, modules: Iterable[str], n_before: int, n_images: int, granted: float
    ) -> int | None:
        """Return the size of the largest slice that the time is enough for; None for none.

        Args:
            modules: Names of the modules.
            n_before: Images of the last slice.
            n_images: Images of the next one, if the time is enough.
            granted: Seconds.
        """
        names = tuple(modules)

        def is_enough(size: int) -> bool:
            return sum(self.seconds(name, n_before, size) for name in names) <= granted

        least = min(n_images, round(LEAST_GROWTH * n_before))
        if not is_enough(least):
            return None
        low, high = least, n_images + 1  # the time grows with the size
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_enough(middle) else (low, middle)
        return low
