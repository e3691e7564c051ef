from __future__ import annotations

import json
import shutil

import pytest

from hubretrain.files import read_record, write_record
from tests.browser import Browser
from tests.samples import encoded
from tests.serving.samples import PHOTOS, picture, serving

pytest.importorskip("fastapi")
SHOWN = """JSON.stringify({
  rows: [...document.querySelectorAll('article:first-child li')].map(row =>
    [...row.querySelectorAll('span')].map(one => one.textContent)),
  bars: [...document.querySelectorAll('article:first-child progress')].map(one => one.value),
  error: document.querySelector('[role=alert]').textContent,
  decision: document.querySelector('.decision').textContent,
  width: document.querySelector('article img').naturalWidth,
  sideways: document.documentElement.scrollWidth - innerWidth,
})"""


@pytest.fixture(scope="module")
def server(small_export, tmp_path_factory):
    """Of classes whose names JavaScript would put in an order of its own."""
    copy = tmp_path_factory.mktemp("numbers") / "export"
    shutil.copytree(small_export, copy)
    facts = read_record(copy / "export.json")
    facts["class_names"] = ["9", "<b>", "1"]
    write_record(copy / "export.json", facts)
    (copy / "labels.txt").write_text("9\n<b>\n1\n", encoding="utf-8")
    with serving(copy) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def shown(browser):
    return json.loads(browser.value(SHOWN))


def drop(browser, file):
    """Drops a file on the middle of the page, as a hand does."""
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        browser("Input.dispatchDragEvent", type=kind, x=450, y=150, data=data)


def choose(browser, *files):
    """Chooses files as the dialogue does."""
    root = browser("DOM.getDocument")["root"]["nodeId"]
    place = browser("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser("DOM.setFileInputFiles", files=[str(file) for file in files], nodeId=place)


def test_a_chosen_image_gets_its_three_bars_and_a_dropped_one_and_the_same_chosen_again(
    server, browser, tmp_path
):
    browser.events.clear()  # a refused image of another test is a complaint
    browser("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.wait("document.readyState === 'complete'")
    images = [picture(i) for i in range(60)]
    said = [server.ask("POST", "/predict", data)[2] for data in images]
    differs = [one["decision"] != next(iter(one["classes"])) for one in said]
    chosen = [differs.index(True), differs.index(False), differs.index(True)]
    for n, i in enumerate(chosen):
        file = tmp_path / f"{i}.png"
        file.write_bytes(images[i])
        if n == 1:
            drop(browser, file)
        else:
            choose(browser, file)
        first = f"{100 * next(iter(said[i]['classes'].values())):.1f} %"
        browser.wait(f"document.querySelector('li span + span')?.textContent === '{first}'")
        found = shown(browser)
        classes = said[i]["classes"]
        assert [row[0] for row in found["rows"]] == list(classes)
        assert found["rows"][0][1] == first
        assert found["bars"] == pytest.approx(list(classes.values()), abs=1e-6)
        assert found["decision"].endswith(said[i]["decision"]) == differs[i]
        assert found["error"] == ""
        assert found["width"] == 60
        assert found["sideways"] <= 0
    assert browser.complaints() == []


def test_what_is_no_image_gets_the_servers_sentence(server, browser, tmp_path):
    browser("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.wait("document.readyState === 'complete'")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    drop(browser, tmp_path / "broken.png")
    browser.wait("document.querySelector('[role=alert]')?.textContent")
    found = shown(browser)
    assert found["error"] == "no image of a known type"
    assert found["rows"] == []
    (tmp_path / "good.jpg").write_bytes(encoded(PHOTOS[0], "JPEG"))
    drop(browser, tmp_path / "good.jpg")
    browser.wait("document.querySelectorAll('progress').length === 3")
    assert shown(browser)["error"] == ""


def test_the_page_asks_nobody_but_its_server(server, browser, tmp_path):
    _, headers, text = server.ask("GET", "/")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "http:" not in text
    assert "https:" not in text
    base = f"http://127.0.0.1:{server.port}/"
    browser("Page.navigate", url=base)
    browser.wait("document.readyState === 'complete'")
    (tmp_path / "photo.jpg").write_bytes(encoded(PHOTOS[0], "JPEG"))
    choose(browser, tmp_path / "photo.jpg")
    browser.wait("document.querySelectorAll('progress').length === 3")
    urls = [e["params"]["request"]["url"] for e in browser.events if "request" in e["params"]]
    assert f"{base}predict?top=3" in urls
    assert all(url.startswith((base, "blob:", "data:")) for url in urls)


def test_the_page_names_the_model_and_its_classes_and_shows_no_picture_before_one_is_dropped(
    server, browser
):
    browser("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.wait("document.readyState === 'complete'")
    about = browser.value("document.getElementById('model').textContent")
    assert about.endswith(" 3 classes: 9, <b>, 1.")
    assert browser.value("document.querySelectorAll('img').length") == 0


def test_each_of_several_files_gets_an_answer_the_last_first(server, browser, tmp_path):
    browser("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.wait("document.readyState === 'complete'")
    files = [tmp_path / name for name in ("one.png", "two.png", "text.png", "three.png")]
    for i, file in enumerate(files):
        file.write_bytes(b"text" if file.stem == "text" else picture(i))
    choose(browser, *files)
    browser.wait("document.querySelectorAll('progress').length === 9")
    cards = json.loads(
        browser.value(
            "JSON.stringify([...document.querySelectorAll('article')].map(card => ["
            "card.querySelector('h2').textContent, card.querySelector('[role=alert]').textContent, "
            "card.querySelector('img').checkVisibility()]))"
        )
    )
    assert cards == [
        ["three.png", "", True],
        ["text.png", "no image of a known type", False],
        ["two.png", "", True],
        ["one.png", "", True],
    ]


def test_bars_are_seen_on_a_dark_ground(server, browser, tmp_path):
    colours = {}
    for scheme in ("light", "dark"):
        browser(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        browser("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.wait("document.readyState === 'complete'")
        colours[scheme] = browser.value(
            "getComputedStyle(document.documentElement).getPropertyValue('--bar').trim()"
        )
    assert colours == {"light": "#3b6fd4", "dark": "#8ab0ff"}


@pytest.mark.parametrize("field", ["file", "image"])
def test_a_form_names_its_picture_file_or_image(server, field):
    body = (
        f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'
    ).encode() + picture(0)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    status, _, answer = server.ask("POST", "/predict", body + b"\r\n--x--\r\n", headers)
    assert status == 200
    assert answer == server.ask("POST", "/predict", picture(0))[2]
