"""hubretrain modules, as it is typed."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from hubretrain.cli import main
from tests.modules.test_backbone import write_tf1_module
from tests.samples import write_digits, write_module, write_pooled, write_residual


def invoke(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_catalogue_is_searched_and_shown_as_a_table_and_as_json():
    found = json.loads(invoke("modules", "--search", "densenet", "--json").stdout)
    assert [row["name"] for row in found] == ["densenet121", "densenet169", "densenet201"]
    assert found[0]["handle"] == "keras:DenseNet121"
    assert found[0]["n_features"] == 1024
    shown = invoke("modules", "--search", "mobilenet_v1").stdout
    assert "parameters" in shown
    assert "GFLOPs" in shown
    assert "mobilenet_v1_075" in shown
    assert "inception" not in shown
    assert "called anything like 'zebra'" in invoke("modules", "--search", "zebra").stdout


def test_modules_that_the_catalogue_lacks_are_listed_by_what_the_option_takes(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    folder = write_module(tmp_path / "own" / "outsider")
    gone = write_module(tmp_path / "gone" / "outsider", seed=1)
    archive = shutil.make_archive(str(tmp_path / "packed_outsider"), "gztar", folder)
    for module in (folder, gone, archive):
        invoke("modules", "show", module)
    shutil.rmtree(gone)
    packed, used = json.loads(invoke("modules", "--search", "outsider", "--json").stdout)
    assert (packed["name"], packed["handle"]) == ("packed_outsider", archive)
    assert (used["name"], used["handle"], used["source"]) == (
        *("own/outsider", str(folder), "folder"),
    )
    for row in (packed, used):
        assert (row["image_size"], row["n_features"], row["n_parameters"]) == (8, 5, 376)
        assert row["stored"]
        assert invoke("modules", "show", row["name"]).exit_code == 0
    assert "\t8\t5\t376\t" in invoke("modules", "--search", "outsider").stdout


def test_a_module_is_shown_with_what_it_costs_and_its_layers(tmp_path):
    folder = write_module(tmp_path / "tiny")
    shown = invoke("modules", "show", folder, "--layers").stdout
    for line in (
        "images            8 x 8 pixels in [0, 1]",
        "features          5",
        "parameters        376",
        "trainable         2 layers, 376 parameters",
    ):
        assert line in shown
    assert "           2         216  conv (kernel)" in shown
    assert "           1         160  dense (kernel)" in shown
    facts = json.loads(invoke("modules", "show", folder, "--json", "--layers").stdout)
    assert facts["gflops"] == 7e-06
    assert facts["ms_per_image"] > 0
    assert [layer["from_the_end"] for layer in facts["layers"]] == [2, 1]
    pooled = write_pooled(tmp_path / "pooled", size=None)
    assert "takes images of any size; set" in invoke("modules", "show", pooled, code=1).stderr
    sized = invoke("modules", "show", pooled, "--image-size", 12, "--value-range", -1, 1).stdout
    assert "12 x 12 pixels in [-1, 1]" in sized
    assert "of 16 px" in invoke("modules", "fetch", pooled, "--image-size", 16).stdout
    assert (
        "-5 is not in the range"
        in invoke("modules", "show", "x", "--image-size", -5, code=2).output
    )
    frozen = write_module(tmp_path / "frozen", trainable=False)
    assert "no: it has no trainable variables" in invoke("modules", "show", frozen).stdout


def test_inner_layers_are_listed_with_their_shape_and_whether_the_cache_takes_them(tmp_path):
    folder = write_residual(tmp_path / "residual", size=32)
    shown = invoke("modules", "show", folder, "--layers").stdout
    assert "58 features with the inner layers that cache --layers all takes" in shown
    assert "16 x 16           6  yes    residual/stem_relu/Relu6\n" in shown
    details = json.loads(invoke("modules", "show", folder, "--layers", "--json").stdout)
    assert [layer["n_features"] for layer in details["inner_layers"]] == [12, 16, 20]
    from hubretrain.tensorflow import tf

    def wide(images):
        x = tf.nn.relu(tf.nn.conv2d(images, tf.ones((1, 1, 3, 8)), 1, "SAME"))
        x = tf.nn.relu(tf.nn.conv2d(x, tf.ones((1, 1, 8, 9000)), 8, "SAME"))
        x = tf.nn.relu(tf.nn.conv2d(x, tf.ones((1, 1, 9000, 4)), 1, "SAME"))
        return tf.reduce_mean(x, (1, 2))

    shown = invoke("modules", "show", save(wide, tmp_path / "wide"), "--layers").stdout
    assert "64 x 64           8  no     Relu (large maps cost much and bring little)" in shown
    assert "8 x 8         9,000  no     Relu_1 (alone above the budget of 16,384 features)" in shown
    assert "8 x 8             4  yes    Relu_2" in shown
    none = save(lambda images: tf.reduce_mean(images, (1, 2)), tmp_path / "none")
    shown = invoke("modules", "show", none, "--layers").stdout
    assert "It has no inner layers of feature maps: cache keeps its output only." in shown


def save(function, folder):
    from hubretrain.tensorflow import tf

    module = tf.Module()
    spec = tf.TensorSpec((None, 64, 64, 3), tf.float32)
    module.__call__ = tf.function(function, input_signature=[spec])
    tf.saved_model.save(module, str(folder))
    return folder


def test_what_was_fetched_is_used_without_a_network_and_what_was_not_is_refused(
    tmp_path, monkeypatch, small_module
):
    monkeypatch.setenv("HUBRETRAIN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("HUBRETRAIN_OFFLINE", "")  # so that the option's effect ends with the test
    archive = shutil.make_archive(str(tmp_path / "tiny"), "gztar", small_module)
    said = invoke("modules", "fetch", archive).stdout
    assert said.startswith("tiny: 5 features of 8 px, ")
    both = invoke("modules", "fetch", "--offline", "mobilenet_v2_035", archive, code=1)
    assert "tiny: 5 features" in both.stdout
    assert "mobilenet_v2_035 could not be downloaded; tried https://tfhub.dev" in both.stderr
    assert "Continue with tiny" in both.stderr
    assert "(the network is not used)" in both.stderr


@pytest.mark.parametrize("command", ["fetch", "show"])
def test_a_command_without_a_module_is_a_usage_error(command):
    assert "Missing argument" in invoke("modules", command, code=2).stderr


def test_a_tf1_module_is_cached_fitted_and_serves_and_only_finetune_refuses_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data" / "digits", 120)
    write_tf1_module(tmp_path / "tf1")
    invoke("cache", "--module", "tf1", "--views", 1)
    assert "tf1" in invoke("fit", "--heads", "softmax,logistic").stdout
    refused = invoke("finetune", code=1)
    assert "tf1 is in TensorFlow 1's format" in refused.stderr
    image = next((tmp_path / "data" / "digits").rglob("*.png"))
    (row,) = json.loads(invoke("predict", "runs/digits", image, "--json").stdout)
    assert sum(row["classes"].values()) == pytest.approx(1, abs=1e-5)
