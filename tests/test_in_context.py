"""Losses that look at what the language model makes of x_hat: whole rows, end-to-end SAEs, and the
causal loss.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from conftest import BOS
from faithful_sae import load_model, train_saes
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.in_context import InContext, Outputs, RowStream
from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.variants import Causal, EndToEnd, TopK
from faithful_sae.sae.variants.base import Moment
from faithful_sae.sae.variants.end_to_end import divergence
from faithful_sae.stages.corpus import make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import train_all
from test_variants import ALIVE, DEAD, D, F, K, close, evaluated, some

R, T, V = 4, 5, 7
G = torch.Generator().manual_seed(0)
HEAD = torch.randn(D, V, generator=G).double()
MIX = torch.randn(D, D, generator=G).double()


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


class Rest:
    """Stands in for rows of a language model, whose rest is a function that says of itself what it
    is; the first position of each row is not measured.
    """

    def __init__(self, head, mix=lambda rows: rows @ MIX, rows=None):
        self.head, self.mix = head, mix
        self.whole = drawn(R, T, D) + 1 if rows is None else rows
        self.measured = torch.ones(self.whole.shape[:2], dtype=torch.bool)
        self.measured[:, 0] = False
        self.x = self.whole[self.measured]
        self.original = self.run(self.whole)

    def rows(self, x_hat):
        return self.whole.index_put((self.measured,), x_hat)

    def run(self, rows):
        return Outputs(self.head(rows), [self.mix(rows)])


def linear(rows):
    return rows @ HEAD


def moment(rest, share=1.0, dead=ALIVE):
    there: Any = rest
    return Moment(share, dead, RECIPES["default"], in_context=there)


# --- rows of a language model ---------------------------------------------------------------------


@pytest.fixture(params=["llama", "gpt2", "gpt_neox", "gemma2"])
def any_lm(model_folders, request):
    return load_model(model_folders[request.param], 1, "cpu", "float32")


def test_what_is_measured_are_moderate_positions_that_are_not_bos(lm, rows):
    norms = lm.activations(torch.from_numpy(rows)).norm(dim=-1)
    limit = norms[rows != BOS].median().item()
    batch = InContext(lm, torch.from_numpy(rows), limit)
    assert torch.equal(batch.measured, (torch.from_numpy(rows) != BOS) & (norms <= limit))
    assert torch.equal(batch.x, lm.activations(torch.from_numpy(rows))[batch.measured])
    assert InContext(lm, torch.from_numpy(rows), include_bos=True).measured.all()


def test_x_itself_changes_nothing(any_lm, rows):
    batch = InContext(any_lm, torch.from_numpy(rows))
    found = batch.run(batch.rows(batch.x))
    close(found.logits, batch.original.logits, 1e-5)
    close(divergence(batch, found.logits), torch.tensor(0.0), 1e-6)


def test_other_activations_give_the_logits_that_fidelity_is_measured_on(any_lm, rows):
    ids = torch.from_numpy(rows)
    batch = InContext(any_lm, ids)
    x_hat = batch.x.roll(1, 0)
    whole = torch.where(batch.measured[..., None], batch.rows(x_hat), any_lm.activations(ids))
    close(batch.run(batch.rows(x_hat)).logits, any_lm.spliced_logits(ids, whole), 1e-6)


def test_streams_are_those_that_transformers_gives_out(any_lm, rows):
    ids = torch.from_numpy(rows)
    batch = InContext(any_lm, ids)
    with torch.no_grad():
        hidden = any_lm.model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(batch.original.streams) == 2
    # the last that it gives out is behind the final norm
    close(batch.original.streams[0], hidden[2], 1e-6)


def test_derivatives_are_those_of_differences_and_none_are_the_models(any_lm, rows):
    batch = InContext(any_lm, torch.from_numpy(rows))
    x_hat = (batch.x + 0.3 * batch.x.roll(1, 0)).requires_grad_()
    direction = torch.randn(x_hat.shape, generator=torch.Generator().manual_seed(2))

    def loss(at):
        return divergence(batch, batch.run(batch.rows(at)).logits)

    loss(x_hat).backward()
    assert x_hat.grad is not None
    step = 1e-2 * direction
    with torch.no_grad():
        differences = (loss(x_hat + step) - loss(x_hat - step)).item() / 2e-2
    assert (x_hat.grad * direction).sum().item() == pytest.approx(differences, rel=0.02)
    assert all(w.grad is None for w in any_lm.model.parameters())


@pytest.mark.parametrize("hook", ["mlp", "attention"])
def test_what_a_block_adds_is_replaced_too(model_folders, rows, hook):
    lm = load_model(model_folders["gpt2"], 1, "cpu", "float32", hook=hook)
    ids = torch.from_numpy(rows)
    batch = InContext(lm, ids)
    whole = batch.rows(torch.zeros_like(batch.x))
    assert torch.equal(batch.run(whole).logits, lm.spliced_logits(ids, whole))
    close(batch.run(batch.rows(batch.x)).logits, batch.original.logits, 1e-5)


def test_a_batch_of_whole_rows_is_one_of_each_row_in_every_pass(lm, rows):
    stream = stream_of(lm, rows, 10 * 24)
    batches = [batch.ids for batch in stream]
    assert [batch.shape for batch in batches] == [(2, 12)] * 10
    for a_pass in (batches[:5], batches[5:]):
        found = sorted(map(tuple, torch.cat(a_pass).tolist()))
        assert found == sorted(map(tuple, rows.tolist()))
    assert not torch.equal(torch.cat(batches[:5]), torch.cat(batches[5:]))


def stream_of(lm, rows, tokens, **changes):
    own: dict[str, Any] = {"include_bos": False, "seed": 3} | changes
    return RowStream(lm, rows, n_tokens=tokens, batch_tokens=24, **own)


def test_massive_activations_are_listed_once_and_not_measured(lm, rows):
    stream = stream_of(lm, rows, 10 * 24, max_norm=1.1)
    measured = sum(int(batch.measured.sum()) for batch in stream) / 2
    norms = lm.activations(torch.from_numpy(rows)).norm(dim=-1).numpy()
    content = rows != BOS
    above = content & (norms > 1.1 * np.sort(norms[content])[(content.sum() - 1) // 2])
    assert measured == (content & ~above).sum()
    listed = stream.massive()
    assert sorted(zip(listed.row, listed.position, strict=True)) == sorted(
        zip(*above.nonzero(), strict=True)
    )
    assert (listed.token == rows[listed.row, listed.position]).all()


# --- end to end -----------------------------------------------------------------------------------


def test_kl_is_scipys():
    rest = Rest(linear)
    x_hat = rest.x + 0.1 * drawn(*rest.x.shape).flip(0)
    loss = EndToEnd(K, downstream=0).distance(rest.x, x_hat - rest.x, moment(rest))
    p, q = ((x @ HEAD).softmax(-1).numpy() for x in (rest.x, x_hat))
    scale = rest.x.var(0, correction=0).mean().item()
    assert loss.item() == pytest.approx(scale * entropy(p, q, axis=1).mean(), rel=1e-10)


def test_its_gradient_with_a_linear_head_is_that_of_softmax():
    rest = Rest(linear)
    error = 0.1 * drawn(*rest.x.shape).flip(0)
    _, gradient = EndToEnd(K, downstream=0).distance_and_gradient(rest.x, error, moment(rest))
    p, q = ((x @ HEAD).softmax(-1) for x in (rest.x, rest.x + error))
    scale = rest.x.var(0, correction=0).mean()
    close(gradient, scale * (q - p) @ HEAD.T / len(rest.x))


def test_derivatives_do_not_vanish_in_a_model_of_float16():
    """With many words each probability changes by little, and a mean's share of that is less than
    float16's least number.
    """
    head = 0.3 * torch.randn(D, 20_000, generator=torch.Generator().manual_seed(4)).half()

    def rest_of(dtype):
        rows = drawn(60, T, D)
        return Rest(lambda rows: (rows.to(dtype) @ head.to(dtype)).to(rows), rows=rows)

    found = []
    for dtype in (torch.float64, torch.float16):
        rest = rest_of(dtype)
        error = 0.1 * rest.x.roll(1, 0)
        variant = EndToEnd(K, downstream=0)
        found.append(variant.distance_and_gradient(rest.x, error, moment(rest))[1])
    assert (found[1] - found[0]).norm() < 0.05 * found[0].norm()


def test_streams_that_stay_as_they_are_have_the_local_error():
    rest = Rest(linear, mix=lambda rows: rows)
    error = 0.1 * drawn(*rest.x.shape).flip(0)
    found = EndToEnd(K, kl=0, downstream=1).distance(rest.x, error, moment(rest))
    close(found, error.square().mean())


def test_of_streams_only_the_share_of_variance_counts():
    error = 0.1 * drawn(R * (T - 1), D)
    losses = [
        EndToEnd(K, kl=0, downstream=1).distance(rest.x, error, moment(rest))
        for rest in (Rest(linear), Rest(linear, mix=lambda rows: 100 * rows @ MIX))
    ]
    close(*losses)


@pytest.mark.parametrize("dead", [ALIVE, DEAD], ids=["alive", "dead"])
@pytest.mark.parametrize("variant", [EndToEnd(K, kl=0, downstream=0, local=1), Causal(K, 0)])
def test_without_what_the_model_makes_of_it_it_is_topk(variant, dead):
    rest = Rest(linear)
    at = moment(rest, 1.0, dead)
    loss, gradients = evaluated(variant, some(variant), rest.x, at)
    expected, of_topk = evaluated(TopK(K), some(TopK(K)), rest.x, at)
    assert loss == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients.items():
        close(gradient, of_topk[name])


def curved(rows):
    return (rows.tanh() @ HEAD).square()


@pytest.mark.parametrize("variant", [EndToEnd(K, 0.5, 2.0, 0.3), Causal(K, 2.0)])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_gradients_are_those_of_differences(variant, name):
    rest = Rest(curved, mix=lambda rows: rows.sin())
    sae = some(variant)
    _, gradients = evaluated(variant, sae, rest.x, moment(rest))
    h = 1e-6
    for place in [tuple(int(n * p) for n in getattr(sae, name).shape) for p in (0.1, 0.5, 0.9)]:
        ends = []
        for sign in (1, -1):
            moved = copy.copy(sae)
            w = getattr(sae, name).clone()
            w[place] += sign * h
            setattr(moved, name, w)
            ends.append(variant.loss(moved, rest.x, moment(rest))[0].item())
        expected = (ends[0] - ends[1]) / (2 * h)
        assert gradients[name][place].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_activations_alone_do_not_suffice():
    x = torch.randn(48, D)
    with pytest.raises(ValueError, match="whole rows"):
        train_saes([x], D, F, EndToEnd(K), [0], 1e-3, 48, 48)


# --- the causal loss ------------------------------------------------------------------------------


def nonlinear(rest, error=None):
    """What the causal loss adds, in units of the logits' variance."""
    error = torch.zeros_like(rest.x) if error is None else error
    at = moment(rest)
    parts = [Causal(K, weight).distance(rest.x, error, at) for weight in (1, 0)]
    return (parts[0] - parts[1]).item() / rest.x.var(0, correction=0).mean().item()


def test_a_linear_rest_costs_nothing():
    assert nonlinear(Rest(linear), drawn(R * (T - 1), D)) == pytest.approx(0, abs=1e-12)


def test_rows_that_are_alike_cost_nothing():
    alike = drawn(1, T, D).expand(R, T, D)
    assert nonlinear(Rest(curved, rows=alike)) == pytest.approx(0, abs=1e-12)
    assert nonlinear(Rest(curved)) > 1e-3


def test_a_square_costs_what_it_does_by_hand():
    """(a u^2 + (1 - a) v^2) - (a u + (1 - a) v)^2 = a (1 - a) (u - v)^2, of each logit."""
    rest = Rest(torch.square)
    rows = rest.whole.numpy()
    a = np.array([1, 3, 5, 7])[:, None, None] / 8
    off = (a * (1 - a) * (rows - np.roll(rows, 1, 0)) ** 2)[:, 1:]
    logits = rest.x.square()
    expected = (off**2).sum(-1).mean() / logits.var(0, correction=0).sum().item()
    assert nonlinear(rest) == pytest.approx(expected, rel=1e-10)


def test_its_weight_rises_with_the_warm_up():
    rest = Rest(curved)
    error = torch.zeros_like(rest.x)
    losses = [
        Causal(K, 1.0, warmup=0.5).distance(rest.x, error, moment(rest, share)).item()
        for share in (0, 0.25, 0.5, 1)
    ]
    assert losses == pytest.approx([0, losses[-1] / 2, losses[-1], losses[-1]])


# --- training -------------------------------------------------------------------------------------


def trained(lm, rows, variant, batch=24):
    stream = RowStream(
        lm, rows, n_tokens=200 * batch, batch_tokens=batch, include_bos=False, seed=3
    )
    return train_saes(stream, lm.d_model, 24, variant, [0], 3e-3, 200 * batch, batch)


def test_end_to_end_saes_keep_more_of_what_the_model_does_and_less_of_x(lm, rows):
    batch = InContext(lm, torch.from_numpy(rows))
    kl, error = {}, {}
    for name, variant in {"topk": TopK(2), "e2e": EndToEnd(2, downstream=0)}.items():
        (sae,) = trained(lm, rows, variant)
        x_hat = sae.reconstruct(batch.x)
        kl[name] = divergence(batch, batch.run(batch.rows(x_hat)).logits).item()
        error[name] = (x_hat - batch.x).square().mean().item()
    assert kl["e2e"] < 0.7 * kl["topk"]
    assert error["e2e"] > error["topk"]


def test_the_causal_loss_makes_the_rest_more_linear(lm, rows):
    found = {}
    for weight in (0.0, 30.0):
        (sae,) = trained(lm, rows, Causal(2, weight), 36)
        batch = InContext(lm, torch.from_numpy(rows))
        found[weight] = nonlinear(batch, sae.reconstruct(batch.x) - batch.x)
    assert found[30.0] < found[0.0] / 2


def test_a_training_that_is_broken_off_ends_with_the_same_bytes(lm, rows, tmp_path, monkeypatch):
    class Broken(Exception):
        pass

    variants = [EndToEnd(2), Causal(2)]

    def run(checkpoint=None):
        own = {"n_tokens": 7 * 36, "batch_tokens": 36, "include_bos": False, "seed": 3}
        stream = RowStream(lm, rows, **own, max_norm=1.1)
        sizes = (lm.d_model, 24, variants, (0, 1))
        saes = train_saes(stream, *sizes, 3e-3, 7 * 36, 36, checkpoint=checkpoint)
        return saes, stream.massive()

    whole, massive = run()
    save = Checkpoint.save

    def save_and_break(self, *args):
        save(self, *args)
        monkeypatch.setattr(Checkpoint, "save", save)
        raise Broken

    monkeypatch.setattr(Checkpoint, "save", save_and_break)
    checkpoint = [Checkpoint(tmp_path / "checkpoint", "key", every=0) for _ in range(2)]
    with pytest.raises(Broken):
        run(checkpoint[0])
    again, listed = run(checkpoint[1])
    assert len(massive) and listed.equals(massive)
    for a, b in zip(whole, again, strict=True):
        assert a.W_dec.numpy().tobytes() == b.W_dec.numpy().tobytes()
        assert a.training_log.equals(b.training_log)


# --- in a parameter file --------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"sae.max_norm": 1.5}])
def test_the_stages_train_and_load_them(make_run, changes):
    run = make_run({"sae.variant": {"name": "end_to_end"}, "sae.batch_tokens": 60} | changes)
    lm = open_model(run)
    make_faithful(run, lm)
    _, summary = train_all(run, lm)
    assert {sae.metadata["variant"]["name"] for sae in load_saes(run, lm).values()} == {
        "end_to_end"
    }
    assert summary.fvu.notna().all()


def test_a_batch_must_have_the_rows_that_are_mixed(make_run):
    said = r"sae\.batch_tokens = {}: Causal .* a multiple of sequence_length = 12, at least 36"
    for tokens in (24, 50):
        with pytest.raises(ParamsError, match=said.format(tokens)):
            make_run({"sae.variant": {"name": "causal"}, "sae.batch_tokens": tokens})


def test_weights_that_leave_nothing_to_minimise(make_run):
    with pytest.raises(ParamsError, match="all 0: there is nothing to minimise"):
        make_run({"sae.variant": {"name": "end_to_end", "kl": 0, "downstream": 0}})
