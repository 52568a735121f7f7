"""Four explanations of a latent, after the survey of Shu et al. (2025), section 3. Two look at what
goes in, two at tokens alone.

    MaxAct   the contexts of a corpus in which its activation z_f is largest
            Bricken et al. 2023; eq. 4
                       argmax over contexts X of z_f(X)
    PruningMaxAct  of such a context that ends at its peak, the shortest end that keeps half   Foote
                                                                                               et
                                                                                               al.
                                                                                               2023,
                                                                                               Gao
                                                                                               et
                                                                                               al.
                                                                                               2025;
                                                                                               eq. 5
                       the shortest suffix P of X with z_f(BOS P) >= z_f(X) / 2
    VocabProj   the tokens that its decoder row d_f makes likelier   nostalgebraist 2020; eq. 6
                       argmax over tokens w of  u_w . (norm(sqrt(D) d_f) - norm(0))
    MutInfo   the tokens that say most about whether it fires   after Wu et al. 2025; eq. 7
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
A count may be too low (see latent_statistics), which makes the information too low, never too high.
"""

import numpy as np
import pandas as pd
import torch

from faithful_sae.features.index import FeatureError

KEEP = 0.5  # of a context's activation, that a pruned one must keep
PROJECTED_AT_ONCE = 2**26  # logits
COLUMNS = ("latent", "method", "rank", "text", "value")


def vocab_projection(lm, directions):
    """Logits float32 [n, vocab_size] of directions [n, D], for instance rows of W_dec; see the
    module for the formula.
    """
    base = lm.model.base_model
    norm = next(
        getattr(base, name) for name in ("ln_f", "final_layer_norm", "norm") if hasattr(base, name)
    )
    unembedding = lm.model.get_output_embeddings().weight[: lm.vocab_size].float()
    with torch.no_grad():
        x = (
            directions.float()
            / directions.float().norm(dim=-1, keepdim=True).clamp(min=1e-30)
            * lm.d_model**0.5
        )
        x = torch.cat([x, torch.zeros_like(x[:1])]).to(lm.device, lm.model.dtype)
        x = norm(x).float()
        return (x[:-1] - x[-1]) @ unembedding.T


def mutual_information(joint, fired, counts, total):
    """I(token = w; fires) in nats, float64, of counts that may be arrays: both, latent fires, token
    is w, all positions.
    """
    joint, fired, counts = (np.asarray(a, np.float64) for a in (joint, fired, counts))
    information = 0.0
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


def prune(lm, sae, latents, contexts, activations, batch_rows=256):
    """The shortest end of each context that, after BOS, still gives at least half of the activation
    (PruningMaxAct).

    Ends are tried from one token on, so the first that does is the shortest; a longer one need not
    give more.

    Args:
        latents: int [n]. contexts: n arrays of token ids, each ending at the peak. activations:
            float [n], those to keep half of.

    Returns:
        (lengths int [n], values float32 [n]): tokens of the end, 0 where not even the whole context
        keeps half, and its activation.
    """
    latents, activations = np.asarray(latents), np.asarray(activations, np.float32)
    lengths = np.zeros(len(latents), int)
    values = np.zeros(len(latents), np.float32)
    available = np.array([len(c) for c in contexts], int)
    for length in range(1, available.max(initial=0) + 1):
        pending = np.flatnonzero((lengths == 0) & (available >= length))
        for chunk in (pending[i : i + batch_rows] for i in range(0, len(pending), batch_rows)):
            ids = torch.tensor([[lm.bos_id, *contexts[i][-length:]] for i in chunk])
            found = (
                activation_of(
                    sae, lm.activations(ids)[:, -1], torch.from_numpy(latents[chunk])[:, None]
                )
                .cpu()
                .numpy()[:, 0]
            )
            kept = (found >= KEEP * activations[chunk]) & (found > 0)
            lengths[chunk[kept]], values[chunk[kept]] = length, found[kept]
    return lengths, values


def activation_of(sae, x, latents):
    """Activations [.., n] of some latents int64 [.., n] in x [.., D], 0 where they are not among
    those kept.
    """
    values, indices = sae.encode_topk(x)
    return (
        values[..., None, :] * (indices[..., None, :] == latents[..., None].to(indices.device))
    ).sum(-1)


def max_act_table(contexts, vocabulary, n):
    """MaxAct: the text of the first n of each latent's strongest contexts, whose value is the
    activation at the peak.

    Args:
        contexts: DataFrame with latent, kind, rank, activation, tokens. vocabulary: list of str.
    """
    top = contexts[(contexts.kind == "top") & (contexts["rank"] < n)]
    return _table(
        top.latent,
        "MaxAct",
        top["rank"],
        [_text(ids, vocabulary) for ids in top.tokens],
        top.activation,
    )


def pruning_max_act_table(contexts, lm, sae, vocabulary, n):
    """PruningMaxAct of the first n of each latent's strongest contexts; those of which no end keeps
    half are left out.
    """
    top = contexts[(contexts.kind == "top") & (contexts["rank"] < n)]
    ends = [ids[: position + 1] for ids, position in zip(top.tokens, top.position)]
    lengths, values = prune(lm, sae, top.latent, ends, top.activation)
    texts = [_text(ids[len(ids) - length :], vocabulary) for ids, length in zip(ends, lengths)]
    table = _table(top.latent, "PruningMaxAct", top["rank"], texts, values)
    return table[lengths > 0]


def vocab_proj_table(lm, sae, vocabulary, n):
    """VocabProj: the n tokens with the largest logits for each latent."""
    parts = []
    for rows in sae.W_dec.split(max(PROJECTED_AT_ONCE // lm.vocab_size, 1)):
        best = vocab_projection(lm, rows).topk(min(n, lm.vocab_size))
        parts.append((best.values.cpu(), best.indices.cpu()))
    values, tokens = (torch.cat(part).numpy() for part in zip(*parts))
    latents, ranks = np.indices(values.shape)
    return _table(
        latents.ravel(),
        "VocabProj",
        ranks.ravel(),
        [vocabulary[i] for i in tokens.ravel()],
        values.ravel(),
    )


def mut_info_table(state, token_counts, vocabulary, n):
    """MutInfo: of the tokens each latent fired on, the n with the largest information, of those on
    which it fires above its average.
    """
    total = token_counts.sum()
    fired = state["fired"][:, None]
    joint = state["token_count"]
    counts = np.where(joint > 0, token_counts[state["token"]], 1)
    information = np.where(
        (joint > 0) & (joint * total > fired * counts),
        mutual_information(joint, fired, counts, total),
        -1.0,
    )
    order = np.lexsort((state["token"], -information))[
        :, :n
    ]  # equal ones by id: counters have no order of their own
    information, tokens = (np.take_along_axis(a, order, 1) for a in (information, state["token"]))
    latents, ranks = np.nonzero(information >= 0)
    return _table(
        latents,
        "MutInfo",
        ranks,
        [vocabulary[i] for i in tokens[latents, ranks]],
        information[latents, ranks],
    )


def token_agreement(explanations, n):
    """How far input and output agree: share (0-1) of each latent's first n MutInfo tokens that are
    among its first n of VocabProj.

    Tokens are compared without blanks and capitals. Args: explanations: DataFrame of
    explanations.parquet.

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
    part = part.assign(text=part.text.str.strip().str.casefold())
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
        dict(
            zip(
                COLUMNS,
                (
                    np.asarray(latents),
                    method,
                    np.asarray(ranks),
                    np.asarray(texts, object),
                    np.asarray(values),
                ),
            )
        )
    )
