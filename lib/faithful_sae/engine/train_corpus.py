"""Train the SAEs of one corpus as a workflow step: `python -m faithful_sae.engine.train_corpus PARAMS
CORPUS OUTPUT`

OUTPUT is a file with the hash of what was trained; notebook 02 then finds the SAEs and gathers
those of all corpora.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

from faithful_sae.engine.notebook import Progress
from faithful_sae.files import atomic_path, locked
from faithful_sae.runs.rows import open_run
from faithful_sae.stages.model import open_model
from faithful_sae.stages.training import corpus_saes


class _Bars:
    """A stream that hands progress bars on as lines, and the rest as it is."""

    def __init__(self, progress, stream):
        self.progress = progress
        self.stream = stream

    def write(self, text):
        if "%|" in text:
            self.progress(text)
        elif text.strip():
            self.stream.write(text if text.endswith("\n") else f"{text}\n")
        return len(text)

    def flush(self):
        self.stream.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("params")
    parser.add_argument("corpus")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    start = time.time()
    title = f"02_train_sae · {args.corpus} · {Path(args.params).stem}"
    with (
        locked(args.output.with_suffix(".lock")),
        contextlib.redirect_stderr(_Bars(Progress(title), sys.stderr)),
    ):
        print(f"  ▸ {title}", flush=True)
        run = open_run(args.params)
        corpus_saes(run, args.corpus, open_model(run))
        record = json.loads(
            (run.artifacts / "saes" / args.corpus / "provenance.json").read_text(encoding="utf-8")
        )
        with atomic_path(args.output) as tmp:
            tmp.write_text(f"{record['content']}\n", encoding="utf-8")
    print(f"  ✓ {title}  {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
