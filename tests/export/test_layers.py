"""Heads on features of all layers, linear and with a hidden layer, in every format."""

from __future__ import annotations

import numpy as np
import pytest

from hubretrain.data.images.decoding import to_unit
from hubretrain.evaluation import DecisionRule
from hubretrain.export.manifest import Export
from hubretrain.export.predict import predict_images
from hubretrain.export.runtimes import FORMATS, open_runtime
from hubretrain.export.views import AveragedView
from hubretrain.heads.heads import Head
from hubretrain.modules import resolve
from tests.modules.test_backbone import write_tf1_module
from tests.samples import encoded, photo_crops, write_pooled, write_residual

N_HIDDEN = 16
# Source of a module: what writes it, and the kind of its head.
SOURCES = {
    "hub": (write_pooled, "mlp"),
    "tf1": (write_tf1_module, "logistic"),
    "keras": (write_residual, "softmax"),
}


def head_of(kind, layers, features, seed):
    """A head of three classes that has an opinion on these features."""
    random = np.random.default_rng(seed)
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    n_out = N_HIDDEN if kind == "mlp" else 3
    weight = random.normal(size=(features.shape[1], n_out)) / scale[:, None] / np.sqrt(len(scale))
    first = (weight.astype(np.float32), (-centre @ weight).astype(np.float32))
    rest = {"rule": DecisionRule(0.0, ()), "weight_of_class": np.ones(3), "layers": layers}
    if kind != "mlp":
        return Head(kind, *first, **rest)
    last = random.normal(size=(N_HIDDEN, 3)).astype(np.float32), np.zeros(3, np.float32)
    return Head(kind, *last, hidden_weight=first[0], hidden_bias=first[1], **rest)


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Of each source: size, head, and module with head as a member of an export."""
    from hubretrain.export.graph import Member
    from hubretrain.modules import Backbone, Classifier

    members = {}
    for seed, (source, (write, kind)) in enumerate(SOURCES.items()):
        stored = resolve(str(write(tmp_path_factory.mktemp(source) / source)))
        layers = tuple(point.name for point in Backbone(stored).stored.layer_points)
        assert layers
        stored = resolve(stored.handle)  # with what was found when it was probed
        backbone, size = Backbone(stored, layers), stored.image_size
        features = backbone(to_unit(photo_crops(40, size))).numpy()
        head = head_of(kind, layers, features, seed)
        arrays = (head.weight, head.bias, head.hidden_weight, head.hidden_bias)
        members[source] = (size, head, Member(Classifier(backbone, kind, *arrays), 1 / 3))
    return members


@pytest.fixture(scope="module")
def exports(members, tmp_path_factory):
    """An export of each source, and of their ensemble with two views."""
    pytest.importorskip("tf2onnx")
    from hubretrain.export.writer import Member, write_export

    folder, formats = tmp_path_factory.mktemp("layers"), ("litert", "onnx")
    for source, (_, _, member) in members.items():
        alone = [Member(member.classifier)]
        write_export(alone, list("abc"), folder / source, {}, formats=formats)
    together = [member for _, _, member in members.values()]
    views = (AveragedView(), AveragedView(mirror=True))
    write_export(together, list("abc"), folder / "ensemble", {}, formats=formats, views=views)
    return folder


def of_features(member, pixels):
    """The head's probabilities of the features that the module gives for pixels."""
    _, head, exported = member
    return head.probabilities(exported.classifier.backbone(pixels).numpy())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("source", SOURCES)
def test_module_layers_and_head_are_one_model_that_gives_what_the_head_gives(
    members, exports, source, form
):
    size = members[source][0]
    pixels = to_unit(photo_crops(12, size))
    expected = of_features(members[source], pixels)
    assert len(set(expected.argmax(axis=1))) > 1
    runner = open_runtime(Export.open(exports / source), form)
    tolerance = 0.1 if form == "litert_int8" else 1e-4
    assert np.abs(runner({size: pixels}) - expected).max() < tolerance


@pytest.mark.parametrize("source", SOURCES)
def test_the_weights_of_a_litert_model_are_constants_so_that_it_is_fast(exports, source):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = interpreter.Interpreter(str(exports / source / "model.tflite"))
    operations = {operation["op_name"] for operation in model._get_ops_details()}
    assert not operations & {"VAR_HANDLE", "READ_VARIABLE"}


def test_a_quantised_model_keeps_the_weights_of_all_layers_in_float32(members, exports):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = interpreter.Interpreter(str(exports / "hub" / "model_int8.tflite"))
    shapes = {"int8": set(), "float32": set()}
    for tensor in model.get_tensor_details():
        name = tensor["dtype"].__name__
        if name in shapes:
            shapes[name].add(tuple(sorted(tensor["shape"].tolist())))
    n_features = members["hub"][1].n_features  # of scales that 8 bits cannot hold together
    assert (N_HIDDEN, n_features) in shapes["float32"]
    assert (N_HIDDEN, n_features) not in shapes["int8"]
    assert (3, 3, 16, 32) in shapes["int8"]  # of the module


@pytest.mark.parametrize("form", ["litert", "onnx", "savedmodel"])
def test_an_ensemble_of_such_heads_is_one_model_too(members, exports, form):
    exported = Export.open(exports / "ensemble")
    pixels = {size: to_unit(photo_crops(6, size)) for size in exported.sizes}
    of_members = [
        (of_features(member, pixels[member[0]]), of_features(member, pixels[member[0]][:, :, ::-1]))
        for member in members.values()
    ]
    expected = np.mean(of_members, axis=(0, 1))
    assert np.abs(open_runtime(exported, form)(pixels) - expected).max() < 1e-4


def test_bottlenecks_are_the_whole_vector_and_files_are_predicted(members, exports, tmp_path):
    from hubretrain.tensorflow import tf

    size, head, member = members["keras"]
    pixels = photo_crops(2, size)
    loaded = tf.saved_model.load(str(exports / "keras"))
    bottlenecks = loaded.pixels(tf.constant(to_unit(pixels)))["bottlenecks"].numpy()
    features = member.classifier.backbone(to_unit(pixels)).numpy()
    assert bottlenecks.shape == (2, head.n_features)
    assert np.allclose(bottlenecks, features, atol=1e-5)
    (tmp_path / "a.png").write_bytes(encoded(pixels[0]))
    (prediction,) = predict_images(exports / "keras", [tmp_path / "a.png"])
    probs = of_features(members["keras"], to_unit(pixels[:1]))[0]
    assert dict(prediction.classes) == pytest.approx(dict(zip("abc", probs, strict=True)), abs=1e-4)


def test_an_export_of_such_a_head_is_explained_by_its_deepest_map(members, exports):
    from hubretrain.report.saliency.gradients import METHODS, saliency
    from hubretrain.report.saliency.model import open_explained

    for source, n_channels in (("keras", 10), ("hub", 32), ("tf1", 6)):
        size = members[source][0]
        explained = open_explained(exports / source)
        assert explained.model.map_shape[-1] == n_channels
        pixels = to_unit(photo_crops(1, size))
        expected = of_features(members[source], pixels)
        assert np.abs(explained.model.probabilities(pixels) - expected).max() < 1e-4
        for method in METHODS:
            maps = saliency(explained.model, pixels[0], int(expected[0].argmax()), method)
            assert np.isfinite(maps).all()
            assert maps.max() > 0 or method == "gradcam"
