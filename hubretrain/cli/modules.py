"""hubretrain modules: the catalogue, what one module is, and bringing modules here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from hubretrain.cli.command import Group
from hubretrain.cli.options import input_options, offline_option


@click.group(cls=Group, invoke_without_command=True)
@click.option("--search", default="", metavar="TEXT", help="Only names that contain TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def modules(context: click.Context, search: str, as_json: bool) -> None:
    """List the catalogue of modules: sizes, costs, and which of them are here already.

    Beyond the catalogue, --module takes a TF-Hub or Kaggle handle, keras:NAME for every network
    of Keras Applications, a folder with a SavedModel, or an archive of one.
    """
    if context.invoked_subcommand is not None:
        return
    rows = _rows(search)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(f"No module of the catalogue is called anything like {search!r}.")
        return
    _print_table(rows)


@modules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@input_options
@offline_option
def fetch(
    names: Sequence[str], image_size: int | None, value_range: tuple[float, float] | None
) -> None:
    """Bring modules here and check each once, so that they can be used without a network."""
    from hubretrain.errors import ModuleError
    from hubretrain.modules import Backbone, resolve

    failed = []
    for name in names:
        try:
            module = resolve(name, image_size=image_size, value_range=value_range)
            found = Backbone(module).stored
        except ModuleError as error:  # the others are brought all the same
            failed.append(str(error))
            continue
        n_bytes = sum(p.stat().st_size for p in found.folder.rglob("*") if p.is_file())
        click.echo(
            f"{found.name}: {found.n_features:,} features of {found.image_size} px, "
            f"{n_bytes / 1e6:,.1f} MB in {found.folder}, sha256 {found.sha256[:12]}"
        )
    if failed:
        raise ModuleError("\nhubretrain: ".join(failed))


@modules.command()
@click.argument("name")
@click.option("--layers", is_flag=True, help="List its layers, for finetune --unfreeze-last.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@input_options
@offline_option
def show(
    name: str,
    layers: bool,
    as_json: bool,
    image_size: int | None,
    value_range: tuple[float, float] | None,
) -> None:
    """Show what a module is and costs, measured here; it is fetched if need be."""
    from hubretrain.modules import Backbone, milliseconds, resolve

    backbone = Backbone(resolve(name, image_size=image_size, value_range=value_range))
    stored = backbone.stored
    found = backbone.layers()
    listed = [
        {
            "layer": layer,
            "from_the_end": len(found) - i,
            "variables": [v.name.rpartition("/")[2].partition(":")[0] for v in variables],
            "n_parameters": sum(v.shape.num_elements() for v in variables),
        }
        for i, (layer, variables) in enumerate(found)
    ]
    facts: dict[str, Any] = {
        "name": stored.name,
        "handle": stored.handle,
        "folder": str(stored.folder),
        "sha256": stored.sha256,
        "image_size": stored.image_size,
        "value_range": list(stored.value_range),
        "n_features": stored.n_features,
        "n_parameters": stored.n_parameters,
        "n_trainable_layers": len(listed),
        "n_trainable_parameters": sum(one["n_parameters"] for one in listed),
        "gflops": stored.gflops,
        "ms_an_image": round(milliseconds(backbone, stored.image_size), 3),
        "trainable": not backbone.why_not_trainable,
    }
    if as_json:
        click.echo(json.dumps({**facts, **({"layers": listed} if layers else {})}, indent=2))
        return
    _print_facts(facts, backbone.why_not_trainable)
    if layers:
        _print_layers(listed)


def _rows(search: str) -> list[dict[str, Any]]:
    """The catalogue; what the store has measured goes before what the table says."""
    from hubretrain.modules import find_stored, read_catalogue

    rows = []
    for m in read_catalogue():
        if search.lower() not in " ".join((m.name, *m.aliases, *m.handles)).lower():
            continue
        here = find_stored(m.name)
        rows.append(
            {
                "name": m.name,
                "aliases": list(m.aliases),
                "image_size": m.image_size,
                "n_features": m.n_features or (here.n_features if here else 0) or None,
                "value_range": list(m.value_range) if m.value_range else None,
                "n_parameters": (here.n_parameters if here else None) or m.n_parameters,
                "gflops": (here.gflops if here else None) or m.gflops,
                "source": m.source,
                "handle": m.handles[0],
                "handles": list(m.handles),
                "notes": m.notes,
                "stored": here is not None,
            }
        )
    return rows


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("module", no_wrap=True)
    table.add_column("also", overflow="fold")
    for title in ("size", "features", "parameters", "GFLOPs"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("from", "here"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            row["name"],
            " ".join(row["aliases"]),
            str(row["image_size"]),
            f"{row['n_features']:,}" if row["n_features"] else "?",
            f"{row['n_parameters']:,}" if row["n_parameters"] else "?",
            f"{row['gflops']:.2f}" if row["gflops"] else "?",
            row["source"],
            "yes" if row["stored"] else "",
        )
    Console().print(table)


def _print_facts(facts: dict[str, Any], why_not_trainable: str) -> None:
    low, high = facts["value_range"]
    gflops = f"{facts['gflops']:.3f}" if facts["gflops"] is not None else "cannot be counted"
    trainable = (
        f"{facts['n_trainable_layers']} layers, {facts['n_trainable_parameters']:,} parameters"
    )
    lines = {
        "module": facts["name"],
        "from": facts["handle"],
        "in": facts["folder"],
        "sha256": facts["sha256"],
        "images": f"{facts['image_size']} x {facts['image_size']} pixels in [{low:g}, {high:g}]",
        "features": f"{facts['n_features']:,}",
        "parameters": f"{facts['n_parameters']:,}",
        "GFLOPs an image": gflops,
        "ms an image here": f"{facts['ms_an_image']:.1f}, one at a time",
        "can be trained": f"no: it {why_not_trainable}" if why_not_trainable else trainable,
    }
    for title, value in lines.items():
        click.echo(f"{title:17} {value}")


def _print_layers(layers: Sequence[dict[str, Any]]) -> None:
    click.echo("\nfrom the end  parameters  layer")
    for one in layers:
        click.echo(
            f"{one['from_the_end']:12}  {one['n_parameters']:10,}  {one['layer']} "
            f"({', '.join(one['variables'])})"
        )
