"""18: how faithful text should be made: other ways of sampling, and other amounts of it."""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from faithful_sae.lm.architectures import Shape, sampling_bytes, weights
from faithful_sae.runs.keys import Fingerprint, settings
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import (
    Count,
    Floats,
    Ints,
    Model,
    Need,
    Positive,
    Run,
    Section,
    check_name,
    key,
)
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, SAEs, Stage
from faithful_sae.stages.budget import (
    group_bytes,
    kept_bytes,
    random_tokens_bytes,
    reading_bytes,
    saving_bytes,
    scoring_bytes,
    train_tokens,
)
from faithful_sae.stages.s01_generate_faithful import SAMPLING_SHARE, check_start, text_disk
from faithful_sae.stages.s01_generate_faithful import STAGE as GENERATE
from faithful_sae.stages.s02_train_sae import TRAINED, check_corpora, check_seeds
from faithful_sae.stages.s06_probing import reconstruction_probes, task_documentation, task_files

# the run's own text, as notebook 01 samples it, in tables
PLAIN = "plain"
# n of the n-grams that are counted
NGRAMS = (1, 2, 3, 4)


class Snippets(Section):
    """Beginnings of rows of a corpus, after which documents are sampled, each after another one."""

    corpus: str = key("of `corpora`: from its training rows")
    tokens: Count = key("of a snippet, which is no part of the document", 8, unit="tokens")


class Text(Section):
    """What a text is made with in place of what `generate` says; null: as there."""

    temperature: Positive | None = key("divides the logits", None)
    top_p: float | None = key("mass of the tokens that are sampled from", None, gt=0, le=1)
    first_token: Literal["bos", "flat"] | None = key("as generate.first_token", None)
    start: str | None = key("as generate.start", None)
    snippets: Snippets | None = key("documents begin after these, in place of `start`", None)


class TextChoice(Section):
    """SAEs of text that the model writes in several ways, and of less and more of its plain text,
    all trained on as many activations.
    """

    texts: dict[str, Text] = key("other ways of sampling, by names for tables", min_length=1)
    sampled: Count = key("of each text", unit="tokens")
    sizes: Floats = key("parts of `sampled`, or multiples, that plain text is cut to", ())
    seeds: Ints | None = key("those of sae.seeds that are trained; null: all", None)
    tokens: Count = key("activations each SAE is trained on, in as many passes as it takes")
    on: str = key(
        "of `corpora`: held-out text on which EV and CE are measured, none of the model's"
    )
    rows: Count = key("of its held-out rows", 64)
    task: str | None = key(
        "of probing.tasks: what reconstructions are probed for; null: none", None
    )
    probed: Count = key("its training texts, and as many to test on, at most", 500)

    def check(self, run: Run, need: Need) -> None:
        check_seeds(run, need, "text_choice.seeds", self.seeds)
        g = run.generate
        plain = g.temperature == g.top_p == 1 and g.first_token == "bos"
        why = "must be plain sampling, which others are compared with: temperature 1, top_p 1, bos"
        need(plain, "generate", why)
        for name, text in self.texts.items():
            at = f"text_choice.texts.{name}"
            check_name(need, "text_choice.texts", name)
            why = f"names {name!r}: that is what the text of notebook 01 is called here"
            need(name.partition("-")[0] != PLAIN, "text_choice.texts", why)
            self._check_text(run, need, at, text)
        once = len({*self.sizes, 1.0}) == len(self.sizes) + 1 and min(self.sizes, default=1) > 0
        why = f"= {list(self.sizes)} must be positive, each once; 1 is always there"
        need(once, "text_choice.sizes", why)
        most = max((*self.sizes, 1.0)) * self.sampled
        why = f"= {g.tokens}: text_choice takes {most:.0f} tokens of the run's own text"
        need(most <= g.tokens, "generate.tokens", why)
        if run.sae:
            why = f"= {self.tokens} must be at least sae.batch_tokens = {run.sae.batch_tokens}"
            need(self.tokens >= run.sae.batch_tokens, "text_choice.tokens", why)
        if check_corpora(run, need, "text_choice.on", (self.on,)):
            why = f"= {self.on!r} is text of a language model: name another corpus"
            need(run.corpora[self.on].faithful is None, "text_choice.on", why)
        known = ", ".join(run.tasks) or "none"
        why = f"= {self.task!r} is not one of probing.tasks ({known})"
        need(self.task is None or self.task in run.tasks, "text_choice.task", why)

    def _check_text(self, run: Run, need: Need, at: str, text: Text) -> None:
        given = {name for name in Text.model_fields if getattr(text, name) is not None}
        why = "says nothing: name what differs from `generate`; plain text is always there"
        need(given, at, why)
        alone = not text.snippets or not given & {"start", "first_token"}
        why = "has snippets, which decide start and first_token: leave these out"
        need(alone, at, why)
        check_start(run, need, f"{at}.start", text.start)
        if text.snippets:
            name = text.snippets.corpus
            if check_corpora(run, need, f"{at}.snippets.corpus", (name,)):
                why = f"= {name!r} is what text_choice.on measures: name another one"
                need(name != self.on, f"{at}.snippets.corpus", why)
            why = f"= {text.snippets.tokens}: rows have sequence_length = {run.sequence_length}"
            fits = text.snippets.tokens < run.sequence_length
            need(fits, f"{at}.snippets.tokens", why)

    def check_model(self, run: Run, model: Model, need: Need) -> None:
        for name, text in self.texts.items():
            if text.snippets:
                at = f"text_choice.texts.{name}.snippets.tokens"
                model.fits(need, at, text.snippets.tokens + 2, ": BOS and a token beside them")


# what the SAEs depend on beside the text and what is drawn
STUDIED = (*TRAINED, "-sae.seeds", "-sae.tokens", "-sae.max_epochs")


class TextStudy(Stage):
    sections = {"text_choice": TextChoice}
    optional = ("text_choice",)
    study = True
    answers = True
    rows = (
        "texts",
        "text_saes",
        "text_pairs",
        "text_fidelity",
        "text_fidelity_rows",
        "text_probes",
    )
    # for the model's own text, which 01 writes
    reads = ("dataset",)
    parameters = (
        *MODEL,
        *ROWS_OF_TEXT,
        *TRAINED,
        *("sfr.threshold", "ffr", "fidelity.batch_rows", "fidelity.ce_rows", "probing"),
    )
    hours = "train"
    lower = "generate.batch_rows, sae.buffer_tokens or text_choice.seeds"

    def wanted(self, run: Run) -> bool:
        return super().wanted(run) and len(seeds_of(run)) > 1

    def corpora(self, run: Run) -> tuple[str, ...]:
        t = run.text_choice
        if not t:
            return ()
        begun = (text.snippets.corpus for text in t.texts.values() if text.snippets)
        return tuple(dict.fromkeys((t.on, *begun)))

    def files(self, run: Run) -> Iterable[Path]:
        return task_files(run, _tasks(run))

    def documentation(self, run: Run) -> Iterable[tuple]:
        return task_documentation(run, _tasks(run))

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        rows = run.artifacts / "rows" / "text_pairs.csv"
        for name in shares(run):
            yield Artefact(folder(run, "saes", name), settings(run, STUDIED), rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_bytes

        s, g = run.sae, run.generate
        n = len(seeds_of(run))
        one = sae_bytes(shape.d_model, s.d_sae)
        training = sae_training_bytes(run, shape, n) + group_bytes(run, shape)
        saes = len(shares(run)) * n * one
        sampling = math.ceil(sampling_bytes(shape, g.batch_rows, g.max_new_tokens) / SAMPLING_SHARE)
        measuring = max(scoring_bytes(run, shape), random_tokens_bytes(run, shape))
        pooled = 0
        if run.text_choice.task:
            pooled = (
                2 * run.text_choice.probed * 4 * len(shares(run)) * n * (s.d_sae + shape.d_model)
            )
        work = max(sampling, saes + max(training, measuring))
        host = reading_bytes(run) + 4 * _different(run) + pooled
        return Memory(weights(shape) + work, host + saving_bytes(run, 3 * n * one))

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_disk

        t, n = run.text_choice, len(seeds_of(run))
        done = n * sae_bytes(shape.d_model, run.sae.d_sae)
        training = sae_training_disk(run, shape, n)
        texts = len(t.texts) * text_disk(run.generate.changed(tokens=t.sampled))
        kept = math.ceil(kept_bytes(run, shape) * _different(run) / train_tokens(run))
        return texts + kept + (len(shares(run)) - 1) * done + training

    def tokens(self, run: Run) -> int:
        t, f = run.text_choice, run.fidelity
        read = _different(run) if run.sae.cache_activations else len(shares(run)) * t.tokens
        scored = len(shares(run)) * f.ce_rows + t.rows
        return len(t.texts) * t.sampled + read + scored * run.sequence_length + run.ffr.tokens

    def seconds(self, run: Run, rates: Rates) -> float:
        """Sampling as in 01, reading, a step of every SAE for each batch, and what every SAE is
        measured on; running on from a reconstruction takes about as long as reading does.
        """
        t = run.text_choice
        one = run.changed(generate=run.generate.changed(tokens=t.sampled))
        sampled = len(t.texts) * GENERATE.sampling_seconds(one, rates)
        n_saes = len(shares(run)) * len(seeds_of(run))
        step = rates.sae_step(run.sae.d_sae, run.sae.k, t.tokens)
        trained = math.ceil(t.tokens / run.sae.batch_tokens) * step
        scored = t.rows * run.sequence_length
        probed = 2 * t.probed * run.probing.max_tokens if t.task else 0
        encoded = (run.ffr.tokens + scored + probed) * rates.encode_token()
        each = trained + scored * rates.read_token() + encoded
        return sampled + self.tokens(run) * rates.read_token() + n_saes * each


def _tasks(run):
    """Those that are probed: one or none."""
    return [run.text_choice.task] if run.text_choice.task else []


def _different(run):
    """Tokens of all texts, each counted once."""
    return math.ceil(sum(shares(run).values()) * run.text_choice.sampled)


def shares(run: Run) -> dict[str, float]:
    """What is compared: {name of a text: its tokens, as a multiple of `sampled`}; plain text of
    another size is called by its size, too.
    """
    t = run.text_choice
    sizes = {f"{PLAIN}-{share:g}": share for share in t.sizes}
    return {PLAIN: 1.0, **dict.fromkeys(t.texts, 1.0), **sizes}


def seeds_of(run: Run) -> tuple[int, ...]:
    """Those that are trained."""
    return run.text_choice.seeds or run.sae.seeds


def folder(run: Run, kind: str, name: str) -> Path:
    """The artefact of a text: `texts`, its tokens, or `saes`."""
    return run.artifacts / "text_choice" / kind / name


# --- texts ----------------------------------------------------------------------------------------


def make_texts(run: Run, lm: Any) -> dict[str, list[np.ndarray]]:
    """Sample every text, or reuse it, or take it from the run's own.

    Returns:
        {name: its documents (int32 ids without what they start after)}, of each text as many as
            hold its tokens.

    Raises:
        ModelError: a start that the model has not.
        MissingInputError: 01 has not sampled the run's own text.
    """
    from faithful_sae.lm.sampling import read_shards
    from faithful_sae.stages.corpus import read_shards as read_own

    t = run.text_choice
    found = {}
    for name, share in shares(run).items():
        documents = read_shards(_sampled(run, lm, name)) if name in t.texts else read_own(run)
        found[name] = _first(documents, share * t.sampled)
    return found


def _first(documents, tokens):
    """The first documents that hold so many tokens, or all."""
    taken, held = [], 0
    for ids in documents:
        if held >= tokens:
            break
        taken.append(ids)
        held += len(ids)
    return taken


def _sampled(run, lm, name):
    """The folder of a text that is sampled for this study."""
    from faithful_sae.stages.corpus import faithful_fingerprint, make_dataset, make_faithful

    text = run.text_choice.texts[name]
    varied = _varied(run, lm, name)
    place = folder(run, "texts", name)
    if text.snippets is None:
        return make_faithful(varied, lm, place)
    starts, rows_key = _snippets(run, lm, text.snippets)
    own = faithful_fingerprint(varied)
    parameters = own.parameters | settings(run, (f"text_choice.texts.{name}",))
    made = Fingerprint(parameters, own.inputs | {"tokens": rows_key}, ("lm/continuing",))
    return make_dataset(place, made, lm, lambda shards: _continued(varied, lm, starts, shards))


def _varied(run, lm, name):
    """The run with the section `generate` of a text. Documents are as long as the context lets them
    be behind what they start after.
    """
    from faithful_sae.lm.model import ModelError
    from faithful_sae.lm.sampling import start_ids

    t = run.text_choice
    text = t.texts[name]
    own = ("temperature", "top_p", "first_token", "start")
    given = {key: getattr(text, key) for key in own if getattr(text, key) is not None}
    g = run.generate.changed(tokens=t.sampled, **given)
    try:
        start = start_ids(lm.tokenizer, lm.bos_id, g.start, run.model_name)
    except ModelError as error:
        raise ModelError(f"{run.file}: text_choice.texts.{name}: {error}") from None
    before = 1 + text.snippets.tokens if text.snippets else len(start)
    length = min(g.max_new_tokens, lm.context - before)
    return run.changed(generate=g.changed(max_new_tokens=length))


def _snippets(run, lm, snippets):
    """(int32 [N, 1 + tokens], BOS and the beginnings of a corpus's training rows, in random order;
    the key of its rows). Those in which a document ends are left out.
    """
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.text.packing import is_content

    text = corpus(run, snippets.corpus, lm)
    starts = np.array(text.train[:, : 1 + snippets.tokens])
    starts = starts[is_content(starts[:, 1:], lm.bos_id).all(1)]
    return np.random.default_rng(run.generate.seed).permutation(starts), text.key


def _continued(run, lm, starts, shards):
    """Sample documents after snippets, the next ones in each batch, into one shard."""
    import torch
    from safetensors.numpy import save_file

    from faithful_sae.files import atomic_path
    from faithful_sae.lm.continuing import continue_each
    from faithful_sae.text.packing import joined

    g = run.generate
    generator = torch.Generator(lm.device).manual_seed(g.seed)
    documents: list[np.ndarray] = []
    while sum(map(len, documents)) < g.tokens:
        places = np.arange(len(documents), len(documents) + g.batch_rows)
        batch = starts.take(places, axis=0, mode="wrap")
        documents += continue_each(lm, batch, g.max_new_tokens, generator, g.temperature, g.top_p)
    with atomic_path(shards / "shard_00000.safetensors") as tmp:
        save_file(joined(documents), tmp)


def text_rows(run: Run, lm: Any, name: str, documents: list[np.ndarray]) -> Any:
    """A text as packed TokenRows, all to train on."""
    from faithful_sae.lm.sampling import end_ids
    from faithful_sae.stages.corpus import start_of
    from faithful_sae.text.packing import TokenRows, pack, without_end

    t = run.text_choice
    snippets = name in t.texts and t.texts[name].snippets
    begun = () if snippets else start_of(_varied(run, lm, name) if name in t.texts else run, lm)
    ended = without_end(documents, end_ids(lm.tokenizer, begun))
    size = round(shares(run)[name] * t.sampled)
    rows = pack(ended, lm.bos_id, run.sequence_length, size)
    return TokenRows(name, rows, rows[:0], hashlib.sha256(rows.tobytes()).hexdigest()[:16])


def measure_texts(run: Run, lm: Any, texts: dict[str, list[np.ndarray]]) -> pd.DataFrame:
    """What the texts of make_texts are like; writes and returns the rows `texts`, one per text:
    those of Table 1 (the first token against the model's distribution after the run's own start),
    the model's CE on packed rows in nats with its error over rows, distinct n-grams, near-copies.
    """
    from faithful_sae.metrics.coverage import dataset_statistics
    from faithful_sae.metrics.diversity import distinct_ngrams, repeated_documents
    from faithful_sae.metrics.fidelity import cross_entropy_of_rows
    from faithful_sae.metrics.uncertainty import bootstrap_error
    from faithful_sae.stages.corpus import start_of
    from faithful_sae.stages.model import pretraining_counts

    first = lm.next_distribution(start_of(run, lm))
    records = []
    for name, documents in texts.items():
        statistics, *_ = dataset_statistics(documents, first, pretraining_counts(run))
        rows = text_rows(run, lm, name, documents).train[: run.fidelity.ce_rows]
        sums, counts = cross_entropy_of_rows(lm, rows, run.fidelity.batch_rows, False)
        ce = {"ce": sums.sum() / counts.sum(), "ce_error": bootstrap_error(sums, counts)}
        distinct = {f"distinct_{n}": distinct_ngrams(documents, n) for n in NGRAMS}
        copies = repeated_documents(lm.tokenizer.batch_decode(documents))
        which = {"text": name, "share": shares(run)[name]}
        records.append({**which, **statistics, **ce, **distinct, "near_copies": copies})
    table = pd.DataFrame(records)
    write_rows(run, "texts", table)
    return table


# --- SAEs -----------------------------------------------------------------------------------------


def train_texts(run: Run, lm: Any, texts: dict[str, list[np.ndarray]]) -> SAEs:
    """Train (or reuse) the SAEs of every text of make_texts, {(name, seed): SAE}."""
    from faithful_sae.stages.training import trained_stream

    about = {"d_sae": run.sae.d_sae, "k": run.sae.k, "tokens": run.text_choice.tokens}
    wanted = [{"name": f"seed{seed}", "seed": seed, **about} for seed in seeds_of(run)]
    saes = {}
    for name, documents in texts.items():
        rows = text_rows(run, lm, name, documents)
        called, place = f"text_choice-{name}", folder(run, "saes", name)
        found = trained_stream(run, called, lm, rows, place, settings(run, STUDIED), wanted)
        for entry in wanted:
            saes[name, entry["seed"]] = found[entry["name"]].to(lm.device)
    return saes


def measure_saes(run: Run, lm: Any, saes: SAEs) -> dict[str, pd.DataFrame]:
    """Measure the SAEs of train_texts; writes and returns the rows

    text_saes           every SAE: FVU on its own text at the end of its training, FFR in percent
    text_pairs          every pair of seeds of a text: sfr, mean_cosine
    text_fidelity       every SAE on held-out rows of text_choice.on, without BOS, as 05's
    text_fidelity_rows  the same, summed over each token row
    text_probes         every SAE: what a probe of its reconstructions scores, and on which texts
    """
    from faithful_sae.matching import match_pairs
    from faithful_sae.metrics.ffr import fake_ratio, firing_frequency
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.s05_fidelity import as_rows
    from faithful_sae.stages.training import last_point

    t, f = run.text_choice, run.ffr
    options = (list(saes.values()), lm, f.tokens, run.sequence_length, f.seed, (f.activation,))
    firing = dict(zip(saes, firing_frequency(*options), strict=True))
    found, pairs = [], []
    for name in shares(run):
        curves = pd.read_csv(folder(run, "saes", name) / "training.csv")
        for seed in seeds_of(run):
            end = last_point(curves.loc[curves["name"] == f"seed{seed}"])
            ffr = fake_ratio(firing[name, seed][0], f.frequency)
            found.append({"text": name, "seed": seed, **end, "ffr": ffr})
        decoders = {seed: saes[name, seed].W_dec for seed in seeds_of(run)}
        for (a, b), matching in match_pairs(decoders).items():
            which = {"text": name, "seed_a": a, "seed_b": b}
            sfr = (matching.cosine >= run.sfr.threshold).mean()
            pairs.append({**which, "sfr": sfr, "mean_cosine": matching.cosine.mean()})
    rows = corpus(run, t.on, lm).heldout[: t.rows]
    title = f"fidelity on {t.on}"
    options = (run.fidelity.batch_rows, (False,), title, run.sae.max_norm)
    measured, sums = fidelity_of_all(saes, lm, rows, *options)
    where = {mode: {"text": mode[0][0], "seed": mode[0][1]} for mode in measured}
    fidelity, by_row = as_rows(measured, sums, where)
    tables = {
        "text_saes": pd.DataFrame(found),
        "text_pairs": pd.DataFrame(pairs),
        "text_fidelity": pd.DataFrame(fidelity),
        "text_fidelity_rows": pd.concat(by_row, ignore_index=True),
        "text_probes": _probes(run, lm, saes),
    }
    for name, table in tables.items():
        write_rows(run, name, table)
    return tables


def _probes(run, lm, saes):
    """Rows `text_probes`; empty where no task is asked for."""
    records = [
        {"text": name, "seed": seed, **scores}
        for task in _tasks(run)
        for (name, seed), scores in reconstruction_probes(
            run, saes, lm, task, run.text_choice.probed
        )
    ]
    return pd.DataFrame(records, columns=["text", "seed", "accuracy", "correct"])


STAGE = TextStudy()
