"""Rows of notebook 10 -> its tables, the data of its figures, and verdicts on what it asks: whether
the model's own text helps SAEs of every variant as it is said to help TopK.
"""

import itertools
import math
from collections.abc import Iterator

import pandas as pd

from faithful_sae.metrics.uncertainty import Estimate, mean_over_seeds
from faithful_sae.paper.estimates import MODERATE, cells_by, values_by
from faithful_sae.paper.names import heading, named
from faithful_sae.paper.seed_claims import WORDS
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import PERCENT, SHARE, Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s10_architectures import keeps_variance, own_variant, point_at, seeds_of

Rows = dict[str, pd.DataFrame]
# SAEs whose L0 in use is further from the wanted one than this share are not at one L0
AT_ONE_L0 = 0.1
# SAEs that explain a smaller share of the variance (of CE, where variance is not what they are
# trained for) were not trained to the end, if at all
EXPLAINED = 0.5
# of SynthSAEBench-16k: SAEs of 4,096 latents with L0 25, means of its seeds (Chanin and
# Garriga-Alonso 2026, arXiv 2602.14687; deviations are at most .006)
PUBLISHED = "SynthSAEBench-16k, published"
SYNTH_SAE_BENCH = {
    "matryoshka": {"mcc": 0.793, "f1": 0.879, "explained_variance": 0.779, "l0": 25.0},
    "batch_topk": {"mcc": 0.757, "f1": 0.732, "explained_variance": 0.792, "l0": 25.0},
    "jumprelu": {"mcc": 0.753, "f1": 0.732, "explained_variance": 0.795, "l0": 25.0},
    "relu": {"mcc": 0.604, "f1": 0.556, "explained_variance": 0.765, "l0": 25.0},
}
PAULO = "(Paulo and Belrose 2025, Fig. 4)"
# columns of rows `variant_measures`
PER_SAE = ("l0", "error_median", "error_p99", "dead", "duplicates", "ffr")


def _compared(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the SAEs at the L0 of all."""
    return rows.loc[rows.point == point_at(run.sae.k)]


def _values(run: Run, rows: Rows) -> dict[str, dict]:
    """{measure: {(variant, corpus): {seeds: number}}}."""
    by = ["variant", "corpus"]
    measures = _compared(run, rows["variant_measures"])
    found = {name: values_by(measures, by, name) for name in PER_SAE}
    pairs = rows["variant_sfr"]
    # what coupled seeds share has been asked of them
    asked = pairs.coupled.astype(bool)
    apart, coupled = pairs.loc[~asked], pairs.loc[asked]
    for column in ("sfr", "sfr_encoder_decoder"):
        found[column] = values_by(apart, by, column)
    return found | {"sfr_coupled": values_by(coupled, by, "sfr")}


def _on_own_text(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[rows.trained_on == rows.evaluated_on]


def _fidelity(
    rows: Rows, by: list[str], column: str, value: object
) -> dict[str, dict[tuple, Estimate]]:
    """{measure: {(variant, ...): estimate}}, on the text that they were trained on, of the SAEs
    that have a value in a column.
    """
    both = (rows["variant_fidelity"], rows["variant_fidelity_rows"])
    table, by_row = (_on_own_text(part.loc[part[column] == value]) for part in both)
    measures = ["explained_variance", "ce_diff"]
    measures += [name for name in MODERATE if name in table]
    return cells_by(table, by_row, by, measures)


def estimates(run: Run, rows: Rows) -> dict[str, dict[tuple[str, str], Estimate]]:
    """{measure: {(variant, corpus): estimate}}: L0 in use, explained variance and CE difference
    (nats) on held-out text of the SAEs' own corpus, SFR, FFR (percent), dead latents and duplicates
    (shares).
    """
    found = {
        name: {which: mean_over_seeds(values) for which, values in groups.items()}
        for name, groups in _values(run, rows).items()
    }
    return found | _fidelity(rows, ["variant", "trained_on"], "point", point_at(run.sae.k))


def table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per variant and corpus: the numbers of `estimates` with halves of their intervals,
    and the penalty that was found.
    """
    found = estimates(run, rows)
    trained = _compared(run, rows["variant_saes"]).groupby(["variant", "corpus"]).l1.first()
    shown = {
        "l0": "L0",
        "explained_variance": "EV",
        "explained_variance_moderate": "EV, moderate",
        "ce_diff": "CE difference",
        "ce_diff_moderate": "CE difference, moderate",
        "sfr": "SFR",
        "sfr_coupled": "SFR, coupled",
        "ffr": "FFR",
        "dead": "dead",
        "duplicates": "duplicates",
        "error_median": "median token",
        "error_p99": "99 % of tokens",
    }
    records = []
    study = run.architectures
    for which in itertools.product(study.variants, study.corpora):
        variant, corpus = which
        record: Record = {"variant": variant, "trained on": heading(run, corpus)}
        record["l1"] = trained[which]
        for measure, name in shown.items():
            # of one seed there is no pair, and without sae.max_norm all tokens are moderate
            if which in found.get(measure, {}):
                record |= cell(name, found[measure][which])
        records.append(record)
    return pd.DataFrame(records)


def sharing(run: Run, rows: Rows) -> pd.DataFrame:
    """Of every variant and corpus the measures that are compared, in long form."""
    shown = {
        "sfr": "SFR",
        "ffr": "FFR (%)",
        "explained_variance": "explained variance",
        "explained_variance_moderate": "explained variance, moderate",
        "ce_diff": "CE difference (nats)",
        "ce_diff_moderate": "CE difference (nats), moderate",
    }
    found = estimates(run, rows)
    a = run.architectures
    return pd.DataFrame(
        {
            "measure": name,
            "variant": which[0],
            "corpus": heading(run, which[1]),
            "value": found[measure][which].value,
            "half_width": found[measure][which].half_width(),
        }
        for measure, name in shown.items()
        for which in itertools.product(a.variants, a.corpora)
        if which in found.get(measure, {})
    )


def curves(run: Run, rows: Rows) -> pd.DataFrame:
    """Of the first seed on the first corpus: L0 in use against explained variance and CE
    difference, for every L0 or penalty that was trained.
    """
    first = run.architectures.corpora[0]
    seed = seeds_of(run)[0]
    found = _fidelity(rows, ["variant", "trained_on", "point"], "seed", seed)
    measures = rows["variant_measures"]
    here = measures.loc[(measures.corpus == first) & (measures.seed == seed)]
    l0 = here.set_index(["variant", "corpus", "point"]).l0
    table = pd.DataFrame(
        {
            "variant": which[0],
            "point": which[2],
            "l0": l0[which],
            "explained_variance": estimate.value,
            "ce_diff": found["ce_diff"][which].value,
            "compared": which[2] == point_at(run.sae.k),
        }
        for which, estimate in found["explained_variance"].items()
        if which[1] == first
    )
    order = list(run.architectures.variants)
    return table.sort_values(
        ["variant", "l0"], key=lambda c: c.map(order.index) if c.name == "variant" else c
    ).reset_index(drop=True)


def spectra(run: Run, rows: Rows) -> pd.DataFrame:
    """Rows `variant_firing`, with corpora as figures call them."""
    order = list(run.architectures.variants)
    spectrum = rows["variant_firing"]
    spectrum = spectrum.iloc[spectrum.variant.map(order.index).argsort(kind="stable")]
    return named(run, spectrum)


def planted(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per variant and rung: what metrics.planted.ladder measured, with halves of intervals
    over seeds; and what SynthSAEBench has published of the variant, on a world of its own.
    """
    shown = {
        "mcc": "MCC",
        "f1": "F1",
        "explained_variance": "EV",
        "l0": "L0",
        "dead": "dead",
        "duplicates": "duplicates",
        "parent_recall": "recall of parents",
    }
    table = rows["variant_planted"]
    found = {measure: values_by(table, ["variant", "rung"], measure) for measure in shown}
    records: list[Record] = []
    for called, variant in run.architectures.variants.items():
        # none, where the loss needs a language model
        for rung in dict.fromkeys(table.loc[table.variant == called].rung):
            record: Record = {"variant": called, "world": rung}
            for measure, name in shown.items():
                estimate = mean_over_seeds(found[measure][called, rung])
                # of worlds without parents, nothing
                if not math.isnan(estimate.value):
                    record |= cell(name, estimate)
            records.append(record)
        if published := SYNTH_SAE_BENCH.get(variant.name):
            numbers = {shown[measure]: value for measure, value in published.items()}
            records.append({"variant": called, "world": PUBLISHED} | numbers)
    return pd.DataFrame(records)


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question, with its verdict (paper.verdicts): for each variant whether the model's
    own text raises SFR and lowers FFR, whether it does so for most, and what Paulo and Belrose
    (2025) found of ReLU and TopK.
    """
    if len(seeds_of(run)) < 2:
        return table_of([])
    values = _values(run, rows)
    values["explained"] = _explained(run, rows)
    own, other = run.architectures.corpora
    against = heading(run, other)
    table: list[Record] = []
    for measure, says, sign, margin, digits in (
        ("sfr", f"SFR is higher on its own text than on {against}", 1, SHARE, 3),
        ("ffr", f"FFR is lower on its own text than on {against}", -1, PERCENT, 2),
    ):
        cases = []
        for variant, section in run.architectures.variants.items():
            # seeds that are no units of evidence
            if run.sae.changed(variant=section).settings(run.sae.k).dependent:
                continue
            at = values[measure]
            difference = mean_over_seeds(at[variant, own], at[variant, other])
            signed = difference if sign > 0 else difference.negative()
            which = [(variant, own), (variant, other)]
            name = "own text above" if sign > 0 else "own text below"
            cases.append(_case(run, values, variant, which, Difference(name, signed, digits)))
        for case in cases:
            judged = judge([case], margin=margin) | {"measured": str(case)}
            table.append({"question": f"{case.name}: {says}"} | judged)
        most = f"For most variants {says}"
        table.append({"question": most} | judge(cases, most=True, margin=margin))
    question = f"SAEs with ReLU and L1 overlap more than TopK SAEs {PAULO}"
    table.append({"question": question} | judge(list(_relu_over_topk(run, values))))
    if hook := run.architectures.hook:
        places = (WORDS[hook][0], WORDS[run.hook][0])
        question = "SAEs on the {} overlap more than on the {} ".format(*places) + PAULO
        judged = judge([_elsewhere(run, values, rows["variant_hook"])], margin=SHARE)
        table.append({"question": question} | judged)
    return table_of(table)


def _explained(run, rows):
    """As _values, on the SAEs' own text: the share that they explain of what their loss keeps, the
    variance, or the CE that x = 0 costs.
    """
    own = _on_own_text(_compared(run, rows["variant_fidelity"]))
    variance = own.variant.map(lambda name: keeps_variance(run, name))
    shares = own.explained_variance.where(variance, own.ce_recovered)
    return values_by(own.assign(share=shares), ["variant", "trained_on"], "share")


def _case(run, values, name, which, difference):
    """Not testable where SAEs that are compared are not at one L0, or explain too little."""
    l0s = [mean_over_seeds(values["l0"][one]).value for one in which]
    off = [l0 for l0 in l0s if abs(l0 / run.sae.k - 1) > AT_ONE_L0]
    said = " and ".join(f"{l0:.1f}" for l0 in l0s)
    excluded = f"L0 {said} is not the {run.sae.k} of the others" if off else None
    explained = min(mean_over_seeds(values["explained"][one]).value for one in which)
    if explained < EXPLAINED:
        variance = all(keeps_variance(run, variant) for variant, _ in which)
        kept = "the variance" if variance else "CE"
        excluded = f"explains {explained:.2f} of {kept}: trained too shortly to compare"
    return Case(name, (difference,), excluded=excluded)


def _relu_over_topk(run, values) -> Iterator[Case]:
    """By their definition: both matchings agree, and both cosines reach the threshold."""
    kinds = {name: variant.name for name, variant in run.architectures.variants.items()}
    relu = [name for name, kind in kinds.items() if kind == "relu"]
    topk = [name for name, kind in kinds.items() if kind == "topk"]
    shared = values["sfr_encoder_decoder"]
    for a, b, corpus in itertools.product(relu, topk, run.architectures.corpora):
        difference = mean_over_seeds(shared[a, corpus], shared[b, corpus])
        which = [(a, corpus), (b, corpus)]
        name = heading(run, corpus)
        yield _case(run, values, name, which, Difference("ReLU above TopK", difference))


def _elsewhere(run, values, pairs):
    """Both matchings agree, as in _relu_over_topk; TopK's L0 is k at every place."""
    corpus = run.architectures.corpora[0]
    column = "sfr_encoder_decoder"
    there = values_by(pairs, ["hook"], column)[run.architectures.hook]
    difference = mean_over_seeds(there, values[column][own_variant(run), corpus])
    explained = pairs.explained.mean()
    excluded = None
    if explained < EXPLAINED:
        excluded = f"explains {explained:.2f} of the variance: trained too shortly to compare"
    name = f"{run.architectures.hook} above {run.hook}"
    return Case(heading(run, corpus), (Difference(name, difference),), excluded=excluded)
