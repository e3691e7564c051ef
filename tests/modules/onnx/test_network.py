"""ONNX files as modules, against NumPy, against TensorFlow, and those that are refused."""

from __future__ import annotations

import json
import threading
from http.server import SimpleHTTPRequestHandler

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.extraction.engines import open_engine
from hubretrain.modules import UntrustedModuleError, resolve
from hubretrain.modules.onnx import notes_of, probed
from hubretrain.modules.onnx.graphs import load
from tests.extraction.engines.samples import run_python
from tests.modules.onnx.samples import (
    IMAGENET,
    expected_features,
    expected_maps,
    standardised,
    write_network,
)
from tests.samples import web_server

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
OPTIONS = "?mean=0.485,0.456,0.406&std=0.229,0.224,0.225"


def features(handle, pixels=PIXELS, **chosen):
    """The features of pixels in ONNX Runtime."""
    with open_engine(probed(resolve(handle, **chosen)), "onnxruntime") as engine:
        return engine(list(pixels))


def close(given, expected, tolerance=1e-5):
    return np.abs(given - expected).max() <= tolerance * np.abs(expected).max()


def test_a_network_of_pytorch_gives_what_numpy_computes(place):
    write_network(place / "net.onnx")
    given = features(f"net.onnx{OPTIONS}")
    assert close(given, expected_features(standardised(PIXELS)))
    stored = probed(resolve("net.onnx"))  # with the options that it was stored with
    assert (stored.name, stored.n_features, stored.image_size) == ("net", 5, 8)
    assert stored.n_parameters == 4 * 27 + 4 + 20 + 5
    assert stored.gflops == pytest.approx((2 * 27 * 4 * 64 + 2 * 4 * 5) / 1e9, abs=1e-6)
    first, second = notes_of(stored)
    assert second == "its features are the tensor features"
    assert first == (
        "images are standardised by mean 0.485,0.456,0.406 and deviation 0.229,0.224,0.225, put "
        "into NCHW"
    )


@pytest.mark.parametrize("opset", [9, 12, 13, 18, 21])
def test_every_opset_since_2019_is_run(place, opset):
    write_network(place / "net.onnx", opset=opset, ends=(("last_hidden_state", "map"),))
    given = features(f"net.onnx{OPTIONS}")
    assert close(given, expected_maps(standardised(PIXELS)).mean((2, 3)))


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "change"),
    [
        (("n", 8, 8, 3), "FLOAT", "?value_range=0,1", lambda x: x / 255),
        (("n", 8, 8, 3), "FLOAT", "?value_range=-1,1", lambda x: x / 127.5 - 1),
        ((1, 3, 8, 8), "FLOAT", "?value_range=0,1", lambda x: x / 255),
        (("n", 3, "h", "w"), "FLOAT", "?value_range=0,1&image_size=8", lambda x: x / 255),
        ((None, None, None, None), "FLOAT", "?std=1&image_size=8&layout=nchw", lambda x: x / 255),
        (("n", 3, 8, 8), "UINT8", "", lambda x: x),
        (
            ("n", 3, 8, 8),
            "FLOAT",
            "?value_range=0,255&mean=104,117,123&channels=bgr",
            lambda x: x[..., ::-1] - np.array([104, 117, 123]),
        ),
        (
            ("n", 1, 8, 8),
            "FLOAT",
            "?value_range=0,1",
            lambda x: (x / 255) @ np.array([[0.2989], [0.5870], [0.1140]]),
        ),
    ],
    ids=["nhwc", "-1..1", "one by one", "any size", "unknown", "uint8", "bgr", "grey"],
)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_images_become_what_a_network_takes(place, shape, dtype, options, change, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    write_network(place / "net.onnx", shape=shape, dtype=dtype)
    x = change(PIXELS.astype(np.float64)).transpose(0, 3, 1, 2)
    with open_engine(probed(resolve(f"net.onnx{options}")), engine) as opened:
        assert close(opened(list(PIXELS)), expected_features(x))


def test_a_network_of_float16_gives_float32(place):
    write_network(place / "net.onnx", dtype="FLOAT16")
    given = features("net.onnx?value_range=0,1")
    x = PIXELS.transpose(0, 3, 1, 2) / 255
    assert given.dtype == np.float32
    assert close(given, expected_features(x), 5e-3)  # 2^-11 in each of some 30 terms


@pytest.mark.parametrize("n_tokens", [16, 17, 21])
def test_the_class_token_is_taken_and_patches_alone_are_averaged(n_tokens):
    from hubretrain.modules.onnx.outputs import pooling_of

    assert pooling_of((2, n_tokens, 6), "NCHW", "net.onnx") == [1 if n_tokens == 16 else 0]


def test_tokens_are_averaged_by_the_graph(place):
    write_network(place / "net.onnx", ends=(("last_hidden_state", "tokens"),))
    given = features("net.onnx?value_range=0,1")
    x = PIXELS.transpose(0, 3, 1, 2) / 255
    assert close(given, expected_maps(x).mean((2, 3)))
    assert notes_of(resolve("net.onnx"))[-1] == "tokens are averaged"


def test_an_output_among_several_is_chosen_and_so_is_a_tensor_inside(place):
    ends = (("a", "vector"), ("b", "map"), ("logits", "softmax"))
    write_network(place / "net.onnx", ends=ends)
    x = PIXELS.transpose(0, 3, 1, 2) / 255
    with pytest.raises(ModuleError, match=r"gives several outputs: a \(.*b \(.*choose one by `ou"):
        resolve("net.onnx?value_range=0,1")
    assert close(features("net.onnx?value_range=0,1&output=a"), expected_features(x))
    means = expected_maps(x).mean((2, 3))
    assert close(features("net.onnx?value_range=0,1&output=b"), means)
    inside = probed(resolve("net.onnx?value_range=0,1&output=/flat"))
    assert (inside.name, inside.n_features) == ("net-flat", 4)
    assert inside.n_parameters == 4 * 27 + 4  # the dense layer is cut off
    write_network(place / "named.onnx", ends=(("logits", "vector"), ("pooler_output", "map")))
    assert close(features("named.onnx?value_range=0,1"), means)


def test_a_classifier_is_refused_with_the_tensor_before_its_last_layer(place):
    write_network(place / "net.onnx", ends=(("prob", "softmax"),))
    sentence = (
        r"net\.onnx is a classifier \(its output prob comes from Softmax\); expected features"
        r", such as a tensor inside that is chosen by `output`: '/flat' is the tensor before its "
        r"last layer; 'prob' would take its scores as features\."
    )
    with pytest.raises(ModuleError, match=sentence):
        resolve("net.onnx?value_range=0,1")
    assert features("net.onnx?value_range=0,1&output=prob").sum(1) == pytest.approx(1, abs=1e-6)


def test_a_preprocessor_config_beside_the_file_says_it_all(place):
    write_network(place / "hf" / "onnx" / "model.onnx", shape=("b", 3, "h", "w"))
    config = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET["mean"],
        "image_std": IMAGENET["std"],
        "size": {"shortest_edge": 10},
        "do_center_crop": True,
        "crop_size": {"height": 8, "width": 8},
    }
    (place / "hf" / "preprocessor_config.json").write_text(json.dumps(config))
    first = probed(resolve("hf/onnx/model.onnx"))
    assert first.image_size == 8
    assert close(features("hf/onnx/model.onnx"), expected_features(standardised(PIXELS)))
    config |= {"do_normalize": False, "size": 8, "do_center_crop": False, "do_rescale": False}
    (place / "hf" / "preprocessor_config.json").write_text(json.dumps(config))
    again = probed(resolve("hf/onnx/model.onnx"))
    assert again.sha256 != first.sha256  # what is done to images is a part of the module
    assert again.value_range == (0.0, 255.0)
    x = PIXELS.transpose(0, 3, 1, 2).astype(np.float64)
    assert close(features("hf/onnx/model.onnx"), expected_features(x))


def test_metadata_of_the_file_say_it_too(place):
    metadata = {
        "image_mean": "[0.485, 0.456, 0.406]",
        "image_std": "0.229,0.224,0.225",
        "Image.NominalPixelRange": "Normalized_0_1",
        "Image.BitmapPixelFormat": "Bgr8",
    }
    write_network(place / "net.onnx", metadata=metadata)
    x = (PIXELS[..., ::-1] / 255 - IMAGENET["mean"]) / IMAGENET["std"]
    assert close(features("net.onnx"), expected_features(x.transpose(0, 3, 1, 2)))


def test_weights_in_a_file_beside_it_are_stored_with_it(place):
    write_network(place / "net.onnx", data_file="net.onnx.data")
    before = features("net.onnx?value_range=0,1")
    sha256 = resolve("net.onnx").sha256
    data = bytearray((place / "net.onnx.data").read_bytes())
    data[:4] = np.float32(0.75).tobytes()
    (place / "net.onnx.data").write_bytes(data)
    changed = resolve("net.onnx?value_range=0,1")
    assert changed.sha256 != sha256
    assert not np.allclose(features("net.onnx?value_range=0,1"), before)
    (place / "net.onnx.data").unlink()
    with pytest.raises(ModuleError, match=r"has weights in net\.onnx\.data, which is not beside i"):
        resolve("net.onnx?value_range=0,1")


def test_weights_outside_of_the_folder_are_not_read(place):
    def astray(model):
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
            tensor.data_location = 1
            tensor.external_data.add(key="location", value="../secret")

    write_network(place / "net.onnx", more=astray)
    with pytest.raises(ModuleError, match=r"has weights in '\.\./secret', outside of its folder"):
        resolve("net.onnx?value_range=0,1")


def test_a_url_is_downloaded_once_after_a_confirmation(place, monkeypatch):
    write_network(place / "web" / "net.onnx")
    (place / "web" / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    monkeypatch.setattr("hubretrain.modules.sources._LOOPBACK", __import__("re").compile("never"))
    with web_server(place / "web", SimpleHTTPRequestHandler) as url:
        with pytest.raises(UntrustedModuleError, match=r"net\.onnx is not of the catalogue .*harm"):
            resolve(f"{url}/net.onnx", trust=False)
        stored = resolve(f"{url}/net.onnx")
        x = (PIXELS / 255 - 0.5).transpose(0, 3, 1, 2)
        assert close(features(f"{url}/net.onnx"), expected_features(x))
        with pytest.raises(ModuleError, match=r"other\.onnx cannot be downloaded \(HTTP Error 404"):
            resolve(f"{url}/other.onnx")
    assert resolve(f"{url}/net.onnx", trust=False) == probed(stored)  # the server is gone


def change_input(kind, shape):
    def change(model):
        import onnx

        value = onnx.helper.make_tensor_value_info("images", kind, shape)
        model.graph.input[0].CopyFrom(value)

    return change


def second_input(model):
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "mask"


def foreign_operator(model):
    model.graph.node[1].op_type, model.graph.node[1].domain = "Konv", "com.example"


def unknown_operator(model):
    model.graph.node[1].op_type = "Konv"


def sequence(model):
    import onnx

    model.graph.node[-1].op_type = "SequenceConstruct"
    value = onnx.helper.make_tensor_sequence_value_info("features", onnx.TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(value)


def whole_numbers(model):
    model.graph.node[-1].op_type = "ArgMax"
    model.graph.output[0].type.tensor_type.elem_type = 7


def old_opset(model):
    model.opset_import[0].version = 8


@pytest.mark.parametrize(
    ("more", "shape", "sentence"),
    [
        (change_input(8, ["n"]), None, r"takes strings, so it is a text module or decodes image"),
        (
            change_input(7, ["n", 128]),
            None,
            r"takes int64 of shape \(n, 128\); expected a module o",
        ),
        (second_input, None, r"takes 2 inputs \(images float of shape .*, mask .*\); expected one"),
        (unknown_operator, None, r"cannot be run on 2 images of 8 x 8 pixels \(.*Konv"),
        (foreign_operator, None, r"cannot be run on 2 images of 8 x 8 pixels \(.*com.example"),
        (sequence, None, r"gives a sequence as features; expected features, floating numbers"),
        (whole_numbers, None, r"gives int64 as features; expected features, floating numbers"),
        (old_opset, None, r"is of opset 8; expected 9 or later: convert it by onnx\.version_conv"),
        (None, ("double", 3, 8, 8), r"cannot be run on 2 .* an implementation for Conv"),
        (None, ("n", 3, 8, 9), r"takes images of height 8 and width 9, pixels; expected a square"),
        (
            None,
            ("n", 4, 8, 8),
            r"does not say whether it takes channels first or last; set `layout",
        ),
        (None, (4, 3, 8, 8), r"takes exactly 4 images at a time; expected any number, or one"),
        (None, ("n", 3, "h", "w"), r"takes images of any size; set `image_size`, such as 224\."),
    ],
)
def test_a_file_that_is_no_module_is_refused_in_one_sentence(place, more, shape, sentence):
    shape = shape or ("n", 3, 8, 8)
    dtype = "DOUBLE" if shape[0] == "double" else "FLOAT"
    write_network(place / "net.onnx", shape=shape, dtype=dtype, more=more)
    with pytest.raises(ModuleError, match=rf"net\.onnx {sentence}") as raised:
        resolve("net.onnx?value_range=0,1")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", "truncated"])
def test_a_damaged_file_is_refused_in_one_sentence(place, content):
    write_network(place / "net.onnx")
    whole = (place / "net.onnx").read_bytes()
    (place / "net.onnx").write_bytes(whole[:300] if content == "truncated" else content)
    with pytest.raises(ModuleError, match=r"net\.onnx is no ONNX file, or is truncated") as raised:
        resolve("net.onnx?value_range=0,1")
    assert "\n" not in str(raised.value)


def test_what_is_not_there_or_above_2_gib_is_refused(place):
    with pytest.raises(ModuleError, match=r"net\.onnx does not exist; expected an ONNX file\."):
        resolve("net.onnx")
    with (place / "big.onnx").open("wb") as file:
        file.truncate(2**31 + 5)
    with pytest.raises(
        ModuleError, match=r"holds 2\.0 GiB; ONNX modules of up to 2 GiB can be run"
    ):
        load(place / "big.onnx", "big.onnx")


def test_nan_features_are_refused(place):
    def broken(model):
        import onnx

        value = np.full(5, np.nan, np.float32)
        model.graph.initializer[3].CopyFrom(onnx.numpy_helper.from_array(value, "fc.bias"))

    write_network(place / "net.onnx", more=broken)
    with pytest.raises(ModuleError, match=r"gives NaN or infinite features for ordinary images"):
        probed(resolve("net.onnx?value_range=0,1"))


@pytest.mark.parametrize(
    ("shape", "options", "sentence"),
    [
        (
            ("n", 3, 8, 8),
            "",
            r"does not say which values its input takes, .*mean=0\.485,0\.456,0\.406&std=0\.229,",
        ),
        (("n", 3, 8, 8), "?std=1&output=x", r"holds no tensor 'x'; its outputs: features\."),
        (
            ("n", 3, 8, 8),
            "?std=1&image_size=9",
            r"takes images of 8 x 8 pixels, not of 9 x 9; leave out `image_size`",
        ),
        (("n", 1, 8, 8), "?mean=1,2,3", r"takes images of 1 channels, but `mean` holds 3 numbers"),
    ],
)
def test_what_is_not_known_is_asked_for(place, shape, options, sentence):
    write_network(place / "net.onnx", shape=shape)
    with pytest.raises(ModuleError, match=sentence):
        resolve(f"net.onnx{options}")


def test_a_network_of_names_that_ours_collide_with_is_run(place):
    def rename(model):
        model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
        model.graph.node[1].output[0] = model.graph.node[2].input[0] = "cast_0"

    write_network(place / "net.onnx", more=rename)
    x = PIXELS.transpose(0, 3, 1, 2) / 255
    assert close(features("net.onnx?value_range=0,1"), expected_features(x))


def test_neither_resolving_nor_running_imports_tensorflow(place):
    write_network(place / "net.onnx")
    script = (
        "import sys, numpy as np\n"
        "from hubretrain import resolve\n"
        "from hubretrain.extraction.engines import choose_engine, open_engine\n"
        "from hubretrain.modules.onnx import probed\n"
        "module = probed(resolve('net.onnx?value_range=0,1'))\n"
        "engine = open_engine(module, choose_engine(module=module))\n"
        "print(engine([np.zeros((8, 8, 3), np.uint8)]).shape, 'tensorflow' in sys.modules)"
    )
    assert run_python(script) == "(1, 5) False"


def test_threads_and_neighbours_do_not_change_a_bit(place):
    write_network(place / "net.onnx")
    pixels = np.random.default_rng(2).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    with open_engine(probed(resolve("net.onnx?value_range=0,1")), "onnxruntime") as engine:
        whole, single = engine(list(pixels)), [engine([image]) for image in pixels]
        results: list[np.ndarray] = []
        threads = [
            threading.Thread(target=lambda: results.append(engine(list(pixels)))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert np.array_equal(whole, np.concatenate(single))
    assert all(np.array_equal(whole, result) for result in results)
