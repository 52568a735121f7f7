"""20: do SAEs of a language model serve what it becomes, and the other way round?

The base model is the run's. The tuned one is the base trained further on a corpus; or it is the
base itself, and only what its documents are sampled after differs. Each writes text, and SAEs are
trained in each model on each text.
"""

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.keys import Fingerprint, settings
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Corpus, Count, Ints, Need, Run, Section, key
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, Stage
from faithful_sae.stages.budget import (
    budget,
    group_bytes,
    reading_bytes,
    saving_bytes,
    scoring_bytes,
    tokens_read,
)
from faithful_sae.stages.s01_generate_faithful import STAGE as GENERATE
from faithful_sae.stages.s01_generate_faithful import TEXT, check_start, text_disk
from faithful_sae.stages.s02_train_sae import TRAINED, check_corpora, check_seeds
from faithful_sae.stages.s05_fidelity import STAGE as FIDELITY
from faithful_sae.stages.s12_evaluation import TUNED as TUNING_BYTES
from faithful_sae.stages.s12_evaluation import Tuning
from faithful_sae.text.packing import TokenRows, rows_disk

BASE, TUNED = "base", "tuned"
# what the text of the tuned model is called where corpora have names
OWN = "tuned_model"
# what SAEs depend on beside the model and the text, and what the tuned model does
STUDIED = (*TRAINED, "-sae.seeds")
TUNING = ("tuned_model.tuned", "tuned_model.batch_rows")
# a pass forwards and backwards, in passes forwards
STEP = 3


class TunedModel(Section):
    """SAEs of the language model and of what it becomes, trained in each on the text of each.

    With `tuned: null` the model stays as it is, and its documents are sampled after another `start`
    alone. Text is sampled as `generate` says, SAEs are trained as `sae` says.
    """

    tuned: Tuning | None = key(
        "how the model becomes another one; null: it stays, and `start` tells the two texts apart",
        None,
    )
    start: str | None = key(
        "what the documents of the tuned model are sampled after, as generate.start; null: after "
        "the same",
        None,
    )
    other: str = key(
        "corpus that is the base's rather than the tuned model's. SAEs are measured on held-out "
        "rows of tuned.text (with `tuned: null`, of the text after `start`), and of this one"
    )
    seeds: Ints | None = key("those of sae.seeds that are trained, at least two; null: all", None)
    rows: Count = key("held-out rows of each text for explained variance and CE", 64)
    batch_rows: Count = key(
        "rows per forward pass, each with all its logits, and of a step of `tuned`", 16
    )

    def check(self, run: Run, need: Need) -> None:
        check_seeds(run, need, "tuned_model.seeds", self.seeds)
        some = self.seeds is None or len(self.seeds) > 1
        need(
            some, "tuned_model.seeds", f"= {list(self.seeds or ())}: SAEs of two seeds are matched"
        )
        check_corpora(run, need, "tuned_model.other", (self.other,))
        check_start(run, need, "tuned_model.start", self.start)
        if self.tuned:
            check_corpora(run, need, "tuned_model.tuned.text", (self.tuned.text,))
            why = f"= {self.other!r} is tuned_model.tuned.text, too: name another text"
            need(self.other != self.tuned.text, "tuned_model.other", why)
        why = "is null, and tuned_model.start says nothing new: the two models would be one"
        differs = self.tuned or self.start not in (None, run.generate.start)
        need(differs, "tuned_model.tuned", why)
        why = f"names {OWN!r}, which is what this study calls its own text: choose another name"
        need(OWN not in run.corpora, "corpora", why)
        own = [name for name in own_corpora(run) if name not in run.published]
        why = "has no corpus `faithful: self` whose SAEs are trained here: the base's are its own"
        need(own, "sae.train_on", why)


def own_corpora(run: Run) -> list[str]:
    """Of the corpora with SAEs those of the model's own text."""
    known = run.corpora
    return [name for name in run.sae.train_on if name in known and known[name].faithful == "self"]


class TunedModelStudy(Stage):
    sections = {"tuned_model": TunedModel}
    optional = ("tuned_model",)
    study = True
    answers = True
    rows = ("tuned_models", "tuned_fidelity", "tuned_fidelity_rows", "tuned_ffr", "tuned_pairs")
    reads = ("saes", "sfr")
    parameters = (*MODEL, *ROWS_OF_TEXT, *TRAINED, "generate", "sfr.threshold", "ffr")
    hours = "train"
    lower = "sae.buffer_tokens or tuned_model.batch_rows"

    def wanted(self, run: Run) -> bool:
        return super().wanted(run) and len(run.sae.seeds) > 1

    def corpora(self, run: Run) -> tuple[str, ...]:
        t = run.tuned_model
        if not t:
            return ()
        tuned = (t.tuned.text,) if t.tuned else ()
        return tuple(dict.fromkeys((*own_corpora(run)[:1], *tuned, t.other)))

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        rows = run.artifacts / "rows" / "tuned_pairs.csv"
        made = settings(run, TUNING) if run.tuned_model.tuned else {}
        yield Artefact(folder(run, "text"), settings(changed(run), TEXT) | made, rows)
        for cell in cells(run)[1:]:
            of_model = made if cell[0] == TUNED else {}
            parameters = settings(run, STUDIED) | of_model
            yield Artefact(folder(run, *cell), parameters, rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_bytes

        s, t = run.sae, run.tuned_model
        n = len(seeds_of(run))
        one = sae_bytes(shape.d_model, s.d_sae)
        training = sae_training_bytes(run, shape, n)
        at = run.changed(fidelity=run.fidelity.changed(batch_rows=t.batch_rows))
        scored = scoring_bytes(at, shape)
        work = max(group_bytes(run, shape) + training, scored)
        models = weights(shape)
        if t.tuned:
            models += 4 * shape.parameters
            work = max(work, (TUNING_BYTES - 4) * shape.parameters + STEP * scored)
        saved = saving_bytes(run, 3 * n * one)
        return Memory(models + len(cells(run)) * n * one + work, reading_bytes(run) + saved)

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_disk

        n = len(seeds_of(run))
        training = sae_training_disk(run, shape, n)
        done = (len(cells(run)) - 2) * n * sae_bytes(shape.d_model, run.sae.d_sae)
        return text_disk(run.generate) + rows_disk(run.corpus_tokens) + training + done

    def tokens(self, run: Run) -> int:
        t = run.tuned_model
        steps = STEP * t.tuned.steps * t.batch_rows * run.sequence_length if t.tuned else 0
        return run.generate.tokens + steps + _read(run) + _measured(run)

    def seconds(self, run: Run, rates: Rates) -> float:
        """Steps of the model, which go through all its blocks, text, steps of every SAE for each
        batch, and passes with each SAE in its place.
        """
        t = run.tuned_model
        n_saes = len(cells(run)) * len(seeds_of(run))
        total = GENERATE.sampling_seconds(run, rates)
        if t.tuned:
            whole = STEP * rates.lm.shape.layers / (run.layer + 1)
            tokens = t.tuned.steps * t.batch_rows * run.sequence_length
            total += whole * tokens * rates.read_token()
        n_tokens = budget(run, run.sae.tokens)
        steps = (len(cells(run)) - 1) * math.ceil(n_tokens / run.sae.batch_tokens)
        step = rates.sae_step(run.sae.d_sae, run.sae.k, n_tokens)
        total += _read(run) * rates.read_token() + steps * len(seeds_of(run)) * step
        more, one = FIDELITY.passes(run, rates)
        batches = 2 * len(models_of(run)) * math.ceil(t.rows / run.fidelity.batch_rows)
        total += batches * (one + (n_saes - 1) * more)
        encoded = len(models_of(run)) * n_saes * run.ffr.tokens
        return total + encoded * rates.encode_token()


def _read(run):
    """Tokens read to train SAEs."""
    return (len(cells(run)) - 1) * tokens_read(run, run.sae.tokens)


def _measured(run):
    """Tokens read to measure CE, fidelity and firing, SAEs left out."""
    of_text = 4 * run.tuned_model.rows * run.sequence_length
    return len(models_of(run)) * (2 * of_text + run.ffr.tokens)


def seeds_of(run: Run) -> tuple[int, ...]:
    """Those that are trained, in the order of the run."""
    named = run.tuned_model.seeds
    return tuple(seed for seed in run.sae.seeds if named is None or seed in named)


def models_of(run: Run) -> tuple[str, ...]:
    """The models there are: one, if it stays as it is."""
    return (BASE, TUNED) if run.tuned_model.tuned else (BASE,)


def cells(run: Run) -> list[tuple[str, str]]:
    """(model, text) of SAEs: whose activations, and whose text, they are trained on; first those
    that the run has already.
    """
    return [(model, text) for model in models_of(run) for text in (BASE, TUNED)]


def folder(run: Run, *names: str) -> Path:
    """The artefact with the text of the tuned model, or with the SAEs of a cell."""
    return run.artifacts / "tuned_model" / "-".join(names)


def changed(run: Run) -> Run:
    """The run as the tuned model writes: after tuned_model.start, a corpus called OWN."""
    start = run.tuned_model.start
    generate = run.generate if start is None else run.generate.changed(start=start)
    return run.changed(generate=generate, corpora=run.corpora | {OWN: Corpus(faithful="self")})


def _tuning(run, lm):
    """What the tuned model depends on beside the base."""
    from faithful_sae.stages.corpus import corpus

    t = run.tuned_model
    if t.tuned is None:
        return {}
    inputs = {"text": corpus(run, t.tuned.text, lm).key}
    return settings(run, TUNING) | inputs | {"code": code_hash("metrics/generalisation")}


def tune(run: Run, lm: Any) -> dict[str, Any]:
    """{name: language model}: the run's, and what it becomes; written to no file, since it takes
    less than a minute where SAEs take more.
    """
    from faithful_sae.metrics.generalisation import fine_tuned
    from faithful_sae.stages.corpus import corpus

    t = run.tuned_model
    if t.tuned is None:
        return {BASE: lm}
    rows = corpus(run, t.tuned.text, lm).train
    return {BASE: lm, TUNED: fine_tuned(lm, rows, t.tuned.steps, t.tuned.lr, t.batch_rows)}


def write_texts(run: Run, models: dict[str, Any]) -> dict[str, TokenRows]:
    """{name: what a model wrote}: the run's faithful dataset, and that of the tuned model, which is
    sampled unless it is there.

    Args:
        models: of `tune`.
    """
    from faithful_sae.files import locked
    from faithful_sae.lm.sampling import read_shards
    from faithful_sae.stages.corpus import (
        corpus,
        corpus_rows,
        make_dataset,
        sample_shards,
        sampled_documents,
    )
    from faithful_sae.stages.model import model_key

    own, *_ = own_corpora(run)
    lm, author = models[BASE], models.get(TUNED, models[BASE])
    at = changed(run)
    parameters = settings(at, TEXT) | _tuning(run, lm)
    code = ("lm/sampling", "lm/decoding", "lm/model")
    made = Fingerprint(parameters, {"model": model_key(run)}, code)
    write = functools.partial(sample_shards, at, author)
    place = make_dataset(folder(run, "text"), made, author, write)
    documents = sampled_documents(at, author, read_shards(place))
    with locked(run.artifacts / f".corpus-{OWN}.lock"):
        rows = corpus_rows(at, OWN, author, (made.key, documents, author.tokenizer))
    return {BASE: corpus(run, own, lm), TUNED: rows}


def train_cells(
    run: Run, models: dict[str, Any], texts: dict[str, TokenRows]
) -> dict[tuple[str, str, int], Any]:
    """{(model, text, seed): SAE}, trained unless they are there; those of the base on its own text
    are the run's.

    Args:
        models: of `tune`.
        texts: of `write_texts`.
    """
    from faithful_sae.stages.saes import load_saes
    from faithful_sae.stages.training import passes_note, token_budget, trained_stream

    own, *_ = own_corpora(run)
    found = load_saes(run, models[BASE], [own], seeds_of(run))
    saes = {(BASE, BASE, seed): sae for (_, seed), sae in found.items()}
    names = {BASE: own, TUNED: OWN}
    for model, text in cells(run)[1:]:
        lm, rows = models[model], texts[text]
        asked = run.sae.tokens
        n_tokens, available = token_budget(run, rows, lm, asked)
        wanted = [
            {
                "name": f"seed{seed}",
                "d_sae": run.sae.d_sae,
                "k": run.sae.k,
                "seed": seed,
                "tokens": n_tokens,
                "about": {"trained_in": model, "text_of": text},
            }
            for seed in seeds_of(run)
        ]
        parameters = settings(run, STUDIED)
        at = run
        if model == TUNED:
            parameters |= _tuning(run, models[BASE])
            # what is kept on disk is the base's
            at = run.changed(sae=run.sae.changed(cache_activations=False))
        note = passes_note(run, names[text], asked, n_tokens, available)
        place = folder(run, model, text)
        made = trained_stream(at, names[text], lm, rows, place, parameters, wanted, note)
        for entry in wanted:
            saes[model, text, entry["seed"]] = made[entry["name"]].to(lm.device)
    return saes


def measured_on(run: Run) -> tuple[str, str]:
    """Names of the corpora that all are measured on: the tuned model's, and the base's."""
    t = run.tuned_model
    return (t.tuned.text if t.tuned else OWN, t.other)


def measure_cells(
    run: Run, models: dict[str, Any], texts: dict[str, TokenRows], saes: dict[tuple, Any]
) -> dict[str, pd.DataFrame]:
    """Measure all SAEs in every model and match them with each other; writes and returns the rows

    tuned_models         the models: CE on each text (nats per token, BOS left out), and how much of
                         their activations those of the base explain (metrics/tuned_model.py)
    tuned_fidelity       every SAE in every model on each text, without BOS, as `fidelity` of 05,
                         and its L0
    tuned_fidelity_rows  the same, summed over each token row
    tuned_ffr            every SAE in every model, on random tokens
    tuned_pairs          every two SAEs: sfr, mean_cosine
    """
    from faithful_sae.matching import match_pairs
    from faithful_sae.metrics.ffr import fake_ratio, firing_frequency
    from faithful_sae.metrics.fidelity import cross_entropy_of_rows, fidelity_of_all
    from faithful_sae.metrics.tuned_model import kept, mean_active
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.s05_fidelity import as_rows

    t, f = run.tuned_model, run.ffr
    of_model: list[dict[str, Any]] = []
    fidelity: list[dict[str, Any]] = []
    by_row: list[pd.DataFrame] = []
    fakes: list[dict[str, Any]] = []
    limit = run.sae.max_norm
    for measured_in, lm in models.items():
        for name in measured_on(run):
            text = texts[TUNED] if name == OWN else corpus(run, name, models[BASE])
            rows = text.heldout[: t.rows]
            sums, counts = cross_entropy_of_rows(lm, [*rows], t.batch_rows, False)
            where = {"measured_in": measured_in, "evaluated_on": name}
            ce = {"ce": sums.sum() / counts.sum()}
            ce["kept"] = kept(models[BASE], lm, rows, t.batch_rows, limit)
            of_model.append(where | ce)
            title = f"fidelity in {measured_in} on {name}"
            options = (t.batch_rows, (False,), title, limit)
            measured, by_token_row = fidelity_of_all(saes, lm, rows, *options)
            active = mean_active(saes, lm, rows, t.batch_rows)
            places = {mode: {**_which(mode[0]), **where} for mode in measured}
            made = as_rows(measured, by_token_row, places)
            fidelity += [
                record | {"l0": active[sae]}
                for record, (sae, _) in zip(made[0], measured, strict=True)
            ]
            by_row += made[1]
        firing = firing_frequency(
            [*saes.values()], lm, f.tokens, run.sequence_length, f.seed, (f.activation,)
        )
        fakes += [
            {**_which(name), "measured_in": measured_in, "ffr": fake_ratio(of_each, f.frequency)}
            for name, (of_each,) in zip(saes, firing, strict=True)
        ]
    matchings = match_pairs({name: sae.W_dec for name, sae in saes.items()})
    pairs = [
        {**_which(a, "_a"), **_which(b, "_b")}
        | {"sfr": (found.cosine >= run.sfr.threshold).mean(), "mean_cosine": found.cosine.mean()}
        for (a, b), found in matchings.items()
    ]
    tables = {
        "tuned_models": pd.DataFrame(of_model),
        "tuned_fidelity": pd.DataFrame(fidelity),
        "tuned_fidelity_rows": pd.concat(by_row, ignore_index=True),
        "tuned_ffr": pd.DataFrame(fakes),
        "tuned_pairs": pd.DataFrame(pairs),
    }
    for name, table in tables.items():
        write_rows(run, name, table)
    return tables


def _which(name, suffix=""):
    """Columns that tell SAEs apart."""
    return {f"{k}{suffix}": v for k, v in zip(("model", "text", "seed"), name, strict=True)}


STAGE = TunedModelStudy()
