"""Reports of runs on real photographs, opened in a browser from disk."""

from __future__ import annotations

import pytest

from hubretrain.data.dataset import open_dataset
from hubretrain.extraction import CacheOptions
from hubretrain.extraction.cache import cache_bottlenecks
from hubretrain.modules import resolve
from hubretrain.report.report import write_report
from hubretrain.runs import Run
from hubretrain.screening import ScreenOptions
from hubretrain.screening.fit import screen_modules
from tests.browsing import asked, run


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_classes"), [("flowers", 5), ("ham10000", 7)])
def test_the_report_of_a_real_data_set_opens_and_shows_every_section(
    name, n_classes, real_data, real_models, browser, tmp_path
):
    data = open_dataset(real_data / name)
    module = resolve(str(real_models / "mobilenet_v2_035_224"))
    cache_bottlenecks(data, [module], CacheOptions(n_views=1), cache=tmp_path / "cache")
    of_run = Run(tmp_path / "runs" / name)
    screen_modules(data, of_run, ScreenOptions(l2=(100.0, 1000.0)), cache=tmp_path / "cache")
    found = write_report(of_run, n_saliency=2)
    assert found.page.stat().st_size < 12_000_000
    for width in (1280, 400):
        ran = run(
            browser,
            tmp_path / f"profile_{width}",
            f"--window-size={width},2000",
            f"--screenshot={tmp_path / f'{width}.png'}",
            found.page.as_uri(),
        )
        assert "CONSOLE" not in ran.stderr
    shown = asked(
        browser,
        found.page,
        tmp_path,
        """
        const count = what => document.querySelectorAll(what).length;
        return {
          titles: [...document.querySelectorAll("h2")].map(one => one.textContent),
          cells: count("table.confusion td"),
          maps: count(".saliency figure"),
          missing: [...document.querySelectorAll(".missing")].map(one => one.textContent),
        };
        """,
    )
    assert shown["cells"] == n_classes**2
    assert shown["maps"] == 2
    assert len(shown["titles"]) == 8
    assert [text for text in shown["missing"] if "fine-tuned" not in text] == [
        "Only one module: nothing to compare."
    ]
