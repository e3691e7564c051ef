from __future__ import annotations

import shlex

import numpy as np
import pytest
from click.testing import CliRunner

from hubretrain.bottlenecks import Bottlenecks
from hubretrain.cli import main
from hubretrain.data import open_dataset
from hubretrain.extraction import CacheOptions, cache_bottlenecks, estimate_cache
from hubretrain.modules import resolve
from tests.samples import write_digits, write_pooled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    write_digits(folder / "digits", 60)
    write_pooled(folder / "pooled")
    return folder


def test_an_estimate_counts_what_is_missing_and_writes_no_bottleneck(folder, tmp_path):
    dataset, modules = open_dataset(folder / "digits"), [resolve(str(folder / "pooled"))]
    cache = tmp_path / "cache"

    def estimate(**options):
        chosen = CacheOptions(engine="tensorflow", **options)
        return estimate_cache(dataset, modules, chosen, cache=cache)

    before = estimate(n_views=3)
    assert before.n_forward == (180,)
    assert before.seconds > 0
    assert not list(cache.rglob("*.h5"))
    options = CacheOptions(n_views=2, engine="tensorflow")
    (result,) = cache_bottlenecks(dataset, modules, options, cache=cache)
    assert estimate(n_views=3).n_forward == (60,)
    assert estimate(n_views=3, overwrite=True).n_forward == (180,)
    nothing = estimate(n_views=2)
    assert (nothing.n_forward, nothing.seconds) == ((0,), 0.0)
    with Bottlenecks(result.file) as bottlenecks:
        n_features = bottlenecks.n_features_of("all")
    assert nothing.n_bytes == (60 * 2 * n_features * np.dtype(np.float32).itemsize,)
    size = result.file.stat().st_size
    assert nothing.n_bytes[0] < size < nothing.n_bytes[0] + 2**16 + 60 * 512


def test_the_commands_print_estimates_and_stop(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(folder / "digits"), "-m", str(folder / "pooled"), "--engine", "tensorflow"]
    ran = CliRunner().invoke(main, ["cache", *words, "--dry-run"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "pooled: 240 forward passes, " in ran.output
    assert "images/s." in ran.output
    assert ran.output.endswith(f"Next: {shlex.join(['hubretrain', 'cache', *words])}\n")
    ran = CliRunner().invoke(
        main, ["screen", *words, "-m", "nowhere", "--first", "20", "--dry-run"]
    )
    assert ran.exit_code == 0, ran.output
    assert "s for 20 images" in ran.output
    assert "'nowhere' is no module of the catalogue" in ran.output
    assert ran.output.endswith(" -m nowhere --first 20\n")
    assert not list(tmp_path.rglob("*.h5"))
