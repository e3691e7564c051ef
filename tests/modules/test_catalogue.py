from __future__ import annotations

from pathlib import Path

import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import license_of, read_catalogue, resolve
from hubretrain.modules.catalogue import described


def test_names_and_aliases_of_the_catalogue_are_distinct_and_their_facts_plausible():
    names = [name for module in read_catalogue() for name in (module.name, *module.aliases)]
    assert len(names) == len(set(names))
    assert {"mobilenet_v2", "inception_v3", "nasnet_mobile", "efficientnet_lite2"} <= set(names)
    for module in read_catalogue():
        assert 96 <= module.image_size <= 640, module
        assert module.n_features == 0 or 256 <= module.n_features <= 8192, module
        assert module.value_range in (None, (0.0, 1.0), (-1.0, 1.0)), module
        tfhub = module.tfhub_handle
        assert tfhub.startswith("https://tfhub.dev/") or module.source == "keras", module
        assert module.own_handle.startswith(f"{module.source}:") or module.source == "tfhub", module


def test_a_module_has_the_licence_of_its_weights_where_it_is_documented_and_random_ones_have_none():
    assert license_of("https://tfhub.dev/google/imagenet/inception_v3/feature_vector/5") == (
        "Apache-2.0"
    )
    assert license_of("keras:VGG16?image_size=96") == "CC-BY-4.0"
    for handle in ("keras:VGG16?weights=none", "keras:RegNetX004", "/home/me/module", "lite:9"):
        assert license_of(handle) == "", handle
    licenses = {module.license for module in read_catalogue()}
    assert licenses == {"", "Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "MIT"}


def test_what_networks_of_keras_cost_stands_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "modules.md").read_text(encoding="utf-8")
    for m in read_catalogue():
        if m.source == "keras" and m.gflops is not None:
            numbers = f"{m.image_size} | {m.n_features:,} | {m.n_parameters:,} | {m.gflops:.2f}"
            row = f"| `{m.name}` | `{m.own_handle}` | {numbers} | {m.license or 'unknown'} |\n"
            assert row in page


def test_an_unknown_name_is_told_the_nearest_ones():
    with pytest.raises(
        ModuleError, match=r"'mobilnet_v2' is no module .* Did you mean mobilenet_v2"
    ):
        resolve("mobilnet_v2")


def test_every_network_that_is_compared_most_has_a_short_name():
    mobile = "mobilenet_v1_100 mobilenet_v1_075 nasnet_mobile inception_v3"
    large = "vgg16 vgg19 resnet50 resnet152 densenet121 densenet169"
    for name in f"{mobile} {large}".split():
        assert described(name) is not None, name
    assert {m.source for m in read_catalogue()} == {"lite", "tfhub", "keras"}
