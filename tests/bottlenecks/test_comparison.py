from __future__ import annotations

import pytest

from hubretrain.errors import CacheError
from tests.bottlenecks.samples import (
    make,
)


@pytest.mark.parametrize(("attribute", "kept"), [("seed", 5), ("crop", 5), ("module_sha256", 0)])
def test_other_settings_are_refused_and_overwriting_keeps_what_holds(tmp_path, attribute, kept):
    path = tmp_path / "small.h5"
    make(path)
    before = path.read_bytes()
    refusal = rf"was made with {attribute} = .*, and 9 is required now; use another `cache` folder"
    with pytest.raises(CacheError, match=refusal):
        make(path, attributes={attribute: 9})
    assert path.read_bytes() == before
    assert make(path, attributes={attribute: 9}, overwrite=True) == 10 - kept


def test_a_cache_of_another_data_set_is_refused(tmp_path):
    make(tmp_path / "small.h5", "abc")
    with pytest.raises(CacheError, match=r"holds 3 images of another data set, none of this one"):
        make(tmp_path / "small.h5", "xyz")
