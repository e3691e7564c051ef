"""Pages in a headless browser that can reach nothing but the disk."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.samples import PATIENCE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def run(browser: str, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    usual = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}")
    # Nothing can be looked up, so a page that asks for anything says so in the console.
    usual += ("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr")
    return subprocess.run(
        [browser, *usual, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True
    )


def asked(browser: str, page: Path, place: Path, script: str, width: int = 1280) -> Any:
    """Opens a page and returns what a script says that is run in a copy of it at the end.

    The copy has no policy, or the script would not run; what the policy forbids is seen by opening
    the page itself.
    """
    text = page.read_text(encoding="utf-8")
    policy = re.search(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", text)
    assert policy is not None
    ask = f"<script>document.title = JSON.stringify((() => {{ {script} }})());</script>"
    copy = place / "asked.html"
    copy.write_text(text.replace(policy[0], "").replace("</body>", f"{ask}</body>"), "utf-8")
    size = f"--window-size={width},900"
    ran = run(browser, place / "profile", size, "--dump-dom", copy.as_uri())
    assert "CONSOLE" not in ran.stderr, ran.stderr
    title = re.search(r"<title>(.*?)</title>", ran.stdout, re.DOTALL)
    assert title is not None
    return json.loads(html.unescape(title[1]))
