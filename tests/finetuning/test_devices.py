from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from hubretrain.errors import RunError
from tests.finetuning.heads import give_network
from tests.finetuning.runs import copied, tune
from tests.samples import PATIENCE, REPOSITORY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSONDecodeError"),
        ('{"cluster": {}, "task": {"type": "worker", "index": 0}}', "IndexError"),
        ('{"cluster": {"worker": ["a:1", "b:2"]}}', "KeyError: 'task'"),
    ],
)
def test_a_cluster_that_is_badly_described_is_an_error(monkeypatch, text, said):
    from hubretrain.finetuning.devices import available_devices

    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(RunError, match=rf'TF_CONFIG describes no cluster \({said}.*"cluster"'):
        available_devices()


def test_float16_is_for_a_gpu():
    from hubretrain.finetuning.devices import available_devices
    from hubretrain.tensorflow import tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is one")
    with pytest.raises(RunError, match=r"`mixed_precision` is True, .*; leave it out"):
        available_devices(mixed_precision=True)


def test_every_image_of_a_batch_goes_to_one_device():
    from hubretrain.finetuning.devices import Devices

    batch = np.arange(7)
    shares = [Devices(None, n_replicas=3, local=(k,)).share(batch)[0] for k in range(3)]
    assert [s.tolist() for s in shares] == [[0, 3, 6], [1, 4], [2, 5]]


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.slow
def test_two_machines_train_as_one_does(fitted, tmp_path):
    run, alone = copied(fitted, tmp_path, "two"), copied(fitted, tmp_path, "one")
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from pathlib import Path; from tests.finetuning.runs import *\n"
        f"found = tune(Path({str(fitted)!r}), Run(Path({str(run.folder)!r})), epochs=2)\n"
        "print(found.history.to_json())\n"
    )
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        command = [sys.executable, "-c", code]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    expected = tune(fitted, alone, epochs=2)
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], said
    histories = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert histories[0] == histories[1]
    for name in ("loss", "validation_loss", "learning_rate"):
        found = np.array(list(histories[0][name].values()), dtype=float)
        assert np.allclose(found, expected.history[name], rtol=1e-4, equal_nan=True), name
    assert (run.export_folder / "saved_model.pb").exists()
    assert (run.finetune_folder("small") / "predictions.csv").exists()


TWO_DEVICES = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from hubretrain.tensorflow import tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import hubretrain.finetuning.finetune
from hubretrain.finetuning.devices import Devices
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
hubretrain.finetuning.finetune.available_devices = lambda **_: Devices(strategy, 2, (0, 1))
from tests.finetuning.runs import Run, tune
found = tune(Path(sys.argv[2]), Run(Path(sys.argv[3])), epochs=2)
found = tune(Path(sys.argv[2]), Run(Path(sys.argv[3])), resume=True, more_epochs=1)
print(found.history.to_json())
"""


@pytest.mark.slow
def test_two_devices_of_one_machine_train_as_one_does(fitted, tmp_path):
    run, alone = copied(fitted, tmp_path, "two"), copied(fitted, tmp_path, "one")
    give_network(fitted, run, alone)  # the copy reads the module's layers, too
    folders = [str(REPOSITORY), str(fitted), str(run.folder)]
    command = [sys.executable, "-c", TWO_DEVICES, *folders]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    tune(fitted, alone, epochs=2)
    expected = tune(fitted, alone, resume=True, more_epochs=1).history
    history = json.loads(ran.stdout.splitlines()[-1])
    for name in ("loss", "validation_loss", "learning_rate"):
        found = np.array(list(history[name].values()), dtype=float)
        assert np.allclose(found, expected[name], rtol=1e-4, equal_nan=True), name
