"""A latent made stronger, set or taken away while the model runs: what follows shows what it does.

At the hook, x becomes x + (z'_f - z_f) d_f, with d_f the latent's row of W_dec and z_f its
activation there (0 if it is not among those that TopK keeps). All that the SAE does not reconstruct
stays in x, so a change of nothing changes nothing.

    add      z'_f = z_f + amount      clamp    z'_f = amount      ablate    z'_f = 0

It is done at every position but those of BOS, the ones read and the ones generated; SAEs are not
trained on BOS. An SAE that normalises x has the change scaled back with the token (sae.py).
"""

import pandas as pd
import torch

from faithful_sae.features.explain import activation_of
from faithful_sae.features.index import FeatureError
from faithful_sae.features.text import text_ids
from faithful_sae.lm.sampling import draw_tokens, next_token_probabilities
from faithful_sae.sae.activations import rows_in_batches

WAYS = ("add", "clamp", "ablate")
POSITIONS_AT_ONCE = 64


def edited(sae, x, latent, way, amount=0.0):
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
        change = (amount if way == "clamp" else 0.0) - activation_of(
            sae, x, torch.full_like(x[..., :1], latent, dtype=torch.int64)
        )
    return (
        x + change * sae.frame(x)[1] * sae.W_dec[latent]
        if sae.normalisation != "none"
        else x + change * sae.W_dec[latent]
    )


def kl_divergence(log_p, log_q):
    """KL(p || q) in nats, float64 [..], of log-probabilities [.., V]."""
    log_p = log_p.double()
    log_q = log_q.double()
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def steered_log_probabilities(lm, sae, ids, latent, changes):
    """Of the next token, float32 [B, T, vocab_size]: as the model is, then for each change (way,
    amount) of the latent, one by one.
    """
    x = lm.activations(ids)
    bos = ids.to(lm.device)[..., None] == lm.bos_id
    for y in (
        x,
        *(torch.where(bos, x, edited(sae, x, latent, way, amount)) for way, amount in changes),
    ):
        yield torch.log_softmax(lm.spliced_logits(ids, y)[..., : lm.vocab_size], -1)


def dose_response(lm, sae, latent, rows, amounts, tokens, way="add", batch_rows=1) -> pd.DataFrame:
    """What growing amounts of a latent do to the next token.

    Args:
        rows: int [R, T] token rows. amounts: doses, in units of the latent's activation. tokens:
            ids whose probability is followed, for instance those that VocabProj names.

    Returns:
        DataFrame, one row per dose: amount, kl (of the model as it is || steered, nats),
            probability (of the tokens together, 0-1),
        both the mean over all positions but BOS.

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
        for total, log_q in zip(sums, (log_q[measured] for log_q in steered)):
            # some positions at a time: their float64 copies are larger than all else
            total[0] += sum(
                kl_divergence(p, q).sum().item()
                for p, q in zip(log_p.split(POSITIONS_AT_ONCE), log_q.split(POSITIONS_AT_ONCE))
            )
            total[1] += log_q[:, tokens].double().exp().sum().item()
    if count == 0:
        raise FeatureError("no token rows to steer on, or nothing but BOS in them")
    return pd.DataFrame(
        [
            {"amount": amount, "kl": kl / count, "probability": p / count}
            for amount, (kl, p) in zip(amounts, sums)
        ]
    )


@torch.no_grad()
def continuation(lm, sae, text, latent, way, amount=0.0, new_tokens=40, temperature=1.0, seed=0):
    """(before, after): a text goes on as the model writes it, and with a latent changed; the same
    random numbers draw both.

    It ends after new_tokens, or where the model ends it. temperature: divides the logits.

    Raises:
        FeatureError: as edited and text_ids.
    """
    ids = text_ids(lm, text, new_tokens)
    edited(sae, torch.zeros(1, lm.d_model, device=lm.device), latent, way)  # refuse before any work
    plain = _write(lm, ids, new_tokens, temperature, seed, lambda x: None)
    return plain, _write(
        lm,
        ids,
        new_tokens,
        temperature,
        seed,
        lambda x: edited(sae, x.float(), latent, way, amount).to(x.dtype),
    )


def _write(lm, ids, new_tokens, temperature, seed, change):
    generator = torch.Generator(lm.device).manual_seed(seed)
    ends = {lm.bos_id, lm.tokenizer.eos_token_id}
    written = []
    cache = None
    new = ids.to(lm.device)

    def at_hook(x):
        at, x = (
            x.device,
            x.to(lm.device),
        )  # the hooked block of a model on several GPUs may be on another than SAE and logits
        changed = change(x)
        return (
            changed
            if changed is None
            else torch.where(new[..., None] == lm.bos_id, x, changed).to(at)
        )

    with lm._at_layer(at_hook):
        while len(written) < new_tokens:
            out = lm.model(input_ids=new, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            new = draw_tokens(
                next_token_probabilities(
                    out.logits[:, -1, : lm.vocab_size].float(), temperature, top_p=1.0
                ),
                generator,
            )
            if new.item() in ends:
                break
            written.append(new.item())
    return lm.tokenizer.decode(written)
