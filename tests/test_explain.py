"""Explanations and steering against formulas written out by hand, exhaustive search, scikit-learn
and scipy.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from conftest import ARCHITECTURES, BOS, EOS, VOCABULARY
from faithful_sae.features import explain
from faithful_sae.features.collect import Kept, collect
from faithful_sae.features.index import FeatureError
from faithful_sae.features.steering import (
    continuation,
    dose_response,
    edited,
    kl_divergence,
    steered_log_probabilities,
)
from faithful_sae.kernels import latent_statistics
from faithful_sae.lm.model import load_model
from faithful_sae.sae.sae import TopKSAE

EACH = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def sae():
    return TopKSAE(16, 24, 3, seed=3)


@pytest.fixture
def any_lm(architecture, model_folders):
    """A model of each architecture whose last normalisation has random weights, as training leaves
    them.
    """
    lm = load_model(model_folders[architecture], 1, "cpu", "float32")
    base = lm.model.base_model
    norm = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}.get(architecture, "norm")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in getattr(base, norm).parameters():
            parameter.copy_(torch.randn(16, generator=generator))
    return lm


# --- VocabProj ------------------------------------------------------------------------------------


@EACH
def test_vocab_projection_by_hand(architecture, any_lm, sae):
    base = any_lm.model.base_model
    d = sae.W_dec.double()
    if architecture in ("gpt2", "gpt_neox"):
        norm = base.ln_f if architecture == "gpt2" else base.final_layer_norm
        centred = d - d.mean(1, keepdim=True)
        # rows as long as sqrt(16), so that epsilon (1e-5) counts as little as in the model
        x = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5 / 16).sqrt() * norm.weight
    else:
        weight = base.norm.weight if architecture == "llama" else 1 + base.norm.weight
        x = d / (d.pow(2).mean(1, keepdim=True) + 1e-6 / 16).sqrt() * weight
    head = {
        "gpt2": "lm_head",
        "gpt_neox": "embed_out" if hasattr(any_lm.model, "embed_out") else "lm_head",
    }.get(architecture, "lm_head")
    wanted = x @ getattr(any_lm.model, head).weight[:VOCABULARY].double().T
    found = explain.vocab_projection(any_lm, sae.W_dec)
    # without the 8 rows of Llama's embedding that no token uses
    assert found.shape == (24, VOCABULARY)
    np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        explain.vocab_projection(any_lm, 5 * sae.W_dec).numpy(), found.numpy(), rtol=1e-5, atol=1e-5
    )


@EACH
def test_a_strong_direction_makes_the_tokens_it_projects_to_likelier(architecture, any_lm, sae):
    """In the last block's output, which goes through the norm and nothing else: the logits become
    those of VocabProj.
    """
    found = explain.vocab_projection(any_lm, sae.W_dec[:1])[0]
    kept = []
    blocks = any_lm.blocks
    handle = blocks[-1].register_forward_hook(
        lambda module, args, out: (
            kept.append(1)
            or (
                (out[0] + 1e6 * sae.W_dec[0], *out[1:])
                if isinstance(out, tuple)
                else out + 1e6 * sae.W_dec[0]
            )
        )
    )
    with torch.no_grad():
        logits = any_lm.model(input_ids=torch.tensor([[BOS, 5, 9]])).logits[0, -1, :VOCABULARY]
        norm = next(
            getattr(any_lm.model.base_model, n)
            for n in ("ln_f", "final_layer_norm", "norm")
            if hasattr(any_lm.model.base_model, n)
        )
        bias = any_lm.model.get_output_embeddings()(norm(torch.zeros(16)))[:VOCABULARY]
    handle.remove()
    logits = 30 * torch.atanh(logits / 30) if architecture == "gemma2" else logits  # its softcap
    assert kept
    np.testing.assert_allclose((logits - bias).numpy(), found.numpy(), rtol=2e-3, atol=2e-3)


def test_vocab_proj_table(lm, sae):
    vocabulary = [f"<{i}>" for i in range(VOCABULARY)]
    table = explain.vocab_proj_table(lm, sae, vocabulary, 5)
    logits = explain.vocab_projection(lm, sae.W_dec).numpy()
    for latent in range(24):
        for method, sign in (("VocabProj", -1), ("VocabProjNegative", 1)):
            part = table[(table.latent == latent) & (table.method == method)]
            order = np.argsort(sign * logits[latent])[:5]
            assert part.text.tolist() == [f"<{i}>" for i in order]
            assert part["rank"].tolist() == list(range(5))
            np.testing.assert_array_equal(part.value, logits[latent][order])


# --- MutInfo --------------------------------------------------------------------------------------


def test_mutual_information_is_scikit_learns(lm, sae, rows):
    state, counts = collect(lm, sae, rows, Kept())
    vocabulary = [f"<{i}>" for i in range(VOCABULARY)]
    table = explain.mut_info_table(state, counts, vocabulary, VOCABULARY)
    counted = rows != BOS
    fires = (sae.encode(lm.activations(torch.from_numpy(rows))) > 0).numpy()[counted]
    tokens = rows[counted]
    for latent in range(24):
        part = table[table.latent == latent]
        wanted = {}
        for token in np.unique(tokens):
            here = tokens == token
            z = fires[:, latent]
            if (here & z).sum() and z[here].mean() > z.mean():
                wanted[f"<{token}>"] = mutual_info_score(here, z)
        assert set(part.text) == set(wanted)
        np.testing.assert_allclose(
            part.value, [wanted[text] for text in part.text], rtol=1e-9, atol=1e-12
        )
        assert part.value.is_monotonic_decreasing


PLANTED = 200  # tokens


@pytest.fixture(scope="module")
def planted():
    """(ids int [60, 100], fires bool [6000, 6]): six latents, each likelier on some of 200 tokens
    than on others.
    """
    rng = np.random.default_rng(0)
    often = 1 / (5 + np.arange(PLANTED))
    ids = rng.choice(PLANTED, (60, 100), p=often / often.sum())
    likely = rng.random((PLANTED, 6)) ** 4
    return ids, rng.random((6000, 6)) < likely[ids.ravel()]


@pytest.fixture(scope="module")
def best_tokens(planted):
    """{latent: [(token, information)]}, from the most on: scikit-learn's, of each token above the
    latent's average.
    """
    ids, fires = planted
    tokens = ids.ravel()
    best = {}
    for latent in range(6):
        z = fires[:, latent]
        above = [t for t in np.unique(tokens) if z[tokens == t].mean() > z.mean()]
        information = [(t, mutual_info_score(tokens == t, z)) for t in above]
        best[latent] = sorted(information, key=lambda pair: -pair[1])
    return best


def counted(planted, tokens, exact=False):
    """The state of a pass over the planted world, in batches of 20 rows."""
    ids, fires = planted
    state = latent_statistics.empty(
        6, top=1, strata=1, samples=1, window=1, tokens=tokens, exact=exact
    )
    indices = torch.arange(6).expand(2000, 6).contiguous()
    for start in range(0, 60, 20):
        values = torch.from_numpy(fires[100 * start : 100 * start + 2000].astype(np.float32))
        latent_statistics.add_rows_of_tokens(
            state, values, indices, ids[start : start + 20], start, 0, 0
        )
    return state


def listed_tokens(planted, state, n):
    """{latent: (tokens, information)} of mut_info_table."""
    token_counts = np.bincount(planted[0].ravel(), minlength=PLANTED)
    table = explain.mut_info_table(state, token_counts, [str(i) for i in range(PLANTED)], n)
    return {
        latent: (part.text.astype(int).tolist(), part.value.to_numpy())
        for latent, part in table.groupby("latent")
    }


def test_exact_counts_by_brute_force(planted):
    ids, fires = planted
    state = counted(planted, PLANTED, exact=True)
    for latent in range(6):
        by_hand = np.bincount(ids.ravel()[fires[:, latent]], minlength=PLANTED)
        assert (by_hand > 0).sum() > 64
        np.testing.assert_array_equal(state["token_count"][latent], by_hand)
    assert not state["lost"].any()


def test_exact_counts_list_the_tokens_that_the_formula_does(planted, best_tokens):
    found = listed_tokens(planted, counted(planted, PLANTED, exact=True), 10)
    assert set(found) == set(range(6))
    for latent, (tokens, information) in found.items():
        assert tokens == [token for token, _ in best_tokens[latent][:10]]
        np.testing.assert_allclose(information, [i for _, i in best_tokens[latent][:10]], rtol=1e-9)


def test_too_few_counters_give_too_little_information_and_another_order(planted, best_tokens):
    found = listed_tokens(planted, counted(planted, 64), 10)
    for latent, (tokens, information) in found.items():
        true = dict(best_tokens[latent])
        assert all(i <= true[t] + 1e-12 for t, i in zip(tokens, information, strict=True))
    wanted = {latent: [token for token, _ in best[:10]] for latent, best in best_tokens.items()}
    assert {latent: tokens for latent, (tokens, _) in found.items()} != wanted


def test_a_pass_that_fires_nowhere_has_no_mutual_information():
    state = latent_statistics.empty(
        3, top=1, strata=1, samples=1, window=1, tokens=PLANTED, exact=True
    )
    assert explain.mut_info_table(state, np.ones(PLANTED, int), ["x"] * PLANTED, 5).empty


def test_mutual_information_of_extremes():
    never_fires = explain.mutual_information(0, 0, 5, 10)
    fires_on_w_alone = explain.mutual_information(5, 5, 5, 10)
    independent = explain.mutual_information(2, 4, 5, 10)
    assert never_fires == 0
    np.testing.assert_allclose(fires_on_w_alone, np.log(2))
    np.testing.assert_allclose(independent, 0, atol=1e-15)


# --- MaxAct and PruningMaxAct ---------------------------------------------------------------------


@EACH
def test_pruning_by_exhaustive_search(architecture, any_lm, sae):
    generator = np.random.default_rng(0)
    contexts = [generator.integers(2, VOCABULARY, size) for size in (*range(1, 9), *range(3, 12))]
    latents = [
        sae.pre_activations(any_lm.activations(torch.tensor([[BOS, *c]]))[0, -1]).argmax().item()
        for c in contexts
    ]

    def activation(ids, latent):
        z = sae.pre_activations(any_lm.activations(torch.tensor([[BOS, *ids]]))[0, -1])
        return z[latent].item() if z[latent] >= z.topk(3).values[-1] and z[latent] > 0 else 0.0

    factors = generator.uniform(1, 2.2, len(contexts))
    strengths = np.array(
        [
            max(activation(c[-n:], f) for n in range(1, len(c) + 1)) * s
            for c, f, s in zip(contexts, latents, factors, strict=True)
        ],
        np.float32,
    )
    lengths, values = explain.prune(any_lm, sae, latents, contexts, strengths, batch_rows=3)
    for context, latent, strength, length, value in zip(
        contexts, latents, strengths, lengths, values, strict=True
    ):
        enough = [
            n
            for n in range(1, len(context) + 1)
            if activation(context[-n:], latent) >= strength / 2
        ]
        assert length == min(enough, default=0)
        assert value == pytest.approx(
            activation(context[-length:], latent) if length else 0, rel=1e-5
        )
    assert (lengths == 0).any()
    assert (lengths == 1).any()
    assert (lengths > 1).any()


def test_tables_of_contexts(lm, sae):
    vocabulary = [f"<{i}>" for i in range(VOCABULARY)]
    ids = np.array([7, 9, 11, 4], np.int32)
    z = sae.encode(lm.activations(torch.tensor([[BOS, *ids[:3]]])))[0, -1]
    latent = int(z.argmax())
    contexts = pd.DataFrame(
        {
            "latent": [latent, latent, latent],
            "kind": ["top", "top", "sample"],
            "rank": [0, 1, 0],
            "position": [2, 2, 2],
            "activation": [float(z[latent]), 1e9, 1.0],
            "tokens": [ids, ids, ids],
        }
    )
    said = explain.max_act_table(contexts, vocabulary, 1)
    assert said.values.tolist() == [[latent, "MaxAct", 0, "<7><9><11><4>", float(z[latent])]]
    pruned = explain.pruning_max_act_table(contexts, lm, sae, vocabulary, 2)
    # of the other nothing keeps half
    assert len(pruned) == 1
    assert "<7><9><11>".endswith(pruned.text[0])
    assert pruned.value[0] >= z[latent] / 2


def test_agreement_of_tokens():
    rows = [
        (0, "MutInfo", 0, " The", 1.0),
        (0, "MutInfo", 1, "a", 1.0),
        (0, "VocabProj", 0, "the", 1.0),
        (0, "VocabProj", 1, "b", 1.0),
        (1, "MutInfo", 0, "x", 1.0),
        (1, "VocabProj", 2, "x", 1.0),
        (2, "VocabProj", 0, "x", 1.0),
        (0, "MaxAct", 0, "b", 1.0),
    ]
    said = pd.DataFrame(rows, columns=["latent", "method", "rank", "text", "value"])
    assert explain.token_agreement(said, 2).to_dict() == {0: 0.5, 1: 0.0}
    assert explain.token_agreement(said, 3).to_dict() == {0: 0.5, 1: 1.0}
    assert explain.token_agreement(said.loc[said.method == "VocabProj"], 3).empty
    with pytest.raises(FeatureError, match="n = 0"):
        explain.token_agreement(said, 0)


# --- steering -------------------------------------------------------------------------------------


def test_edits_by_hand(sae):
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
    z = sae.encode(x)
    latent = int((z > 0).sum((0, 1)).argmax())
    assert (z[..., latent] == 0).any()
    d = sae.W_dec[latent]
    for way, amount, wanted in (
        ("add", 2.5, z[..., latent] + 2.5),
        ("clamp", 1.5, torch.full((4, 5), 1.5)),
        ("ablate", 0, torch.zeros(4, 5)),
    ):
        new = z.clone()
        new[..., latent] = wanted
        by_hand = x - sae.decode(z) + sae.decode(new)  # the SAE's error stays
        torch.testing.assert_close(
            edited(sae, x, latent, way, amount), by_hand, rtol=1e-5, atol=1e-5
        )
        difference = edited(sae, x, latent, way, amount) - x
        torch.testing.assert_close(
            difference, (difference @ d)[..., None] * d, rtol=1e-5, atol=1e-5
        )
    assert torch.equal(edited(sae, x, latent, "add", 0.0), x)


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_an_edit_of_an_sae_that_normalises_is_scaled_back(sae, normalisation):
    sae.normalisation = normalisation
    x = 7 * torch.randn(6, 16, generator=torch.Generator().manual_seed(0)) + 1
    z = sae.encode(x)
    shift = x.mean(-1, keepdim=True) if normalisation == "layer_norm" else 0
    scale = (
        x.std(-1, keepdim=True)
        if normalisation == "layer_norm"
        else x.norm(dim=-1, keepdim=True) / 4
    )
    new = z.clone()
    new[:, 2] = 1.5
    by_hand = x - (sae.decode(z) * scale + shift) + (sae.decode(new) * scale + shift)
    torch.testing.assert_close(edited(sae, x, 2, "clamp", 1.5), by_hand, rtol=1e-5, atol=1e-4)


@EACH
def test_steered_probabilities_by_a_hook_of_our_own(architecture, any_lm, sae, rows):
    ids = torch.from_numpy(rows)
    plain, steered = steered_log_probabilities(any_lm, sae, ids, 4, [("clamp", 3.0)])

    def hook(module, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        z = sae.encode(x)[..., 4]
        new = torch.where((ids == BOS)[..., None], x, x + (3 - z)[..., None] * sae.W_dec[4])
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    with torch.no_grad():
        by_hand = [torch.log_softmax(any_lm.model(input_ids=ids).logits[..., :VOCABULARY], -1)]
        handle = any_lm.blocks[1].register_forward_pre_hook(hook, with_kwargs=True)
        by_hand.append(torch.log_softmax(any_lm.model(input_ids=ids).logits[..., :VOCABULARY], -1))
        handle.remove()
    for found, wanted in zip((plain, steered), by_hand, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (plain - steered).abs().max() > 0.1


def test_kl_is_scipys_and_torchs():
    p, q = torch.log_softmax(
        torch.randn(2, 7, 50, generator=torch.Generator().manual_seed(0)) * 4, -1
    )
    found = kl_divergence(p, q)
    np.testing.assert_allclose(
        found.numpy(),
        entropy(p.double().exp().numpy(), q.double().exp().numpy(), axis=-1),
        rtol=1e-5,
    )
    torch.testing.assert_close(
        found,
        torch.nn.functional.kl_div(q.double(), p.double(), log_target=True, reduction="none").sum(
            -1
        ),
    )


def test_dose_and_response(lm, sae, rows):
    tokens = torch.tensor([5, 9, 33])
    table = dose_response(lm, sae, 4, rows, [0.0, 1.0, 20.0], tokens, batch_rows=4)
    assert table.kl[0] == 0
    assert table.kl[2] > table.kl[1] > 0
    measured = torch.from_numpy(rows != BOS)
    plain, steered = steered_log_probabilities(lm, sae, torch.from_numpy(rows), 4, [("add", 20.0)])
    p = plain[measured].double().exp().numpy()
    q = steered[measured].double().exp().numpy()
    np.testing.assert_allclose(table.kl[2], entropy(p, q, axis=-1).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        table.probability[[0, 2]],
        [p[:, tokens].sum(1).mean(), q[:, tokens].sum(1).mean()],
        rtol=1e-5,
    )


@EACH
def test_a_steered_continuation_is_the_one_without_a_cache(architecture, any_lm, sae):
    """Written again with whole forward passes and a hook of our own, by the most likely token (a
    temperature near 0).
    """
    for way, amount in (("add", 8.0), ("clamp", 6.0), ("ablate", 0.0)):
        ids = [BOS, 5, 9, 33]
        for _ in range(12):
            *_, steered = steered_log_probabilities(
                any_lm, sae, torch.tensor([ids]), 4, [(way, amount)]
            )
            if (new := int(steered[0, -1].argmax())) in (BOS, EOS):
                break
            ids.append(new)
        before, after = continuation(
            any_lm, sae, "w5 w9 w33", 4, way, amount, new_tokens=12, temperature=1e-4
        )
        assert after == any_lm.tokenizer.decode(ids[4:])
        assert len(before)


def test_continuations_share_their_random_numbers(lm, sae):
    def written(amount, seed):
        return continuation(lm, sae, "w5 w9", 4, "add", amount, new_tokens=20, seed=seed)

    before, after = written(0.0, 3)
    assert before == after
    assert before == written(9.0, 3)[0]
    assert before != written(0.0, 4)[0]


def test_bad_input(lm, sae, rows):
    for call, words in (
        (lambda: edited(sae, torch.zeros(16), 24, "add"), "has 0 to 23"),
        (lambda: edited(sae, torch.zeros(16), -1, "add"), "no latent -1"),
        (lambda: edited(sae, torch.zeros(16), 3, "double"), "add, clamp, ablate"),
        (lambda: continuation(lm, sae, "", 3, "add"), "no tokens"),
        (
            lambda: continuation(lm, sae, "w3", 3, "add", new_tokens=40),
            "and 40 more the model's context of 32",
        ),
        (lambda: continuation(lm, sae, "w3", 99, "add", new_tokens=4), "no latent 99"),
        (lambda: dose_response(lm, sae, 3, rows[:0], [1.0], [5]), "no token rows"),
    ):
        with pytest.raises(FeatureError, match=words):
            call()
