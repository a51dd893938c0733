"""Nothing is made on the host that has to meet a tensor on the GPU; see `pretend_gpu.py`."""

import os
import subprocess
import sys


def test_every_call_stays_on_its_device():
    """In a process of its own: the pretended device is registered with torch for good."""
    command = [sys.executable, "-m", "ross3d.tests.pretend_gpu"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, *lines = done.stdout.splitlines()
    assert first == "refused: aten.add.Tensor: tensors on gpu:0 [(2,)] and on cpu [(2,)]"
    calls = ["train", "train without depth", "count", "ask", "read"]
    assert [line.rsplit(": ", 1)[0] for line in lines] == [
        f"{condition}: {call}" for condition in ("per_view", "pooled") for call in calls
    ]
