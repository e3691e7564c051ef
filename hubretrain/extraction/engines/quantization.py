"""Calibration: a module quantised to 8-bit integers on a sample of the user's own images.

Kept beside the bottleneck file, whose features depend on it::

    cache/<data set>/<module>.int8/model.xml, model.bin     the quantised model
                                  /calibration.csv          sha256 of each image of the sample
                                  /calibration.json         its attributes

So an interrupted run goes on with the very same model, and so does one over more images.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hubretrain.errors import CacheError, EngineError, first_line
from hubretrain.extraction.engines.engine import Pixels
from hubretrain.files import file_sha256, write_json, write_table
from hubretrain.locks import only_writer
from hubretrain.modules import StoredModule
from hubretrain.parallel import ahead
from hubretrain.progress import Bar

N_IMAGES = 300
_FACTS, _SAMPLE, _MODEL = "calibration.json", "calibration.csv", ("model.xml", "model.bin")
Attribute = str | int


def sample(sha256s: Iterable[str], seed: int) -> list[str]:
    """Distinct contents in an order that depends on nothing but each of them and the seed.

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
) -> dict[str, Attribute]:
    """Attributes of the quantised model in `folder`, which is made now unless it is there.

    A model that is there stays, though the data set has changed since: its features, and those
    still to compute, must come from one model.

    Args:
        module: The module.
        folder: Where the quantised model is kept: `<module>.int8` beside the bottleneck file.
        sha256s: The contents of the data set.
        pixels_of: Gives the first view of a content, uint8 of shape (image_size, image_size, 3),
            or None where it cannot be decoded. Called from several threads.
        seed: Of the sample.
        overwrite: Replace a model that was made for another module or seed.

    Returns:
        What the features depend on, as attributes of the bottleneck file: how many images
        calibrated it and which (a digest), the bits of its weights, NNCF's version, and its digest.

    Raises:
        CacheError: The folder holds a model for something else, or a damaged one.
        LockedError: Another process is writing it.
        WriteError: It cannot be written.
        EngineError: The module cannot be quantised, no image can be decoded, or this processor
            cannot run the model.
    """
    asked: dict[str, object] = {
        "module_sha256": module.sha256,
        "image_size": module.image_size,
        "value_range": list(module.value_range),
        "seed": seed,
    }
    with contextlib.ExitStack() as stack:
        known = _known(folder, asked, overwrite)
        if not known:
            stack.enter_context(only_writer(folder))
            known = _known(folder, asked, overwrite)  # another process may just have made it
        if not known:
            _make(module, folder, asked, sample(sha256s, seed), pixels_of)
            known = _known(folder, asked, overwrite=False)
    if known.pop("weight_bits") == 8 and not adds_8_bits():
        raise EngineError(
            f"{folder}/ was calibrated on a processor that multiplies 8-bit integers without "
            "overflow (VNNI), and this one cannot; go on there, or remove it and its features."
        )
    return known


def adds_8_bits() -> bool:
    """Whether sums of products of 8-bit integers are exact here.

    On x86 without VNNI two products are added in 16 bits, which overflow; weights of 7 bits
    avoid that. Where it cannot be found out, the answer is no.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def _known(folder: Path, asked: dict[str, object], overwrite: bool) -> dict[str, Attribute]:
    """The attributes of a model that is there and is what is asked for, or none."""
    try:
        attributes = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        digest = _digest(folder)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CacheError(
            f"{folder}/ cannot be read ({error}); remove it and cache again."
        ) from error
    other = [name for name, value in asked.items() if attributes.get(name) != value]
    if other and overwrite:
        return {}
    if other:
        name = other[0]
        raise CacheError(
            f"{folder}/ was calibrated with {name} {attributes.get(name)}, "
            f"and now it is {asked[name]}; "
            "ask for that again, or compute anew with `overwrite`."
        )
    if attributes.get("quantised_sha256") != digest:
        raise CacheError(
            f"{folder}/ is damaged: its digest is not the one that "
            f"{_FACTS} names; remove it and cache again."
        )
    return {name: value for name, value in attributes.items() if name not in asked}


def _make(
    module: StoredModule,
    folder: Path,
    asked: dict[str, object],
    order: Sequence[str],
    pixels_of: Callable[[str], Pixels | None],
) -> None:
    from hubretrain.extraction.engines.openvino import converted, keeping

    with Bar(f"calibrating {module.name}", min(N_IMAGES, len(order))) as bar:
        chosen = _decodable(order, pixels_of)
        if not chosen:
            raise EngineError("none of the images can be decoded; int8 needs some to calibrate on.")
        bar.total = len(chosen)
        bits = 8 if adds_8_bits() else 7
        model = _quantised(converted(module), module, list(chosen.values()), bits, bar)
    if folder.exists():  # unfinished, or to be overwritten
        shutil.rmtree(folder, ignore_errors=True)
    with keeping(model, folder) as aside:
        write_table(aside / _SAMPLE, pd.DataFrame({"sha256": list(chosen)}))
        write_json(
            aside / _FACTS,
            {
                **asked,
                "calibration_images": len(chosen),
                "calibration_sha256": hashlib.sha256("\n".join(chosen).encode()).hexdigest(),
                "weight_bits": bits,
                "nncf": _nncf().__version__,
                "quantised_sha256": _digest(aside),
            },
        )


def _decodable(
    order: Sequence[str], pixels_of: Callable[[str], Pixels | None]
) -> dict[str, Pixels]:
    """The first contents that can be decoded, with their pixels."""
    chosen: dict[str, Pixels] = {}
    for sha256, pixels in ahead(pixels_of, order):
        if pixels is not None:
            chosen[sha256] = pixels
        if len(chosen) == N_IMAGES:
            break
    return chosen


def _quantised(
    model: Any, module: StoredModule, images: Sequence[Pixels], bits: int, bar: Bar
) -> Any:
    """Post-training quantisation: activations by mean extremes, weights by channel.

    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
    Only Inference, CVPR 2018, as NNCF has it; biases corrected (Nagel et al., ICCV 2019).
    """
    nncf = _nncf()
    overflow = nncf.OverflowFix.FIRST_LAYER if bits == 8 else nncf.OverflowFix.ENABLE
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
        reason = first_line(error)
        raise EngineError(
            f"{module.handle} cannot be quantised ({reason}); use another `precision`."
        ) from error


def _nncf() -> Any:
    from hubretrain.extraction.engines.openvino import import_nncf

    return import_nncf()


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _MODEL:
        digest.update(bytes.fromhex(file_sha256(folder / name)))
    return digest.hexdigest()
