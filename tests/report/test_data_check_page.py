from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hubretrain.data import SplitOptions
from hubretrain.data.check import check_dataset
from hubretrain.data.dataset import open_dataset
from hubretrain.report.html import write_check_page
from tests.browsing import run
from tests.messy import SCRIPT, write_messy

# What the page comes to once a browser has laid it out; put into a copy of it, as its title.
MEASURE = """<script>addEventListener('load', () => {
  const images = [...document.images];
  document.title = JSON.stringify({
    images: images.length,
    decoded: images.filter(image => image.naturalWidth > 0).length,
    sideways: document.documentElement.scrollWidth - innerWidth,
    findings: document.querySelectorAll('ul.findings li').length,
    headings: [...document.querySelectorAll('h2')].map(heading => heading.textContent),
    script: [...document.querySelectorAll('td')].some(cell => cell.textContent === %s),
  });
});</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    write_messy(place / "data")
    dataset = open_dataset(place / "data", labels=place / "labels.csv")
    checked = check_dataset(dataset, SplitOptions(n_folds=2), cache=place / "cache")
    file = place / "run" / "data_check.html"
    write_check_page(file, checked, dataset.root)
    return file


def test_the_page_needs_nothing_but_itself_and_escapes_every_name(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert SCRIPT not in text
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert not re.search(r"(src|href)\s*=\s*(?![\"']?data:image/jpeg;base64,)", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert len(text) < 1_000_000


def test_what_is_wrong_is_on_the_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for sentence in (
        "too few for 2 folds",
        "2 images cannot be decoded",
        "different labels",
        "Leaked images of the validation and test splits",
        "empty.jpg",
        "similarity 0.9",
    ):
        assert sentence in text


def test_a_browser_shows_every_picture_in_a_wide_and_in_a_narrow_window(
    browser: str, page: Path, tmp_path: Path
) -> None:
    text = page.read_text(encoding="utf-8")
    n_pictures = text.count("<img ")
    assert n_pictures > 10
    policy = re.search(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", text)
    assert policy is not None
    measure = MEASURE % json.dumps(SCRIPT).replace("</", "<\\/")
    copy = tmp_path / "measured.html"
    copy.write_text(text.replace(policy[0], measure), encoding="utf-8")
    for width in (1200, 500):
        ran = run(
            browser, tmp_path / "profile", f"--window-size={width},900", "--dump-dom", copy.as_uri()
        )
        title = re.search(r"<title>(.*?)</title>", ran.stdout, re.DOTALL)
        assert title is not None
        found = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">"))
        assert found["images"] == found["decoded"] == n_pictures
        assert found["sideways"] <= 0
        assert found["findings"] >= 6
        assert found["script"]
        assert found["headings"][:2] == ["Findings", "Classes"]
        assert "CONSOLE" not in ran.stderr


def test_the_page_is_dark_where_the_reader_prefers_it_and_runs_no_script(
    browser: str, page: Path, tmp_path: Path
) -> None:
    light = {}
    for scheme, name in enumerate(("dark", "light")):
        shot = tmp_path / f"{name}.png"
        ran = run(
            browser,
            tmp_path / "profile",
            f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=900,1200",
            f"--screenshot={shot}",
            page.as_uri(),
        )
        assert "CONSOLE" not in ran.stderr  # a refused load or script would be told there
        light[name] = float(np.median(np.asarray(Image.open(shot).convert("L"))))
    assert light["dark"] < 60
    assert light["light"] > 200
    dumped = run(browser, tmp_path / "profile", "--dump-dom", page.as_uri()).stdout
    assert "<title>data: data check</title>" in dumped
