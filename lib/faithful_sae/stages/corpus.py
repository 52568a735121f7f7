"""The faithful dataset of a run, and its corpora (generated or not) as packed token rows."""

from faithful_sae.files import MissingInputError, digest, is_current, locked
from faithful_sae.lm import sampling
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.params import load_params
from faithful_sae.runs.schema import plain
from faithful_sae.stages.model import model_key, open_model
from faithful_sae.text import read


def faithful_key(run) -> str:
    """What determines a run's faithful dataset."""
    return digest(
        [
            model_key(run),
            plain(run.generate),
            run.threads,
            run.device,
            code_hash("lm/sampling", "lm/decoding", "lm/model"),
        ]
    )


def make_faithful(run, lm):
    """Make (or finish, or reuse) the faithful dataset; returns its folder."""
    return sampling.generate_dataset(
        run, lm, faithful_key(run), {"model": model_key(run), "commit": lm.revision}
    )


def corpus(run, name, lm):
    """A corpus of the run as TokenRows; MissingInputError if it is generated text that 01 has not
    made, or made otherwise.
    """
    with locked(
        run.artifacts / f".corpus-{name}.lock"
    ):  # notebooks, trainings and workers may come for it together
        return _corpus(run, name, lm)


def _corpus(run, name, lm):
    source_name = run.corpora[name].faithful
    if source_name is None:
        return read.corpus_rows(run, name, lm)
    source = (
        run if source_name == "self" else load_params(run.file.with_name(f"{source_name}.yaml"))
    )
    folder = source.artifacts / "faithful"
    key = faithful_key(source)
    if not is_current(folder, key):
        raise MissingInputError(
            f"{folder} is missing or was made with other parameters: run "
            "notebooks/01_generate_faithful for "
            f"{source.profile}/{source.name} first"
        )
    tokenizer = lm.tokenizer if source is run else open_model(source).tokenizer
    return read.corpus_rows(run, name, lm, (key, sampling.read_shards(source), tokenizer))
