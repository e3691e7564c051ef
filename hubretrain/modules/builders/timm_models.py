"""Models of timm as ONNX files: a script for an environment that has timm but not hubretrain.

    python -I timm_models.py '{"model": ..., "folder": ..., ...}'

Nothing of hubretrain is imported here. PyTorch's networks become ONNX, not TensorFlow, because that
is exact and kept up by PyTorch itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: What PyTorch's exporter writes best; ONNX Runtime and OpenVINO know it.
OPSET = 17


def main(model: str, folder: str, random_weights: bool, image_size: int | None) -> None:
    """Write a model without classifier, and its preprocessing, into an empty folder.

    That is `model.onnx`, from standardised RGB in NCHW to the pooled features that timm's
    classifiers take, and `preprocessor_config.json` as Hugging Face has it, with the licence of the
    weights, where timm knows it.

    Args:
        model: Name of the model, with its weights' tag where it has one.
        folder: The folder.
        random_weights: Draw the weights instead of loading them.
        image_size: Height and width of images, pixels; None for those of timm's data config.
    """
    import timm
    import torch

    torch.manual_seed(0)
    options: dict[str, Any] = {"pretrained": not random_weights, "num_classes": 0}
    try:
        sized = {"img_size": image_size} if image_size else {}
        network = timm.create_model(model, **options, **sized)
    except TypeError:  # convolutional networks take any size
        network = timm.create_model(model, **options)
    network = network.eval()
    config = timm.data.resolve_data_config({}, model=network)
    size = image_size or config["input_size"][-1]
    images = torch.zeros((2, 3, size, size))
    batch = {0: "n_images"}
    torch.onnx.export(
        network,
        (images,),
        str(Path(folder, "model.onnx")),
        input_names=["images"],
        output_names=["features"],
        dynamic_axes={"images": batch, "features": batch},
        opset_version=OPSET,
        dynamo=False,
    )
    preprocessing: dict[str, Any] = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config["mean"]),
        "image_std": list(config["std"]),
        "do_center_crop": False,
        "size": {"height": size, "width": size},
    }
    if not random_weights and (license_ := network.pretrained_cfg.get("license")):
        preprocessing["license"] = license_
    Path(folder, "preprocessor_config.json").write_text(json.dumps(preprocessing))


if __name__ == "__main__":
    try:
        main(**json.loads(sys.argv[1]))
    except Exception as error:  # the libraries raise many types; the last line is what is shown
        sys.exit(" ".join(str(error).split())[:500])
