from __future__ import annotations

import pytest

from hubretrain.export.card import CARD, model_card
from hubretrain.export.manifest import Export, identity_of

yaml = pytest.importorskip("yaml")
MANIFEST = {
    "class_names": ["cat", "d|o*g", "two\nlines <b>"],
    "image_sizes": [224],
    "module": "small",
    "module_sha256": "ab" * 32,
    "head": "softmax",
    "run": "pets: a 'run'",
    "data": "pets",
    "folds_sha256": "cd" * 32,
    "cross_validation": {"accuracy": [0.91, 0.88, 0.94]},
    "test": {"accuracy": [0.9, 0.8, 0.96], "top_3": [1.0, 0.97, 1.0]},
}


def metadata_of(card):
    _, block, _ = card.split("---\n", 2)
    return yaml.safe_load(block)


def test_the_card_begins_with_metadata_that_the_hub_reads():
    metadata = metadata_of(model_card(MANIFEST))
    assert metadata["pipeline_tag"] == "image-classification"
    (model,) = metadata["model-index"]
    assert model["name"] == "pets: a 'run'"
    test, cross_validation = model["results"]
    assert test["dataset"] == {"name": "pets", "type": "pets", "split": "test split"}
    assert [(m["type"], m["value"]) for m in test["metrics"]] == [("accuracy", 0.9), ("top_3", 1.0)]
    assert test["metrics"][0]["name"] == "accuracy, 95 % interval 0.8000 to 0.9600"
    assert cross_validation["metrics"][0]["value"] == 0.91


def test_the_card_has_metrics_with_intervals_classes_digests_limits_and_how_to_run():
    card = model_card(MANIFEST)
    assert "| accuracy | 0.900 (0.800 to 0.960) | 0.910 (0.880 to 0.940) |" in card
    assert "| top-3 accuracy | 1.000 (0.970 to 1.000) |  |" in card
    assert "- cat\n- d&#124;o&#42;g\n- two lines &lt;b&gt;\n" in card
    assert f"sha256 `{'cd' * 32}`" in card
    assert f"module small, sha256 `{'ab' * 32}`, licence of its weights unknown" in card
    assert "The licences of the images and of the module's weights are not recorded" in card
    assert "hubretrain predict THIS_FOLDER image.jpg" in card
    assert "224 x 224 pixels" in card
    assert "An image of none of the classes gets one of them all the same." in card


def test_the_card_of_a_mean_over_views_says_what_its_temperature_is_of():
    assert "The temperature was fitted" not in model_card(MANIFEST)
    card = model_card({**MANIFEST, "tta": ["image", "mirrored"]})
    assert "They are of the image as it is" in card
    assert "The temperature was fitted to the probabilities of images as they are" in card


def test_the_card_has_the_licence_of_the_modules_weights_where_all_have_one():
    one = {**MANIFEST, "module_license": "Apache-2.0"}
    assert metadata_of(model_card(one))["license"] == "apache-2.0"
    assert "licence of its weights Apache-2.0" in model_card(one)
    assert "The licences of the images are not recorded" in model_card(one)
    members = [{"module": "a", "module_sha256": "ef" * 32, "module_license": "MIT"}, one]
    several = {**MANIFEST, "module": "ensemble", "members": members}
    assert "license" not in metadata_of(model_card(several))
    assert "module a, sha256 `" + "ef" * 32 + "`, licence of its weights MIT" in model_card(several)
    assert "license" not in metadata_of(model_card(MANIFEST))


def test_the_card_of_several_labels_has_their_thresholds():
    labels = {**MANIFEST, "multi_label": True, "thresholds": [0.5, 0.25, 0.123456]}
    card = model_card(labels)
    assert "multi-label" in metadata_of(card)["tags"]
    assert "| label | threshold |" in card
    assert "| d&#124;o&#42;g | 0.25 |" in card
    assert "| two lines &lt;b&gt; | 0.1235 |" in card
    assert "none of the classes" not in card


def test_a_model_without_metrics_has_a_card_without_them(small_export):
    card = (small_export / CARD).read_text(encoding="utf-8")
    assert "model-index" not in metadata_of(card)
    assert "## Metrics" not in card
    assert "- &lt;b&gt;\n- ç é\n" in card


def test_the_card_is_in_no_digest_so_that_it_may_be_edited(small_export, tmp_path):
    export = Export.open(small_export)
    assert CARD not in export.manifest["files"]
    before, text = identity_of(small_export, None), (small_export / CARD).read_bytes()
    try:
        (small_export / CARD).write_text("edited")
        assert identity_of(small_export, None) == before
        Export.open(small_export).model("savedmodel")
        (small_export / CARD).unlink()
        Export.open(small_export).model("savedmodel")
    finally:
        (small_export / CARD).write_bytes(text)
