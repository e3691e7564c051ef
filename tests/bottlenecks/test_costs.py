"""The log of forward passes, written and read again."""

from __future__ import annotations

import pytest

from hubretrain.bottlenecks.costs import ForwardPassLog

NAMES = ["2024", "None", "NA", "nan", "1e5", " x ", "", 'a "b"', "two\nlines", "a\rb", "True"]


@pytest.mark.parametrize("name", NAMES)
def test_a_module_keeps_its_speed_whatever_it_is_called(tmp_path, name):
    ForwardPassLog(tmp_path).add(name, "tensorflow", "f32", 100, 2.0)
    assert ForwardPassLog(tmp_path).images_per_second(name) == 50
    ForwardPassLog(tmp_path).add(name, "tensorflow", "f32", 100, 1.0)
    log = ForwardPassLog(tmp_path)
    assert log.images_per_second(name) == 100
    assert log.table["module"].tolist() == [name, name]
    assert log.images_per_second("other") is None


@pytest.mark.parametrize("damage", [("100", "900"), ("2.0", "two"), ("module", "mod")])
def test_a_damaged_log_is_said_and_begun_anew(tmp_path, damage, caplog):
    ForwardPassLog(tmp_path).add("a", "tensorflow", "f32", 100, 2.0)
    file = tmp_path / "passes.csv"
    assert damage[0] in file.read_text()
    file.write_text(file.read_text().replace(*damage))
    log = ForwardPassLog(tmp_path)
    assert "passes.csv cannot be read" in caplog.text
    assert log.images_per_second("a") is None
    log.add("a", "tensorflow", "f32", 10, 1.0)
    assert ForwardPassLog(tmp_path).images_per_second("a") == 10


def test_no_log_is_no_damage(tmp_path, caplog):
    ForwardPassLog(tmp_path / "nothing")
    assert not caplog.text
