"""The server of a model whose images may have several labels, or none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hubretrain.data.images.decoding import decode, to_unit, view
from hubretrain.export.manifest import Export
from hubretrain.export.runtimes import open_runtime
from tests.browser import Browser
from tests.serving.samples import picture, serving

pytest.importorskip("fastapi")
SHOWN = """JSON.stringify({
  rows: [...document.querySelectorAll('article:first-child li')].map(row =>
    [...row.querySelectorAll('span')].map(one => one.textContent)),
  decided: [...document.querySelectorAll('article:first-child li.decided span:first-child')].map(
    one => one.textContent),
  marks: [...document.querySelectorAll('article:first-child li')].map(row => {
    const box = one => row.querySelector(one).getBoundingClientRect();
    const bar = box('progress'), mark = box('i');
    return (mark.left + mark.width / 2 - bar.left) / bar.width;
  }),
  decision: document.querySelector('.decision').textContent,
  sideways: document.documentElement.scrollWidth - innerWidth,
})"""


@pytest.fixture(scope="module")
def server(label_export):
    with serving(label_export) as running:
        yield running


@pytest.fixture(scope="module")
def answers(label_export):
    """Labels and probabilities of pictures, by the model itself."""
    export = Export.open(label_export)
    model = open_runtime(export, "savedmodel")
    pixels = [view(decode(picture(i)), 8) for i in range(60)]
    probs = model({8: to_unit(np.stack(pixels))})
    return probs, export.decisions(probs)


def test_an_upload_is_answered_with_all_labels_and_their_thresholds(server, label_export, answers):
    names = Export.open(label_export).class_names
    thresholds = Export.open(label_export).manifest["thresholds"]
    for i, probs, decided in zip(range(20), *answers, strict=False):
        status, _, answer = server.ask("POST", "/predict?top=1", picture(i))
        assert status == 200
        order = np.argsort(-probs, kind="stable")
        assert answer["labels"] == [names[c] for c in order if decided[c]]
        assert [one["class"] for one in answer["top"]] == [names[c] for c in order]
        assert [one["threshold"] for one in answer["top"]] == [thresholds[c] for c in order]
        assert [one["decided"] for one in answer["top"]] == decided[order].tolist()
        assert answer["classes"] == pytest.approx(dict(zip(names, probs, strict=True)), abs=1e-4)
        assert "decision" not in answer


def test_the_metadata_name_the_thresholds_and_no_adjustment(server):
    _, _, answer = server.ask("GET", "/v1/models/small/metadata")
    assert answer["export"]["multi_label"] is True
    assert len(answer["export"]["thresholds"]) == 3
    assert "adjust" not in answer["export"]


def test_the_page_shows_all_labels_with_their_thresholds(
    server, answers, label_export, tmp_path_factory
):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        _check_page(browser, server, answers, Export.open(label_export), tmp_path_factory)
    finally:
        browser.close()


def _check_page(browser, server, answers, export, tmp_path_factory):
    folder, names = tmp_path_factory.mktemp("chosen"), export.class_names
    counts = answers[1].sum(axis=1)
    width = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser("Emulation.setDeviceMetricsOverride", **width)
    browser("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.wait("document.readyState === 'complete'")
    assert "labels, of which an image may have several" in browser.value(
        "document.querySelector('#model').textContent"
    )
    for i in (int(np.argmax(counts)), int(np.argmin(counts))):
        file = folder / f"{i}.png"
        file.write_bytes(picture(i))
        root = browser("DOM.getDocument")["root"]["nodeId"]
        node = browser("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        browser("DOM.setFileInputFiles", files=[str(file)], nodeId=node)
        browser.wait(f"document.querySelector('article:first-child h2').textContent === '{i}.png'")
        browser.wait("document.querySelector('article:first-child .decision').textContent !== ''")
        shown = json.loads(browser.value(SHOWN))
        probs, decided = answers[0][i], answers[1][i]
        order = np.argsort(-probs, kind="stable")
        labels = [names[c] for c in order if decided[c]]
        assert [row[0] for row in shown["rows"]] == [names[c] for c in order]
        assert shown["decided"] == labels
        assert shown["decision"].startswith(", ".join(labels) or "No label")
        thresholds = [export.manifest["thresholds"][c] for c in order]
        assert shown["marks"] == pytest.approx(thresholds, abs=0.01)
        assert shown["sideways"] <= 0
    assert counts.max() > 1
    assert counts.min() == 0
