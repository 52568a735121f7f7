"""How an SAE does where it was not trained: at later positions of longer rows, and on a language
model that was trained further (He et al. 2024, arXiv 2410.20526, Llama Scope: short to long, base
to instruct).

Positions t of the rows fall into buckets [start, stop). Sums are pooled over the bucket's tokens,
in float64:

    l0                         mean number of active latents
    explained_variance         1 - sum |x - x_hat|^2 / sum |x - m|^2, m the bucket's own mean
    explained_variance_pooled  the same with m the mean of all buckets: one yardstick for all
    ce_diff                    CE(x replaced by x_hat) - CE(original), of the predictions made from
                               the bucket's positions; x is replaced in all positions

A position is that in the row. Rows are packed and attend to all that stands before, so it is how
much context there is, whatever document it comes from.

B batch, T position, D model, P bucket, R row.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from faithful_sae.metrics.uncertainty import bootstrap_error
from faithful_sae.sae.activations import as_ids, moderate_limit, rows_in_batches
from faithful_sae.sae.sae import TopKSAE

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

# number: (what is added up, what it is divided by)
PARTS = {
    "l0": ("active", "tokens"),
    "explained_variance": ("error", "variance"),
    "explained_variance_pooled": ("error", "variance_pooled"),
    "ce_diff": ("ce_added", "predictions"),
}
BETAS = (0.9, 0.95)  # of AdamW


@dataclass(frozen=True)
class Bucket:
    """One SAE on the positions start <= t < stop. An error is what other rows would do to the
    number, by the bootstrap over rows; it is NaN of a single row.

    Attributes:
        start, stop: positions in the row; BOS is at 0.
        tokens: positions measured.
        predictions: made from them; the last position of a row makes none.
        l0: active latents per token. NaN without tokens, as the explained variances are.
        explained_variance: at most 1; NaN where all x of the bucket are alike.
        explained_variance_pooled: about the mean of all buckets.
        ce: of the language model as it is, nats per prediction; NaN without predictions.
        ce_diff: nats per prediction that the reconstruction costs.
    """

    start: int
    stop: int
    tokens: int
    predictions: int
    l0: float
    l0_error: float
    explained_variance: float
    explained_variance_error: float
    explained_variance_pooled: float
    explained_variance_pooled_error: float
    ce: float
    ce_diff: float
    ce_diff_error: float


def by_position(
    saes: Mapping[Any, TopKSAE],
    lm: "LanguageModel",
    rows: np.ndarray,
    edges: Sequence[int],
    include_bos: bool = False,
    batch_rows: int = 16,
    max_norm: float | None = None,
) -> pd.DataFrame:
    """Sparsity, explained variance and added cross-entropy of SAEs by position in the row (He et
    al. 2024).

    Cost per row: one stopped forward pass for the means, one full pass, and one per SAE from the
    hook on. Memory: the logits of a batch, twice, and a few numbers per row, bucket and SAE.

    Args:
        saes: by name, on the model's device.
        rows: int [R, T], each row starting with BOS.
        edges: P + 1 positions that rise: (0, 32, 128) are two buckets; 0 <= edge <= T.
        include_bos: whether BOS positions are replaced and measured, too.
        batch_rows: rows per forward pass.
        max_norm: activations above so many times the median norm are neither replaced nor measured:
            they stand at few positions, and would rule what is said of these. None: all are.

    Returns:
        a row per SAE and bucket: sae (its name) and the fields of Bucket.

    Raises:
        ValueError: no rows, rows of one token or longer than the model's context, ids that it has
            not; edges that do not rise or lie outside the rows; nothing to measure between them; an
            SAE of another width.
    """
    _check(saes, lm, rows, edges)
    bounds = torch.tensor([*edges], device=lm.device)
    position = torch.arange(rows.shape[1], device=lm.device)[:, None]
    # which bucket a position is in, float64 [T, P]
    member = ((position >= bounds[:-1]) & (position < bounds[1:])).double()
    inside = as_ids(rows[:, edges[0] : edges[-1]])
    if not ((inside != lm.bos_id) | include_bos).any():
        raise ValueError(
            f"there is no token to measure between positions {edges[0]} and {edges[-1]}: give "
            "other edges, or include_bos=True"
        )
    limit = moderate_limit(lm, rows, include_bos, batch_rows, max_norm)

    def positions(ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Which are replaced and measured, bool [B, T]."""
        return ((ids != lm.bos_id) | include_bos) & (x.norm(dim=-1) <= limit)

    means, pooled = _means(lm, rows, member, positions, batch_rows)
    shared = {"tokens": [], "predictions": [], "ce": [], "variance": [], "variance_pooled": []}
    own = {name: {"active": [], "error": [], "ce_added": []} for name in saes}
    for ids in rows_in_batches(rows, batch_rows):
        logits, x = lm.logits(ids)
        ids = ids.to(lm.device)
        measured = positions(ids, x)
        ce = _cross_entropy(logits, ids)
        ones = torch.ones_like(ce)
        of_batch = {
            "tokens": ones,
            "predictions": F.pad(ones[:, :-1], (0, 1)),
            "ce": ce,
            "variance": (x - member @ means).pow(2).sum(-1),
            "variance_pooled": (x - pooled).pow(2).sum(-1),
        }
        for key, values in of_batch.items():
            shared[key].append(_summed(values, measured, member))
        for name, sae in saes.items():
            x_hat = sae.reconstruct(x)
            spliced = lm.spliced_logits(ids, torch.where(measured[..., None], x_hat, x))
            of_batch = {
                "active": (sae.encode_topk(x)[0] != 0).sum(-1),
                "error": (x_hat - x).double().pow(2).sum(-1),
                "ce_added": _cross_entropy(spliced, ids) - ce,
            }
            for key, values in of_batch.items():
                own[name][key].append(_summed(values, measured, member))
    same = {key: torch.cat(parts).numpy() for key, parts in shared.items()}
    table = []
    for name, lists in own.items():
        sums = same | {key: torch.cat(parts).numpy() for key, parts in lists.items()}
        for p, (start, stop) in enumerate(itertools.pairwise(edges)):
            bucket = _bucket({key: of_rows[:, p] for key, of_rows in sums.items()}, start, stop)
            table.append({"sae": name, **asdict(bucket)})
    return pd.DataFrame(table)


def _check(saes, lm, rows, edges):
    _check_rows(lm, rows)
    inside = len(edges) > 1 and edges[0] >= 0 and edges[-1] <= rows.shape[1]
    if not inside or any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"edges {[*edges]} must be two or more positions that rise, from 0 to the rows' length "
            f"{rows.shape[1]}"
        )
    for name, sae in saes.items():
        if sae.d_model != lm.d_model:
            raise ValueError(
                f"SAE {name} takes activations of width {sae.d_model}, but the model's are "
                f"{lm.d_model} wide"
            )


def _check_rows(lm, rows):
    if rows.ndim != 2 or len(rows) == 0 or not 2 <= rows.shape[1] <= lm.context:
        raise ValueError(
            f"rows must be an array of rows of 2 to {lm.context} tokens, the model's context, not "
            f"of shape {[*rows.shape]}"
        )
    known = lm.shape.vocab_size
    if not 0 <= rows.min() <= rows.max() < known:
        raise ValueError(
            f"the token rows hold ids {rows.min()} to {rows.max()}, and the model's are 0 to "
            f"{known - 1}"
        )


def _means(lm, rows, member, positions, batch_rows):
    """Of x over the tokens of each bucket, float64 [P, D], and of all buckets, [D]; 0 where there
    are none.
    """
    total = torch.zeros(member.shape[1], lm.d_model, dtype=torch.float64, device=lm.device)
    count = torch.zeros(member.shape[1], dtype=torch.float64, device=lm.device)
    for ids in rows_in_batches(rows, batch_rows):
        x = lm.activations(ids)
        measured = positions(ids.to(lm.device), x).double()
        x = torch.where(measured[..., None] > 0, x.double(), 0.0)
        total = total + member.T @ x.sum(0)
        count = count + member.T @ measured.sum(0)
    return total / count.clamp(min=1)[:, None], total.sum(0) / count.sum()


def _summed(values, measured, member):
    """Over the positions of each bucket that are measured, float64 [B, P], of values [B, T]."""
    return (torch.where(measured, values.double(), 0.0) @ member).cpu()


def _cross_entropy(logits, ids):
    """Of the prediction made from each position, [B, T]; 0 at the last, which makes none."""
    # one row after the other: a copy of all logits would be as large as they are
    each = [
        F.cross_entropy(row[:-1], targets[1:], reduction="none")
        for row, targets in zip(logits, ids, strict=True)
    ]
    return F.pad(torch.stack(each), (0, 1))


def _bucket(sums, start, stop):
    """sums: float64 [R] of each row, by name."""
    numbers = {}
    for name, (part, whole) in PARTS.items():
        ratio = _ratio(sums[part].sum(), sums[whole].sum())
        numbers[name] = 1 - ratio if whole.startswith("variance") else ratio
        # a part over a whole of 0 has no error either
        known = not np.isnan(ratio)
        numbers[f"{name}_error"] = bootstrap_error(sums[part], sums[whole]) if known else np.nan
    return Bucket(
        start=start,
        stop=stop,
        tokens=int(sums["tokens"].sum()),
        predictions=int(sums["predictions"].sum()),
        ce=_ratio(sums["ce"].sum(), sums["predictions"].sum()),
        **numbers,
    )


def _ratio(part, whole):
    return float(part / whole) if whole else np.nan


def ratios(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """What each SAE does in proportion to what it does in distribution.

    Args:
        table: of by_position.
        reference: rows of such a table, one for each SAE: those of the positions, or of the
            language model, that it was trained on.

    Returns:
        sae, start, stop, and the ratio of each number of PARTS; 1: as in distribution.

    Raises:
        ValueError: an SAE that has no row in the reference, or several.
    """
    if reference.sae.duplicated().any() or not {*table.sae} <= {*reference.sae}:
        raise ValueError(
            f"the reference has rows of the SAEs {reference.sae.tolist()}: it must have one of "
            f"each of {table.sae.unique().tolist()}"
        )
    both = table.merge(reference, on="sae", suffixes=("", "_there"))
    shares = {name: both[name] / both[f"{name}_there"] for name in PARTS}
    return both[["sae", "start", "stop"]].assign(**shares)


def fine_tuned(
    lm: "LanguageModel",
    rows: np.ndarray,
    steps: int = 200,
    lr: float = 1e-3,
    batch_rows: int = 16,
    seed: int = 0,
) -> "LanguageModel":
    """A copy of a language model that was trained further on other text, for SAEs of the first to
    be measured on (ours; base to instruct in He et al. 2024).

    Next-token cross-entropy over all weights by AdamW in float32, whose rate falls linearly to 0.
    No dropout. Same tokenizer, hook, device and dtype. On a CPU the same seed gives the same
    weights (same machine, same number of threads).

    Args:
        lm: left as it is.
        rows: int [R, T], each row starting with BOS; each step draws its own, with replacement.
        steps: of the optimiser; 0 gives an equal model.
        lr: its first learning rate.
        batch_rows: rows in a step.
        seed: of the rows drawn.

    Raises:
        ValueError: no rows, rows of one token or longer than the model's context, ids that it has
            not; fewer than 0 steps or 1 row in a step.
    """
    from faithful_sae.lm.embedded import cross_entropy

    _check_rows(lm, rows)
    if steps < 0 or batch_rows < 1:
        raise ValueError(
            f"steps = {steps} must be 0 or more, and batch_rows = {batch_rows} 1 or more"
        )
    model = copy.deepcopy(lm.model)
    dtype = model.dtype
    # as it is used: dropout would draw from the global generator
    model.float().eval().requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr, betas=BETAS, weight_decay=0.0)
    drawn = np.random.default_rng(seed).integers(len(rows), size=(steps, batch_rows))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * (1 - step / steps)
        cross_entropy(model, as_ids(rows[drawn[step]]).to(lm.device)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return replace(lm, model=model.to(dtype), revision=None)
