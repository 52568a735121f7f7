"""Which other latents stand near a latent: by their decoder rows, in its own SAE and in SAEs of
other corpora, and by the tokens on which both fire.

    decoder      cos(d_i, d_j) of decoder rows: they write alike
    correlated   Pearson's correlation of z_i and z_j over tokens: they fire alike

A correlation is over all tokens, also those on which neither fires, and only positive ones are
kept. Two latents that fire on one token alone, the same, correlate fully, so the number of tokens
on which both fire stands beside it.

F latents, D model, N tokens.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import csc_array

from faithful_sae.features.codes import Codes
from faithful_sae.sae.sae import TopKSAE

# of a latent, in its own SAE
LISTED = 8
# latents at a time
BLOCK = 512


def related_table(
    sae: TopKSAE, codes: Codes, others: Mapping[str, TopKSAE] | None = None
) -> pd.DataFrame:
    """Rows of related.parquet: of each latent the LISTED nearest and the LISTED most correlated
    ones, and the nearest one of each other SAE.

    Args:
        sae: whose latents they are.
        codes: where they fire (sparse_codes).
        others: by name, SAEs of other corpora, as wide as the model.
    """
    parts = [
        _table("decoder", "", *nearest_rows(sae.W_dec, sae.W_dec, LISTED, itself=False)),
        correlated_table(codes),
    ]
    for name, other in (others or {}).items():
        parts.append(_table("decoder", name, *nearest_rows(sae.W_dec, other.W_dec, 1)))
    table = pd.concat(parts, ignore_index=True)
    # of each latent in the order of the parts
    return table.sort_values("latent", kind="stable", ignore_index=True)


def nearest_rows(
    rows: torch.Tensor, others: torch.Tensor, n: int, itself: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(cosine float32, place int64), both [F, n]: the nearest of `others` [G, D] to each of `rows`
    [F, D], the nearest first. BLOCK x G cosines at a time.

    Args:
        n: of each; all there are, where there are fewer.
        itself: whether row i of `others` may be near row i; not where both are one dictionary.
    """
    unit, against = (F.normalize(x.float(), dim=-1) for x in (rows, others))
    n = min(n, len(others) - (not itself))
    found = []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ against.T
        if not itself:
            own = torch.arange(len(cosine), device=cosine.device)
            cosine[own, own + start] = -torch.inf
        best = cosine.topk(n)
        found.append((best.values.cpu().numpy(), best.indices.cpu().numpy()))
    values, places = (np.concatenate(part) for part in zip(*found, strict=True))
    return values, places


def correlated_table(codes: Codes, n: int = LISTED) -> pd.DataFrame:
    """The n latents with the largest positive correlation with each latent, as rows of
    related.parquet. Memory: some arrays [BLOCK, F].
    """
    d_sae, tokens = codes.d_sae, codes.tokens
    # places in rows, BOS among them: what is counted is `tokens`
    size = int(codes.position.max(initial=-1)) + 1
    z = csc_array((codes.value.astype(np.float64), codes.position, codes.start), (size, d_sae))
    fires = csc_array((np.ones(len(codes.value), np.int32), codes.position, codes.start), z.shape)
    mean = z.sum(0) / tokens
    deviation = np.sqrt(np.maximum((z * z).sum(0) / tokens - mean**2, 0))
    # one that never fires, or alike on all tokens, correlates with none
    deviation[deviation == 0] = np.inf
    n = min(n, d_sae - 1)
    parts = []
    for start in range(0, d_sae, BLOCK):
        block = np.arange(start, min(start + BLOCK, d_sae))
        r = (z[:, block].T @ z).toarray() / tokens - np.outer(mean[block], mean)
        r /= np.outer(deviation[block], deviation)
        r[block - start, block] = 0
        other = np.argpartition(-r, n - 1, 1)[:, :n]
        order = np.lexsort((other, -np.take_along_axis(r, other, 1)))
        other = np.take_along_axis(other, order, 1)
        value = np.take_along_axis(r, other, 1)
        together = np.take_along_axis((fires[:, block].T @ fires).toarray(), other, 1)
        i, rank = (value > 0).nonzero()
        other, value, together = (array[i, rank] for array in (other, value, together))
        columns = {"latent": block[i], "rank": rank, "other": other, "value": value}
        parts.append(pd.DataFrame(columns | {"together": pd.array(together, "Int32")}))
    return pd.concat(parts, ignore_index=True).assign(relation="correlated", sae="")


def relation_bytes(d_sae: int, activations: int) -> int:
    """Memory of related_table and its codes: of each activation its place and value, and both
    sparse matrices with their squares or products; a few arrays [BLOCK, F].
    """
    return 72 * activations + 48 * min(BLOCK, d_sae) * d_sae


def _table(relation, sae, values, places):
    latent, rank = np.indices(values.shape).reshape(2, -1)
    table = pd.DataFrame(
        {"latent": latent, "rank": rank, "other": places.ravel(), "value": values.ravel()}
    )
    return table.assign(
        relation=relation, sae=sae, together=pd.array([pd.NA] * len(table), "Int32")
    )
