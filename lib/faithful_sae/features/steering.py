"""A latent made stronger, set or taken away while the model runs: what follows shows what it does.

At the hook, x becomes x + (z'_f - z_f) d_f, with d_f the latent's row of W_dec and z_f its
activation there (0 if it is not among those that TopK keeps). All that the SAE does not reconstruct
stays in x, so a change of nothing changes nothing.

    add      z'_f = z_f + amount
    clamp    z'_f = amount
    ablate   z'_f = 0

It is done at every position but those of BOS, the ones read and the ones generated; SAEs are not
trained on BOS. An SAE that normalises x has the change scaled back with the token (sae.py).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from faithful_sae.features.explain import activation_of
from faithful_sae.features.index import FeatureError
from faithful_sae.features.text import text_ids
from faithful_sae.lm.model import LanguageModel
from faithful_sae.lm.sampling import draw_tokens, next_token_probabilities
from faithful_sae.sae.activations import rows_in_batches
from faithful_sae.sae.sae import TopKSAE

WAYS = ("add", "clamp", "ablate")
POSITIONS_AT_ONCE = 64


def edited(sae: TopKSAE, x: Tensor, latent: int, way: str, amount: float = 0.0) -> Tensor:
    """x float32 [.., D] with one latent changed in one of the WAYS; amount in units of its
    activation.

    Raises:
        FeatureError: no such latent or way.
    """
    if not 0 <= latent < sae.d_sae:
        raise FeatureError(f"no latent {latent}: the SAE has 0 to {sae.d_sae - 1}")
    if way not in WAYS:
        raise FeatureError(f"cannot {way!r} a latent: {', '.join(WAYS)}")
    if way == "add":
        change = torch.full_like(x[..., :1], amount)
    else:
        latents = torch.full_like(x[..., :1], latent, dtype=torch.int64)
        change = (amount if way == "clamp" else 0.0) - activation_of(sae, x, latents)
    return (
        x + change * sae.frame(x)[1] * sae.W_dec[latent]
        if sae.normalisation != "none"
        else x + change * sae.W_dec[latent]
    )


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, float64 [..], of log-probabilities [.., V]."""
    log_p = log_p.double()
    log_q = log_q.double()
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def steered_log_probabilities(
    lm: LanguageModel, sae: TopKSAE, ids: Tensor, latent: int, changes: Sequence[tuple[str, float]]
) -> Iterator[Tensor]:
    """Of the next token, float32 [B, T, vocab_size]: as the model is, then for each change (way,
    amount) of the latent, one by one.
    """
    x = lm.activations(ids)
    bos = ids.to(lm.device)[..., None] == lm.bos_id
    steered = (torch.where(bos, x, edited(sae, x, latent, *change)) for change in changes)
    for y in (x, *steered):
        yield torch.log_softmax(lm.spliced_logits(ids, y)[..., : lm.vocab_size], -1)


def dose_response(
    lm: LanguageModel,
    sae: TopKSAE,
    latent: int,
    rows: np.ndarray,
    amounts: Sequence[float],
    tokens: Tensor | Sequence[int],
    way: str = "add",
    batch_rows: int = 1,
) -> pd.DataFrame:
    """What growing amounts of a latent do to the next token.

    Args:
        rows: int [R, T] token rows.
        amounts: doses, in units of the latent's activation.
        tokens: ids whose probability is followed, for instance those that VocabProj names.
        way: one of WAYS.
        batch_rows: in a forward pass.

    Returns:
        one row per dose: amount, kl (of the model as it is || steered, nats), probability (of the
        tokens together, 0-1), both the mean over all positions but BOS.

    Raises:
        FeatureError: as edited; no rows, or nothing but BOS in them.
    """
    sums = [[0.0, 0.0] for _ in amounts]
    count = 0
    for ids in rows_in_batches(rows, batch_rows):
        measured = ids.to(lm.device) != lm.bos_id
        count += int(measured.sum())
        steered = steered_log_probabilities(
            lm, sae, ids, latent, [(way, amount) for amount in amounts]
        )
        log_p = next(steered)[measured]
        for total, logits in zip(sums, steered, strict=True):
            log_q = logits[measured]
            # some positions at a time: their float64 copies are larger than all else
            parts = (log_p.split(POSITIONS_AT_ONCE), log_q.split(POSITIONS_AT_ONCE))
            total[0] += sum(kl_divergence(p, q).sum().item() for p, q in zip(*parts, strict=True))
            total[1] += log_q[:, tokens].double().exp().sum().item()
    if count == 0:
        raise FeatureError("no token rows to steer on, or nothing but BOS in them")
    return pd.DataFrame(
        [
            {"amount": amount, "kl": kl / count, "probability": p / count}
            for amount, (kl, p) in zip(amounts, sums, strict=True)
        ]
    )


@torch.no_grad()
def continuation(
    lm: LanguageModel,
    sae: TopKSAE,
    text: str,
    latent: int,
    way: str,
    amount: float = 0.0,
    new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[str, str]:
    """(before, after): a text goes on as the model writes it, and with a latent changed; the same
    random numbers draw both.

    It ends after new_tokens, or where the model ends it.

    Args:
        way, amount: as edited.
        temperature: divides the logits.
        seed: of the random numbers.

    Raises:
        FeatureError: as edited and text_ids.
    """
    ids = text_ids(lm, text, new_tokens)
    # refuse before any work
    edited(sae, torch.zeros(1, lm.d_model, device=lm.device), latent, way)

    def change(x):
        return edited(sae, x.float(), latent, way, amount).to(x.dtype)

    plain = _write(lm, ids, new_tokens, temperature, seed, lambda x: None)
    return plain, _write(lm, ids, new_tokens, temperature, seed, change)


def _write(
    lm: LanguageModel,
    ids: Tensor,
    new_tokens: int,
    temperature: float,
    seed: int,
    change: Callable[[Tensor], Tensor | None],
) -> str:
    generator = torch.Generator(lm.device).manual_seed(seed)
    ends = {lm.bos_id, lm.tokenizer.eos_token_id}
    written = []
    cache = None
    new = ids.to(lm.device)

    def at_hook(x):
        # the hooked block of a model on several GPUs may be on another than SAE and logits
        at = x.device
        x = x.to(lm.device)
        changed = change(x)
        if changed is None:
            return None
        return torch.where(new[..., None] == lm.bos_id, x, changed).to(at)

    with lm.at_layer(at_hook):
        while len(written) < new_tokens:
            out = lm.model(input_ids=new, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[:, -1, : lm.vocab_size].float()
            new = draw_tokens(next_token_probabilities(logits, temperature, top_p=1.0), generator)
            if new.item() in ends:
                break
            written.append(new.item())
    return lm.tokenizer.decode(written)
