"""How faithfully the model runs on an SAE's reconstruction (paper 4.3, Figure 5, Appendix B).

x is the hooked activation, x_hat its reconstruction, in tokens t and dimensions d. Sums are pooled
over all tokens in float64.

    ce_diff             CE(x replaced by x_hat) - CE(original)
                        nats per predicted token, lower is better
    kl                  KL(original || with x_hat) of the next-token distributions
                        nats per predicted token
    l2                  mean over t and d of (x - x_hat)^2
                        the authors' F.mse_loss
    explained_variance  1 - sum |x - x_hat|^2 / sum |x - mean x|^2
                        per dimension; 1 - FVU, the honest default
    ev_authors          mean over rows of 1 - var(x - x_hat) / var(x)
                        one scalar variance over all t and d of a row
    ev_legacy           mean over t of 1 - |x - x_hat|^2 / |x - mean x|^2
                        as SAEBench reported it
    ce_zero, ce_mean    CE with x replaced by 0, or by its mean over the corpus
    ce_recovered        (ce_zero - ce_sae) / (ce_zero - ce)
                        1: as good as the model itself

With BOS, every position is replaced and measured. Without, BOS positions keep their x, and neither
they nor the predictions made from them are measured.

Where SAEs are trained without massive activations (sae.activations), there are as well

    ce_diff_moderate, l2_moderate, explained_variance_moderate

the same formulas on moderate positions alone: those that are not BOS and whose norm is at most
max_norm x the median norm of the positions that are not BOS. Others keep their x. So a few
positions that hold most of the variance, and that the SAE has not seen, do not decide.

Sums of each row are kept beside the means, for intervals over rows (uncertainty.bootstrap_error).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from faithful_sae.sae.activations import as_ids, moderate_limit, rows_in_batches
from faithful_sae.sae.sae import TopKSAE

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


ROW_SUMS = ("ce", "ce_sae", "kl", "error", "variance", "ev_authors", "ev_legacy")
# of moderate positions: what is measured on them, and its intervals, are made of these
MODERATE_SUMS = ("measured", "scored", "ce", "ce_sae", "error", "variance")


@dataclass(frozen=True)
class Fidelity:
    """One SAE on one corpus; see the module for the formulas. `tokens`: positions measured."""

    tokens: int
    ce: float
    ce_sae: float
    ce_diff: float
    kl: float
    l2: float
    explained_variance: float
    ev_authors: float
    ev_legacy: float
    ce_zero: float
    ce_mean: float
    ce_recovered: float


@dataclass(frozen=True)
class ModerateFidelity(Fidelity):
    """The same, and on moderate positions alone. `massive`: positions, BOS left out, that are not
    moderate.
    """

    massive: int
    ce_diff_moderate: float
    l2_moderate: float
    explained_variance_moderate: float


def fidelity(
    sae: TopKSAE,
    lm: "LanguageModel",
    tokens: np.ndarray,
    include_bos: bool = True,
    batch_rows: int = 16,
    max_norm: float | None = None,
) -> Fidelity:
    """Fidelity of one SAE on token rows int [R, T] (T >= 2, each row starting with BOS).

    Args:
        include_bos: whether BOS positions are replaced and measured, too.
        batch_rows: rows per forward pass.
        max_norm: as fidelity_of_all.

    Raises:
        ValueError: as fidelity_of_all.
    """
    measured, _ = fidelity_of_all(
        {"sae": sae}, lm, tokens, batch_rows, modes=(include_bos,), max_norm=max_norm
    )
    return measured["sae", include_bos]


def fidelity_of_all(
    saes: Mapping[Any, TopKSAE],
    lm: "LanguageModel",
    tokens: np.ndarray,
    batch_rows: int = 16,
    modes: Sequence[bool] = (True, False),
    description: str = "fidelity",
    max_norm: float | None = None,
) -> tuple[dict[tuple[Any, bool], Fidelity], dict[tuple[Any, bool], pd.DataFrame]]:
    """Fidelity of several SAEs on the same rows, with BOS (True) and without (False).

    Cost per row: one stopped forward pass for the means, one full pass, and per SAE and mode one
    pass from the hook on. With max_norm there is one stopped pass more, and one mode for batches
    that have a massive position.

    Args:
        saes: by name, on the model's device.
        tokens: int [R, T], rows that start with BOS.
        batch_rows: rows per forward pass.
        modes: with BOS (True), without (False).
        description: of the progress bar.
        max_norm: above so many times the median norm a position is massive; the results are
            ModerateFidelity then, and rows have MODERATE_SUMS of moderate positions, each called
            <name>_moderate. None: as if none were.

    Returns:
        ({(name, include_bos): Fidelity}, {(name, include_bos): rows}). Where all x are alike,
        explained variances are NaN; where x = 0 changes no prediction, ce_recovered is. rows: one
        per token row, with the positions measured and scored, and the sums over them of ce, ce_sae,
        ce_zero, kl (nats), error, variance (squared units of x) and ev_legacy; and its ev_authors.

    Raises:
        ValueError: no rows, rows of one token, without BOS no token before another, ids that the
            model has not, or an SAE of another width than the model.
    """
    if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] < 2:
        raise ValueError(
            "fidelity needs rows of at least two tokens, not an array of shape "
            f"{list(tokens.shape)}"
        )
    if False in modes and (tokens[:, :-1] == lm.bos_id).all():
        raise ValueError(
            "the token rows hold no token but BOS with another behind it, and BOS is left out "
            "(include_bos=False): there is nothing to predict"
        )
    known = lm.shape.vocab_size
    if not 0 <= tokens.min() <= tokens.max() < known:
        raise ValueError(
            f"the token rows hold ids {tokens.min()} to {tokens.max()}, and the model's are 0 to "
            f"{known - 1}"
        )
    for name, sae in saes.items():
        if sae.d_model != lm.d_model:
            raise ValueError(
                f"SAE {name} takes activations of width {sae.d_model}, but the model's are "
                f"{lm.d_model} wide"
            )
    limit = moderate_limit(lm, tokens, False, batch_rows, max_norm)
    # what is without massive activations comes after what is without BOS, which it often is
    ways = [*modes] if max_norm is None else [*modes, "moderate"]

    def positions(ids: Tensor, x: Tensor) -> dict[Any, Tensor]:
        """Which are replaced and measured, {mode: bool [B, T]}."""
        moderate = (ids != lm.bos_id) & (x.norm(dim=-1) <= limit)
        return {way: moderate if way == "moderate" else (ids != lm.bos_id) | way for way in ways}

    means = _means(lm, tokens, batch_rows, positions)
    n = len(tokens)
    jobs = {(name, way): _Sums(means[way], n) for way in ways for name in saes}
    ablations = {
        (value, mode): _Sums(means[mode], n) for mode in modes for value in ("zero", "mean")
    }
    for ids in tqdm(
        rows_in_batches(tokens, batch_rows),
        total=math.ceil(len(tokens) / batch_rows),
        desc=description,
        unit="batch",
    ):
        logits, x = lm.logits(ids)
        ids = ids.to(lm.device)
        log_p = F.log_softmax(logits[:, :-1], -1)
        ce = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
        measured = positions(ids, x)
        for name, sae in saes.items():
            x_hat = sae.reconstruct(x)
            before, nats = None, None
            for way in ways:
                if nats is None or not torch.equal(measured[way], measured[before]):
                    nats = _spliced(lm, ids, x, x_hat, log_p, measured[way])
                jobs[name, way].add(x, x_hat, measured[way], ce, *nats)
                before = way
        for (value, mode), sums in ablations.items():
            replacement = torch.zeros_like(x)
            if value == "mean":
                replacement = means[mode].float().expand_as(x)
            nats = _spliced(lm, ids, x, replacement, log_p, measured[mode])
            sums.add(x, replacement, measured[mode], ce, *nats)
    records = {
        (name, mode): sums.result(
            *(ablations[value, mode].mean("ce_sae") for value in ("zero", "mean"))
        )
        for (name, mode), sums in jobs.items()
        if mode in modes
    }
    zero = {mode: ablations["zero", mode].rows("ce_sae") for mode in modes}
    rows = {
        (name, mode): jobs[name, mode].by_row().assign(ce_zero=zero[mode]) for name, mode in records
    }
    if max_norm is not None:
        content = int((tokens != lm.bos_id).sum())
        for key, record in records.items():
            sums = jobs[key[0], "moderate"]
            records[key] = _with_moderate(record, sums, content)
            of_rows = sums.by_row()
            rows[key] = rows[key].assign(
                **{f"{name}_moderate": of_rows[name] for name in MODERATE_SUMS}
            )
    return records, rows


def _with_moderate(record, sums, content):
    """A Fidelity and the sums over moderate positions; content: positions that are not BOS."""
    some = sums.count("error") > 0
    scored = sums.count("ce") > 0
    return ModerateFidelity(
        **vars(record),
        massive=content - sums.count("error"),
        ce_diff_moderate=sums.mean("ce_sae") - sums.mean("ce") if scored else math.nan,
        l2_moderate=sums.mean("error") / len(sums.center) if some else math.nan,
        explained_variance_moderate=1 - _ratio(sums.total("error"), sums.total("variance")),
    )


def _means(lm, tokens, batch_rows, positions):
    """{mode: float64 [D]} of x over the corpus, at the positions of each mode."""
    totals = {}
    counts = {}
    for ids in rows_in_batches(tokens, batch_rows):
        x = lm.activations(ids)
        for way, measured in positions(ids.to(x.device), x).items():
            some = x[measured]
            totals[way] = totals.get(way, 0) + some.double().sum(0)
            counts[way] = counts.get(way, 0) + len(some)
    return {way: total / max(counts[way], 1) for way, total in totals.items()}


def _spliced(lm, ids, x, x_hat, log_p, measured):
    """Splice x_hat in where `measured` [B, T], and run on: (CE, KL from log_p [B, T-1, V]) of each
    prediction [B, T-1].
    """
    logits = lm.spliced_logits(ids, torch.where(measured[..., None], x_hat, x))
    ce, kl = [], []
    # one row after the other: what is computed of its logits stays in the cache
    for own, row, targets in zip(log_p, logits[:, :-1], ids[:, 1:, None], strict=True):
        log_q = F.log_softmax(row, -1)
        ce.append(-log_q.gather(-1, targets)[:, 0])
        kl.append((own.exp() * (own - log_q)).sum(-1))
    return torch.stack(ce), torch.stack(kl)


class _Sums:
    """float64 sums of one SAE (or ablation) on one corpus, row by row."""

    def __init__(self, mean, n_rows):
        self.center = mean
        # all room is taken before the passes: small tensors that stay, between large ones that go,
        # would leave holes that no large one fits in
        self.sums = {name: torch.zeros(n_rows, dtype=torch.float64) for name in ROW_SUMS}
        self.counts = {name: torch.zeros(n_rows, dtype=torch.int64) for name in ROW_SUMS}
        self.done = 0

    def _add(self, name, values, where):
        """values [B, T'], of which those `where` bool [B, T'] count."""
        rows = slice(self.done, self.done + len(values))
        self.sums[name][rows] = torch.where(where, values.double(), 0.0).sum(1)
        self.counts[name][rows] = where.sum(1)

    def rows(self, name):
        return self.sums[name].numpy()

    def total(self, name):
        return math.fsum(self.rows(name))

    def count(self, name):
        return int(self.counts[name].sum())

    def mean(self, name):
        return self.total(name) / self.count(name)

    def add(self, x, x_hat, measured, ce, ce_sae, kl):
        """Of `measured` positions [B, T], and predictions [B, T-1]."""
        scored = measured[:, :-1]
        self._add("ce", ce, scored)
        self._add("ce_sae", ce_sae, scored)
        self._add("kl", kl, scored)
        error = (x_hat - x).double().pow(2).sum(-1)
        centred = (x.double() - self.center).pow(2).sum(-1)
        self._add("error", error, measured)
        self._add("variance", centred, measured)
        self._add("ev_legacy", 1 - error / centred, measured)
        explained = torch.stack(
            [
                1 - (a - b)[m].double().var() / a[m].double().var()
                for a, b, m in zip(x, x_hat, measured, strict=True)
            ]
        )
        self._add("ev_authors", explained[:, None], measured.any(1, keepdim=True))
        self.done += len(x)

    def result(self, ce_zero, ce_mean):
        mean = self.mean
        return Fidelity(
            tokens=self.count("error"),
            ce=mean("ce"),
            ce_sae=mean("ce_sae"),
            ce_diff=mean("ce_sae") - mean("ce"),
            kl=mean("kl"),
            l2=mean("error") / len(self.center),
            explained_variance=1 - _ratio(self.total("error"), self.total("variance")),
            ev_authors=mean("ev_authors"),
            ev_legacy=mean("ev_legacy"),
            ce_zero=ce_zero,
            ce_mean=ce_mean,
            ce_recovered=_ratio(ce_zero - mean("ce_sae"), ce_zero - mean("ce")),
        )

    def by_row(self):
        sums = {name: self.rows(name) for name in ROW_SUMS}
        counts = {"measured": self.counts["error"].numpy(), "scored": self.counts["ce"].numpy()}
        return pd.DataFrame({**counts, **sums})


def cross_entropy_of_rows(
    lm: "LanguageModel",
    rows: Sequence[np.ndarray],
    batch_rows: int,
    include_bos: bool,
    given: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The model's own cross-entropy on each of some rows, packed ones or documents.

    Args:
        rows: int [T], each with BOS or another start first; they may differ in length.
        batch_rows: rows per forward pass; shorter ones are padded on the right.
        include_bos: whether predictions made from BOS count.
        given: how many predictions at the beginning of each row do not count.

    Returns:
        (sums float64 [R] in nats, counts int64 [R] of predictions).
    """
    sums, counts = [], []
    for start in range(0, len(rows), batch_rows):
        batch = [as_ids(row) for row in rows[start : start + batch_rows]]
        lengths = torch.tensor([len(row) for row in batch])
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=lm.bos_id)
        logits, _ = lm.logits(ids)
        # one number of each prediction leaves the device, not one per token of the vocabulary
        targets = ids[:, 1:, None].to(logits.device)
        losses = -F.log_softmax(logits[:, :-1].float(), -1).gather(-1, targets)[..., 0].cpu()
        scored = torch.arange(1, ids.shape[1]) < lengths[:, None]
        scored &= (ids[:, :-1] != lm.bos_id) | include_bos
        scored[:, :given] = False
        sums.append(torch.where(scored, losses.double(), 0.0).sum(1))
        counts.append(scored.sum(1))
    return torch.cat(sums).numpy(), torch.cat(counts).numpy()


def _ratio(part, whole):
    return part / whole if whole else math.nan
