"""Calibration: a module quantised to 8-bit integers on a sample of the user's own images.

The quantised model is kept beside the bottleneck file, whose features depend on it:

    cache/<data set>/<module>.int8/model.xml, model.bin     the quantised model
                                  /calibration.csv          sha256 of each image of the sample
                                  /calibration.json         what it was made of

So an interrupted run resumes with the very same model, and so does one over more images.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.arrays import Pixels
from hubretrain.csv_tables import write_table
from hubretrain.errors import CacheError, EngineError, first_line, unreadable
from hubretrain.files import conforming, file_sha256, read_record, write_record
from hubretrain.locks import only_writer
from hubretrain.modules import StoredModule
from hubretrain.parallel import ahead
from hubretrain.progress import Bar

N_IMAGES = 300  # NNCF's default size of a calibration sample
_RECORD, _SAMPLE, _LAYERS = "calibration.json", "calibration.csv", "layers"
_MODEL_FILES = ("model.xml", "model.bin")
Attribute = str | int


def sample(sha256s: Iterable[str], seed: int) -> list[str]:
    """Return distinct contents in an order that depends only on each of them and the seed.

    The first `N_IMAGES` calibrate.
    """
    return sorted(set(sha256s), key=lambda s: hashlib.sha256(f"{seed}\0{s}".encode()).digest())


def calibrate(
    module: StoredModule,
    folder: Path,
    sha256s: Iterable[str],
    pixels_of: Callable[[str], Pixels | None],
    *,
    seed: int = 0,
    overwrite: bool = False,
    layers: Sequence[str] = (),
) -> dict[str, Attribute]:
    """Make the quantised model in `folder` unless it exists, and return its attributes.

    A model that exists stays, though the data set has changed since: its features, and those
    still to compute, must come from one model.

    Args:
        module: The module.
        folder: Where the quantised model is kept: `<module>.int8` beside the bottleneck file.
        sha256s: The contents of the data set.
        pixels_of: Gives the first view of a content, uint8 of shape (image_size, image_size, 3),
            or None where it cannot be decoded. Called from several threads.
        seed: Random seed of the sample.
        overwrite: Whether to replace a model that was made for another module or seed, or gives no
            inner layers.
        layers: Names of the inner layers that it has to give. A model that is made now gives all
            that the module has, so that others may be added later.

    Returns:
        What the features depend on, as attributes of the bottleneck file: the number of images
        that calibrated the model, their digest, NNCF's version, and the digest of the model.

    Raises:
        CacheError: The folder holds a model for something else, or a damaged one.
        LockedError: Another process is writing it.
        WriteError: It cannot be written.
        EngineError: The module cannot be quantised, no image can be decoded, or this CPU cannot
            run the model.
    """
    identity: dict[str, object] = {
        "module_sha256": module.sha256,
        "image_size": module.image_size,
        "value_range": list(module.value_range),
        "seed": seed,
    }
    with contextlib.ExitStack() as stack:
        attributes = _stored_attributes(folder, identity, layers, overwrite)
        if attributes is None:
            stack.enter_context(only_writer(folder))
            # Again, for another process may just have made it.
            attributes = _stored_attributes(folder, identity, layers, overwrite)
        if attributes is None:
            _make(module, folder, identity, sample(sha256s, seed), pixels_of)
            attributes = _stored_attributes(folder, identity, layers, overwrite=False) or {}
    if attributes.pop("weight_bits") == 8 and not adds_8_bits():
        raise EngineError(
            f"{folder}/ was calibrated on a CPU that multiplies 8-bit integers without overflow "
            "(VNNI), and this one cannot; continue on a CPU of that kind, or remove it and its "
            "features."
        )
    return attributes


def adds_8_bits() -> bool:
    """Return whether sums of products of 8-bit integers are exact on this CPU.

    On x86 without VNNI, `vpmaddubsw` adds two products of an unsigned and a signed 8-bit number in
    16 bits: 2 * 255 * 128 = 65,280 is beyond 32,767 and saturates. With weights of 7 bits,
    2 * 255 * 64 = 32,640 is not. Where the CPU's abilities cannot be read, the answer is no.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def _stored_attributes(
    folder: Path, identity: dict[str, object], layers: Sequence[str], overwrite: bool
) -> dict[str, Attribute] | None:
    """Return the attributes of the model in a folder; None where it is to be made.

    Raises:
        CacheError: It is damaged, or another one and not to be overwritten.
    """
    try:
        record = conforming(read_record(folder / _RECORD), dict[str, str | int | list[str | float]])
        digest = _digest(folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        remedy = f"remove {folder}/ and cache again"
        raise CacheError(unreadable(folder, error, remedy)) from error
    differing = [name for name, value in identity.items() if record.get(name) != value]
    given = record.pop(_LAYERS, ())
    given = given if isinstance(given, list) else []
    lacking = [name for name in layers if name not in given]
    if (differing or lacking) and overwrite:
        return None
    if differing:
        name = differing[0]
        raise CacheError(
            f"{folder}/ was calibrated with {name} {record.get(name)}, and {identity[name]} is "
            "required now; use the former, or `overwrite` to compute it again."
        )
    if lacking:
        raise CacheError(
            f"{folder}/ was calibrated without layer {lacking[0]}; choose `layers` last, or "
            "`overwrite` to compute it again."
        )
    if record.get("quantised_sha256") != digest:
        raise CacheError(
            f"{folder}/ is damaged: its digest is not the one that {_RECORD} names; remove it and "
            "cache again."
        )
    return {
        name: value
        for name, value in record.items()
        if name not in identity and not isinstance(value, list)
    }


def _make(
    module: StoredModule,
    folder: Path,
    identity: dict[str, object],
    order: Sequence[str],
    pixels_of: Callable[[str], Pixels | None],
) -> None:
    """Quantise a module and store the model in a folder."""
    from hubretrain.extraction.engines.conversion import converted
    from hubretrain.extraction.engines.openvino_library import import_nncf, storing
    from hubretrain.extraction.engines.pooling import layer_output, with_8_bit_maps, without_maps

    with Bar(f"calibrating {module.name}", min(N_IMAGES, len(order))) as bar:
        images = _decodable(order, pixels_of)
        if not images:
            raise EngineError("none of the images can be decoded; int8 needs some to calibrate on.")
        bar.total = len(images)
        weight_bits = 8 if adds_8_bits() else 7
        points = [point.name for point in module.layer_points or ()]
        model, maps = without_maps(converted(module, points))
        model = _quantised(model, module, list(images.values()), weight_bits, bar)
    model = with_8_bit_maps(model, maps)
    given = {name for output in model.outputs for name in output.get_names()}
    layers = [name for name in points if layer_output(name) in given]
    if folder.exists():  # unfinished, or to be overwritten
        shutil.rmtree(folder, ignore_errors=True)
    with storing(model, folder) as aside:
        attributes: dict[str, Attribute] = {
            "calibration_images": len(images),
            "calibration_sha256": hashlib.sha256("\n".join(images).encode()).hexdigest(),
            "weight_bits": weight_bits,
            "nncf": import_nncf().__version__,
            "quantised_sha256": _digest(aside),
        }
        write_table(aside / _SAMPLE, pd.DataFrame({"sha256": list(images)}))
        write_record(aside / _RECORD, {**identity, **attributes, _LAYERS: layers})


def _decodable(
    order: Sequence[str], pixels_of: Callable[[str], Pixels | None]
) -> dict[str, Pixels]:
    """Return the first `N_IMAGES` contents that can be decoded, with their pixels."""
    images: dict[str, Pixels] = {}
    for sha256, pixels in ahead(pixels_of, order):
        if pixels is not None:
            images[sha256] = pixels
        if len(images) == N_IMAGES:
            break
    return images


def _quantised(
    model: Any, module: StoredModule, images: Sequence[Pixels], weight_bits: int, bar: Bar
) -> Any:
    """Quantise a model after training: activations by mean extremes, weights per channel.

    As NNCF implements Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, with corrected biases (Nagel et al., Data-Free
    Quantization Through Weight Equalization and Bias Correction, ICCV 2019).
    """
    from hubretrain.extraction.engines.openvino_library import import_nncf

    nncf = import_nncf()
    # Half of the range of 8 bits for all weights, or for those of the first convolutions alone.
    overflow = nncf.OverflowFix.FIRST_LAYER if weight_bits == 8 else nncf.OverflowFix.ENABLE
    size = module.image_size

    def batch_of_one(pixels: Pixels) -> Pixels:
        if bar.done < bar.total:  # NNCF goes through them more than once
            bar.advance()
        return pixels[None]

    model.reshape([1, size, size, 3])
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # NNCF's own progress
            return nncf.quantize(
                model,
                nncf.Dataset(images, batch_of_one),
                subset_size=len(images),
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
            )
    except Exception as error:  # NNCF raises nearly every type on models it does not know
        raise EngineError(
            f"{module.handle} cannot be quantised ({first_line(error)}); choose another "
            "`precision` than int8."
        ) from error


def _digest(folder: Path) -> str:
    """Return the sha256 of the digests of the model's files."""
    digest = hashlib.sha256()
    for name in _MODEL_FILES:
        digest.update(bytes.fromhex(file_sha256(folder / name)))
    return digest.hexdigest()
