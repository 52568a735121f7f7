"""Whether a description of a latent says what goes in, and what comes out (after Gur-Arieh et al.
2025, arXiv 2501.08319). A description is a list of tokens, so no language model judges it.

    by input    tokens of the description, one each, take a place in five contexts in which the
                latent is silent: the mean of its maximal activations is now above that of the
                contexts as they were
    by output   the latent is made stronger (features/steering.py, `add`, in units of its largest
                activation): the tokens of the description gain more mean log-probability than
                those of two rivals

                gain = mean over positions and tokens w of  log p_steered(w) - log p(w)

The paper has a language model write the contexts, and judge which of three texts was steered by the
latent. Its untouched contexts need not be silent; ours are, their maximum is 0, and so success by
input means that the latent fires at all. How often it does so for tokens that do not describe it
depends on how dense it is. So the same is done with a rival's tokens in the same places, and
`input_choice` is which of the two descriptions makes the latent fire more.

Rivals are descriptions of other latents. They share no token with the description, and are drawn
from those whose tokens are about as frequent, since rare tokens gain more. Where all is equal, as
at a dose of 0, the winners share the success. So a description drawn at random has 1/2 of the
choice by input and 1/3 by output.

C contexts, W positions, D model, F latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from faithful_sae.features.explain import activation_of
from faithful_sae.features.index import FeatureError
from faithful_sae.features.steering import steered_log_probabilities
from faithful_sae.lm.model import LanguageModel
from faithful_sae.sae.activations import rows_in_batches
from faithful_sae.sae.sae import TopKSAE

CONTEXTS = 5
RIVALS = 2
# contexts there are to choose from, at most
POOL = 256
# of these nearest in frequency, rivals are drawn
NEAREST = 10
INPUT_CHANCE = 1 / 2
OUTPUT_CHANCE = 1 / (1 + RIVALS)


@dataclass(frozen=True)
class Described:
    """How well a description fits its latent. NaN where the latent cannot be tested: `input_*` and
    `activation_*` if fewer than five contexts leave it silent, all if there are no two rivals.

    Attributes:
        latent: its number.
        input: success by input, 0 or 1.
        input_rival: the same with the first rival's tokens: what chance is for this latent.
        input_choice: 1 if the description's activation is above the rival's, 1/2 if equal.
        activation, activation_rival: mean over the contexts of the maximal activation.
        output: 1 if the description gains most, 1/2 or 1/3 if others gain as much.
        gain: of the description, nats.
        gain_rival: the larger one of its rivals'.
        input_chance, output_chance: what a description drawn at random has of input_choice and
            output.
    """

    latent: int
    input: float
    input_rival: float
    input_choice: float
    activation: float
    activation_rival: float
    output: float
    gain: float
    gain_rival: float
    input_chance: float = INPUT_CHANCE
    output_chance: float = OUTPUT_CHANCE


def token_descriptions(
    explanations: pd.DataFrame, vocabulary: Sequence[str], method: str, n: int
) -> dict[int, list[int]]:
    """Descriptions by a method whose texts are tokens, MutInfo or VocabProj: token ids by latent.

    Args:
        explanations: latent, method, rank, text, as a FeatureIndex has them.
        vocabulary: a string for every token id; of equal ones, the first id is meant.
        method: by name.
        n: tokens of a latent, at most.

    Raises:
        FeatureError: the method lists no tokens of this vocabulary.
    """
    ids = {text: i for i, text in reversed([*enumerate(vocabulary)])}
    chosen = explanations.loc[(explanations.method == method) & (explanations["rank"] < n)]
    if chosen.empty or not chosen.text.isin(ids).all():
        raise FeatureError(f"{method} lists no tokens of this vocabulary: take MutInfo, VocabProj")
    found: dict[int, list[int]] = {}
    for row in chosen.sort_values(by=["latent", "rank"]).to_dict("records"):
        found.setdefault(int(row["latent"]), []).append(ids[row["text"]])
    return found


def score_descriptions(
    sae: TopKSAE,
    lm: LanguageModel,
    rows: np.ndarray,
    descriptions: Mapping[int, Sequence[int]],
    maxima: ArrayLike,
    latents: Sequence[int] | None = None,
    dose: float = 2.0,
    steered_rows: int = 8,
    length: int = 32,
    batch_rows: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Test descriptions of latents by input and by output (Gur-Arieh et al. 2025; offline forms).

    Cost per latent: a stopped forward pass over ten contexts, and over `steered_rows` of their
    length another one and two passes from the hook on.

    Args:
        rows: int [R, T] that the descriptions were not made from, each row starting with BOS. The
            first `length` tokens of each are all that is read.
        descriptions: token ids by latent, the best first.
        maxima: float [F], the largest activation of each latent on some corpus.
        latents: that are tested; None: all that have a description. Rivals are among all.
        dose: steering, in units of the latent's maximum.
        steered_rows: how many of the rows latents are steered on, from the first on.
        length: tokens of a context and of a steered row, BOS counted.
        batch_rows: rows per forward pass.
        seed: of contexts, places and rivals.

    Returns:
        a row per latent, in their order, with the fields of Described.

    Raises:
        FeatureError: no rows, or nothing but BOS in those steered on; no such latent or token; an
            empty description, or none of a latent that is to be tested; maxima of another SAE; a
            length that rows have not.
    """
    tested = [*(descriptions if latents is None else latents)]
    largest = np.asarray(maxima, float)
    if len(largest) != sae.d_sae:
        raise FeatureError(
            f"maxima of {len(largest)} latents were given: the SAE has {sae.d_sae}, dead ones too"
        )
    _check(sae, lm, rows, descriptions, tested, length)
    if (rows[:steered_rows, :length] == lm.bos_id).all():
        raise FeatureError(f"the first {steered_rows} rows hold nothing to steer on: give others")
    counts = np.bincount(np.asarray(rows).ravel(), minlength=lm.vocab_size)
    rivals = rivals_of(descriptions, tested, counts, seed)
    activations = _by_input(sae, lm, rows[:, :length], descriptions, rivals, batch_rows, seed)
    gains = {
        f: _gains(
            sae,
            lm,
            rows[:steered_rows, :length],
            f,
            dose * largest[f],
            [descriptions[i] for i in (f, *pair)],
            batch_rows,
        )
        for f, pair in rivals.items()
    }
    return pd.DataFrame(
        [asdict(_described(f, activations.get(f), gains.get(f))) for f in tested],
        columns=[*Described.__dataclass_fields__],
    )


def _check(sae, lm, rows, descriptions, tested, length):
    if rows.ndim != 2 or not 2 <= length <= rows.shape[1] or not len(rows):
        raise FeatureError(
            f"contexts of {length} tokens cannot be cut from rows of shape {[*rows.shape]}: give "
            "longer rows, or a length from 2 on"
        )
    for latent, tokens in descriptions.items():
        if not 0 <= latent < sae.d_sae:
            raise FeatureError(f"no latent {latent}: the SAE has 0 to {sae.d_sae - 1}")
        if not len(tokens) or not 0 <= min(tokens) <= max(tokens) < lm.vocab_size:
            raise FeatureError(
                f"the description of latent {latent}, {[*tokens]}, must be one or more token ids "
                f"from 0 to {lm.vocab_size - 1}: leave out latents that have none"
            )
    if lacking := [*{*tested} - {*descriptions}]:
        raise FeatureError(f"latent {lacking[0]} is to be tested and has no description")


def rivals_of(
    descriptions: Mapping[int, Sequence[int]], latents: Sequence[int], counts: ArrayLike, seed: int
) -> dict[int, list[int]]:
    """Two latents for each, whose descriptions have none of its tokens and are about as frequent.

    They are drawn from the ten nearest in mean log (count + 1) of their tokens.

    Args:
        descriptions: token ids by latent.
        latents: that need rivals; what one gets does not depend on the others.
        counts: int [vocab_size], how often each token occurs.
        seed: of the draw.

    Returns:
        by latent; those that have not two rivals are left out.
    """
    log_count = np.log1p(np.asarray(counts, float))
    names = np.array([*descriptions])
    sets = {f: {*map(int, tokens)} for f, tokens in descriptions.items()}
    level = np.array([log_count[[*tokens]].mean() for tokens in sets.values()])
    at = {f: i for i, f in enumerate(descriptions)}
    found = {}
    for f in latents:
        near = []
        # equally near ones by their number
        for other in names[np.lexsort((names, np.abs(level - level[at[f]])))]:
            if sets[f].isdisjoint(sets[int(other)]):
                near.append(int(other))
            if len(near) == NEAREST:
                break
        if len(near) >= RIVALS:
            rng = np.random.default_rng([seed, f])
            found[f] = [int(i) for i in rng.choice(near, RIVALS, replace=False)]
    return found


def _by_input(sae, lm, rows, descriptions, rivals, batch_rows, seed):
    """{latent: (activation, that of the first rival)}, of latents that are silent somewhere."""
    contexts = rows[(rows[:, 1:] != lm.bos_id).all(1)][:POOL]
    silent = _maxima(sae, lm, contexts, batch_rows) == 0
    names, written = [], []
    for f, (rival, *_) in rivals.items():
        free = np.flatnonzero(silent[:, f])
        if len(free) < CONTEXTS:
            continue
        # not the numbers that drew its rivals
        rng = np.random.default_rng([seed, f, 1])
        chosen = contexts[rng.choice(free, CONTEXTS, replace=False)]
        places = rng.integers(1, contexts.shape[1], CONTEXTS)
        names.append(f)
        for described in (f, rival):
            text = chosen.copy()
            text[np.arange(CONTEXTS), places] = np.resize(descriptions[described], CONTEXTS)
            written.append(text)
    if not names:
        return {}
    which = torch.tensor(names).repeat_interleave(2 * CONTEXTS)
    tops = []
    for ids, latents in zip(
        rows_in_batches(np.concatenate(written), batch_rows), which.split(batch_rows), strict=True
    ):
        found = activation_of(sae, lm.activations(ids)[:, 1:], latents[:, None, None])
        tops.append(found.amax((1, 2)).cpu())
    means = torch.cat(tops).double().view(-1, 2, CONTEXTS).mean(-1)
    return dict(zip(names, means.tolist(), strict=True))


def _maxima(sae, lm, contexts, batch_rows):
    """The largest activation of every latent in each context, BOS apart: float32 [C, F]."""
    found = [np.zeros((0, sae.d_sae), np.float32)]
    for ids in rows_in_batches(contexts, batch_rows):
        values, latents = (part.flatten(1) for part in sae.encode_topk(lm.activations(ids)[:, 1:]))
        dense = torch.zeros(len(ids), sae.d_sae, device=values.device)
        found.append(dense.scatter_reduce(1, latents, values, "amax").cpu().numpy())
    return np.concatenate(found)


def _gains(sae, lm, rows, latent, amount, descriptions, batch_rows):
    """Of each description, where an amount is added to a latent: nats, the mean over positions but
    BOS and over tokens.
    """
    sizes = [len(tokens) for tokens in descriptions]
    every = torch.tensor([token for tokens in descriptions for token in tokens])
    total, count = torch.zeros(len(every), dtype=torch.float64), 0
    for ids in rows_in_batches(rows, batch_rows):
        measured = ids != lm.bos_id
        before, after = (
            log_p[..., every.to(log_p.device)].cpu()[measured].double()
            for log_p in steered_log_probabilities(lm, sae, ids, latent, [("add", amount)])
        )
        total += (after - before).sum(0)
        count += int(measured.sum())
    return [part.mean().item() / count for part in total.split(sizes)]


def _described(latent, activations, gains):
    """The record of a latent; None: it could not be tested."""
    own, rival = activations or (np.nan, np.nan)
    gain, *others = gains or (np.nan,) * (1 + RIVALS)
    return Described(
        latent=latent,
        input=float(own > 0) if activations else np.nan,
        input_rival=float(rival > 0) if activations else np.nan,
        input_choice=_credit(own, [rival]) if activations else np.nan,
        activation=own,
        activation_rival=rival,
        output=_credit(gain, others) if gains else np.nan,
        gain=gain,
        gain_rival=max(others),
    )


def _credit(own: float, others: Sequence[float]) -> float:
    """1 to the largest; those that are equal share it."""
    return (own >= max(others)) / (1 + sum(other == own for other in others))
