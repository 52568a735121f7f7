"""How long the stages of a run take, from a few seconds of each kind of their work on the device
that will do it.

What is timed is the code that runs later, on the run's language model; where its weights are not on
this machine, on one of the same sizes with random weights, which does the same arithmetic. Not in
the estimate: downloading and tokenising, starting notebooks, figures, matching (03; seconds for a
pair) and the logistic regressions of 06.
"""

import contextlib
import dataclasses
import io
import math
import time
from dataclasses import dataclass

import torch

from faithful_sae.lm import embedded
from faithful_sae.lm.decoding import Decoder
from faithful_sae.lm.model import LanguageModel
from faithful_sae.lm.sampling import draw_tokens, next_token_probabilities
from faithful_sae.metrics.fidelity import fidelity_of_all
from faithful_sae.runs import needs
from faithful_sae.runs.schema import model_stages
from faithful_sae.sae.activations import token_activations
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.train import train_saes
from faithful_sae.stages.model import model_commit, open_model, unloaded_model
from faithful_sae.text import hub

SECONDS, STEPS = 2.0, 3  # a kind of work is timed for so long, and for so many steps at least
SHORT = 0.5  # as SECONDS, for each size of SAE beyond the first


@dataclass(frozen=True)
class Estimate:
    """`seconds`: {stage: estimated wall time}. `how`: which model and device it was measured on."""

    seconds: dict[str, float]
    how: str


def estimate(run, progress=lambda what: None) -> Estimate:
    """Measure, and count: for the run's `device`, which must be there, with room for the largest
    stage.

    Args:
        progress: called with what is measured next.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bars of what is measured
            return _estimate(run, progress)
    finally:
        torch.set_num_threads(threads)


def _estimate(run, progress):
    progress("language model")
    lm, which = _language_model(run)
    rates = _Rates(run, lm, progress)
    return Estimate(
        {
            stage: getattr(rates, f"stage_{stage}")()
            for stage in model_stages(run)
            if hasattr(rates, f"stage_{stage}")
        },
        f"{which}, {_name(lm.device)}, {run.threads} CPU thread{'s' if run.threads > 1 else ''}",
    )


def _language_model(run):
    """(LanguageModel, in words). Where it is random, its vocabulary is no tokenizer's: only its
    length is asked for.
    """
    device = torch.device("cuda" if run.device == "cuda" else "cpu")
    at = model_commit(run)
    if run.model_folder or (at and hub.has_weights(run.model, at)):
        return open_model(run), "the model itself"
    with device, torch.random.fork_rng():
        model = unloaded_model(run)
    return LanguageModel(
        model.to(device).eval(), range(model.config.vocab_size), run.layer, 0
    ), "a model of the same sizes with random weights"


def _name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _now(device) -> float:
    """Seconds, when all that was asked of the device is done. On one CPU thread, of CPU time: what
    others on the machine take of it is not counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (
        time.process_time()
        if device.type == "cpu" and torch.get_num_threads() == 1
        else time.perf_counter()
    )


def _seconds(step, device, seconds=SECONDS):
    """Time of one `step()`, the least of several: the first compiles and allocates, and some are
    disturbed.
    """

    def timed():
        start = _now(device)
        step()
        return _now(device) - start

    timed()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < STEPS or time.perf_counter() < end:
        times.append(timed())
    return min(times)


class _Rates:
    """Seconds of each kind of work of one run, measured when a stage first asks for them."""

    def __init__(self, run, lm, progress):
        self.run = run
        self.lm = lm
        self.progress = progress
        self.known = {}
        self.shape = lm.shape

    def _once(self, name, measure):
        if name not in self.known:
            self.progress(name)
            self.known[name] = measure()
        return self.known[name]

    def _ids(self, rows):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(
            self.lm.vocab_size, (rows, self.run.sequence_length), generator=generator
        )

    # --- kinds of work ---

    def sampling_step(self):
        """Of one token for each row, the rows anywhere between their first token and their last, as
        they are after a while.
        """
        g = self.run.generate
        lm = self.lm
        slots = torch.arange(g.batch_rows)
        generator = torch.Generator(lm.device).manual_seed(0)
        ids = torch.full((g.batch_rows,), lm.bos_id)

        @torch.inference_mode()
        def measure():
            with Decoder(lm.model, g.batch_rows, g.max_new_tokens) as decoder:

                def step():
                    decoder.lengths = torch.linspace(0, g.max_new_tokens - 1, g.batch_rows).long()
                    logits = decoder.step(ids, slots)[:, : lm.vocab_size].float()
                    draw_tokens(
                        next_token_probabilities(logits, g.temperature, g.top_p), generator
                    ).cpu()

                return _seconds(step, lm.device)

        return self._once("sampling", measure)

    def read_token(self):
        """Of one token through the blocks before the hook."""
        ids = self._ids(self.run.sae.lm_batch_rows)
        return self._once(
            "activations",
            lambda: (
                _seconds(
                    lambda: token_activations(self.lm, ids, self.run.sae.include_bos),
                    self.lm.device,
                )
                / ids.numel()
            ),
        )

    def sae_step(self, d_sae, k, n_tokens):
        """Of one optimiser step of an SAE of a size, from the first steps of a training."""
        s = self.run.sae
        lm = self.lm

        def measure():
            ids = self._ids(math.ceil(s.batch_tokens / (self.run.sequence_length - 1)))
            x = token_activations(lm, ids, True)[: s.batch_tokens]
            times = []

            def batches(end):
                last = None
                while len(times) < STEPS + 2 or time.perf_counter() < end:
                    yield x
                    now = _now(lm.device)
                    times.append(now - (last or now))
                    last = now

            train_saes(
                batches(
                    time.perf_counter()
                    + (SHORT if any(isinstance(name, tuple) for name in self.known) else SECONDS)
                ),
                lm.d_model,
                d_sae,
                k,
                [0],
                s.lr,
                n_tokens,
                s.batch_tokens,
                s.recipe,
                lm.device,
            )
            return min(times[2:])

        if ("SAE", d_sae, k) not in self.known:
            self.progress(f"SAE of {d_sae} latents, k = {k}")
            self.known["SAE", d_sae, k] = measure()
        return self.known["SAE", d_sae, k]

    def encode_token(self, dense):
        """Of one token in one SAE: its latents as 04 counts them, or (dense) as 06 averages them,
        with the reconstruction.
        """
        s = self.run.sae
        lm = self.lm
        sae = TopKSAE(lm.d_model, s.d_sae, s.k, 0, lm.device)

        def measure():
            x = token_activations(lm, self._ids(max(2048 // self.run.sequence_length, 1)), True)
            return _seconds(
                (lambda: sae.decode(sae.encode(x))) if dense else (lambda: sae.encode_topk(x)),
                lm.device,
                SHORT,
            ) / len(x)

        return self._once("dense latents" if dense else "latents", measure)

    def fidelity_pass(self):
        """Of one batch of rows once through the model with a reconstruction in place; that is most
        of what 05 does.
        """
        s = self.run.sae
        f = self.run.fidelity
        lm = self.lm
        saes = {i: TopKSAE(lm.d_model, s.d_sae, s.k, i, lm.device) for i in range(2)}
        ids = self._ids(f.batch_rows).numpy()

        def measure():
            one, two = (
                _seconds(
                    lambda: fidelity_of_all(
                        {i: saes[i] for i in range(n)}, lm, ids, f.batch_rows, (True,)
                    ),
                    lm.device,
                    SHORT,
                )
                for n in (1, 2)
            )
            return max(two - one, one / 10), one

        return self._once("fidelity", measure)

    def language_model_step(self):
        """Of one optimiser step of the embedded model, and of one held-out token."""
        e = self.run.embedded
        lm = self.lm

        def measure():
            model = embedded.initialise(e, 0).train()
            optimisers = embedded.optimisers(model, e)
            rows = torch.randint(
                e.vocab_size, (e.batch_rows, e.context), generator=torch.Generator().manual_seed(0)
            )

            def step():
                embedded.cross_entropy(model, rows).backward()
                for optimiser in optimisers:
                    optimiser.step()
                    optimiser.zero_grad()

            return _seconds(step, lm.device), _seconds(
                lambda: embedded.evaluate(model, rows, e.batch_rows), lm.device, SHORT
            ) / rows.numel()

        return self._once("training of the language model", measure)

    # --- what a stage does of them ---

    def stage_01_generate_faithful(self):
        """As many full steps as give the tokens, and after each shard half of a document's length
        while its last ones end.
        """
        g = self.run.generate
        e = self.run.embedded
        total = 0.0
        if e:
            step, evaluated = self.language_model_step()
            heldout = e.train_tokens / (1 - self.run.heldout) - e.train_tokens
            total += e.steps * step + embedded.EVALUATIONS * heldout * evaluated
        steps = (
            g.tokens / g.batch_rows + math.ceil(g.tokens / g.shard_tokens) * g.max_new_tokens / 2
        )
        return total + steps * self.sampling_step()

    def stage_02_train_sae(self):
        """Of each corpus: the tokens read, and a step of every SAE for each batch."""
        s = self.run.sae
        run = self.run
        n_tokens = needs.budget(run, s.tokens)
        steps = (
            (len(s.train_on) - len(run.published))
            * len(s.seeds)
            * math.ceil(n_tokens / s.batch_tokens)
        )
        return needs.tokens(run, "02_train_sae") * self.read_token() + steps * self.sae_step(
            s.d_sae, s.k, n_tokens
        )

    def stage_04_ffr(self):
        s = self.run.sae
        return self.run.ffr.tokens * (
            self.read_token() + len(s.train_on) * len(s.seeds) * self.encode_token(dense=False)
        )

    def stage_05_fidelity_matrix(self):
        """Of each corpus: batches with one SAE, and a pass more for each other SAE, with BOS and
        without.
        """
        f = self.run.fidelity
        s = self.run.sae
        more, one = self.fidelity_pass()
        batches = len(f.corpora) * math.ceil(f.rows / f.batch_rows)
        return batches * 2 * (one + (len(s.train_on) * len(s.seeds) - 1) * more)

    def stage_06_probing(self):
        """Of texts as long as they may be."""
        s = self.run.sae
        per_token = self.read_token() + len(s.train_on) * len(s.seeds) * self.encode_token(
            dense=True
        )
        return needs.tokens(self.run, "06_probing") * per_token

    def stage_08_seed_dependence(self):
        """As 02, layer by layer; the time to a layer is the share of the blocks before it."""
        s = self.run.sae
        run = self.run
        total = 0.0
        for layer, wanted in needs.study(run).items():
            most = max(entry["tokens"] for entry in wanted)
            total += needs.read(run, most) * self.read_token() * (layer + 1) / (run.layer + 1)
            total += sum(
                math.ceil(entry["tokens"] / s.batch_tokens)
                * self.sae_step(entry["d_sae"], entry["k"], entry["tokens"])
                for entry in wanted
            )
        return total

    def stage_09_explore_features(self):
        """The tokens of each index; PruningMaxAct and steering are some more, which depend on what
        the latents are.
        """
        return needs.tokens(self.run, "09_explore_features") * (
            self.read_token() + self.encode_token(dense=False)
        )


def on_this_machine(run):
    """The run with `device: auto` as it is here."""
    return (
        dataclasses.replace(run, device="cuda" if torch.cuda.is_available() else "cpu")
        if run.device == "auto"
        else run
    )
