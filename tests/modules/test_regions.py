"""Which layers are found in small networks, one for each rule of the search."""

from __future__ import annotations

import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules import resolve

SIZE = 16


def conv(x, width, size=3, stride=1, name=None):
    from tf_keras import layers

    return layers.Conv2D(width, size, strides=stride, padding="same", name=name)(x)


def depthwise(x):
    from tf_keras import layers

    return layers.DepthwiseConv2D(3, padding="same")(x)


def relu(x, name=None):
    from tf_keras import layers

    return layers.ReLU(name=name)(x)


def norm(x):
    from tf_keras import layers

    return layers.BatchNormalization()(x)


def add(*maps):
    from tf_keras import layers

    return layers.Add()(list(maps))


def concat(*maps, name=None):
    from tf_keras import layers

    return layers.Concatenate(name=name)(list(maps))


def gate(x):
    """Squeeze and excitation, Hu et al. 2018."""
    from tf_keras import layers

    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    excited = conv(relu(conv(squeezed, 2, 1)), x.shape[-1], 1)
    return layers.Multiply()([x, layers.Activation("sigmoid")(excited)])


def plain(x):
    x = relu(conv(x, 4), "a")
    return relu(norm(conv(x, 6, stride=2)), "b")


def residual_v1(x):
    x = relu(conv(x, 8), "stem")
    inner = relu(norm(conv(x, 4, 1)), "narrow")
    return relu(add(x, norm(conv(inner, 8, 1))), "block")


def preactivation_v2(x):
    x = conv(x, 8)
    for name in ("a", "b"):
        active = relu(norm(x), name)
        x = add(x, conv(relu(conv(active, 4, 1)), 8))
    return relu(norm(x), "end")


def inverted_bottleneck(x):
    x = conv(x, 4)
    inner = relu(norm(conv(x, 12, 1)), "expanded")
    return add(x, conv(relu(norm(depthwise(inner))), 4, 1))


def inverted_bottleneck_with_gate(x):
    from tf_keras import layers

    x = conv(x, 4)
    inner = layers.Activation("swish", name="expanded")(norm(conv(x, 12, 1)))
    inner = gate(layers.Activation("swish")(depthwise(inner)))
    return add(x, conv(inner, 4, 1))


def gated_expansion(x):
    from tf_keras import layers

    return layers.Lambda(lambda y: 1.0 * y, name="after_gate")(gate(relu(conv(x, 5))))


def hard_swish(x):
    import tensorflow as tf
    from tf_keras import layers

    return layers.Lambda(lambda y: y * tf.nn.relu6(y + 3) / 6, name="hard")(conv(x, 7))


def convnext(x):
    from tf_keras import layers

    x = conv(x, 4)
    inner = layers.LayerNormalization(epsilon=1e-6)(depthwise(x))
    inner = layers.Dense(16)(inner)
    inner = layers.Activation("gelu", name="expanded")(inner)
    return add(x, layers.Dense(4)(inner))


def dense_block(x):
    x = conv(x, 4)
    for name in ("a", "b"):
        inner = relu(conv(relu(norm(x), name), 16, 1))
        x = concat(x, conv(inner, 4))
    return relu(norm(x), "end")


def inception(x):
    from tf_keras import layers

    x = relu(conv(x, 4), "stem")
    for name in ("a", "b"):
        split = relu(conv(x, 8, 1))
        part = concat(relu(conv(split, 3)), relu(conv(split, 3)))
        pooled = layers.MaxPooling2D(3, strides=1, padding="same")(x)
        x = concat(relu(conv(x, 2, 1)), part, pooled, name=name)
    return x


def two_previous_cells(x):
    """Every cell reads the two before it, as in NASNet: no layer is a cut."""
    before = x = conv(x, 8)
    for name in "abcd":
        left, right = relu(before), relu(x, name)
        inner = add(conv(left, 4), conv(right, 4))
        before, x = x, concat(inner, conv(relu(inner), 4))
    return relu(concat(before, x), "end")


def transformer(x):
    """Tokens: blocks of attention (of one head) and a dense network, as in a ViT."""
    from tf_keras import layers

    x = layers.Reshape((16, 8))(conv(x, 8, 4, stride=4))
    for name in ("first", "second"):
        y = layers.LayerNormalization()(x)
        x = add(x, layers.Dense(8)(layers.Attention()([y, y])))
        y = layers.Dense(32, activation="swish")(layers.LayerNormalization()(x))
        x = layers.Add(name=name)([x, layers.Dense(8)(y)])
    return layers.Reshape((4, 4, 8))(layers.LayerNormalization()(x))


NETWORKS = {
    plain: [("a", 4), ("b", 6)],
    residual_v1: [("stem", 8), ("block", 8)],
    preactivation_v2: [("a", 8), ("b", 8), ("end", 8)],
    inverted_bottleneck: [("expanded", 12)],
    inverted_bottleneck_with_gate: [("expanded", 12)],
    gated_expansion: [("after_gate", 5)],
    hard_swish: [("hard", 7)],
    convnext: [("Gelu", 16)],  # the scope of the activation's own operations
    dense_block: [("a", 4), ("b", 8), ("end", 12)],
    inception: [("stem", 4), ("a", 12), ("b", 20)],
    transformer: [("first", 8), ("second", 8)],
}


def model_of(network, size=SIZE, spec=None):
    import tf_keras
    from tf_keras import layers

    images = layers.Input(spec or (size, size, 3))
    return tf_keras.Model(images, layers.GlobalAveragePooling2D()(network(images)))


def graph_of(network, size=SIZE, spec=None):
    from hubretrain.modules.graph import ModuleGraph

    model = model_of(network, size, spec)
    return ModuleGraph(model, model.variables, size, "net")


def found(graph):
    from hubretrain.modules.regions import layer_points

    return [(p.name.split("/")[-2], p.n_channels) for p in layer_points(graph)]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_the_layers_of_a_kind_of_network(network):
    assert found(graph_of(network)) == NETWORKS[network]


def test_cells_that_read_the_two_before_them_are_layers_and_their_insides_are_none():
    widths = [width for _, width in found(graph_of(two_previous_cells))]
    assert widths == [8, 8, 8, 16]  # of cells a, b and c, and the end; insides are 4 wide


def test_a_network_of_free_height_and_width_has_the_shapes_of_the_size_it_is_used_at():
    from hubretrain.modules.regions import layer_points

    points = layer_points(graph_of(plain, size=20, spec=(None, None, 3)))
    assert [(p.height, p.width) for p in points] == [(20, 20), (10, 10)]


def test_maps_of_one_position_or_of_unknown_shape_are_no_layers():
    import tensorflow as tf
    from tf_keras import layers

    def of_one_position(x):
        return relu(conv(layers.GlobalAveragePooling2D(keepdims=True)(x), 4))

    def of_unknown_height(x):
        def bright_rows(y):
            return y[:, : tf.cast(tf.reduce_max(y), tf.int32) + 1]

        return relu(conv(layers.Lambda(bright_rows)(x), 4))

    assert found(graph_of(of_one_position)) == []
    assert found(graph_of(of_unknown_height)) == []


def test_a_graph_that_keeps_state_is_refused():
    import tensorflow as tf

    from hubretrain.modules.graph import ModuleGraph

    def noisy(images):
        return tf.reduce_mean(images + tf.random.normal((4, 4, 3)), (1, 2))

    with pytest.raises(ModuleError, match=r"the graph of net cannot .* it keeps state \(RandomSta"):
        ModuleGraph(noisy, [], 4, "net")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handle", "widths"),
    [
        ("ResNet50", [64, *[256] * 3, *[512] * 4, *[1024] * 6, *[2048] * 3]),
        ("VGG16", [64, 64, 128, 128, *[256] * 3, *[512] * 6]),
        (
            "DenseNet121",
            [
                *(64, *range(96, 257, 32), *range(160, 513, 32)),
                *(*range(288, 1025, 32), *range(544, 1025, 32)),
            ],
        ),
        ("InceptionV3", [32, 32, 64, 80, 192, 256, 288, 288, *[768] * 5, 1280, 2048, 2048]),
        (
            "NASNetMobile",
            [32, 22, 44, 88, *[264] * 4, 352, *[528] * 4, 704, *[1056] * 3],
        ),
        (
            "EfficientNetB0",
            [32, 96, 144, 144, 240, 240, *[480] * 3, *[672] * 3, *[1152] * 4, 1280],
        ),
        ("ConvNeXtTiny", [*[384] * 3, *[768] * 3, *[1536] * 9, *[3072] * 3]),
    ],
)
def test_the_layers_of_a_real_network(handle, widths):
    from hubretrain.modules.backbone import Backbone

    backbone = Backbone(resolve(f"keras:{handle}?weights=none"))
    assert [p.n_channels for p in backbone.stored.layer_points] == widths
