"""Evaluating one SAE of anybody's on a language model: `python -m faithful_sae evaluate`.

It needs no parameter file. What it writes are the tables of notebook 12, of this SAE and of
untrained ones beside it, and SAEBench's result files.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from faithful_sae.files import write_csv, write_json

# where no text is given: of packages that are installed with this one
DOCUMENTATION = ("numpy", "scipy", "sklearn", "pandas")
CHARACTERS_PER_TOKEN = 8  # more than any tokenizer here has of English
ROW = 128  # tokens, where the language model has so many
SEEDS = (0, 1, 2)  # of untrained SAEs
FILES_OF = ("structure", "positions", "interpretation", "descriptions", "absorption")


def find_sae(place: str, revision: str | None) -> Path:
    """A folder here, or owner/name or owner/name/folder on the Hub.

    Raises:
        SAEError: no such folder, and no such id.
        HubError: as text.hub.
    """
    from faithful_sae.sae.published import FILES
    from faithful_sae.sae.sae import SAEError
    from faithful_sae.text import hub

    if Path(place).exists():
        return Path(place)
    owner, _, rest = place.partition("/")
    name, _, folder = rest.partition("/")
    if not owner or not name or place.startswith((".", "/", "~")):
        raise SAEError(f"{place}: no such folder, and no id of the Hub (owner/name or deeper)")
    at = hub.resolve("model", f"{owner}/{name}", revision or "main")
    return hub.fetch_folder("model", f"{owner}/{name}", at, folder or None, FILES)


def token_rows(lm: Any, text: Path | None, key: str, tokens: int, heldout: int) -> Any:
    """(rows on which latents are explained, held-out rows behind them) of a file, or of the
    documentation of installed packages.

    Raises:
        CorpusError: an unreadable file, or one that does not fill enough rows.
    """
    from faithful_sae.text.documentation import extract
    from faithful_sae.text.packing import pack, tokenize
    from faithful_sae.text.read import CorpusError, read_records

    length = min(ROW, lm.context)
    wanted = tokens + heldout * length
    if text is None:
        texts = iter(extract("docstrings", DOCUMENTATION, CHARACTERS_PER_TOKEN * wanted))
    else:
        texts = (record[0] for record in read_records(text, [key]))
    rows = pack(tokenize(texts, lm.tokenizer), lm.bos_id, length, wanted)
    if len(rows) < 2 * heldout:
        raise CorpusError(
            f"{text or 'documentation'}: fills {len(rows)} rows of {length} tokens, fewer than "
            f"{2 * heldout}: give more text, or lower --rows"
        )
    return rows[:-heldout], rows[-heldout:]


def evaluate(
    place: str,
    model: str,
    layer: int,
    output: Path,
    text: Path | None = None,
    text_key: str = "text",
    hook: str = "residual",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    model_revision: str | None = None,
    **sizes: int,
) -> None:
    """Measure an SAE by all evaluations that need a text alone; print a table, and write csv files
    and SAEBench's result files into a folder.

    Args:
        place: a folder in any of sae.formats, or an id of the Hub.
        model: a folder or an id of the Hub.
        layer, hook: where the SAE reads.
        output: folder, made where it is missing.
        text: jsonl, csv, parquet or txt; None: documentation of installed packages.
        text_key: field of the text.
        sizes: of stages.evaluating.Sizes.

    Raises:
        ParamsError: a size out of its range.
        SAEError, ModelError, HubError, CorpusError, FeatureError: see there.
    """
    from faithful_sae.lm.architectures import ADDED, hooked_module
    from faithful_sae.lm.model import load_model
    from faithful_sae.sae.published import load_fitting
    from faithful_sae.sae.sae import TopKSAE
    from faithful_sae.stages import evaluating

    s = evaluating.Sizes(**sizes)
    folder = find_sae(place, revision)
    lm = load_model(model, layer, device, dtype, model_revision, hook=hook)
    kind = lm.model.config.model_type
    module = hooked_module(kind, hook) if kind in ADDED else None
    sae = load_fitting(folder, model, layer, {}, lm.d_model, output, hook, module).to(lm.device)
    rows, heldout = token_rows(lm, text, text_key, s.tokens, s.rows)
    k = sae.k or 1
    saes = {("this SAE", 0): sae}
    saes |= {
        ("random dictionary", seed): TopKSAE(lm.d_model, sae.d_sae, k, seed, lm.device)
        for seed in SEEDS[:1]
    }
