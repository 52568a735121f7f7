"""Rows of notebook 20 -> its tables, the data of its figures, and verdicts: do SAEs of a language
model serve what it becomes?
"""

import itertools
from statistics import fmean
from typing import Any

import pandas as pd

from faithful_sae.metrics.tuned_model import Contrast, effects
from faithful_sae.metrics.uncertainty import Estimate, Values, mean_over_seeds
from faithful_sae.paper.estimates import cells_by, on_moderate, values_by, weighted_sum
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s20_tuned_model import BASE, OWN, TUNED, cells, measured_on, models_of

Rows = dict[str, pd.DataFrame]
Cell = tuple[str, str]
CELL = ["model", "text"]
EV, CE = "explained_variance", "ce_diff"
# what an SAE may lose where another serves in its place: explained variance, and nats
LOST = {EV: 0.01, CE: 0.02}
# SFR that differ by less are the same
SAME = 0.02
ONE_MODEL = "there is one model"
THE_MODEL = "the model"
# what two SAEs differ in, beside the seed
SEED, OF_MODEL, OF_TEXT, BOTH = "seed", "model", "text", "model and text"


def sides(run: Run) -> dict[str, str]:
    """What is called base, and what tuned."""
    t = run.tuned_model
    if t.tuned:
        return {BASE: "the base model", TUNED: "the tuned model"}
    starts = {BASE: run.generate.start or "BOS", TUNED: t.start}
    return {name: f"text after {start}" for name, start in starts.items()}


def _text(run, name):
    """A corpus that SAEs are measured on."""
    return sides(run)[TUNED] if name == OWN else heading(run, name)


def _trained_on(run, text):
    """What SAEs are trained on, by whose text it is, or by what it is sampled after."""
    return f"{text}'s text" if run.tuned_model.tuned else sides(run)[text]


def _model(run, name):
    return name if run.tuned_model.tuned else THE_MODEL


def models_table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per model and text: CE (nats), and the share of the activations' variance that the
    base's activations explain.
    """
    table = rows["tuned_models"]
    return pd.DataFrame(
        {
            "model": [_model(run, name) for name in table.measured_in],
            "text": [_text(run, name) for name in table.evaluated_on],
            "CE": table.ce,
            "explained by the base": table.kept,
        }
    )


def table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per model and text that SAEs are measured in and on, and per model and text that they
    are trained in and on: EV, CE difference (nats), L0, and FFR (%) in the model, with halves of
    intervals.
    """
    where = ["measured_in", "evaluated_on", *CELL]
    fidelity, by_row = rows["tuned_fidelity"], rows["tuned_fidelity_rows"]
    names = {EV: "EV", CE: "CE difference"}
    measures = {
        on_moderate(rows["tuned_fidelity"], measure): name for measure, name in names.items()
    }
    found = cells_by(fidelity, by_row, where, measures)
    l0 = values_by(fidelity, where, "l0")
    fakes = values_by(rows["tuned_ffr"], ["measured_in", *CELL], "ffr")
    records: list[Record] = []
    for which in l0:
        measured_in, evaluated_on, *of_sae = which
        record: Record = {
            "measured in": _model(run, measured_in),
            "measured on": _text(run, evaluated_on),
            "trained in": _model(run, of_sae[0]),
            "trained on": _trained_on(run, of_sae[1]),
        }
        for measure, name in measures.items():
            record |= cell(name, found[measure][which])
        record |= cell("L0", mean_over_seeds(l0[which]))
        record |= cell("FFR", mean_over_seeds(fakes[measured_in, *of_sae]))
        records.append(record)
    return pd.DataFrame(records)


def served(run: Run, rows: Rows) -> pd.DataFrame:
    """EV and CE difference of every cell in every model on every text, in long form: measure,
    measured_in, evaluated_on, model, text, value, half of its interval.
    """
    made = table(run, rows)
    shown = {"EV": "explained variance", "CE difference": "CE difference (nats)"}
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "measure": said,
                    "measured_in": made["measured in"],
                    "evaluated_on": made["measured on"],
                    "model": made["trained in"],
                    "text": made["trained on"],
                    "value": made[name],
                    "half": made[f"{name} ±"],
                }
            )
            for name, said in shown.items()
        ],
        ignore_index=True,
    )


def _pairs(rows: Rows, a: Cell, b: Cell, column: str, one_seed: bool) -> Values:
    """{seeds: SFR, or another column} of SAEs of two cells with one seed, or with two."""
    by = [f"{name}_{which}" for which in "ab" for name in CELL]
    of_cells = values_by(rows["tuned_pairs"], by, column)
    found: dict[tuple[int, ...], list[float]] = {}
    for first, second in dict.fromkeys([(a, b), (b, a)]):
        for pair, value in of_cells.get((*first, *second), {}).items():
            seeds = tuple(sorted({*pair}))
            if one_seed == (len(seeds) == 1):
                found.setdefault(seeds, []).append(value)
    return {seeds: fmean(values) for seeds, values in found.items()}


def sharing(run: Run, rows: Rows) -> pd.DataFrame:
    """SFR and PW-MCC of SAEs of every two cells, with one seed and with two: a row for each, with
    halves of intervals, those that differ in the seed alone first.
    """
    records: list[Record] = []
    for differ, pairs in _pairs_of_cells(run).items():
        for a, b in pairs:
            one, other = (_called(run, arm) for arm in (a, b))
            record: Record = {"differ in": differ, "one SAE": one, "the other": other}
            for column, name in (("sfr", "SFR"), ("mean_cosine", "PW-MCC")):
                for one_seed, seeds in ((False, "two seeds"), (True, "one seed")):
                    if values := _pairs(rows, a, b, column, one_seed):
                        record |= cell(f"{name}, {seeds}", mean_over_seeds(values))
            records.append(record)
    return pd.DataFrame(records)


def _pairs_of_cells(run: Run) -> dict[str, list[tuple[Cell, Cell]]]:
    """{what two cells differ in: the pairs of them that do}."""
    said = {(True, True): SEED, (False, True): OF_MODEL, (True, False): OF_TEXT}
    found: dict[str, list[tuple[Cell, Cell]]] = {name: [] for name in (*said.values(), BOTH)}
    for a, b in itertools.combinations_with_replacement(cells(run), 2):
        found[said.get((a[0] == b[0], a[1] == b[1]), BOTH)].append((a, b))
    return found


def _called(run, arm):
    model, text = arm
    where = f"{model}, " if run.tuned_model.tuned else ""
    return where + _trained_on(run, text)


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question, with its verdict (paper.verdicts)."""
    said = sides(run)
    of_tuned: Cell = (models_of(run)[-1], TUNED)
    of_base: Cell = (BASE, BASE)
    domain, other = measured_on(run)
    statements = []
    for server, own, model, text, names in (
        (of_base, of_tuned, of_tuned[0], domain, (said[BASE], said[TUNED])),
        (of_tuned, of_base, BASE, other, (said[TUNED], said[BASE])),
    ):
        # what is better is larger
        for measure, sign, what in ((EV, 1, "EV above"), (CE, -1, "nats below")):
            weights: Contrast = {server: float(sign), own: -float(sign)}
            found = _contrast(rows, model, text, weights, measure)
            less = LOST[measure]
            question = f"SAEs of {names[0]} serve {names[1]}: {_lost(measure)}"
            raw = Difference(f"{what} its own SAEs'", found, 4)
            statements.append({"question": question} | _at_least(run, raw, -less))
    statements.append(
        {"question": "The model that an SAE is trained in matters more than the text"}
        | judge([_model_or_text(run, rows, of_tuned[0], domain)], margin=LOST[EV])
    )
    within = _pairs(rows, of_base, of_base, "sfr", one_seed=False)
    for one_seed, words in ((True, "of one seed"), (False, "of two seeds")):
        question = f"SAEs {words}, one of {said[BASE]} and one of {said[TUNED]}, share as much "
        question += f"as two seeds of {said[BASE]}"
        across = _pairs(rows, of_base, of_tuned, "sfr", one_seed)
        raw = Difference("SFR above", mean_over_seeds(across, within), 4)
        statements.append({"question": question} | _at_least(run, raw, -SAME))
    question = "Two SAEs share more where their models differ than where their texts do"
    statements.append({"question": question} | judge([_sharing(run, rows)], margin=SAME))
    return table_of(statements)


def _at_least(run: Run, raw: Difference, limit: float) -> dict[str, Any]:
    """The verdict on a difference being above a limit; its effect is the difference itself."""
    over = Difference("over the limit", raw.estimate.minus(limit), raw.digits)
    row = judge([Case(run.label, (over,), words=str(raw))])
    return row | {column: row[column] + limit for column in ("effect", "low", "high")}


def _lost(measure):
    return {
        EV: f"EV at most {LOST[EV]} below its own",
        CE: f"CE at most {LOST[CE]} nats above its own",
    }[measure]


def _contrast(rows: Rows, model: str, text: str, weights: Contrast, measure: str) -> Estimate:
    """Of SAEs that are measured in a model on a text."""

    def here(name: str) -> pd.DataFrame:
        table = rows[name]
        table = table.loc[(table.measured_in == model) & (table.evaluated_on == text)]
        return table.assign(cell=table.model + "-" + table.text)

    tables = (here("tuned_fidelity"), here("tuned_fidelity_rows"))
    named = {"-".join(cell): weight for cell, weight in weights.items()}
    return weighted_sum(*tables, "cell", named, on_moderate(rows["tuned_fidelity"], measure))


def _sharing(run, rows):
    """SFR of SAEs of two models, above that of two texts; of two seeds."""
    pairs = _pairs_of_cells(run)
    if not pairs[OF_MODEL]:
        return Case(run.label, excluded=ONE_MODEL)

    def mean(differ: str) -> Values:
        each = [_pairs(rows, a, b, "sfr", one_seed=False) for a, b in pairs[differ]]
        return {seeds: fmean(values[seeds] for values in each) for seeds in each[0]}

    above = mean_over_seeds(mean(OF_MODEL), mean(OF_TEXT))
    return Case(run.label, (Difference("SFR of two models above two texts", above, 4),))


def _model_or_text(run, rows, model, text):
    """How much further the model leads than the text, in EV in the tuned model on its text."""
    if len(models_of(run)) == 1:
        return Case(run.label, excluded=ONE_MODEL)
    found = effects(BASE, TUNED)
    words = [
        f"EV by the {name} {_contrast(rows, model, text, weights, EV).value:+.4f}"
        for name, weights in found.items()
    ]
    weights = {at: found["model"][at] - found["text"][at] for at in found["model"]}
    estimate = _contrast(rows, model, text, weights, EV)
    return Case(run.label, (Difference("model above text", estimate, 4),), words=", ".join(words))
