"""Rows of notebook 11 -> its table and the data of its figure."""

import pandas as pd

from faithful_sae.metrics.uncertainty import mean_over_seeds
from faithful_sae.paper.estimates import ON_MODERATE, cells_by, values_by
from faithful_sae.paper.tables import Record, cell
from faithful_sae.runs.schema import Run

SHOWN = {"own": "own SAE", "group": "group's SAE"}


def distance_data(rows: pd.DataFrame, groups: list[tuple[int, ...]]) -> pd.DataFrame:
    """Rows `layer_distances`, and the number of the group that both layers are in, -1 for none."""
    of_layer = {layer: i for i, group in enumerate(groups) for layer in group}
    a, b = rows.layer_a.map(of_layer), rows.layer_b.map(of_layer)
    return rows.assign(group=a.where(a == b, -1))


def table(run: Run, rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per layer: its group, and EV, CE difference (nats) and SFR of its own SAEs and of the
    group's, with halves of their intervals.
    """
    pairs = rows["layer_sfr"]
    fidelity = rows["layer_fidelity"]
    names = {"explained_variance": "EV", "ce_diff": "CE difference"}
    names |= {f"{measure}{ON_MODERATE}": f"{name}, moderate" for measure, name in names.items()}
    # without sae.max_norm all tokens are moderate
    measures = {measure: name for measure, name in names.items() if measure in fidelity}
    by_row = rows["layer_fidelity_rows"]
    found = cells_by(fidelity, by_row, ["kind", "layer"], measures)
    shared = {
        which: mean_over_seeds(values)
        for which, values in values_by(pairs, ["kind", "layer"], "sfr").items()
    }
    group = pairs.groupby("layer").group.first()
    records: list[Record] = []
    for layer in dict.fromkeys(fidelity.layer):
        record: Record = {"layer": layer}
        # of one seed there is no pair
        if layer in group.index:
            record["group"] = group[layer]
        for measure, name in measures.items():
            for kind, said in SHOWN.items():
                record |= cell(f"{name}, {said}", found[measure][kind, layer])
        for kind, said in SHOWN.items():
            if (kind, layer) in shared:
                record |= cell(f"SFR, {said}", shared[kind, layer])
        records.append(record)
    return pd.DataFrame(records)
