"""07: all tables and figures of a profile beside the paper's, and its claims."""

from faithful_sae.runs.stage import Stage


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
        "corpora",
        "layer",
        "sequence_length",
    )


STAGE = Paper()
