from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_images

from hubretrain.cli import main
from hubretrain.data.images.decoding import decode, to_unit, view
from hubretrain.export.manifest import Export
from hubretrain.export.predict import predict_images
from hubretrain.export.runtimes import open_runtime
from hubretrain.files import read_record, write_record
from tests.samples import PATIENCE, REPOSITORY, at_temperature, encoded

PHOTOS = load_sample_images().images


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of 30 images, one of them broken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "below").mkdir(parents=True)
    for i in range(30):
        photo = PHOTOS[i % 2][10 * i : 10 * i + 40 + i, 5 * i : 5 * i + 50]
        name = f"images/{'below/' if i > 20 else ''}{i:02d}.{'png' if i % 3 else 'jpg'}"
        (tmp_path / name).write_bytes(encoded(photo, "PNG" if i % 3 else "JPEG"))
    (tmp_path / "images" / "05.png").write_bytes(b"nothing")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path


def invoke(*arguments, code=0, **options):
    ran = CliRunner().invoke(main, ["predict", *map(str, arguments)], **options)
    assert ran.exit_code == code, ran.output
    assert "Traceback" not in ran.output
    return ran


def test_a_folder_is_read_with_all_below_and_a_broken_file_keeps_its_row(place, small_export):
    ran = invoke(small_export, "images", "--csv", "--top", 2, code=1)
    rows = list(csv.DictReader(io.StringIO(ran.stdout)))
    files = sorted(p for p in (place / "images").rglob("*.*") if p.suffix != ".txt")
    assert [row["path"] for row in rows] == [str(p.relative_to(place)) for p in files]
    exported = Export.open(small_export)
    runner = open_runtime(exported, "savedmodel")
    for row in rows:
        if row["path"] == "images/05.png":
            assert row["error"] == "no image of a known type"
            assert row["class_1"] == row["decision"] == ""
            continue
        pixels = to_unit(view(decode((place / row["path"]).read_bytes()), 8)[np.newaxis])
        said = runner({8: pixels})
        best = np.argsort(-said[0])[:2]
        assert [row["class_1"], row["class_2"]] == [exported.class_names[c] for c in best]
        assert float(row["probability_1"]) == pytest.approx(said[0, best[0]], abs=1e-4)
        assert row["decision"] == exported.class_names[int(exported.decisions(said)[0])]
    assert "hubretrain: images/05.png: no image of a known type" in ran.stderr


def test_a_list_on_standard_input_is_read_and_urls_keep_their_slashes(place, small_export):
    listed = "images/00.jpg\n\n  images/01.png\nmemory://none/x.png\n"
    ran = invoke(small_export, "-", "--json", input=listed, code=1)
    rows = json.loads(ran.stdout)
    assert [row["path"] for row in rows] == [
        "images/00.jpg",
        "images/01.png",
        "memory://none/x.png",
    ]
    assert "error" in rows[2]
    assert sum(rows[0]["classes"].values()) == pytest.approx(1, abs=1e-5)
    assert rows[0]["decision"] in rows[0]["classes"]
    assert json.loads(invoke(small_export, "-", "--json", input="").stdout) == []


def test_the_decision_is_shown_where_it_is_not_the_likeliest_class(place, small_export):
    rows = json.loads(invoke(small_export, "images", "--json", code=1).stdout)
    shown = invoke(small_export, "images", code=1).stdout.splitlines()
    good = [row for row in rows if "error" not in row]
    differ = [row["decision"] != next(iter(row["classes"])) for row in good]
    assert any(differ)
    assert not all(differ)
    for row, line, differs in zip(good, shown, differ, strict=True):
        assert line.startswith(f"{row['path']}: {next(iter(row['classes']))} ")
        assert line.endswith(f"; decided: {row['decision']}") == differs


def test_test_time_augmentation_is_the_mean_over_flips_and_crops_at_the_temperature(
    place, small_export
):
    pixels = to_unit(view(decode((place / "images" / "00.jpg").read_bytes()), 8))
    side = (np.arange(8) - 3.5) * 0.75**0.5 + 3.5  # rows and columns of the crop of 75 %
    crop = zoomed(pixels, side)
    views = np.stack([pixels, pixels[:, ::-1], crop, crop[:, ::-1]])
    exported = Export.open(small_export)
    probs = open_runtime(exported, "savedmodel")({8: views}).astype(np.float64)
    plain = at_temperature(probs, 1 / 1.6)  # as the head gives them
    expected = at_temperature(plain.mean(axis=0, keepdims=True), 1.6)[0]
    (found,) = predict_images(small_export, ["images/00.jpg"], tta=4)
    said = dict(found.classes)
    for name, p in zip(exported.class_names, expected, strict=True):
        assert said[name] == pytest.approx(p, abs=1e-4)
    assert np.abs(expected - probs[0]).max() > 1e-3


def zoomed(pixels, at):
    """Pixels at fractional rows and columns, by interpolation along each axis."""
    rows = np.stack([np.interp(at, range(8), column) for column in pixels.reshape(8, -1).T], axis=1)
    columns = rows.reshape(8, 8, 3).transpose(1, 0, 2).reshape(8, -1)
    cut = np.stack([np.interp(at, range(8), column) for column in columns.T], axis=1)
    return cut.reshape(8, 8, 3).transpose(1, 0, 2).astype(np.float32)


def test_more_views_than_training_had_are_refused_with_those_that_it_had(place, small_export):
    ran = invoke(small_export, "images/00.jpg", "--tta", 9, code=2)
    assert "9 is not in the range 1<=x<=8" in ran.stderr
    copy = shutil.copytree(small_export, place / "copy")
    manifest = read_record(copy / "export.json")
    manifest["augmentation"] = {"horizontal_flip": True, "crop": 1}
    write_record(copy / "export.json", manifest)
    ran = invoke(copy, "images/00.jpg", "--tta", 3, code=1)
    assert ran.stderr == (
        "hubretrain: --tta is 3; expected 1 to 2: the augmentation that the model was trained on "
        "has these views: image; horizontal flip.\n"
    )


def test_a_photograph_lying_on_its_side_and_a_tiff_are_read_as_in_training(place, small_export):
    exif = Image.Exif()
    exif[0x0112] = 6
    (place / "side.jpg").write_bytes(encoded(PHOTOS[0][:90, :120], "JPEG", exif=exif, quality=100))
    (place / "as.tiff").write_bytes(encoded(PHOTOS[0][:90, :120], "TIFF"))
    side, plain = predict_images(small_export, ["side.jpg", "as.tiff"])
    assert not side.error + plain.error
    pixels = to_unit(view(decode((place / "side.jpg").read_bytes()), 8)[np.newaxis])
    said = open_runtime(Export.open(small_export), "savedmodel")({8: pixels})
    assert side.classes[0][1] == pytest.approx(said.max(), abs=1e-4)


def test_a_bomb_is_refused_without_being_decoded(place, small_export):
    import zlib

    bomb = Image.new("1", (14000, 13000))
    buffer = io.BytesIO()
    bomb.save(buffer, "PNG")
    (place / "bomb.png").write_bytes(buffer.getvalue())
    assert len(buffer.getvalue()) < 100_000
    assert zlib.crc32(buffer.getvalue())
    ran = invoke(small_export, "bomb.png", "images/00.jpg", code=1)
    assert "bomb.png: 14000 x 13000 pixels; at most 178956970 are read" in ran.stderr
    assert ran.stdout.startswith("images/00.jpg: ")


def test_what_is_no_image_file_is_one_sentence_and_the_rest_go_on(place, small_export):
    (place / "empty").mkdir()
    long = "x" * 300
    listed = f"empty\n{long}\na\0b\nimages/00.jpg\n"
    ran = invoke(small_export, "-", "--json", input=listed, code=1)
    assert ran.stderr == (
        "hubretrain: empty: a folder without images\n"
        f"hubretrain: {long}: File name too long\n"
        "hubretrain: a\\u0000b: embedded null byte\n"
    )
    assert [row["path"] for row in json.loads(ran.stdout)] == [
        "empty",
        long,
        "a\0b",
        "images/00.jpg",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux only")
def test_a_file_name_of_no_encoding_is_read_and_shown(place, small_export):
    name = b"images/\xff\xe9.jpg"
    os.rename("images/00.jpg", name)
    command = [sys.executable, "-m", "hubretrain", "predict", small_export]
    shared = {
        "env": {"PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"},
        "capture_output": True,
        "timeout": PATIENCE,
    }
    as_text = subprocess.run([*command, name], **shared)
    assert (as_text.returncode, as_text.stderr) == (0, b"")
    assert as_text.stdout.startswith(b"images/\\udcff\\udce9.jpg: ")
    as_json = subprocess.run([*command, "-", "--json"], input=name, **shared)
    assert (as_json.returncode, as_json.stderr) == (0, b"")
    assert os.fsencode(json.loads(as_json.stdout)[0]["path"]) == name


@pytest.mark.parametrize("tta", [1, 8])
def test_files_are_read_a_bounded_number_of_images_ahead(place, small_export, tta):
    n_taken = 0

    def many():
        nonlocal n_taken
        for _ in range(1000):
            n_taken += 1
            yield "images/00.jpg"

    found = predict_images(small_export, many(), tta=tta)
    assert not next(found).error
    assert n_taken <= 64 + 16 + 4
    found.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--json", "--csv", "x", "y"], "--json and --csv exclude each other; choose one"),
        (["x" * 300, "images/00.jpg"], "xx does not exist; expected a run or what was exported"),
        (["nowhere", "images/00.jpg"], "nowhere does not exist; expected a run or what was exp"),
    ],
)
def test_foreseen_errors_are_one_sentence(place, arguments, sentence):
    ran = CliRunner().invoke(main, ["predict", *arguments])
    assert ran.exit_code == (2 if "--csv" in arguments else 1)
    assert sentence in ran.stderr
    assert "Traceback" not in ran.output


def test_a_process_that_predicts_imports_nothing_heavy_and_is_quiet(place, small_export):
    code = (
        "import sys; from hubretrain.cli import main\n"
        f"try: main(['predict', {str(small_export)!r}, 'images/00.jpg'])\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'pandas', 'scipy', 'sklearn', 'rich', 'jinja2', 'h5py', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY)},
        timeout=PATIENCE,
    )
    assert ran.stdout.startswith("images/00.jpg: ")
    assert ran.stdout.endswith("\n[]\n")
    assert ran.stderr == ""


def test_a_folder_that_cannot_be_read_is_an_error_beside_the_images_of_others(tmp_path):
    """A folder that is open to nobody, listed by a process that is not the superuser."""
    script = """
import os, sys
from hubretrain.export.predict import _why_empty, image_files
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
for path in image_files([".", "empty"]):
    print(path, _why_empty(path) if os.path.isdir(path) else "")
"""
    for name in ("a", "b", "empty"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"1.{'txt' if name == 'empty' else 'png'}").write_bytes(b"")
    tmp_path.chmod(0o755)
    (tmp_path / "b").chmod(0)
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    (tmp_path / "b").chmod(0o755)
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "a/1.png ",
        "b a folder that cannot be read (Permission denied)",
        "empty a folder without images",
    ]
