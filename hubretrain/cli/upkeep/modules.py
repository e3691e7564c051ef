"""hubretrain modules: the catalogue, details of a module, and downloads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal

from hubretrain.cli.command import Group, echo, print_table
from hubretrain.cli.options import (
    complete_modules,
    input_options,
    json_option,
    offline_option,
    trust_option,
)

if TYPE_CHECKING:
    from hubretrain.modules import Backbone, StoredModule, Trust


@click.group(
    cls=Group, invoke_without_command=True, short_help="List, download and inspect modules."
)
@click.option("--search", default="", metavar="TEXT", help="List only names that contain TEXT.")
@json_option
@click.pass_context
def modules(context: click.Context, search: str, as_json: bool) -> None:
    """List the catalogue of modules, then others that were downloaded or used from a folder.

    Sizes, costs, and which of them are on this machine. Beyond the catalogue, --module takes a
    TF-Hub or Kaggle handle, keras:NAME for every network of Keras Applications, a folder with a
    SavedModel, an archive of one, a .keras or an ONNX file. A module is a program: it may read and
    write files of this machine, so use those that you trust.
    """
    if context.invoked_subcommand is not None:
        return
    rows = _rows(search)
    if as_json:
        echo(json.dumps(rows, indent=2))
        return
    if not rows:
        echo(f"No module of the catalogue, or of this machine, is called anything like {search!r}.")
        return
    _print_table(rows)


@modules.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_modules
)
@input_options
@offline_option
@trust_option
def fetch(
    names: Sequence[str],
    image_size: int | None,
    value_range: tuple[float, float] | None,
    trust: Trust,
) -> None:
    """Download modules and check each once, so that they can be used without a network.

    A module is a program: it may read and write files of this machine. Those from outside the
    catalogue are taken with --trust, or after a question.
    """
    from hubretrain.errors import ModuleError
    from hubretrain.modules import resolve
    from hubretrain.modules.onnx import probed

    failed = []
    for name in names:
        try:
            module = resolve(name, image_size=image_size, value_range=value_range, trust=trust)
            stored = probed(module)
        except ModuleError as error:  # the others are downloaded all the same
            failed.append(str(error))
            continue
        n_bytes = sum(p.stat().st_size for p in stored.folder.rglob("*") if p.is_file())
        echo(
            f"{stored.name}: {stored.n_features:,} features of {stored.image_size} px, "
            f"{decimal(n_bytes)} in {stored.folder}, sha256 {stored.sha256[:12]}"
        )
    if failed:
        raise ModuleError("\nhubretrain: ".join(failed))


@modules.command("import")
@click.argument("source", metavar="SOURCE")
@click.argument("name", metavar="NAME")
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, readable=False, path_type=Path),
    help="Python of an environment that has keras-hub, or timm, torch and onnx.  [default: one is "
    "made in the store]",
)
@click.option(
    "--random-weights", is_flag=True, help="Draw the weights, as a control; needs no download."
)
@click.option(
    "--image-size", type=click.IntRange(8, 4096), help="Height and width of its images, in pixels."
)
@offline_option
def import_(
    source: str, name: str, python: Path | None, random_weights: bool, image_size: int | None
) -> None:
    """Make a module NAME of another library's model: keras-hub:PRESET or timm:MODEL.

    The library is installed into an environment of its own, in the store, at its first use. The
    module holds its preprocessing, and gives pooled features. One of keras-hub can be fine-tuned;
    one of timm becomes an ONNX network, which cannot.
    """
    from hubretrain.modules import ImportOptions, import_module
    from hubretrain.modules.onnx import probed

    stored = probed(import_module(source, name, ImportOptions(python, random_weights, image_size)))
    echo(
        f"{stored.name}: {stored.n_features:,} features of {stored.image_size} px, sha256 "
        f"{stored.sha256[:12]}"
    )
    echo(f"Next: hubretrain cache --module {stored.name}")


@modules.command()
@click.argument("name", shell_complete=complete_modules)
@click.option(
    "--layers",
    is_flag=True,
    help="List its inner layers, for hubretrain cache --layers, and its trainable ones, for "
    "hubretrain finetune --unfreeze-last.",
)
@json_option
@input_options
@offline_option
@trust_option
def show(
    name: str,
    layers: bool,
    as_json: bool,
    image_size: int | None,
    value_range: tuple[float, float] | None,
    trust: Trust,
) -> None:
    """Show a module and its cost, measured on this machine; it is downloaded if necessary."""
    from hubretrain.modules import resolve

    module = resolve(name, image_size=image_size, value_range=value_range, trust=trust)
    if module.is_onnx:
        from hubretrain.modules.onnx import milliseconds_of, notes_of, probed

        stored, listed = probed(module), []
        why_not_trainable = "is an ONNX module, which is run as it is"
        speed, more = milliseconds_of(stored), {"adapted": notes_of(stored)}
    else:
        from hubretrain.modules import Backbone, milliseconds

        backbone = Backbone(module)
        stored, listed = backbone.stored, _trainable_layers(backbone)
        why_not_trainable = backbone.why_not_trainable
        speed, more = milliseconds(backbone, stored.image_size), {}
    details: dict[str, Any] = {
        "name": stored.name,
        "handle": stored.handle,
        "license": stored.license or None,
        "folder": str(stored.folder),
        "sha256": stored.sha256,
        "image_size": stored.image_size,
        "value_range": list(stored.value_range),
        "n_features": stored.n_features,
        "n_parameters": stored.n_parameters,
        "n_trainable_layers": len(listed),
        "n_trainable_parameters": sum(row["n_parameters"] for row in listed),
        "gflops": stored.gflops,
        "ms_per_image": round(speed, 3),
        "n_inner_layers": len(stored.layer_points or ()),
        "trainable": not why_not_trainable,
        **more,
    }
    inner = _inner_layers(stored)
    if as_json:
        of_layers = {"layers": listed, "inner_layers": inner} if layers else {}
        echo(json.dumps({**details, **of_layers}, indent=2))
        return
    _print_details(details, why_not_trainable)
    if layers:
        _print_inner_layers(inner, stored.n_features)
        if listed:
            _print_layers(listed)


def _trainable_layers(backbone: Backbone) -> list[dict[str, Any]]:
    """Return the module's trainable layers, in network order."""
    layers = backbone.layers()
    return [
        {
            "layer": layer,
            "from_the_end": len(layers) - i,
            "variables": [v.name.rpartition("/")[2].partition(":")[0] for v in variables],
            "n_parameters": sum(v.shape.num_elements() for v in variables),
        }
        for i, (layer, variables) in enumerate(layers)
    ]


def _inner_layers(module: StoredModule) -> list[dict[str, Any]]:
    """Return the module's inner layers, and whether and why not `cache` takes each by default."""
    from hubretrain.modules import choose_layers, why_not_chosen

    points = module.layer_points or ()
    chosen = choose_layers(points, "all", module.n_features, module.image_size)
    return [
        {
            **asdict(point),
            "n_features": point.n_features,
            "taken": point in chosen,
            "why_not": why_not_chosen(point, chosen, module.n_features, module.image_size),
        }
        for point in points
    ]


def _rows(search: str) -> list[dict[str, Any]]:
    """Return the catalogue; measurements of the store take precedence over the table.

    Modules of this machine that the catalogue lacks follow, each by what `--module` takes.
    """
    from hubretrain.modules import find_stored, read_catalogue, stored_modules, used_folders

    catalogue = read_catalogue()
    rows = []
    for m in catalogue:
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
                "license": m.license or None,
                "notes": m.notes,
                "stored": here is not None,
            }
        )
    names = {m.name for m in catalogue}
    others = [(m.name, m) for m in stored_modules() if m.name not in names]
    below = f"{os.getcwd()}{os.sep}"
    others += [(str(m.folder).removeprefix(below), m) for m in used_folders()]
    return rows + [
        _row_of_stored(name, m)
        for name, m in others
        if search.lower() in f"{name} {m.handle}".lower()
    ]


def _row_of_stored(name: str, module: StoredModule) -> dict[str, Any]:
    """Return the row of a module that the catalogue lacks."""
    source = module.handle.partition(":")[0]
    if module.is_onnx:
        source = "onnx"
    elif os.path.isabs(module.handle):
        source = "folder" if module.folder == Path(module.handle) else "archive"
    return {
        "name": name,
        "aliases": [],
        "image_size": module.image_size or None,
        "n_features": module.n_features or None,
        "value_range": list(module.value_range),
        "n_parameters": module.n_parameters,
        "gflops": module.gflops,
        "source": source,
        "handle": module.handle,
        "handles": [module.handle],
        "license": module.license or None,
        "notes": "",
        "stored": True,
    }


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    numbers = ("size", "features", "parameters", "GFLOPs")
    titles = ("module", "also", *numbers, "source", "here")
    lines = [
        (
            row["name"],
            " ".join(row["aliases"]),
            str(row["image_size"] or "?"),
            f"{row['n_features']:,}" if row["n_features"] else "?",
            f"{row['n_parameters']:,}" if row["n_parameters"] else "?",
            f"{row['gflops']:.2f}" if row["gflops"] else "?",
            row["source"],
            "yes" if row["stored"] else "",
        )
        for row in rows
    ]
    print_table(titles, lines, numbers, spare=("also", "source"))


def _print_details(details: dict[str, Any], why_not_trainable: str) -> None:
    (low, high), size = details["value_range"], details["image_size"]
    gflops = f"{details['gflops']:.3f}" if details["gflops"] is not None else "cannot be counted"
    trainable = (
        f"{details['n_trainable_layers']} layers, {details['n_trainable_parameters']:,} parameters"
    )
    lines = {
        "module": details["name"],
        "source": details["handle"],
        "licence": details["license"] or "unknown; ask where its weights come from",
        "folder": details["folder"],
        "sha256": details["sha256"],
        "images": f"{size} x {size} pixels in [{low:g}, {high:g}]",
        "features": f"{details['n_features']:,}",
        "parameters": f"{details['n_parameters']:,}",
        "GFLOPs per image": gflops,
        "ms per image": f"{details['ms_per_image']:.1f}, one image at a time on this machine",
        "trainable": f"no: it {why_not_trainable}" if why_not_trainable else trainable,
    }
    if "adapted" in details:
        lines["adapted"] = "; ".join(details["adapted"]) or "nothing"
    for title, value in lines.items():
        echo(f"{title:17} {value}")


def _print_inner_layers(layers: Sequence[dict[str, Any]], n_output: int) -> None:
    if not layers:
        echo("\nIt has no inner layers of feature maps: cache keeps its output only.")
        return
    n_all = n_output + sum(row["n_features"] for row in layers if row["taken"])
    echo(f"\n{n_all:,} features with the inner layers that cache --layers all takes:")
    echo("map        channels  taken  layer")
    for row in layers:
        shape = f"{row['height']} x {row['width']}"
        why_not = "" if row["taken"] else f" ({row['why_not']})"
        taken = "yes" if row["taken"] else "no"
        echo(f"{shape:9} {row['n_channels']:9,}  {taken:5}  {row['name']}{why_not}")


def _print_layers(layers: Sequence[dict[str, Any]]) -> None:
    echo("\nfrom the end  parameters  layer")
    for row in layers:
        echo(
            f"{row['from_the_end']:12}  {row['n_parameters']:10,}  {row['layer']} "
            f"({', '.join(row['variables'])})"
        )
