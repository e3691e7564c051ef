"""hubretrain screen: many modules on growing slices, and where each stands after every slice."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal

from hubretrain.cli.command import Command, echo, next_command, print_table, this_command_without
from hubretrain.cli.options import (
    DataSource,
    cache_option,
    cluster_options,
    data_options,
    json_option,
    named_modules,
    offline_option,
    options_from,
    run_of_data,
    run_option,
    split_as_cut,
    trust_option,
)
from hubretrain.racing import RaceOptions

if TYPE_CHECKING:
    from hubretrain.data import ImageDataset
    from hubretrain.extraction import Cluster
    from hubretrain.modules import StoredModule, Trust
    from hubretrain.racing import Race, Standing

ALL = "all"
_UNITS = {"s": 1 / 60, "m": 1.0, "h": 60.0}


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time such as `90s`, `10m`, `1.5h` or `1h30m`; a number alone is of minutes."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return minutes."""
        if isinstance(value, float):
            return value
        parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", str(value))
        if parts and "".join(number + unit for number, unit in parts) == value:
            return sum(float(number) * _UNITS[unit] for number, unit in parts)
        if re.fullmatch(r"\d+(\.\d+)?", str(value)):
            return float(value)
        return self.fail(f"{value!r} is no time such as 10m, 90s or 1h30m.", param, ctx)


@click.command(cls=Command, short_help="Compare many modules on growing slices of the images.")
@data_options
@named_modules(
    "Name of the catalogue, a handle, a folder, or all for the whole catalogue; may be repeated. "
    "By default all modules that are on this machine."
)
@cache_option
@run_option
@options_from(RaceOptions, param_types={"minutes": Duration()})
@offline_option
@trust_option
@cluster_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Time a few forward passes of each module, show what the first slice and all images would "
    "take, and stop.",
)
@json_option
def screen(
    source: DataSource,
    modules: tuple[str, ...],
    cache: Path,
    run: Path | None,
    options: RaceOptions,
    trust: Trust,
    cluster: Cluster | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compare many modules of DATA on growing slices of the images, within a time.

    A module is left out where it is unlikely to become the best with all images. Features stay in
    the cache, from where hubretrain cache continues. The images of the run's test split take no
    part. Rerun the command to resume, or with a larger --budget to go on.
    """
    from hubretrain.racing import race_modules

    dataset = source.open(cache)
    chosen = run_of_data(dataset, run, cache)
    options = replace(options, split=split_as_cut(chosen, options.split))
    entrants = _entrants(modules)
    if dry_run:
        _print_estimates(dataset, entrants, options, cache, trust)
        echo(f"Next: {this_command_without('--dry-run')}")
        return
    race = race_modules(
        dataset,
        entrants,
        chosen,
        options,
        cache=cache,
        trust=trust,
        cluster=cluster,
        on_rung=None if as_json else lambda race: _print_rung(race, options.minutes),
    )
    if as_json:
        echo(_as_json(race))
        return
    _print_end(race, source, cache)


def _entrants(names: tuple[str, ...]) -> list[str | StoredModule]:
    """Return the modules that are named, the cheapest first, as far as that is known."""
    from hubretrain.modules import (
        find_stored,
        installed_modules,
        read_catalogue,
        stored_modules,
    )

    catalogue = [entry.name for entry in read_catalogue()]
    entrants: list[str | StoredModule] = [
        *dict.fromkeys(name for of in names for name in (catalogue if of == ALL else [of]))
    ]
    if not names:
        stored = {module.name: module for module in stored_modules()}
        installed = [of.name for of in installed_modules() if of.name not in stored]
        entrants = [*stored.values(), *installed]
    if not entrants:
        raise click.UsageError(
            "There is no module on this machine; name some with --module, or all."
        )
    known = {of.name: of.gflops for of in read_catalogue() if of.gflops is not None}

    def cost(entrant: str | StoredModule) -> float:
        of = find_stored(entrant) if isinstance(entrant, str) else entrant
        gflops = known.get(str(entrant)) if of is None else of.gflops
        return math.inf if gflops is None else gflops

    return sorted(entrants, key=cost)


def _print_estimates(
    dataset: ImageDataset,
    entrants: list[str | StoredModule],
    options: RaceOptions,
    cache: Path,
    trust: Trust,
) -> None:
    """Print what forward passes of each module would take; those that fail say why."""
    from hubretrain.errors import HubretrainError
    from hubretrain.extraction import CacheOptions, estimate_cache
    from hubretrain.modules import resolve
    from hubretrain.racing import first_size

    n_images = len(dataset.images)
    first = first_size(round(n_images * (1 - options.split.test_fraction)), options.first)
    how = CacheOptions(
        n_views=1, engine=options.engine, precision=options.precision, layers=options.layers
    )
    rows, total = [], 0.0
    for entrant in entrants:
        name = entrant if isinstance(entrant, str) else entrant.name
        try:
            module = resolve(entrant, trust=trust) if isinstance(entrant, str) else entrant
            of = estimate_cache(dataset, [module], how, cache=cache)
        except HubretrainError as error:
            rows.append((name, str(error), "", ""))
            continue
        seconds = n_images / of.images_per_second if of.images_per_second else 0.0
        total += seconds * first / n_images
        cells = (f"{seconds * first / n_images:,.1f}", f"{seconds:,.0f}", decimal(of.n_bytes[0]))
        rows.append((name, *cells))
    titles = ("module", f"s for {first:,} images", "s for all", "bytes of all")
    print_table(titles, rows, numbers=titles[1:])
    echo(f"Forward passes for the first slice: about {total:,.0f} s; heads come on top of that.")


def _print_rung(race: Race, minutes: float) -> None:
    rung = race.rungs[-1]
    left = max(0.0, 60 * minutes - rung.seconds)
    n_out = len(rung.estimates) - len(rung.alive)
    echo(
        f"{rung.n_images:,} of {race.n_images:,} images: {len(rung.estimates)} modules compared, "
        f"{n_out} left out, {len(rung.alive)} alive; {rung.seconds:,.0f} s, {left:,.0f} s left"
    )
    _print_standings([s for s in race.standings() if s.module in rung.estimates])


def _print_standings(standings: list[Standing]) -> None:
    rows = [
        (
            standing.module,
            standing.status,
            f"{standing.n_images:,}" if standing.n_images else "",
            _estimate(standing),
        )
        for standing in standings
    ]
    print_table(("module", "", "images", "estimate"), rows, numbers=("images",))


def _estimate(standing: Standing) -> str:
    if math.isnan(standing.estimate):
        return standing.reason
    values = (standing.estimate, standing.low, standing.high)
    value, low, high = (f"{100 * of:.1f}" for of in values)
    return f"{value} ({low}-{high})"


def _print_end(race: Race, source: DataSource, cache: Path) -> None:
    n_passes = race.rungs[-1].n_passes
    full = (len(race.modules) - len(race.failed)) * race.n_images
    saved = f" instead of {full:,}" if n_passes < full else ""
    echo(f"Ended after {race.seconds:,.0f} s, as {race.end}: {n_passes:,} forward passes{saved}.")
    rest = [s for s in race.standings() if s.status in ("failed", "not reached")]
    if rest:
        _print_standings(rest)
    flags = [word for name in race.shortlist for word in ("--module", name)]
    elsewhere = () if cache == Path("cache") else ("--cache", cache)
    echo(f"Shortlist: {', '.join(race.shortlist)}.")
    echo(f"Next: {next_command('cache', *source.folders, *flags, *elsewhere)}")


def _as_json(race: Race) -> str:
    rows = json.loads(race.table().to_json(orient="records"))
    return json.dumps(
        {
            "metric": race.metric,
            "end": race.end,
            "seconds": round(race.seconds, 3),
            "n_passes": race.rungs[-1].n_passes,
            "shortlist": race.shortlist,
            "rungs": [
                {"n_images": rung.n_images, "alive": rung.alive, "seconds": round(rung.seconds, 3)}
                for rung in race.rungs
            ],
            "modules": rows,
        },
        indent=2,
    )
