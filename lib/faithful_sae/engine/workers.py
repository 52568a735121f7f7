"""Shares of the long work, for several processes at once: `python -m faithful_sae.stages.workers
text PARAMS 0/4 OUTPUT`.

The faithful text is cut into shards, the kept activations of a corpus into groups of rows, and each
is what it is whoever computes it. So workers change no byte: 01 joins the shards and samples what
is missing, 02 reads the groups and computes what is missing. A worker that was killed goes on where
it was.
"""

import argparse
from pathlib import Path

from faithful_sae.files import is_current, locked
from faithful_sae.runs.rows import open_run
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.faithful import faithful_key, sample_text
from faithful_sae.stages.model import open_model, train_embedded_model
from faithful_sae.stages.saes import sae_settings
from faithful_sae.stages.training import activation_stream, training_key


def sample_text(run, worker, of):
    """Sample a share of the faithful dataset; an embedded model is trained first, by one of the
    workers.
    """
    train_embedded_model(run)
    if not is_current(run.artifacts / "faithful", faithful_key(run)):
        sample_text(run, open_model(run), worker, of)


def keep_activations(run, name, worker, of):
    """Compute a share of the activations of a corpus for sae.cache_activations, unless its SAEs are
    trained already.
    """
    lm = open_model(run)
    rows = corpus(run, name, lm)
    with locked(
        run.artifacts / f".activations-{name}.lock"
    ):  # old activations are removed by one of them
        stream = activation_stream(run, name, rows, lm, n_tokens=0)
    if not is_current(
        run.artifacts / "saes" / name, training_key(run, sae_settings(run, name), rows.key)
    ):
        stream.keep(range(worker, stream.groups, of))


def main():
    parser = argparse.ArgumentParser(
        description="Compute one share of a run's text, or of the kept activations of a corpus."
    )
    parser.add_argument(
        "what", help="text, or the name of a corpus in sae.train_on after `activations:`"
    )
    parser.add_argument("params", help="the run's parameter file")
    parser.add_argument("share", help="number of this worker, from 0, and of how many: 0/4")
    parser.add_argument("output", type=Path, help="an empty file that is written at the end")
    args = parser.parse_args()
    run, (worker, of), (what, _, name) = (
        open_run(args.params),
        map(int, args.share.split("/")),
        args.what.partition(":"),
    )
    print(f"  ▸ {args.what} · {run.name} · share {args.share}", flush=True)
    if what == "text":
        sample_text(run, worker, of)
    else:
        keep_activations(run, name, worker, of)
    args.output.touch()
    print(f"  ✓ {args.what} · {run.name} · share {args.share}", flush=True)


if __name__ == "__main__":
    main()
