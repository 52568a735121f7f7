"""The workflow's steps beside notebooks: the SAEs of one corpus, and shares of long work for
several processes at once.

The faithful text is cut into shards, the kept activations of a corpus into groups of rows, and each
is what it is whoever computes it. So workers change no byte: 01 joins the shards and samples what
is missing, 02 reads the groups and computes what is missing. A worker that was killed goes on where
it was.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any, TextIO

from faithful_sae.engine.progress import BAR, NOTE, Progress, title
from faithful_sae.files import atomic_path, locked, read_json
from faithful_sae.runs.rows import open_run
from faithful_sae.runs.schema import Run
from faithful_sae.stages.corpus import corpus, sample_share
from faithful_sae.stages.model import open_model, train_embedded_model
from faithful_sae.stages.s02_train_sae import sae_artefact, text_of
from faithful_sae.stages.training import (
    activation_stream,
    baseline_saes,
    corpus_is_trained,
    corpus_saes,
)


class _Lines:
    """A stream that hands progress bars and notes on as lines of a step, and the rest as it is."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self.progress = progress
        self.stream = stream

    def write(self, text: str) -> int:
        if BAR.search(text) or NOTE.search(text):
            self.progress(text)
        elif text.strip():
            self.stream.write(text if text.endswith("\n") else f"{text}\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def _told(*words: str) -> Any:
    """Tell of a step in lines that begin with its title."""
    progress = Progress(title(*words), sys.stdout)
    with (
        contextlib.redirect_stdout(_Lines(progress, sys.stdout)),
        contextlib.redirect_stderr(_Lines(progress, sys.stderr)),
    ):
        yield


def train_corpus(params: Path, name: str, output: Path) -> None:
    """Train, or read, the SAEs of one corpus, and make the baselines if they are made on it;
    notebook 02 then finds them and gathers all.

    Args:
        output: a file that is written at the end, with the hash of what was trained.
    """
    with locked(output.with_suffix(".lock")), _told("train_corpus", params.stem, name):
        run = open_run(params)
        lm = open_model(run)
        corpus_saes(run, name, lm)
        if run.sae.baselines == name:
            baseline_saes(run, lm)
        made = dict.fromkeys(
            sae_artefact(run, called) for called in run.sae_names if text_of(run, called) == name
        )
        records = [read_json(folder / "provenance.json") for folder in made]
        with atomic_path(output) as tmp:
            tmp.write_text("".join(f"{record['content']}\n" for record in records), "utf-8")


def compute_share(what: str, params: Path, worker: int, of: int, output: Path) -> None:
    """Compute one share of a run's text, or of the kept activations of a corpus.

    Args:
        what: text, or the name of a corpus in sae.train_on after `activations:`.
        worker: number of this share, from 0; of: how many there are.
        output: an empty file that is written at the end.
    """
    kind, _, name = what.partition(":")
    with _told(f"share_of_{kind}", params.stem, *([name] if name else []), str(worker)):
        run = open_run(params)
        if what == "text":  # an embedded model is trained first, by one of the workers
            train_embedded_model(run)
            sample_share(run, open_model(run), worker, of)
        else:
            keep_activations(run, name, worker, of)
    output.touch()


def keep_activations(run: Run, name: str, worker: int, of: int) -> None:
    """Compute a share of the activations of a corpus for sae.cache_activations, unless its SAEs are
    trained already.
    """
    lm = open_model(run)
    rows = corpus(run, name, lm)
    # old activations are removed by one of them
    with locked(run.artifacts / f".activations-{name}.lock"):
        stream = activation_stream(run, name, rows, lm, n_tokens=0)
    if not corpus_is_trained(run, name):
        stream.keep(range(worker, stream.groups, of))
