from __future__ import annotations

import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules.onnx import is_onnx, parse_handle


def test_a_handle_has_one_spelling_and_is_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handle = parse_handle("a/net.onnx?std=.5&layout=nchw&output=/pool %26 flat&mean=0.5,0.4,-1e-3")
    text = (
        f"{tmp_path}/a/net.onnx?output=/pool%20%26%20flat&mean=0.5,0.4,-0.001&std=0.5&layout=NCHW"
    )
    assert str(handle) == text
    assert parse_handle(text) == handle
    assert handle.output == "/pool & flat"
    assert handle.name == "net-pool_flat"


def test_options_of_a_server_stay_a_part_of_its_url():
    url = "https://example.org/net.onnx?download=true"
    handle = parse_handle(url + "&mean=0.5")
    assert (handle.source, handle.mean, handle.name) == (url, (0.5,), "net")
    assert parse_handle(str(handle)) == handle


def test_what_ends_in_onnx_is_an_onnx_file_unless_it_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").mkdir()
    assert not is_onnx("net.onnx")
    assert is_onnx("other.ONNX?output=a/b")
    assert not is_onnx("vgg16")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("sdt=1", r"the option 'sdt' does not exist; expected output, image_size, value_range,"),
        ("mean=1,2", r"mean is '1,2'; expected 1 or 3 numbers, separated by commas\."),
        ("mean=a", r"mean is 'a'; expected 1 or 3 numbers"),
        ("std=0.2,0,1", r"std holds 0; expected numbers above 0\."),
        ("value_range=1,0", r"value_range is not ascending; expected such as 0,255\."),
        ("image_size=5", r"image_size is 5; expected 8 to 4096\."),
        ("layout=CHWN", r"layout is 'CHWN'; expected NCHW or NHWC\."),
        ("channels=grb", r"channels is 'grb'; expected RGB or BGR\."),
    ],
)
def test_an_option_that_is_wrong_is_named(options, sentence):
    with pytest.raises(ModuleError, match=sentence):
        parse_handle(f"net.onnx?{options}")
