"""The model card of an export, `README.md`: what the model is, how good, for what, and how to run.

It begins with the metadata that Hugging Face's hub reads
(https://huggingface.co/docs/hub/model-cards), as YAML; texts in it are JSON strings, which YAML
takes. It is made of `export.json` alone, whose digests do not cover it, so it may be edited.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hubretrain.data.splitting import read_folds
from hubretrain.export.manifest import rule_entries, rule_of
from hubretrain.heads import ENSEMBLE_NAME
from hubretrain.modules import StoredModule
from hubretrain.runs import ENSEMBLE, LEADERBOARD, MODULE, Figures, Run

CARD = "README.md"
_METRICS = {  # column: what it is called for people
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "mean_average_precision": "mean average precision",
    "micro_average_precision": "micro average precision",
    "subset_accuracy": "subset accuracy",
    "hamming_loss": "Hamming loss",
    "roc_auc": "ROC AUC",
    "top_3": "top-3 accuracy",
}
_PARTS = {
    "test": "test split",
    "cross_validation": "cross-validation",
    "validation": "validation split",
}
_MOST_LISTED = 1000  # classes


def run_entries(run: Run, module: str | None = None) -> dict[str, Any]:
    """Return what a manifest says of the data of a run, and of the metrics of a fitted head.

    Args:
        run: A fitted run.
        module: The head's module, or `ensemble`; None for a model with metrics of its own.

    Returns:
        Without metrics where the run has no leaderboard: a model is worth having without.

    Raises:
        RunError: The run is damaged.
    """
    fit = run.fit
    entries: dict[str, Any] = {
        "data": fit.data.name,
        "folds_sha256": fit.files.get(run.folds_file.name, ""),
    }
    if module is None or not LEADERBOARD.path(run.folder).exists():
        return entries
    board = LEADERBOARD.read(run.folder)
    is_ensemble = module == ENSEMBLE_NAME
    of_kind = board["kind"] == (ENSEMBLE if is_ensemble else MODULE)
    rows = board[of_kind if is_ensemble else of_kind & (board["module"] == module)]
    if not len(rows):
        return entries
    row = {str(name): value for name, value in rows.iloc[0].items()}
    entries["validation" if _has_one_fold(run) else "cross_validation"] = _figures(row, "")
    if test := _figures(row, "test_"):
        entries["test"] = test
    return entries


def _has_one_fold(run: Run) -> bool:
    """Return whether a validation split was given, which is the only fold."""
    if not run.folds_file.exists():
        return False
    folds = read_folds(run.checked(run.folds_file))["fold"]
    return int(folds[folds >= 0].nunique()) == 1


def model_entries(
    members: Sequence[tuple[StoredModule, str, float]],
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
    temperature: float,
) -> dict[str, Any]:
    """Return what a manifest says of a model, without views and files.

    Args:
        members: Of each its module, the kind of its head, and its weight in the mean.
        class_names: Class names in class order.
        metadata: See `write_export`.
        temperature: Calibration temperature.
    """
    sizes = sorted({module.image_size for module, _, _ in members})
    entries: list[dict[str, Any]] = [
        {
            "module": module.name,
            "module_sha256": module.sha256,
            "module_license": module.license,
            "image_size": module.image_size,
            "head": kind,
            "weight": weight,
        }
        for module, kind, weight in members
    ]
    model: dict[str, Any] = {"module": ENSEMBLE_NAME, "members": entries}
    if len(entries) == 1:
        keys = ("module", "module_sha256", "module_license", "head")
        model = {key: entries[0][key] for key in keys}
    return {
        "class_names": list(class_names),
        "image_sizes": sizes,
        "image_size": sizes[0] if len(sizes) == 1 else None,
        **model,
        **metadata,
        "temperature": temperature,
        # The rule was chosen for the probabilities without a temperature: this keeps its decisions.
        **rule_entries(rule_of(metadata).at_temperature(temperature)),
    }


def _figures(row: Mapping[str, Any], prefix: str) -> Figures:
    """Return the metrics of a row of the leaderboard that have intervals."""
    figures = {}
    for metric in _METRICS:
        names = [f"{prefix}{metric}{end}" for end in ("", "_low", "_high")]
        values = [float(row.get(name, math.nan)) for name in names]
        if not any(map(math.isnan, values)):
            figures[metric] = (values[0], values[1], values[2])
    return figures


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return the text of the model card of an export.

    Args:
        manifest: Contents of its `export.json`.
    """
    title = str(manifest.get("run") or manifest["module"])
    sections = [
        "\n".join(_metadata(manifest, title)),
        f"# {_text(title)}",
        _about(manifest),
        _metrics(manifest),
        _classes(manifest),
        _limits(manifest),
        _use(manifest),
        _provenance(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(manifest: Mapping[str, Any], title: str) -> list[str]:
    """Return the lines of the metadata, between the marks of YAML."""
    multi_label = bool(manifest.get("multi_label"))
    licenses = _licenses(manifest)
    of_all = licenses.pop() if len(licenses) == 1 else ""
    lines = [
        "---",
        *([f"license: {of_all.lower()}"] if of_all else []),
        "library_name: hubretrain",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        *(["- multi-label"] if multi_label else []),
        "- onnx" if _is_onnx(manifest) else "- tensorflow",
    ]
    data = manifest.get("data")
    figures = [(part, manifest.get(part) or {}) for part in _PARTS]
    if data and any(of_part for _, of_part in figures):
        lines += ["model-index:", f"- name: {json.dumps(title)}", "  results:"]
        for part, of_part in figures:
            if not of_part:
                continue
            lines += [
                "  - task:",
                "      type: image-classification",
                "    dataset:",
                f"      name: {json.dumps(data)}",
                f"      type: {json.dumps(data)}",
                f"      split: {json.dumps(_PARTS[part])}",
                "    metrics:",
            ]
            for metric, (estimate, low, high) in of_part.items():
                name = f"{_named(metric)}, 95 % interval {low:.4f} to {high:.4f}"
                lines += [
                    f"    - type: {json.dumps(metric)}",
                    f"      value: {estimate:.6g}",
                    f"      name: {json.dumps(name)}",
                ]
    return [*lines, "---"]


def _about(manifest: Mapping[str, Any]) -> str:
    multi_label, n = bool(manifest.get("multi_label")), len(manifest["class_names"])
    what = f"{n} labels of which an image may have any number" if multi_label else f"{n} classes"
    if manifest["module"] == ENSEMBLE_NAME:
        names = [_text(member["module"]) for member in manifest.get("members", ())]
        is_tuned = bool(names) and manifest.get("fine_tuned")
        tuned = f"{names.pop(0)}, fine-tuned, and of " if is_tuned else ""
        model = f"a mean of {tuned}heads on {', '.join(names)}" if names else "an ensemble of heads"
    elif manifest.get("fine_tuned"):
        model = f"{_text(manifest['module'])}, fine-tuned"
    else:
        model = f"a head ({manifest.get('head')}) on features of {_text(manifest['module'])}"
    data = f" of the data set {_text(manifest['data'])}" if manifest.get("data") else ""
    return f"An image classifier for {what}{data}: {model}."


def _metrics(manifest: Mapping[str, Any]) -> str:
    parts = {part: manifest.get(part) or {} for part in _PARTS}
    shown = [part for part, figures in parts.items() if figures]
    if not shown:
        return ""
    lines = [
        "## Metrics\n",
        _row(["metric", *(_PARTS[part] for part in shown)]),
        _row(["---"] * (1 + len(shown))),
    ]
    for metric in dict.fromkeys(metric for part in shown for metric in parts[part]):
        lines.append(_row([_named(metric), *(_value(parts[part].get(metric)) for part in shown)]))
    lines.append("\nIn parentheses: 95 % confidence intervals.")
    if manifest.get("tta"):
        lines.append("They are of the image as it is, without the mean over views.")
    return "\n".join(lines)


def _value(figures: Sequence[float] | None) -> str:
    return "" if figures is None else "{:.3f} ({:.3f} to {:.3f})".format(*figures)


def _named(metric: str) -> str:
    return _METRICS.get(metric, metric.replace("_", " "))


def _classes(manifest: Mapping[str, Any]) -> str:
    names, thresholds = manifest["class_names"], manifest.get("thresholds")
    lines = ["## Labels\n" if thresholds else "## Classes\n"]
    if thresholds:
        lines += ["A label is decided on where its probability is above its threshold.\n"]
        lines += [_row(["label", "threshold"]), _row(["---", "---"])]
        lines += [
            _row([_text(name), f"{threshold:.4g}"])
            for name, threshold in zip(names[:_MOST_LISTED], thresholds, strict=False)
        ]
    else:
        lines += [f"- {_text(name)}" for name in names[:_MOST_LISTED]]
    if len(names) > _MOST_LISTED:
        lines.append(f"\nand {len(names) - _MOST_LISTED:,} more, in `labels.txt`.")
    return "\n".join(lines)


def _limits(manifest: Mapping[str, Any]) -> str:
    of_images = (
        "The metrics hold for images like those of the data set; of another camera, place or "
        "population they may be worse. `hubretrain evaluate` gives those of your images."
    )
    of_shares = "Probabilities are calibrated for the shares of the classes in the data set."
    limits = [of_images, of_shares]
    if manifest.get("tta"):
        limits.append(
            "The temperature was fitted to the probabilities of images as they are; their mean "
            "over views is less sure."
        )
    if not manifest.get("multi_label"):
        limits.append("An image of none of the classes gets one of them all the same.")
    unknown = "of the images"
    if "" in _licenses(manifest):
        unknown += " and of the module's weights"
    limits.append(
        f"The licences {unknown} are not recorded here: look whether they allow it, and correct "
        "`license` of the metadata above, before publishing the model."
    )
    return "\n".join(["## Limits\n", *(f"- {limit}" for limit in limits)])


def _is_onnx(manifest: Mapping[str, Any]) -> bool:
    """Return whether it is the export of ONNX modules, which holds no SavedModel."""
    return set(manifest.get("files", ())) == {"model.onnx"}


def _use(manifest: Mapping[str, Any]) -> str:
    without = (
        "the input `pixels` of `model.onnx` takes"
        if _is_onnx(manifest)
        else (
            "the signature `serving_default` of the SavedModel takes the bytes of image\nfiles. "
            "`pixels` of it, of `model.tflite` and of `model.onnx`, where they are, takes"
        )
    )
    sizes = ", ".join(f"{size} x {size}" for size in manifest["image_sizes"])
    return f"""## How to run it

```
pip install hubretrain
hubretrain predict THIS_FOLDER image.jpg
hubretrain serve THIS_FOLDER
```

or in Python, here in the folder:

```python
from hubretrain.export import predict_images

for prediction in predict_images(".", ["image.jpg"]):
    print(prediction.decision, prediction.classes)
```

Without hubretrain: {without} float32 RGB in
[0, 1] of {sizes} pixels, resized in 8 bits with an antialiased triangle filter, without keeping the
aspect ratio."""


def _provenance(manifest: Mapping[str, Any]) -> str:
    lines = ["## Provenance\n"]
    for of in _modules(manifest):
        if of.get("module_sha256"):
            licence = f", licence of its weights {_text(of.get('module_license') or 'unknown')}"
            lines.append(f"- module {_text(of['module'])}, sha256 `{of['module_sha256']}`{licence}")
    if manifest.get("folds_sha256"):
        digest = manifest["folds_sha256"]
        lines.append(f"- images, labels and folds: `folds.csv` of the run, sha256 `{digest}`")
    lines.append("- files of this folder: their digests are in `export.json`")
    return "\n".join(lines)


def _modules(manifest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return manifest.get("members") or [manifest]


def _licenses(manifest: Mapping[str, Any]) -> set[str]:
    """Return the licences of the modules' weights, '' being an unknown one."""
    return {of.get("module_license") or "" for of in _modules(manifest)}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: object) -> str:
    """Return a name as Markdown shows it literally, on one line."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    return "".join(f"&#{ord(c)};" if c in "|*_`[]\\#~" else c for c in escaped)
