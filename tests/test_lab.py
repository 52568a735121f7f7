"""What a JupyterLab that `make lab` starts saves of the notebooks here, by its own server."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest

from faithful_sae.engine.lab import without_outputs
from faithful_sae.files import ROOT

CONFIG = ROOT / "workflow" / "jupyter"
NAME = "03_sfr.ipynb"
PAIR = [ROOT / "notebooks" / NAME, ROOT / "notebooks" / "03_sfr.py"]
PLACE = f"notebooks/{NAME}"  # as seen from where `make lab` opens
OUTPUT = {"output_type": "stream", "name": "stdout", "text": "16 SAEs"}


def run(notebook):
    """A notebook as a page has it when its cells were run."""
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.9"}
    notebook["metadata"]["widgets"] = {"state": {}}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            cell |= {"outputs": [OUTPUT], "execution_count": number}
            cell["metadata"] |= {"execution": {"iopub.status.busy": "12:00"}, "scrolled": True}
    return notebook


@pytest.fixture
def ask(tmp_path):
    """ask(method, name, body): Jupyter's contents API on notebooks/."""
    port = 8000 + os.getpid() % 20_000
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={ROOT}", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=secret"]
    own = {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    environment = os.environ | own | {"JUPYTER_CONFIG_PATH": str(CONFIG)}

    def call(method, name, body=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/contents/{name}",
            json.dumps(body).encode() if body else None,
            {"Authorization": "token secret", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    before = [file.read_bytes() for file in PAIR]
    log = tmp_path / "log"
    with (
        open(log, "w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server,
    ):
        try:
            deadline = time.time() + 60
            while True:
                try:
                    call("GET", "")
                    break
                except OSError:
                    assert time.time() < deadline, log.read_text()
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.5)
            yield call
        finally:
            server.terminate()
            for file, content in zip(PAIR, before, strict=True):
                if file.read_bytes() != content:
                    file.write_bytes(content)


def test_make_lab_sets_the_configuration():
    said = subprocess.run(
        ["make", "-n", "-f", str(ROOT / "Makefile"), "lab"], capture_output=True, text=True
    )
    assert f'JUPYTER_CONFIG_PATH="{CONFIG}"' in said.stdout


def test_what_was_run_is_saved_as_it_is_committed(ask):
    before = [file.read_bytes() for file in PAIR]
    notebook = run(ask("GET", PLACE)["content"])
    ask("PUT", PLACE, {"type": "notebook", "format": "json", "content": notebook})
    assert [file.read_bytes() for file in PAIR] == before

    notebook["cells"][-1]["source"] += "\n# mine"
    ask("PUT", PLACE, {"type": "notebook", "format": "json", "content": notebook})
    assert all(b"# mine" in file.read_bytes() for file in PAIR)
    assert b"16 SAEs" not in PAIR[0].read_bytes()


def test_a_notebook_of_one_s_own_keeps_its_outputs():
    manager = SimpleNamespace(root_dir=str(ROOT / "notebooks"))
    cell = {"cell_type": "code", "metadata": {}, "source": "1", "outputs": [OUTPUT]}
    for name, kept in (
        ("mine.ipynb", [OUTPUT]),
        ("03_sfr.ipynb", []),
        ("a/03_sfr.ipynb", [OUTPUT]),
    ):
        notebook = {"metadata": {}, "cells": [dict(cell)]}
        without_outputs({"type": "notebook", "content": notebook}, name, manager)
        assert notebook["cells"][0]["outputs"] == kept, name
    file = {"type": "file", "content": "text"}
    without_outputs(file, "03_sfr.py", manager)
    assert file["content"] == "text"
