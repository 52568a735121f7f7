"""Unlearning: how much of what a language model knows of one kind of text goes, and of no other,
when some latents are turned round (Farrell et al. 2024, arXiv 2410.19278; in SAEBench: Karvonen et
al. 2025, arXiv 2503.09532). Theirs is measured by questions; this is the form without any, in nats
(ours):

    U = (CE'_forget - CE_forget) / (CE_unigram - CE_forget)
    subject to CE'_retain <= 1.01 CE_retain

    CE, CE'       of the model as it is, and with the latents clamped
    CE_unigram    of the frequencies of tokens in the rows that choose: a model that knows no more

U = 0: nothing is forgotten. U = 1: the text is as hard as it is for somebody who can only count; a
model that is misled may be worse than that.

Candidates fire on less than a share t of the retained text. The n of them that fire most often on
the text to forget are clamped: where one fires, its z becomes -c times the largest z it has there.
What the SAE does not reconstruct stays in x, and so does x at BOS, whose predictions do not count.

A setting is (t, n, c). The best of many on the same rows would be too good: the first half of the
rows ranks the latents and chooses a setting, and the second half says what U is, by predictions in
documents that begin there: a document on the border may fill most of it. (Of a sampled document
that was cut off, `pack` may have less than a row left for the second half.) To do nothing is a
setting, too. A clamped model may cost the second half more than 1% of the text to retain;
`retain_cost` says what it does.

B rows, T positions, D model, F latents, K active ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from faithful_sae.lm.ngram import probabilities
from faithful_sae.sae.activations import rows_in_batches
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.text.documents import document_numbers

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

MOST_COST = 1.01


@dataclass(frozen=True)
class Unlearning:
    """One SAE, one kind of text.

    Attributes:
        unlearned: U on rows that did not choose; 0 where no setting was better than nothing. NaN
            where the model knows no more than frequencies, so that there is nothing to forget.
        chosen: U of the chosen setting on the rows that chose it, which is biased upwards.
        retain_cost: CE'_retain / CE_retain on rows that did not choose.
        latents: that are clamped, the one that fires most often first.
        multiple: c.
        ce, ce_unigram: of the text to forget, in nats, on rows that did not choose.
        ce_retain: of the other, likewise.
    """

    unlearned: float
    chosen: float
    retain_cost: float
    latents: tuple[int, ...]
    multiple: float
    ce: float
    ce_unigram: float
    ce_retain: float


def clamped(sae: TopKSAE, x: Tensor, targets: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """x with some latents set where they fire, all else as it is.

    Args:
        x: float32 [.., D].
        targets: float32 [F], what each latent becomes; NaN: it stays.
        values: [.., K], of encode_topk; so are indices.
    """
    target = targets[indices]
    change = torch.where((values > 0) & ~target.isnan(), target - values, 0.0)
    edit = sae.decode_topk(change, indices) - sae.b_dec
    return x + (edit * sae.frame(x)[1] if sae.normalisation != "none" else edit)


def unlearning(
    sae: TopKSAE,
    lm: "LanguageModel",
    forget: np.ndarray,
    retain: np.ndarray,
    densities: Sequence[float] = (0.001, 0.01),
    sizes: Sequence[int] = (10, 20),
    multiples: Sequence[float] = (0.0, 1.0, 3.0, 10.0),
    batch_rows: int = 16,
) -> tuple[Unlearning, pd.DataFrame]:
    """Unlearning by an SAE (ours, after Farrell et al. 2024).

    A pass from the hook on for each setting, of half of the rows: 64 rows of each kind do.

    Args:
        sae: on the model's device.
        forget: int [R, T], rows of the text to forget, each starting with BOS.
        retain: int [S, T], of any other text.
        densities: t.
        sizes: n; where there are fewer candidates, all of them.
        multiples: c.
        batch_rows: rows per forward pass.

    Returns:
        (what is measured, a row per setting: density, size, multiple, latents, and on the rows that
        choose ce_forget, ce_retain, unlearned, allowed). Settings with the same latents and
        multiple are one, under the first density and size that has them.

    Raises:
        ValueError: fewer than two rows of a kind; rows of another length; ids that the model has
            not; an SAE of another width than the model.
        NothingToPredictError: nothing to predict in half of the rows.
    """
    if sae.d_model != lm.d_model:
        raise ValueError(
            f"the SAE takes activations of width {sae.d_model}, but the model's are {lm.d_model} "
            "wide"
        )
    if forget.shape[1:] != retain.shape[1:]:
        raise ValueError(
            f"rows to forget have shape {list(forget.shape[1:])} and rows to retain "
            f"{list(retain.shape[1:])}: pack both alike"
        )
    for name, rows in (("forget", forget), ("retain", retain)):
        if len(rows) < 2:
            raise ValueError(f"{len(rows)} rows to {name}: one half chooses, the other measures")
    (forget_choose, forget_test), (retain_choose, retain_test) = (
        _halves(rows, lm.bos_id, name) for name, rows in (("forget", forget), ("retain", retain))
    )
    known = np.concatenate([forget_choose.ids, retain_choose.ids])
    unigram, unigram_test = (_unigram(known, half, lm) for half in (forget_choose, forget_test))
    frequency, largest = _firing(sae, lm, forget_choose.ids, batch_rows)
    elsewhere, _ = _firing(sae, lm, retain_choose.ids, batch_rows)
    settings = _settings(frequency, elsewhere, densities, sizes, multiples)
    edits = [_targets(sae, largest, *setting[2:]) for setting in settings]
    before, *after = _cross_entropies(sae, lm, forget_choose, edits, batch_rows)
    retained, *costs = _cross_entropies(sae, lm, retain_choose, edits, batch_rows)
    table = pd.DataFrame(settings, columns=["density", "size", "latents", "multiple"]).assign(
        ce_forget=after, ce_retain=costs
    )
    table["unlearned"] = [_share(ce, before, unigram) for ce in after]
    table["allowed"] = table.ce_retain <= MOST_COST * retained
    allowed = table[table.allowed & (table.unlearned > 0)]
    if len(allowed):
        best = allowed.loc[allowed.unlearned.idxmax()]
        latents, multiple, chosen = best.latents, float(best.multiple), float(best.unlearned)
    else:
        latents, multiple, chosen = (), 0.0, 0.0
    edit = [_targets(sae, largest, latents, multiple)]
    ce, forgotten = _cross_entropies(sae, lm, forget_test, edit, batch_rows)
    ce_retain, cost = _cross_entropies(sae, lm, retain_test, edit, batch_rows)
    return (
        Unlearning(
            _share(forgotten, ce, unigram_test),
            chosen,
            cost / ce_retain,
            latents,
            multiple,
            ce,
            unigram_test,
            ce_retain,
        ),
        table,
    )


def _share(after, before, unigram):
    """U; NaN where there is nothing to forget."""
    return (after - before) / (unigram - before) if unigram > before else np.nan


class NothingToPredictError(ValueError):
    """Half of the rows has nothing to predict in documents that begin there."""


class _Half(NamedTuple):
    """Rows int [R, T], and which predictions count, bool [R, T - 1]."""

    ids: np.ndarray
    scored: np.ndarray


def _halves(rows, bos_id, name):
    """(the half that chooses, the half that measures). What is predicted from BOS does not count,
    nor what of the second half may be of a document that begins in the first: all before a BOS
    that does not begin a row.
    """
    choose, test = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    own = document_numbers(test, bos_id) > 1
    halves = _Half(choose, choose[:, :-1] != bos_id), _Half(test, (own & (test != bos_id))[:, :-1])
    for which, half in zip(("first", "second"), halves, strict=True):
        if not half.scored.any():
            raise NothingToPredictError(
                f"the {which} half of the {len(rows)} rows to {name} has nothing to predict in "
                "documents that begin there: give more rows, or rows with shorter documents"
            )
    return halves


def _firing(sae, lm, rows, batch_rows):
    """(share of tokens that each latent fires on, its largest activation), [F] each."""
    counts = torch.zeros(sae.d_sae, dtype=torch.int64, device=lm.device)
    largest = torch.zeros(sae.d_sae, device=lm.device)
    tokens = 0
    for ids in rows_in_batches(rows, batch_rows):
        content = ids.to(lm.device) != lm.bos_id
        values, indices = (part.flatten() for part in sae.encode_topk(lm.activations(ids)[content]))
        counts += torch.bincount(indices[values > 0], minlength=sae.d_sae)
        largest.scatter_reduce_(0, indices, values.float(), "amax")
        tokens += int(content.sum())
    return (counts.double() / tokens).cpu().numpy(), largest


def _settings(frequency, elsewhere, densities, sizes, multiples):
    """(t, n, latents, c) of each, no two with the same latents and c."""
    order = np.argsort(-frequency, kind="stable")
    found = {}
    for density in densities:
        candidates = order[(elsewhere[order] < density) & (frequency[order] > 0)]
        for size in sizes:
            latents = tuple(int(f) for f in candidates[:size])
            if latents:
                found.setdefault(latents, (density, size))
    return [(*found[latents], latents, c) for latents in found for c in multiples]


def _targets(sae, largest, latents, multiple):
    """float32 [F], what each latent is set to; NaN: it stays."""
    targets = torch.full_like(largest, torch.nan)
    chosen = list(latents)
    targets[chosen] = -multiple * largest[chosen]
    return targets


@torch.no_grad()
def _cross_entropies(sae, lm, half, edits, batch_rows):
    """Mean nats of the predictions that count: as the model is, and with each edit."""
    sums = np.zeros(1 + len(edits))
    counted = torch.from_numpy(half.scored).to(lm.device).split(batch_rows)
    for ids, scored in zip(rows_in_batches(half.ids, batch_rows), counted, strict=True):
        logits, x = lm.logits(ids)
        values, indices = sae.encode_topk(x)
        kept = ids.to(lm.device)[..., None] == lm.bos_id
        sums[0] += _nats(logits, ids, scored)
        del logits
        for number, targets in enumerate(edits, 1):
            edited = torch.where(kept, x, clamped(sae, x, targets, values, indices))
            sums[number] += _nats(lm.spliced_logits(ids, edited), ids, scored)
    return (sums / half.scored.sum()).tolist()


def _nats(logits, ids, scored):
    """Summed over predictions; one row after the other, whose logits stay in the cache."""
    targets = ids.to(logits.device)[:, 1:]
    return sum(
        F.cross_entropy(row[:-1][where], target[where], reduction="none").double().sum().item()
        for row, target, where in zip(logits, targets, scored, strict=True)
    )


def _unigram(known, half, lm):
    """Mean nats of the frequencies of tokens in rows that are known."""
    (p,) = probabilities(known, half.ids, lm.shape.vocab_size, 1)
    return float(-np.log(p[half.scored]).mean())
