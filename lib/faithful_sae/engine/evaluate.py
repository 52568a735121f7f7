"""Evaluating one SAE of anybody's on a language model: `python -m faithful_sae evaluate`.

It needs no parameter file. What it writes are the rows of notebook 12, of this SAE and, beside it,
of a random dictionary, principal components and the identity; and SAEBench's result files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faithful_sae.files import write_csv, write_json

# where no text is given: of packages that are installed with this one
DOCUMENTATION = ("numpy", "scipy", "sklearn", "pandas")
CHARACTERS_PER_TOKEN = 8  # more than any tokenizer here has of English
LEAST = 100_000  # characters of documentation: a single document may have some thousands
ROW = 128  # tokens, where the language model has so many
FLOOR_K = 32  # of the random dictionary beside an SAE that has a threshold
TASKS = ("library", "parameter_or_return")
PACKAGES = ("scipy", "sklearn")  # that SCR crosses
CITIES = 60  # pairs, for RAVEL
FORGET = "source"  # the kind of documentation that is to be forgotten, while the text is kept
# what the printed table shows, by the table it is a mean of
SHOWN = {
    "structure": ("explained_variance", "ce_diff", "ce_score", "kl", "l0", "frac_alive"),
    "interpretation": ("scored", "detection_random", "detection_hard", "fuzz_random"),
    "descriptions": ("input_choice", "output"),
    "absorption": ("fraction", "full"),
    "unlearning": ("unlearned", "retain_cost"),
    "ravel": ("disentanglement",),
}


class ResultError(ValueError):
    """A result file of others cannot be set beside ours."""


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
    from faithful_sae.text.read import CorpusError, read_records

    length = min(ROW, lm.context)
    wanted = tokens + heldout * length
    if text is None:
        rows = documentation_rows(lm, "docstrings", wanted)
    else:
        rows = _packed(lm, (record[0] for record in read_records(text, [key])), wanted)
    if len(rows) < 2 * heldout:
        raise CorpusError(
            f"{text or 'documentation'}: fills {len(rows)} rows of {length} tokens, fewer than "
            f"{2 * heldout}: give more text, or lower --rows"
        )
    return rows[:-heldout], rows[-heldout:]


def documentation_rows(lm: Any, kind: str, tokens: int) -> Any:
    """Rows of documentation, or of the source, of installed packages."""
    from faithful_sae.text.documentation import extract

    characters = max(LEAST, CHARACTERS_PER_TOKEN * tokens)
    return _packed(lm, extract(kind, DOCUMENTATION, characters), tokens)


def _packed(lm, texts, tokens):
    from faithful_sae.text.packing import pack, tokenize

    return pack(tokenize(iter(texts), lm.tokenizer), lm.bos_id, min(ROW, lm.context), tokens)


def labelled_texts(probing: Any, task: str, packages: Sequence[str] = DOCUMENTATION) -> Any:
    """((texts, labels) to train probes on, to test them on) of documentation."""
    from faithful_sae.text.documentation import labelled

    examples = labelled(task, packages, probing.max_train + probing.max_test, probing.seed)
    cut = round(len(examples) * probing.max_train / (probing.max_train + probing.max_test))
    return tuple(tuple(zip(*part, strict=True)) for part in (examples[:cut], examples[cut:]))


def read_theirs(path: Path) -> Any:
    """A result of SAEBench whose definitions are ours, too.

    Raises:
        ResultError: no such file, or of another evaluation.
    """
    from faithful_sae.metrics.saebench import OURS, read_envelope

    try:
        result = read_envelope(path)
    except ValueError as error:
        raise ResultError(str(error)) from None
    if result.eval_type_id != "core":
        others = [why for theirs, why in OURS.values() if theirs == result.eval_type_id]
        raise ResultError(
            f"{path}: a result of {result.eval_type_id or 'no evaluation that it names'}, and only "
            f"those of core are set beside ours{': here ' if others else ''}{'; '.join(others)}"
        )
    return result


def evaluate(
    place: str,
    model: str,
    layer: int,
    output: Path,
    text: Path | None = None,
    text_key: str = "text",
    hook: Any = "residual",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    model_revision: str | None = None,
    beside: Sequence[Path] = (),
    **sizes: int,
) -> None:
    """Measure an SAE by all evaluations of notebook 12 but the one that trains the language model;
    print a table, and write csv files and SAEBench's result files into a folder.

    Args:
        place: of the SAE, as find_sae.
        model: a folder or an id of the Hub.
        layer, hook: where the SAE reads.
        output: folder, made where it is missing.
        text: jsonl, csv, parquet or txt; None: documentation of installed packages.
        text_key: field of the text.
        beside: result files of SAEBench of the same SAE: our numbers are printed beside theirs
            where the definitions are the same, and why not where they differ.
        sizes: of stages.evaluating.Sizes.

    Raises:
        SAEError, ModelError, HubError, CorpusError, FeatureError: see there.
        ResultError: a file of `beside` that is no result, or of an evaluation not done here.
    """
    from faithful_sae.lm.architectures import ADDED, hooked_module
    from faithful_sae.lm.model import load_model
    from faithful_sae.metrics import saebench
    from faithful_sae.sae.published import load_fitting
    from faithful_sae.sae.sae import TopKSAE, load_sae
    from faithful_sae.stages import evaluating
    from faithful_sae.stages.s06_probing import Probing, Task
    from faithful_sae.stages.s12_evaluation import CROSSED

    theirs = {path: read_theirs(path) for path in beside}
    folder = find_sae(place, revision)
    lm = load_model(model, layer, device, dtype, model_revision, hook=hook)
    # 32 tokens in rows of 128
    part = min(ROW, lm.context) // 4
    s = evaluating.Sizes(**sizes, window=part, edges=(part,))
    kind = lm.model.config.model_type
    module = hooked_module(kind, hook) if kind in ADDED else None
    # a folder has many names: which model it is of is for the user to say
    named = load_sae(folder).metadata.get("model") or model
    sae = load_fitting(folder, named, layer, {}, lm.d_model, folder, hook, module).to(lm.device)
    if named != model:
        print(f"note: {folder}: its files say that it was made for {named}")
    rows, heldout = token_rows(lm, text, text_key, s.tokens, s.rows)
    floor = TopKSAE(lm.d_model, sae.d_sae, min(sae.k or FLOOR_K, sae.d_sae), 0, lm.device)
    saes = {("this SAE", 0): sae, ("random dictionary", 0): floor}
    saes |= evaluating.known_saes(lm, rows[: len(heldout)], sae.k or FLOOR_K, s)
    tasks = {task: Task(documentation=task, packages=DOCUMENTATION) for task in TASKS}
    length = min(96, lm.context)
    probing = Probing(tasks=tasks, max_train=2000, max_test=1000, max_tokens=length, batch_rows=32)
    core = evaluating.structure(lm, saes, heldout, s)
    tables = {"structure": core[0], "structure_latents": core[1]}
    tables["positions"] = evaluating.positions(lm, saes, heldout, s)
    codes, pieces = evaluating.explained(lm, evaluating.explainable(saes), rows, s)
    tables["interpretation"] = evaluating.interpretation(lm, codes, pieces, s)
    tables["descriptions"] = evaluating.descriptions(lm, saes, codes, pieces, heldout, s)
    tables["absorption"] = evaluating.absorption(lm, saes, rows, s)
    labelled = {task: labelled_texts(probing, task) for task in TASKS}
    probed = evaluating.probes(lm, saes, labelled, probing, s.seed)
    tables |= {"sparse_probes": probed[0], "ablated_probes": probed[1]}
    crossed = {package: labelled_texts(probing, CROSSED, (package,)) for package in PACKAGES}
    tables["crossed_probes"] = evaluating.crossed_probes(lm, saes, crossed, probing, s.seed)
    to_forget = documentation_rows(lm, FORGET, heldout.size)
    tables["unlearning"] = evaluating.unlearning(lm, saes, to_forget, heldout, s)
    tables["ravel"] = evaluating.ravel(lm, saes, CITIES, s)
    for name, table in tables.items():
        write_csv(output / f"{name}.csv", table)
    config = {"model": model, "layer": layer, "hook": hook, "text": str(text or "documentation")}
    for name in saes:
        found = evaluating.envelopes(tables, name, saes[name], config | s.model_dump())
        for kind, record in found.items():
            write_json(output / "saebench" / name[0].replace(" ", "_") / f"{kind}.json", record)
    print(summary(tables))
    for number, (path, result) in enumerate(theirs.items(), 1):
        ours = saebench.read_envelope(
            output / "saebench" / "this_SAE" / f"{result.eval_type_id}.json"
        )
        table = saebench.beside(ours, result)
        write_csv(output / f"beside_{number}.csv", table)
        print(f"\nbeside {path}:\n{table.round(4).to_string(index=False)}")
    print(f"\nall tables, and results in SAEBench's form: {output}")


def summary(tables: Any) -> str:
    """One line per number, a column per SAE."""
    import pandas as pd

    lines = {}
    for name, columns in SHOWN.items():
        means = tables[name].groupby("corpus", sort=False)
        for column in columns:
            lines[f"{name}: {column}"] = means[column].mean()
    probes = tables["sparse_probes"]
    probes = probes.loc[probes.representation == "sae"]
    for (form, k), part in probes.groupby(["form", "k"], sort=False):
        called = f"sparse_probes: accuracy, {form} {k}"
        lines[called] = part.groupby("corpus", sort=False).accuracy.mean()
    table = pd.DataFrame(lines).T.astype(float).round(3)
    return table[[*dict.fromkeys(tables["structure"].corpus)]].to_string()
