from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from tests.serving.samples import picture

pytest.importorskip("fastapi")


def test_tensorflow_servings_form_by_row_and_by_column(server, truth):
    images = [picture(0), picture(1, "JPEG"), picture(2, "TIFF")]
    status, _, said = server.predict(*images)
    assert status == 200
    assert said["predictions"][0]["class_names"] == ["a", "<b>", "ç é"]
    rows = [one["probabilities"] for one in said["predictions"]]
    assert np.abs(np.array(rows) - [truth(data) for data in images]).max() < 1e-4
    assert server.predict(*images, name="small/versions/1")[2] == said
    columns = {"image_bytes": [{"b64": base64.b64encode(data).decode()} for data in images]}
    path = "/v1/models/small:predict"
    status, _, said = server.ask("POST", path, json.dumps({"inputs": columns}))
    assert status == 200
    assert np.allclose(said["outputs"]["probabilities"], rows)
