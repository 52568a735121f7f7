"""Give a command GPUs of its own: `python -m faithful_sae.engine.gpus PARAMS COMMAND ...`

Snakemake counts the GPUs of a machine (`make paper GPUS=4`) and gives none a number, so that all
notebooks would take the first. A cluster's scheduler does this itself, and nothing happens then, or
for a model that is on no GPU (PARAMS is its parameter file).
"""

import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path

from faithful_sae.runs.params import load_params


def take(n, seconds=5.0):
    """Set CUDA_VISIBLE_DEVICES to n GPUs that no other command started in this way has; waits until
    there are. They are held as long as the process runs, also when it becomes another program.

    Raises:
        SystemExit: the machine has fewer than n.
    """
    if n == 0:
        return
    devices = _devices()
    if len(devices) < n:
        sys.exit(f"gpus: {n} were asked for, and there are {len(devices)} here: lower gpus")
    while len(held := _hold(devices, n)) < n:
        for file in held.values():
            file.close()
        time.sleep(seconds)
    for file in held.values():
        os.set_inheritable(file.fileno(), True)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
    return held


def _devices():
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _hold(devices, n):
    """{device: locked file} of up to n devices that are free."""
    held = {}
    for device in devices:
        file = open(
            Path(tempfile.gettempdir()) / f"faithful_sae-gpu-{os.getuid()}-{device}.lock", "w"
        )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[device] = file
        except BlockingIOError:
            file.close()
        if len(held) == n:
            break
    return held


if __name__ == "__main__":
    HELD = (
        take(load_params(sys.argv[1]).job_gpus)
        if os.environ.get("FAITHFUL_SAE_GPUS") == "own"
        else None
    )
    os.execvp(sys.argv[2], sys.argv[2:])
