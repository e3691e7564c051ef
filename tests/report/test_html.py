from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from tests.browsing import run
from tests.report.samples import NAMES, SCRIPT, data_of


def test_the_page_needs_nothing_but_itself_and_every_name_stays_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert SCRIPT not in text
    assert "<b>bold" not in text
    assert text.count("<script") == text.count("</script>") == 2  # its data and its own
    assert not re.search(r"(src|href)\s*=\s*(?![\"']?(data:image/webp;base64,|#))", text)
    assert not re.search(r"url\((?!data:image/webp;base64,)", text)
    assert "@import" not in text
    assert re.search(r"default-src 'none'; [^\"]*script-src 'sha256-[\w+/=]{44}'\"", text)
    assert data_of(page)["classes"] == sorted(NAMES.values())


def test_the_page_opens_from_disk_without_a_request_or_an_error(
    browser: str, page: Path, tmp_path: Path
) -> None:
    for width, scheme in ((1280, 1), (400, 0)):
        ran = run(
            browser,
            tmp_path / "profile",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={width},2000",
            f"--screenshot={tmp_path / f'{width}.png'}",
            page.as_uri(),
        )
        assert "CONSOLE" not in ran.stderr  # a refused script, load or an exception
        light = np.median(np.asarray(Image.open(tmp_path / f"{width}.png").convert("L")))
        assert light > 200 if scheme else light < 60
