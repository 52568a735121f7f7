"""Four explanations of a latent, after the survey of Shu et al. (2025), section 3. Two look at what
goes in, two at tokens alone.

    MaxAct         the contexts of a corpus in which its activation z_f is largest
                   (Bricken et al. 2023; eq. 4)
                       argmax over contexts X of z_f(X)
    PruningMaxAct  of such a context that ends at its peak, the shortest end that keeps half
                   (Foote et al. 2023, Gao et al. 2025; eq. 5)
                       the shortest suffix P of X with z_f(BOS P) >= z_f(X) / 2
    VocabProj      the tokens that its decoder row d_f makes likelier
                   (nostalgebraist 2020; eq. 6)
                       argmax over tokens w of  u_w . (norm(sqrt(D) d_f) - norm(0))
                   and, as VocabProjNegative, those that it makes unlikelier: argmin of the same
    MutInfo        the tokens that say most about whether it fires
                   (after Wu et al. 2025; eq. 7)
                       argmax over w of  I(token = w; z_f > 0), in nats

MaxAct, PruningMaxAct and MutInfo read a latent by its input, VocabProj by its output.

VocabProj: u_w is w's row of the unembedding, norm the model's last normalisation. Taking norm(0)
away leaves what is linear in d_f up to a factor: LayerNorm (GPT-2, GPT-NeoX) centres d_f and
multiplies it by its weight, its bias drops out; RMSNorm multiplies by its weight (Llama), or by 1 +
weight (Gemma). The factor makes d_f as long as a normalised residual stream is: a value is the
logit that d_f alone would give. Gemma's softcap, which keeps the order, is left out.

MutInfo: the survey's equation 8 estimates the probabilities from output embeddings, with a softmax.
Here they are counted on the corpus: of two yes-or-no variables, whether the token at a position is
w and whether the latent fires there. Listed are tokens on which it fires more often than elsewhere.
So MutInfo, which the survey has among the methods that read the output, reads the input here.

Where counts of every token do not fit (collect.EXACT_BYTES), a count may be too low, by at most
`lost` of latent_statistics. Then the information of a token is too low, never too high, and by
another amount for each token: a list may miss tokens, and its order may not be that of the formula.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from faithful_sae.features.index import FeatureError
from faithful_sae.features.vocabulary import folded
from faithful_sae.lm.architectures import last_normalisation
from faithful_sae.lm.model import LanguageModel
from faithful_sae.sae.sae import TopKSAE

# of a context's activation, that a pruned one must keep
KEEP = 0.5
# logits
PROJECTED_AT_ONCE = 2**26


def vocab_projection(lm: LanguageModel, directions: Tensor) -> Tensor:
    """Logits float32 [n, vocab_size] of directions [n, D], for instance rows of W_dec; see the
    module for the formula.
    """
    norm = last_normalisation(lm.model)
    unembedding = lm.model.get_output_embeddings().weight[: lm.vocab_size].float()
    with torch.no_grad():
        x = directions.float()
        x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-30) * lm.d_model**0.5
        x = torch.cat([x, torch.zeros_like(x[:1])]).to(lm.device, lm.model.dtype)
        x = norm(x).float()
        return (x[:-1] - x[-1]) @ unembedding.T


def mutual_information(
    joint: ArrayLike, fired: ArrayLike, counts: ArrayLike, total: int
) -> np.ndarray:
    """I(token = w; fires) in nats, float64, of counts that may be arrays.

    Args:
        joint: positions where the token is w and the latent fires.
        fired: where the latent fires.
        counts: where the token is w.
        total: all positions.
    """
    joint, fired, counts = (np.asarray(a, np.float64) for a in (joint, fired, counts))
    information = np.zeros(())
    for both, a, b in (
        (joint, fired, counts),
        (fired - joint, fired, total - counts),
        (counts - joint, total - fired, counts),
        (total - fired - counts + joint, total - fired, total - counts),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            information = information + np.where(
                both > 0, both / total * np.log(both * total / (a * b)), 0.0
            )
    return information


def prune(
    lm: LanguageModel,
    sae: TopKSAE,
    latents: ArrayLike,
    contexts: Sequence[np.ndarray],
    activations: ArrayLike,
    batch_rows: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """The shortest end of each context that, after BOS, still gives at least half of the activation
    (PruningMaxAct).

    Ends are tried from one token on, so the first that does is the shortest; a longer one need not
    give more.

    Args:
        latents: int [n].
        contexts: n arrays of token ids, each ending at the peak.
        activations: float [n], those to keep half of.
        batch_rows: in a forward pass.

    Returns:
        (lengths int [n], values float32 [n]): tokens of the end, 0 where not even the whole context
        keeps half, and its activation.
    """
    latents = np.asarray(latents)
    least = KEEP * np.asarray(activations, np.float32)
    lengths = np.zeros(len(latents), int)
    values = np.zeros(len(latents), np.float32)
    available = np.array([len(c) for c in contexts], int)
    for length in range(1, available.max(initial=0) + 1):
        pending = np.flatnonzero((lengths == 0) & (available >= length))
        for start in range(0, len(pending), batch_rows):
            chunk = pending[start : start + batch_rows]
            ids = torch.tensor([[lm.bos_id, *contexts[i][-length:]] for i in chunk])
            of_chunk = torch.from_numpy(latents[chunk])[:, None]
            found = activation_of(sae, lm.activations(ids)[:, -1], of_chunk).cpu().numpy()[:, 0]
            kept = (found >= least[chunk]) & (found > 0)
            lengths[chunk[kept]] = length
            values[chunk[kept]] = found[kept]
    return lengths, values


def activation_of(sae: TopKSAE, x: Tensor, latents: Tensor) -> Tensor:
    """Activations [.., n] of some latents int64 [.., n] in x [.., D], 0 where they are not among
    those kept.
    """
    values, indices = sae.encode_topk(x)
    wanted = latents[..., None].to(indices.device)
    return (values[..., None, :] * (indices[..., None, :] == wanted)).sum(-1)


def max_act_table(contexts: pd.DataFrame, vocabulary: Sequence[str], n: int) -> pd.DataFrame:
    """MaxAct: the text of the first n of each latent's strongest contexts, whose value is the
    activation at the peak.

    Args:
        contexts: latent, kind, rank, activation, tokens.
        vocabulary: a string for every token id.
        n: contexts of a latent.
    """
    top = contexts[(contexts.kind == "top") & (contexts["rank"] < n)]
    texts = [_text(ids, vocabulary) for ids in top.tokens]
    return _table(top.latent, "MaxAct", top["rank"], texts, top.activation)


def pruning_max_act_table(
    contexts: pd.DataFrame, lm: LanguageModel, sae: TopKSAE, vocabulary: Sequence[str], n: int
) -> pd.DataFrame:
    """PruningMaxAct of the first n of each latent's strongest contexts; those of which no end keeps
    half are left out.
    """
    top = contexts[(contexts.kind == "top") & (contexts["rank"] < n)]
    ends = [ids[: peak + 1] for ids, peak in zip(top.tokens, top.position, strict=True)]
    lengths, values = prune(lm, sae, top.latent, ends, top.activation)
    texts = [
        _text(ids[len(ids) - length :], vocabulary)
        for ids, length in zip(ends, lengths, strict=True)
    ]
    table = _table(top.latent, "PruningMaxAct", top["rank"], texts, values)
    return table.loc[lengths > 0]


def vocab_proj_table(
    lm: LanguageModel, sae: TopKSAE, vocabulary: Sequence[str], n: int
) -> pd.DataFrame:
    """VocabProj: the n tokens with the largest logits for each latent, and VocabProjNegative, those
    with the smallest, the smallest first.
    """
    parts = {"VocabProj": [], "VocabProjNegative": []}
    for rows in sae.W_dec.split(max(PROJECTED_AT_ONCE // lm.vocab_size, 1)):
        logits = vocab_projection(lm, rows)
        for method, found in parts.items():
            best = logits.topk(min(n, lm.vocab_size), largest=method == "VocabProj")
            found.append((best.values.cpu(), best.indices.cpu()))
    tables = []
    for method, found in parts.items():
        values, tokens = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        latents, ranks = np.indices(values.shape)
        texts = [vocabulary[i] for i in tokens.ravel()]
        tables.append(_table(latents.ravel(), method, ranks.ravel(), texts, values.ravel()))
    return pd.concat(tables, ignore_index=True)


def mut_info_table(
    state: Mapping[str, np.ndarray], token_counts: np.ndarray, vocabulary: Sequence[str], n: int
) -> pd.DataFrame:
    """MutInfo: of the tokens each latent fired on, the n with the largest information, of those on
    which it fires above its average.

    Args:
        state, token_counts: from `collect`.
        vocabulary: a string for every token id.
        n: tokens of a latent.
    """
    total = token_counts.sum()
    chosen = []
    values = []
    latents = np.flatnonzero(state["fired"])
    for latent in latents:
        fired = state["fired"][latent]
        at = np.flatnonzero(state["token_count"][latent])
        joint = state["token_count"][latent, at]
        # exact counts are by token
        tokens = state["token"][latent, at] if state["token"].size else at
        above = joint * total > fired * token_counts[tokens]
        tokens = tokens[above]
        information = mutual_information(joint[above], fired, token_counts[tokens], total)
        # equal ones by id: counters have no order of their own
        first = np.lexsort((tokens, -information))[:n]
        chosen.append(tokens[first])
        values.append(information[first])
    sizes = np.array([len(part) for part in chosen], int)
    ranks = [rank for size in sizes for rank in range(size)]
    texts = [vocabulary[i] for part in chosen for i in part]
    return _table(np.repeat(latents, sizes), "MutInfo", ranks, texts, np.concatenate([[], *values]))


def token_agreement(explanations: pd.DataFrame, n: int) -> pd.Series:
    """How far input and output agree: share (0-1) of each latent's first n MutInfo tokens that are
    among its first n of VocabProj.

    Tokens are compared without blanks and capitals.

    Args:
        explanations: as in explanations.parquet.
        n: tokens of each method.

    Returns:
        Series by latent; latents without MutInfo tokens are left out.

    Raises:
        FeatureError: n < 1.
    """
    if n < 1:
        raise FeatureError(
            f"n = {n} must be at least 1: how many tokens of each method are compared"
        )
    part = explanations[
        (explanations["rank"] < n) & explanations.method.isin(("MutInfo", "VocabProj"))
    ]
    part = part.assign(text=folded(part.text))
    sets = part.groupby(["method", "latent"]).text.agg(set)
    inputs, outputs = (
        sets.xs(name) if name in sets.index.get_level_values(0) else pd.Series(dtype=object)
        for name in ("MutInfo", "VocabProj")
    )
    return pd.Series(
        {
            latent: len(tokens & outputs.get(latent, set())) / len(tokens)
            for latent, tokens in inputs.items()
        },
        dtype=float,
    )


def _text(ids, vocabulary):
    return "".join(vocabulary[i] for i in ids)


def _table(latents, method, ranks, texts, values):
    return pd.DataFrame(
        {
            "latent": np.asarray(latents),
            "method": method,
            "rank": np.asarray(ranks),
            "text": np.asarray(texts, object),
            "value": np.asarray(values),
        }
    )
