"""hubretrain modules: the catalogue."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.option("--search", default="", metavar="TEXT", help="Only names that contain TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def modules(search: str, as_json: bool) -> None:
    """List the catalogue of modules, and which of them are here already."""
    from hubretrain.modules import catalogue, is_stored

    rows: list[dict[str, Any]] = [
        {
            "name": m.name,
            "aliases": list(m.aliases),
            "image_size": m.image_size,
            "n_features": m.n_features or None,
            "source": m.source,
            "handle": m.tfhub_handle,
            "stored": is_stored(m.name),
        }
        for m in catalogue()
        if search.lower() in " ".join((m.name, *m.aliases, m.tfhub_handle)).lower()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("module", "aliases", "size", "features", "from", "here", box=None)
    for row in rows:
        table.add_row(
            row["name"],
            " ".join(row["aliases"]),
            str(row["image_size"]),
            str(row["n_features"] or "?"),
            row["source"],
            "yes" if row["stored"] else "",
        )
    Console().print(table)
