"""GPUs of a command's own.

Snakemake counts the GPUs of a machine (`make paper GPUS=4`) and gives none a number, so that all
notebooks would take the first. A cluster's scheduler does this itself, and nothing happens then, or
for a model that is on no GPU.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from faithful_sae.files import Lock
from faithful_sae.runs.params import load_params


def run_with_gpus(params: str, command: list[str]) -> None:
    """Become `command`, with as many GPUs as the run in `params` uses a job for."""
    if os.environ.get("FAITHFUL_SAE_GPUS") == "own":
        held = take(load_params(params).job_gpus)
        for lock in held.values():
            os.set_inheritable(lock.file.fileno(), True)
    os.execvp(command[0], command)


def take(n: int, seconds: float = 5.0) -> dict[str, Lock]:
    """Set CUDA_VISIBLE_DEVICES to n GPUs that no other command started in this way has; waits until
    there are. They are held as long as the returned locks are, or whatever inherits them.

    Raises:
        SystemExit: the machine has fewer than n.
    """
    if n == 0:
        return {}
    devices = _devices()
    if len(devices) < n:
        sys.exit(f"gpus: {n} were asked for, and there are {len(devices)} here: lower gpus")
    while len(held := _hold(devices, n)) < n:
        for lock in held.values():
            lock.close()
        time.sleep(seconds)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
    return held


def _devices() -> list[str]:
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _hold(devices: list[str], n: int) -> dict[str, Lock]:
    """{device: its lock} of up to n devices that are free."""
    held: dict[str, Lock] = {}
    for device in devices:
        if len(held) == n:
            break
        name = f"faithful_sae-gpu-{os.getuid()}-{device}.lock"
        lock = Lock(Path(tempfile.gettempdir()) / name)
        if lock.take():
            held[device] = lock
        else:
            lock.close()
    return held
