"""What runs each module: its engine and precision, and the model that was quantised for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hubretrain.bottlenecks import Bottlenecks, Fact
from hubretrain.data import ImageDataset
from hubretrain.data.images import Pixels, read_image, view
from hubretrain.errors import DataError, EngineError
from hubretrain.extraction.engines import calibrate, choose_engine, gpu_in_sight
from hubretrain.extraction.pipeline import ExtractorSpec
from hubretrain.extraction.plan import Part, file_name
from hubretrain.modules import StoredModule


def extractor_spec(
    module: StoredModule,
    place: Path,
    part: Part | None,
    engine: str,
    precision: str,
    augment_on: str,
    overwrite: bool,
) -> ExtractorSpec:
    """What runs a module: as what is there was computed, where that is left open.

    Args:
        module: The module, probed.
        place: The data set's folder in the cache.
        part: The part of the data set, if not all of it.
        engine: `auto`, `tensorflow` or `openvino`.
        precision: `f32`, `bf16` or `int8`.
        augment_on: `auto`, `processor` or `gpu`.
        overwrite: What is there does not count.

    Raises:
        EngineError: See `hubretrain.extraction.engines.choose_engine`.
    """
    file = place / file_name(module.name, part)
    before: dict[str, Fact] = {}
    if file.exists() and not overwrite:
        with Bottlenecks(file) as there:
            before = there.facts
    known = str(before["engine"]) if before.get("precision") == precision else None
    name = choose_engine(engine, precision, module=module, before=known)
    cuts_views = augment_on == "gpu"
    if augment_on == "auto" and name == "tensorflow":
        cuts_views = str(before["resize"]).endswith("TensorFlow") if before else gpu_in_sight()
    if cuts_views and name != "tensorflow":
        raise EngineError("--augment-on gpu needs the TensorFlow engine: --engine tensorflow.")
    quantised = place / f"{module.name}.int8" if precision == "int8" else None
    return ExtractorSpec(module, name, precision, quantised, cuts_views)


def calibration_of(
    running: ExtractorSpec,
    dataset: ImageDataset,
    digests: Sequence[str],
    seed: int,
    *,
    overwrite: bool,
    quiet: bool,
) -> dict[str, Fact]:
    """Facts of the quantised model that a module is run as, made now if need be; else none.

    Raises:
        CacheError: See `hubretrain.extraction.engines.calibrate`.
        EngineError: Likewise.
    """
    if running.quantised is None:
        return {}
    # All images, also where only a part is cached: every part must come from one model.
    path_of = dict(zip(digests, dataset.images["path"], strict=True))
    size = running.module.image_size

    def first_view(sha256: str) -> Pixels | None:
        try:
            return view(read_image(dataset.root, path_of[sha256]), size)
        except DataError:
            return None

    facts = calibrate(
        running.module,
        running.quantised,
        digests,
        first_view,
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
    )
    return {**facts}
