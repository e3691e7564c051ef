"""hubretrain export: a run becomes a model that takes images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from hubretrain.cli.command import Command, echo, next_command
from hubretrain.cli.options import Format, chosen_run, complete_modules, run_argument


@click.command(cls=Command, short_help="Export a run as one model of module and head.")
@run_argument
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=Format(["savedmodel", "litert", "onnx"]),
    help="Format to write; may be repeated. The SavedModel is always written, and LiteRT if the "
    "model can be converted.",
)
@click.option(
    "--head",
    metavar="MODULE",
    shell_complete=complete_modules,
    help="Export the fitted head of this module, not fine-tuned.",
)
@click.option("--ensemble", is_flag=True, help="Export the run's ensemble of heads.")
@click.option(
    "--tta",
    type=click.IntRange(1, 8),
    metavar="K",
    help="Average over K views inside the model: the image, then flips, quarter turns and centred "
    "crops such as it was trained on. By default 1, or what the export had before.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, readable=False),
    metavar="FOLDER",
    help="Folder to write; by default RUN/export, and RUN/exports/NAME for a head or the ensemble.",
)
def export(
    run: Path | None,
    formats: tuple[str, ...],
    head: str | None,
    ensemble: bool,
    tta: int | None,
    output: Path | None,
) -> None:
    """Export RUN, by default the latest run, as one model of module and head.

    A fine-tuned model is exported already; it gets the formats that it lacks. Of a run that was
    only fitted, the head of the first module in the shortlist is exported.
    """
    from hubretrain.export import export_run

    if head and ensemble:
        raise click.UsageError("--head and --ensemble are two different exports; ask for one.")
    exported = export_run(
        chosen_run(run), head=head, ensemble=ensemble, formats=formats, tta=tta, output=output
    )
    manifest = exported.manifest
    what = "fine-tuned" if manifest.get("fine_tuned") else "fitted head"
    echo(f"{manifest['module']} ({what}), {_calibration_words(manifest)}:")
    names = [n for n in manifest["files"] if not n.startswith(("variables/", "assets/"))]
    for name in names:
        echo(f"  {exported.folder / name}: {_size(exported.folder, name)}")
    if exported.n_views > 1:
        echo(f"  averages over {exported.n_views} views: {'; '.join(manifest['tta'])}")
    if not exported.has("savedmodel"):
        echo(f"  no SavedModel, no LiteRT: {manifest['not_converted']}; ONNX Runtime runs it.")
    elif manifest["not_converted"]:
        echo(f"  no LiteRT: {manifest['not_converted']}; TensorFlow runs it.")
    echo(f"Next: {next_command('predict', exported.folder)} IMAGE")


def _calibration_words(manifest: dict[str, Any]) -> str:
    """Say what temperature the model has, and what it is worth."""
    words, calibration = f"temperature {manifest['temperature']:.2f}", manifest.get("calibration")
    if not calibration:
        return words
    before, after = calibration["log_loss_before"], calibration["log_loss_after"]
    return f"{words} (log loss {calibration['images']} {before:.3f} before it, {after:.3f} after)"


def _size(folder: Path, name: str) -> str:
    names = folder.rglob("*") if name == "saved_model.pb" else [folder / name]
    tree = [p for p in names if p.is_file() and p.suffix not in (".tflite", ".onnx")]
    n_bytes = sum(p.stat().st_size for p in (tree or [folder / name]))
    return decimal(n_bytes)
