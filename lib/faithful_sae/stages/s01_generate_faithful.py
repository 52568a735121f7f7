"""01: the run's language model, trained here when it is embedded, and text that it writes."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from faithful_sae.lm.architectures import Shape, sampling_bytes, weights
from faithful_sae.runs.keys import settings
from faithful_sae.runs.schema import Count, Model, Need, Positive, Run, Section, Seed, key
from faithful_sae.runs.stage import MODEL, Artefact, Memory, Rates, Stage

SAMPLING_SHARE = 0.9  # of the free memory may go to rows: the rest is for what a step computes


class Embedded(Section):
    """A language model trained on the spot on documentation of installed packages.

    Given exactly with `model: embedded`.
    """

    corpus: str = key("name of the corpus it is trained on")
    architecture: Literal["gpt_neox", "llama"] = key("Pythia's or Llama's")
    # all bytes and BOS
    vocab_size: int = key("tokens of its byte-level BPE, trained on the same text", ge=257)
    d_model: Count = key("width of the residual stream")
    d_mlp: Count = key("width of the MLPs")
    n_layers: Count = key("blocks")
    n_heads: Count = key("attention heads")
    context: Count = key("longest row", unit="tokens")
    train_tokens: Count = key("distinct tokens read from the corpus", unit="tokens")
    steps: Count = key("optimiser steps")
    batch_rows: Count = key("rows of `context` tokens per step")
    lr: Positive = key("peak learning rate")
    warmup_steps: Count = key("steps over which it rises")
    weight_decay: float = key("of the matrices", ge=0)
    seed: Seed = key("of weights and order of the rows", 0)

    def check(self, run: Run, need: Need) -> None:
        why = f"= {self.warmup_steps} must be below embedded.steps = {self.steps}"
        need(self.warmup_steps < self.steps, "embedded.warmup_steps", why)
        why = f"= {self.d_model} must be a multiple of embedded.n_heads = {self.n_heads}"
        need(self.d_model % self.n_heads == 0, "embedded.d_model", why)
        given = self.corpus in run.corpora and run.corpora[self.corpus].faithful is None
        why = f"= {self.corpus!r} must name a corpus under `corpora` that is not itself generated"
        need(given, "embedded.corpus", why)


class Generate(Section):
    """The faithful dataset, sampled from the language model itself."""

    tokens: Count = key("sampled, BOS not counted", unit="tokens", paper="3.1")
    max_new_tokens: Count = key("a document ends here, or where the model ends it")
    batch_rows: Count = key("documents sampled side by side")
    temperature: Positive = key("1: the model's own distribution", 1.0, paper="3.1, 5.4")
    top_p: float = key("1: the paper's plain sampling", 1.0, gt=0, le=1, paper="3.1")
    first_token: Literal["bos", "flat"] = key(
        "bos: sampled after BOS (or `start`); flat: uniform over the vocabulary",
        "bos",
        paper="3.1, 5.4",
    )
    start: str | None = key(
        "what a document is sampled after. null: BOS, or EOS where the tokenizer has none; bos: "
        "BOS, which it must have; chat: a turn of its chat template with an empty question; any "
        'other text, such as "<|endoftext|>": its tokens',
        None,
        later=True,
    )
    shard_tokens: Count = key("per file; an interrupted run loses at most one", 1_000_000)
    seed: Seed = key("of the samples", 0)

    def check(self, run: Run, need: Need) -> None:
        check_start(run, need, "generate.start", self.start)

    def check_model(self, run: Run, model: Model, need: Need) -> None:
        beside = ": BOS takes one position"
        model.fits(need, "generate.max_new_tokens", self.max_new_tokens, beside)


def check_start(run: Run, need: Need, at: str, start: str | None) -> None:
    """Note what documents cannot be sampled after."""
    why = "= 'flat' is no start but a first token: write first_token: flat, after any start"
    need(start != "flat", at, why)
    why = "= 'chat': the embedded model has no chat template"
    need(start != "chat" or not run.embedded, at, why)


class GenerateFaithful(Stage):
    sections = {"embedded": Embedded, "generate": Generate}
    optional = ("embedded",)
    with_saes = False
    paper = True
    rows = ("dataset", "first_token")
    embedded_rows = ("language_model",)
    parameters = (*MODEL, "heldout")
    hours = "generate"
    lower = "generate.batch_rows"

    def wanted(self, run: Run) -> bool:
        return True

    def corpora(self, run: Run) -> tuple[str, ...]:
        return (run.embedded.corpus,) if run.embedded else ()

    def files(self, run: Run) -> Iterable[Path]:
        folder = run.model_folder
        return sorted(file for file in folder.iterdir() if file.is_file()) if folder else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        dataset = run.artifacts / "rows" / "dataset.csv"
        yield Artefact(run.artifacts / "faithful", settings(run, TEXT), dataset)
        if run.embedded:
            yield Artefact(run.artifacts / "lm", settings(run, LANGUAGE_MODEL), dataset)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.lm.embedded import language_model_training_bytes

        g = run.generate
        trained = language_model_training_bytes(run.embedded, shape) if run.embedded else 0
        rows = sampling_bytes(shape, g.batch_rows, g.max_new_tokens) / SAMPLING_SHARE
        return Memory(max(weights(shape) + math.ceil(rows), trained), 8 * g.shard_tokens)

    def disk(self, run: Run, shape: Shape) -> int:
        # itself, and a checkpoint with three numbers a weight
        model = 4 * weights(shape) if run.embedded else 0
        return text_disk(run.generate) + model

    def tokens(self, run: Run) -> int:
        e = run.embedded
        return run.generate.tokens + (e.steps * e.batch_rows * e.context if e else 0)

    def seconds(self, run: Run, rates: Rates) -> float:
        """As many full steps as give the tokens, and after each shard half of a document's length
        while its last ones end.
        """
        from faithful_sae.lm.embedded import EVALUATIONS

        total = self.sampling_seconds(run, rates)
        if e := run.embedded:
            kind = "training of the language model"
            step, evaluated = rates.once(kind, lambda: self._training_step(run, rates))
            heldout = e.train_tokens / (1 - run.heldout) - e.train_tokens
            total += e.steps * step + EVALUATIONS * heldout * evaluated
        return total

    def sampling_seconds(self, run: Run, rates: Rates) -> float:
        """Of a dataset alone."""
        g = run.generate
        shards = math.ceil(g.tokens / g.shard_tokens)
        steps = g.tokens / g.batch_rows + shards * g.max_new_tokens / 2
        return steps * rates.once("sampling", lambda: self._sampling_step(run, rates))

    def _sampling_step(self, run, rates):
        """Seconds of one token for each row, the rows anywhere between their first token and their
        last, as they are after a while; with transformers' own cache, which begins empty, of rows
        that are still short.
        """
        import torch

        from faithful_sae.lm.decoding import open_decoder
        from faithful_sae.lm.sampling import draw_tokens, next_token_probabilities

        g = run.generate
        lm = rates.lm
        slots = torch.arange(g.batch_rows)
        generator = torch.Generator(lm.device).manual_seed(0)
        ids = torch.full((g.batch_rows,), lm.bos_id)
        open_rows = open_decoder(lm.model, g.batch_rows, g.max_new_tokens)
        with torch.inference_mode(), open_rows as decoder:

            def step():
                decoder.lengths = torch.linspace(0, g.max_new_tokens - 1, g.batch_rows).long()
                logits = decoder.step(ids, slots)[:, : lm.vocab_size].float()
                p = next_token_probabilities(logits, g.temperature, g.top_p)
                draw_tokens(p, generator).cpu()

            return rates.time_of(step)

    def _training_step(self, run: Run, rates: Rates) -> tuple[float, float]:
        """Seconds of one optimiser step of the embedded model, and of one held-out token."""
        import torch

        from faithful_sae.lm import embedded

        e = run.embedded
        model = embedded.initialise(e, 0).train()
        optimisers = embedded.optimisers(model, e)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(e.vocab_size, (e.batch_rows, e.context), generator=generator)

        def step():
            embedded.cross_entropy(model, rows).backward()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()

        evaluated = rates.time_of(lambda: embedded.evaluate(model, rows, e.batch_rows))
        return rates.time_of(step), evaluated / rows.numel()


# what an embedded language model depends on, and what text that a model writes does beside it
LANGUAGE_MODEL = ("embedded", "heldout", "threads", "dtype")
TEXT = ("generate", "threads", "device")


def text_disk(generate: Generate) -> int:
    """The faithful dataset: 4 bytes a token. Documents that were begun are finished, so a shard may
    be longer than asked for.
    """
    shards = math.ceil(generate.tokens / generate.shard_tokens)
    return 4 * (generate.tokens + shards * generate.batch_rows * generate.max_new_tokens)


STAGE = GenerateFaithful()
