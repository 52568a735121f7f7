"""How long the stages of a run take, from a few seconds of each kind of their work on the device
that will do it.

What is timed is the code that runs later, on the run's language model; where its weights are not on
this machine, on one of the same sizes with random weights, which does the same arithmetic. Not in
the estimate: downloading and tokenising, starting notebooks, figures, matching (03; seconds for a
pair) and the logistic regressions of 06.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from faithful_sae.engine.progress import title
from faithful_sae.lm.architectures import weights
from faithful_sae.lm.model import LanguageModel
from faithful_sae.runs.registry import model_stages, profile_stage, writer
from faithful_sae.runs.schema import Run
from faithful_sae.runs.stage import Stage
from faithful_sae.sae.activations import token_activations
from faithful_sae.sae.in_context import InContext
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.train import train_saes
from faithful_sae.stages.model import model_shape, open_model, unloaded_model
from faithful_sae.stages.training import variant_of
from faithful_sae.text import hub

# a kind of work is timed for so many seconds, and for so many steps at least
SECONDS = 2.0
STEPS = 3
SHORT = 0.5  # as SECONDS, for what is quick, and for each size of SAE beyond the first
PROBE_SHARE = 0.5  # of the free memory, that the model may take
START = 10.0  # of a notebook, and of its figures
SITE = 30.0  # all pages


@dataclass(frozen=True)
class Estimate:
    """Attributes:
    seconds: {name of a stage: estimated wall time}.
    how: which model and device it was measured on.
    """

    seconds: dict[str, float]
    how: str


def estimate(
    run: Run,
    progress: Callable[[str], Any] = lambda what: None,
    studies: Collection[str] | None = None,
) -> Estimate:
    """Measure, and count: for the run's `device`, which must be there, with room for the largest
    stage.

    Args:
        progress: called with what is measured next.
        studies: that are estimated, too; None: all.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bars of what is measured
            return _estimate(run, progress, studies)
    finally:
        torch.set_num_threads(threads)


def job_seconds(
    runs: Iterable[Run], apart: bool = True, studies: Collection[str] = ()
) -> dict[str, float]:
    """{job: seconds} of `make paper`, while others of its jobs are at work: nothing of a run on a
    GPU, which these may fill, or whose model takes too much of the memory that is free.

    Args:
        apart: whether the SAEs of each corpus are trained by a job of its own, or by 02.
        studies: that are made, too.
    """
    training = writer("saes").name
    found = {profile_stage().name: START, "site": SITE}
    for run in map(on_this_machine, runs):
        if run.device == "cuda" or weights(model_shape(run)) > PROBE_SHARE * free_memory(run):
            continue
        seconds = estimate(run, studies=studies).seconds
        corpora = run.sae.train_on if run.sae and apart else ()
        # 02 gathers what they have trained
        trained = seconds.pop(training, 0.0) if corpora else 0.0
        for name in corpora:
            found[title("train_corpus", run.name, name)] = START + trained / len(corpora)
        for stage in _timed(run, studies):
            found[title(stage.name, run.name)] = START + seconds.get(stage.name, 0.0)
    return found


def free_memory(run: Run) -> int:
    """Bytes that are free where a run computes."""
    if run.device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def _timed(run: Run, studies: Collection[str] | None) -> list[Stage]:
    every = model_stages(run)
    return every if studies is None else [stage for stage in every if stage.asked_for(studies)]


def _estimate(
    run: Run, progress: Callable[[str], Any], studies: Collection[str] | None
) -> Estimate:
    progress("language model")
    lm, which = _language_model(run)
    rates = Rates(run, lm, progress)
    found = {stage.name: stage.seconds(run, rates) for stage in _timed(run, studies)}
    seconds = {name: time for name, time in found.items() if time is not None}
    threads = f"{run.threads} CPU thread{'s' if run.threads > 1 else ''}"
    return Estimate(seconds, f"{which}, {_name(lm.device)}, {threads}")


def _language_model(run: Run) -> tuple[LanguageModel, str]:
    """(the model, in words). Where it is random, its vocabulary is no tokenizer's: only its length
    is asked for.
    """
    device = torch.device("cuda" if run.device == "cuda" else "cpu")
    local = run.embedded or run.model_folder
    at = None if local else run.hub.commit("model", run.model_name, run.revision)
    if run.model_folder or (at and hub.has_weights(run.model_name, at)):
        return open_model(run), "the model itself"
    with device, torch.random.fork_rng():
        model: Any = unloaded_model(run)
    vocabulary = range(model.config.vocab_size)
    lm = LanguageModel(model.to(device).eval(), vocabulary, run.layer, 0, hook=run.hook)
    return lm, "a model of the same sizes with random weights"


def _name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


class Rates:
    """Seconds of each kind of work of one run, measured when a stage first asks for them.

    A stage that does a kind of work of its own measures it with `once` and `time_of`.
    """

    def __init__(self, run: Run, lm: LanguageModel, progress: Callable[[str], Any]) -> None:
        self.run = run
        self.lm = lm
        self.progress = progress
        self.known: dict[str, Any] = {}

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure()` returns the first time that it is asked for."""
        if name not in self.known:
            self.progress(name)
            self.known[name] = measure()
        return self.known[name]

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done. On one CPU thread, of CPU time:
        what others on the machine take of it is not counted.
        """
        device = self.lm.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        return time.process_time() if alone else time.perf_counter()

    def time_of(self, step: Callable[[], Any], seconds: float = SECONDS) -> float:
        """Time of one `step()`, the least of several: the first compiles and allocates, and some
        are disturbed.
        """
        times = []
        step()
        end = time.perf_counter() + seconds
        while len(times) < STEPS or time.perf_counter() < end:
            start = self.now()
            step()
            times.append(self.now() - start)
        return min(times)

    def ids(self, rows: int) -> torch.Tensor:
        """Random token rows, int64 [rows, sequence_length]."""
        shape = (rows, self.run.sequence_length)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.lm.vocab_size, shape, generator=generator)

    def sae(self, seed: int = 0) -> TopKSAE:
        """An SAE as the run has them, with random weights."""
        s = self.run.sae
        return TopKSAE(self.lm.d_model, s.d_sae, s.k, seed, self.lm.device)

    def read_token(self) -> float:
        """Of one token through the blocks before the hook."""
        s = self.run.sae
        ids = self.ids(s.lm_batch_rows)

        def step():
            token_activations(self.lm, ids, s.include_bos)

        return self.once("activations", lambda: self.time_of(step) / ids.numel())

    def sae_step(self, d_sae: int, k: int, n_tokens: int, variant: Any = None) -> float:
        """Of one optimiser step of an SAE of a size, from the first steps of a training.

        Args:
            variant: its section; None: that of the run's `sae`.
        """
        s = self.run.sae if variant is None else self.run.sae.changed(variant=variant)
        lm = self.lm
        kind = "SAE of"
        seconds = SHORT if any(name.startswith(kind) for name in self.known) else SECONDS

        def measure():
            ids = self.ids(math.ceil(s.batch_tokens / (self.run.sequence_length - 1)))
            x = token_activations(lm, ids, True)[: s.batch_tokens]
            times: list[float] = []
            made = variant_of(s, k)
            # before are batches that are read ahead, and the steps on them
            first = made.beginning + 1

            # which all SAEs of a batch share
            rows = ids[: s.batch_tokens // self.run.sequence_length]
            whole = InContext(lm, rows) if made.in_context else None

            def batches(end: float) -> Iterator[Any]:
                last = None
                while len(times) < first + STEPS or time.perf_counter() < end:
                    if whole:
                        yield whole
                    else:
                        # dimensions change places, so that k-means finds no token twice
                        yield x.roll(len(times), -1)
                    now = self.now()
                    times.append(now - (last or now))
                    last = now

            stream = batches(time.perf_counter() + seconds)
            sizes = (lm.d_model, d_sae, made, [0])
            train_saes(stream, *sizes, s.lr, n_tokens, s.batch_tokens, s.recipe, lm.device)
            return min(times[first:])

        called = "" if variant is None else f", {s.variant.name}"
        return self.once(f"{kind} {d_sae} latents, k = {k}{called}", measure)

    def encode_token(self) -> float:
        """Of one token in one SAE: its latents, as 04 counts them."""
        sae = self.sae()

        def measure():
            rows = max(2048 // self.run.sequence_length, 1)
            x = token_activations(self.lm, self.ids(rows), True)
            return self.time_of(lambda: sae.encode_topk(x), SHORT) / len(x)

        return self.once("latents", measure)


def on_this_machine(run: Run) -> Run:
    """The run with `device: auto` as it is here."""
    if run.device != "auto":
        return run
    return run.changed(device="cuda" if torch.cuda.is_available() else "cpu")
