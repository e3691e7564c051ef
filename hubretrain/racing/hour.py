"""How the hours of `hubretrain auto` are divided: which modules and views are cached, which heads.

Shares are of the time that is granted; what a stage leaves is for the later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hubretrain.racing.pace import Lap
from hubretrain.racing.record import LEFT_OUT, Race

SHARES: Mapping[str, float] = {
    "data check": 0.03,
    "screen": 0.17,
    "cache": 0.2,
    "fit": 0.35,
    "finetune": 0.2,
    "report": 0.05,
}
"""Stage, in order, to its share of the time.

Heads of further views and modules brought more than the epochs that the same time buys: on HAM10000
the ensemble 3.8 points, views 1.2; fine-tuning, which loses a fold, none (docs/results.md).
"""
# A default fit against the quick heads of a race on as many images of one view: 7.3 with a network
# and the learning curve, of efficientnet_lite1 on flowers. That of more views is a guess from it.
FIT_ONE_VIEW, FIT_MORE_VIEWS = 8.0, 6.5
QUICK_SHARE = 0.15  # of the time of a default fit
CHOICES = ((3, 4), (2, 4), (3, 2), (2, 2), (1, 4), (3, 1), (2, 1), (1, 2), (1, 1))
"""Numbers of modules and of views, the most wanted first."""


@dataclass(frozen=True)
class Portion:
    """What is cached and fitted after a race.

    Attributes:
        modules: Names of the modules, best first.
        n_views: Views per image.
        cache_seconds: Estimated time to cache them.
        fit_seconds: Estimated time to fit all heads.
        is_quick: Whether that is more than is granted, so that fewer kinds of heads are fitted.
    """

    modules: tuple[str, ...]
    n_views: int
    cache_seconds: float
    fit_seconds: float
    is_quick: bool


def portion_of(race: Race, n_images: int, to_cache: float, to_fit: float) -> Portion:
    """Return as much as the time is enough for; at least the best module with one view.

    Args:
        race: What is known of the modules.
        n_images: Images of the data set, the test split included.
        to_cache: Seconds to cache.
        to_fit: Seconds to fit.
    """
    # Who is unlikely to be the best may still make the ensemble better, where there is time.
    left_out = [s.module for s in race.standings() if s.status == LEFT_OUT]
    names = (*race.shortlist, *left_out)[: race.top]
    portions = []
    for n_modules, n_views in CHOICES:
        if n_modules > len(names):
            continue
        laps = [race.laps.get(name, Lap(1, 0.0, 0.0, 0.0)) for name in names[:n_modules]]
        wanted = n_views * n_images
        caching = sum(lap.loading + lap.passes * (wanted - lap.n_images) for lap in laps)
        factor = FIT_ONE_VIEW + FIT_MORE_VIEWS * (n_views - 1)
        fitting = factor * sum(lap.heads * n_images / lap.n_images for lap in laps)
        is_quick = fitting > to_fit
        fitting *= QUICK_SHARE if is_quick else 1.0
        portions.append(Portion(names[:n_modules], n_views, caching, fitting, is_quick))
    enough = [p for p in portions if p.cache_seconds <= to_cache and p.fit_seconds <= to_fit]
    # A default fit says more than a further module or view with quick heads.
    thorough = [p for p in enough if not p.is_quick]
    return (thorough or enough or portions[-1:])[0]
