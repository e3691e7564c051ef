from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from hubretrain.cli import main
from hubretrain.data.images.decoding import to_unit
from hubretrain.export.predict import predict_images
from hubretrain.files import read_record, write_record
from hubretrain.heads.heads import ModuleHeads
from hubretrain.modules import Backbone, resolve
from hubretrain.report.saliency.explain import explain_images
from hubretrain.report.saliency.gradients import (
    METHODS,
)
from hubretrain.report.saliency.model import open_explained
from hubretrain.runs import Run
from tests.report.saliency.samples import SIZE, fitted_head, write_flat
from tests.samples import photo_crops, write_digits, write_pooled


def test_the_command_draws_every_method_and_goes_on_past_a_broken_image(
    run: Run, tmp_path: Path
) -> None:
    images = sorted(write_digits(tmp_path / "digits", 2).rglob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    out = tmp_path / "out"
    ran = CliRunner().invoke(
        main, ["explain", str(run.folder), *map(str, images), str(broken), "--out", str(out)]
    )
    assert ran.exit_code == 1
    assert f"hubretrain: {broken}: no image of a known type" in ran.stderr
    for image in images:
        assert f"{image}: " in ran.stdout
        for method in METHODS:
            assert Image.open(out / f"{image.stem}_{method}.png").size == (SIZE, SIZE)
    first = (out / f"{images[0].stem}_saliency.png").read_bytes()
    again = ["explain", str(run.folder), str(images[0]), "--out", str(tmp_path / "again")]
    assert CliRunner().invoke(main, again).exit_code == 0
    assert (tmp_path / "again" / f"{images[0].stem}_saliency.png").read_bytes() == first
    only = [*again[:-1], str(tmp_path / "only"), "--method", "integrated", "--class", "b"]
    ran = CliRunner().invoke(main, only)
    assert f"{images[0]}: b " in ran.stdout
    assert not (tmp_path / "only" / f"{images[0].stem}_gradcam.png").exists()


def test_a_head_on_all_layers_of_a_module_that_lists_no_variables_is_explained(
    tmp_path: Path,
) -> None:
    folder = write_pooled(tmp_path / "pooled", SIZE)
    run = fitted_head(folder, tmp_path, all_layers=True)
    image = next(write_digits(tmp_path / "digits", 1).rglob("*.png"))
    out = tmp_path / "out"
    command = ["explain", str(run.folder), str(image), "--head", "pooled", "--out", str(out)]
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0, ran.stderr
    assert len(list(out.iterdir())) == len(METHODS) + 1
    head = ModuleHeads.load(run.heads_file("pooled")).deployed
    backbone = Backbone(resolve(str(folder)), head.layers)
    assert not backbone.variables
    pixels = to_unit(photo_crops(4, SIZE))
    expected = head.probabilities(backbone(pixels).numpy())
    probs = open_explained(run.folder, "pooled").probabilities(pixels)
    assert np.abs(probs - expected).max() < 1e-4


def test_what_cannot_be_explained_is_said(run: Run, tmp_path: Path) -> None:
    image = next(write_digits(tmp_path / "digits", 1).rglob("*.png"))
    for place, options, why in (
        (tmp_path / "none", [], "none does not exist; expected a run or what was exported of one"),
        (run.folder, ["--class", "c"], "--class is 'c'; expected one of a, b."),
        (run.folder, ["--head", "other"], "other was not fitted in this run (there are: pooled)"),
    ):
        ran = CliRunner().invoke(main, ["explain", str(place), str(image), *options])
        assert ran.exit_code == 1
        assert why in ran.stderr


def test_grad_cam_that_is_asked_for_is_never_left_out_unsaid(tmp_path: Path) -> None:
    flat = fitted_head(write_flat(tmp_path / "flat"), tmp_path)
    image = next(write_digits(tmp_path / "digits", 1).rglob("*.png"))
    out = tmp_path / "out"
    usual = ["explain", str(flat.folder), str(image), "--out", str(out)]
    ran = CliRunner().invoke(main, [*usual, "--method", "smoothgrad", "--method", "gradcam"])
    assert ran.exit_code == 1
    assert "flat has no feature map for Grad-CAM; use smoothgrad or integrated." in ran.stderr
    assert CliRunner().invoke(main, usual).exit_code == 0
    assert {path.name.rpartition("_")[2] for path in out.iterdir()} == {
        "smoothgrad.png",
        "integrated.png",
        "saliency.png",
    }
    ran = CliRunner().invoke(main, [*usual, "--seed", "-1"])
    assert ran.exit_code == 2
    assert "-1 is not in the range x>=0" in ran.stderr


def test_no_two_images_write_the_same_file(run: Run, tmp_path: Path) -> None:
    first, second, third = sorted(write_digits(tmp_path / "digits", 3).rglob("*.png"))
    images = [tmp_path / "a.png", tmp_path / "b" / "a.png", tmp_path / "a_2.png"]
    images[1].parent.mkdir()
    for image, source in zip(images, (first, second, third), strict=True):
        image.write_bytes(source.read_bytes())
    found = explain_images(run.folder, images, tmp_path / "out", methods=["smoothgrad"])
    assert [one.pictures[0].name for one in found] == [
        "a_smoothgrad.png",
        "a_2_smoothgrad.png",
        "a_2_2_smoothgrad.png",
    ]


def test_a_label_of_an_export_is_explained_with_its_own_probability(
    label_export: Path, tmp_path: Path
) -> None:
    image = next(write_digits(tmp_path / "digits", 1).rglob("*.png"))
    out = tmp_path / "out"
    command = ["explain", str(label_export), str(image), "--label", "<b>", "--out", str(out)]
    ran = CliRunner().invoke(main, [*command, "--method", "smoothgrad"])
    assert ran.exit_code == 0, ran.stderr
    (prediction,) = predict_images(label_export, [image], format="savedmodel")
    probs = dict(prediction.classes)
    assert ran.stdout.startswith(f"{image}: <b> {probs['<b>']:.1%}, ")
    assert {path.name for path in out.iterdir()} == {
        f"{image.stem}_{end}.png" for end in ("smoothgrad", "saliency")
    }


def test_the_labels_that_are_decided_on_are_explained_or_the_most_probable(
    label_export: Path, tmp_path: Path
) -> None:
    model = open_explained(label_export)
    assert model.rule
    above, below = (np.array(model.rule.values) + by for by in (0.01, -0.01))
    first, _, last = above.tolist()
    assert first > last
    assert model.shown(np.array([first, 0.5, last], np.float32)) == [0, 2]
    assert model.shown(below.astype(np.float32)) == [int(below.argmax())]
    folder = shutil.copytree(label_export, tmp_path / "eager")
    manifest = read_record(folder / "export.json") | {"thresholds": [1e-6] * 3}
    write_record(folder / "export.json", manifest)
    image = next(write_digits(tmp_path / "digits", 1).rglob("*.png"))
    explanations = explain_images(folder, [image], tmp_path / "out", methods=["smoothgrad"])
    (prediction,) = predict_images(folder, [image], 3, format="savedmodel")
    assert [of.of_class for of in explanations] == [name for name, _ in prediction.classes]
    assert prediction.labels is not None
    assert set(prediction.labels) == {of.of_class for of in explanations}
    pictures = [path.name for of in explanations for path in of.pictures]
    assert sorted(pictures) == sorted(path.name for path in (tmp_path / "out").iterdir())
