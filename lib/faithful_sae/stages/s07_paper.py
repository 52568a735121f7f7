"""07: all tables and figures of a profile beside the paper's, and its claims."""

from faithful_sae.runs.stage import HOOK, Stage


class Paper(Stage):
    profile = True
    parameters = (
        "label",
        "beside",
        "sae",
        "sfr",
        "ffr",
        "fidelity",
        "probing",
        "evaluation",
        "corpora",
        *HOOK,
        "sequence_length",
    )


STAGE = Paper()
