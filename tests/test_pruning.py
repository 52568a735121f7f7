"""Pruned SAEs and description lengths: cases by hand, scipy's entropies, and the study."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy

from conftest import PRUNING, TEXT
from faithful_sae import TopKSAE, fidelity, load_sae
from faithful_sae.metrics.description_length import bits_at, descriptions
from faithful_sae.metrics.ffr import firing_frequency
from faithful_sae.metrics.pruning import ORDERS, firing_on, pruned, rankings, sizes
from faithful_sae.paper import pruning as shown
from faithful_sae.paper.plots import pruning as plots
from faithful_sae.paper.plots.style import WIDTH
from faithful_sae.paper.verdicts import AGREES, DISAGREES, NO_DIFFERENCE, NOT_TESTABLE, UNDECIDED
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.corpus import corpus, make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s15_pruning import FAKE, WHOLE, prune
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import train_all

# --- SAEs without some latents --------------------------------------------------------------------


@pytest.fixture
def x():
    return torch.randn(300, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sae():
    return TopKSAE(16, 24, 4, 0)


def test_the_next_latents_take_the_places_of_removed_ones(sae, x):
    """Against dense latents of which the removed ones are struck out before the k largest."""
    gone = [3, 7, 20, 7]
    p = sae.pre_activations(x)
    p[:, gone] = 0
    largest = p.topk(4).indices
    z = torch.zeros_like(p).scatter(1, largest, p.gather(1, largest))
    found = pruned(sae, gone)
    assert (found.d_sae, found.k) == (21, 4)
    torch.testing.assert_close(found.reconstruct(x), z @ sae.W_dec + sae.b_dec)
    assert sae.d_sae == 24


def test_without_any_latent_less_it_is_the_same(sae, x):
    assert torch.equal(pruned(sae, []).reconstruct(x), sae.reconstruct(x))


def test_a_threshold_goes_with_its_latent(x):
    sae = TopKSAE(16, 24, None, 0)
    sae.threshold = torch.linspace(0, 1, 24)
    found = pruned(sae, range(12))
    assert found.threshold is not None
    assert torch.equal(found.threshold, sae.threshold[12:])
    assert torch.equal(found.encode(x), sae.encode(x)[:, 12:])


def test_a_pruned_sae_can_be_saved(sae, x, tmp_path):
    sae.firing = torch.rand(24)
    found = pruned(sae, [0, 23])
    found.save(tmp_path)
    assert torch.equal(load_sae(tmp_path).reconstruct(x), found.reconstruct(x))


@pytest.mark.parametrize(
    ("gone", "said"),
    [([24], "latents 24 to 24 are not among 0 to 23"), (range(21), "3 latents would be left")],
)
def test_what_cannot_be_removed(sae, gone, said):
    with pytest.raises(ValueError, match=said):
        pruned(sae, gone)


def test_an_sae_with_experts_is_refused(sae):
    sae.router, sae.b_router = torch.zeros(16, 2), torch.zeros(16)
    with pytest.raises(ValueError, match="experts"):
        pruned(sae, [0])


def test_orders_by_hand():
    found = rankings([0.1, 0.5, 0.1], [0.3, 0.2, 0.1], [0, 0.2, 0.9], draws=2, seed=0)
    by_order = {order: latents.tolist() for (order, _), latents in found.items()}
    assert [*by_order] == [*ORDERS]
    assert by_order["random tokens"] == [1, 0, 2]
    assert by_order["own text"] == [0, 1, 2]
    assert by_order["frequent"] == [2, 1, 0]
    assert by_order["rare"] == [0, 1, 2]
    assert sorted(by_order["at random"]) == [0, 1, 2]


def test_draws_differ_and_repeat():
    one, two = (rankings(*[np.zeros(50)] * 3, draws=2, seed=3) for _ in range(2))
    assert (one["at random", 0] != one["at random", 1]).any()
    assert (one["at random", 1] == two["at random", 1]).all()


def test_firing_on_batches_is_counted_on_dense_latents(sae, x):
    found = firing_on({"a": sae}, x.split(70))["a"]
    assert found == pytest.approx((sae.encode(x) > 0).double().mean(0).numpy())


def test_sizes():
    sae = TopKSAE(4, 512, 8, 0)
    assert sizes(sae, 5, (0.02, 0.005)) == {"fake": 5, "2 %": 10, "0.5 %": 3}
    assert sizes(sae, 510, ()) == {"fake": 504}


# --- description length ---------------------------------------------------------------------------


def orthogonal(k=2):
    """Latent i is channel i as it is."""
    sae = TopKSAE(4, 4, k, 0)
    sae.W_enc, sae.W_dec = torch.eye(4), torch.eye(4)
    return sae


def test_four_tokens_by_hand():
    """Latent 0 is on at two of four tokens, with two values: 1 + 1/2 x 1 bits. Latent 1 at one of
    four: h(1/4) = .8113 bits, and one value, which needs none.
    """
    x = torch.tensor([[2.0, 0, 0, 0], [4.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 0]])
    spread = math.sqrt(x.var(0, unbiased=False).sum())
    (found,) = descriptions(orthogonal(), x, [1 / spread])
    assert found.which_bits == pytest.approx(1 + 0.811278)
    assert found.value_bits == pytest.approx(0.5)
    assert found.fvu == pytest.approx(0, abs=1e-12)


def test_a_step_that_is_too_coarse_turns_latents_off():
    x = torch.tensor([[2.0, 0, 0, 0], [9.0, 0, 0, 0]])
    spread = 3.5
    (found,) = descriptions(orthogonal(), x, [9 / spread])
    # 2 becomes 0, which leaves 4 of 24.5 unexplained
    assert found.bits == pytest.approx(1)
    assert found.fvu == pytest.approx(4 / 24.5)


@pytest.mark.parametrize("step", [0.05, 0.3, 1.0])
def test_bits_are_scipys_entropies_of_what_is_rounded(sae, x, step):
    sae.W_dec = sae.W_dec * torch.linspace(0.5, 2, 24)[:, None]
    width = step * float(((x - x.mean(0)) ** 2).sum(1).mean() ** 0.5)
    length = sae.W_dec.norm(dim=1)
    q = (sae.encode(x) * length / width).round()
    counts = [np.unique(latent, return_counts=True)[1] for latent in q.T.numpy()]
    (found,) = descriptions(sae, x, [step])
    assert found.bits == pytest.approx(sum(entropy(c, base=2) for c in counts), rel=1e-9)
    active = (q > 0).double().mean(0).numpy()
    which = entropy(np.stack([active, 1 - active]), base=2).sum()
    assert found.which_bits == pytest.approx(which, rel=1e-9)
    x_hat = (q * width / length) @ sae.W_dec + sae.b_dec
    fvu = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert found.fvu == pytest.approx(float(fvu), rel=1e-5)


def test_rounding_adds_the_variance_of_a_uniform_error():
    """High resolution: a step width adds width^2 / 12 for each active latent, and halving it takes
    a bit more of each.
    """
    x = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0)) + 1
    fine, finer = descriptions(orthogonal(4), x, [0.05, 0.025])
    assert fine.fvu == pytest.approx(4 * 0.05**2 / 12, rel=0.03)
    assert finer.bits - fine.bits == pytest.approx(4, abs=0.02)


def test_equal_frequencies_take_the_most_bits():
    """Of two dictionaries that fire as often in all, the one with a frequent latent is shorter."""
    rng = np.random.default_rng(0)
    even, uneven = (
        torch.tensor(rng.random((4000, 4)) < p, dtype=torch.float32)
        for p in ([0.25] * 4, [0.85, 0.05, 0.05, 0.05])
    )
    bits = [descriptions(orthogonal(4), x, [0.01])[0].bits for x in (even, uneven)]
    assert bits[0] == pytest.approx(4 * 0.8113, rel=0.02)
    assert bits[1] < bits[0]


def test_what_has_no_description(sae, x):
    with pytest.raises(ValueError, match="1 tokens without variance"):
        descriptions(sae, x[:1])
    with pytest.raises(ValueError, match="2 tokens without variance"):
        descriptions(sae, x[:1].repeat(2, 1))
    sae.normalisation = "layer_norm"
    with pytest.raises(ValueError, match="layer_norm"):
        descriptions(sae, x)


def test_bits_between_steps():
    fvu, bits = [0.1, 0.2, 0.4], [30.0, 20.0, 10.0]
    assert bits_at(fvu, bits, 0.2) == 20
    assert bits_at(fvu, bits, math.sqrt(0.1 * 0.2)) == pytest.approx(25)
    assert math.isnan(bits_at(fvu, bits, 0.05))
    assert math.isnan(bits_at(fvu, bits, 0.5))
    # a step that leaves less unexplained than a finer one
    assert bits_at([0.1, 0.3, 0.2, 0.4], [30, 20, 15, 10], 0.3) == 15


# --- the study ------------------------------------------------------------------------------------

CHANGES = {"corpora.other": TEXT, "pruning": PRUNING, "ffr.frequency": 0.25}


def study(make_run, changes=None):
    """(run, lm, SAEs, rows, share of random tokens on which each latent fires)."""
    run = make_run(CHANGES | (changes or {}))
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    saes = load_saes(run, lm)
    found = firing_frequency([*saes.values()], lm, 500, run.sequence_length)
    firing = [
        pd.DataFrame({"corpus": name, "seed": seed, "latent": range(24), "frequency": one[0]})
        for (name, seed), one in zip(saes, found, strict=True)
    ]
    write_rows(run, "firing", pd.concat(firing))
    return run, lm, saes, prune(run, lm, saes), dict(zip(saes, found, strict=True))


def test_the_study(make_run):
    run, lm, saes, rows, firing = study(make_run)
    table = rows["pruning"].set_index(["corpus", "seed", "order", "draw", "size"])
    # whole, and 4 + 2 orders of 3 sizes, of 2 corpora and 2 seeds
    assert len(table) == 4 * (1 + 6 * 3)
    heldout = corpus(run, "other", lm).heldout[:6]
    sae, frequency = saes["text", 49], firing["text", 49][0]
    fakes = np.flatnonzero(frequency > run.ffr.frequency)
    assert 0 < len(fakes) < 20
    for key, expected in (((WHOLE, 0, WHOLE), sae), (("random tokens", 0, FAKE), fakes)):
        expected = sae if key[0] == WHOLE else pruned(sae, fakes)
        found = table.loc["text", 49, *key]
        measured = fidelity(expected, lm, heldout, include_bos=False)
        assert found.explained_variance == pytest.approx(measured.explained_variance, rel=1e-6)
        assert found.ce_diff == pytest.approx(measured.ce_diff, abs=1e-6)
    assert table.removed["text", 49, "at random", 1, FAKE] == len(fakes)
    assert table.removed["text", 49, "rare", 0, "50 %"] == 12
    # the first half of the latents and the other half of them
    own = table.ce_sae["faithful", 42]
    assert own["frequent", 0, "50 %"] != own["rare", 0, "50 %"]
    assert {*rows["pruning_probes"].task} == {"parity"}
    assert {*rows["pruning_rows"]["size"]} == {WHOLE, FAKE}
    figure = plots.curves(shown.curves(run, rows))
    # of two corpora three measures
    assert len(figure.axes) == 6
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*list(shown.REMOVED.values())[1:], "none: the whole SAE"]
    assert figure.get_tightbbox().width <= WIDTH + 0.1
    made = shown.table(run, rows)
    assert len(made) == 2 * 6
    mean = table.explained_variance.loc["text", :, WHOLE].mean()
    assert made.EV[6] == pytest.approx(mean)


def test_without_massive_activations_moderate_positions_count(make_run):
    run, *_, rows, _ = study(make_run, {"sae.max_norm": 1.2})
    table = rows["pruning"]
    expected = table.loc[table.order == WHOLE, "explained_variance_moderate"].iloc[:2].mean()
    assert shown.table(run, rows).EV[0] == pytest.approx(expected)
    finest = rows["pruning_bits"].query("order == 'nothing' and corpus == 'faithful'")
    assert 1 - finest.fvu.groupby(finest.seed).min().mean() == pytest.approx(expected, abs=1e-3)


def test_without_tasks_probes_have_no_case(make_run):
    run, *_, rows, _ = study(make_run, {"pruning.tasks": []})
    assert rows["pruning_probes"].empty
    assert "accuracy" not in shown.table(run, rows)
    found = shown.findings(run, rows).set_index("question")
    assert found.verdict[shown.STATEMENTS["random tokens", "at random", "accuracy"]] == NOT_TESTABLE


def test_bits_at_equal_fvu_by_hand():
    """The pruned SAE leaves twice as much unexplained: at 1.1 times that, the whole one takes the
    bits that are on the way, in logarithms, from .2 to .4.
    """
    of = {"corpus": "a", "seed": 1, "draw": 0, "removed": 0}
    whole = pd.DataFrame({"step": [1, 2, 4], "fvu": [0.1, 0.2, 0.4], "bits": [30.0, 20.0, 10.0]})
    less = pd.DataFrame({"step": [1, 2], "fvu": [0.2, 0.44], "bits": [28.0, 8.0]})
    parts = [whole.assign(**of, order=WHOLE, size=WHOLE), less.assign(**of, order="rare", size="f")]
    found = shown.at_equal_fvu(pd.concat(parts)).set_index("order")
    assert found.whole["rare"] == pytest.approx(20 - 10 * math.log2(1.1))
    on_the_way = math.log(1.1) / math.log(2.2)
    assert found.bits["rare"] == pytest.approx(28 - 20 * on_the_way)
    assert found.ratio[WHOLE] == 1


def given(run, ev, ratio):
    """Rows of both corpora with given EV of each order (as many as are fake are gone) and, of the
    whole and pruned SAEs, bits by the ratio; seeds differ by some thousandths.
    """
    records, bits, sums = [], [], []
    orders = (WHOLE, *ORDERS)
    places: Any = itertools.product(run.pruning.corpora, range(8), orders)
    for corpus_, seed, order in places:
        size = WHOLE if order == WHOLE else FAKE
        # another for each order, which cancels over seeds
        noise = 0.002 * (-1) ** (seed & (1 + orders.index(order))).bit_count()
        which = {"corpus": corpus_, "seed": seed, "order": order, "draw": 0, "size": size}
        which["removed"] = 0 if order == WHOLE else 3
        value = ev.get(order, 0.7) + noise
        records.append(which | {"explained_variance": value, "ce_diff": 1 - value})
        times = ratio.get(order, 1.0) + noise
        bits += [which | {"step": s, "fvu": f, "bits": times * 9 / s} for s, f in STEPS]
        row = {"measured": 10, "scored": 9, "ce": 9.0, "variance": 10.0}
        row |= {"ce_sae": 9 + 9 * (1 - value), "error": 10 * (1 - value)}
        sums += [which | row | {"row": r} for r in range(4)]
    tables = {"pruning": records, "pruning_bits": bits, "pruning_rows": sums}
    tables = {name: pd.DataFrame(found) for name, found in tables.items()}
    probes = pd.DataFrame(columns=["corpus", "seed", "order", "size", "accuracy", "task"])
    return tables | {"pruning_probes": probes}


STEPS = ((1, 0.2), (2, 0.3), (4, 0.6))


def verdicts(run, ev, ratio=None):
    found = shown.findings(run, given(run, ev, ratio or {})).set_index("question")
    return {key: found.verdict[said] for key, said in shown.STATEMENTS.items()}, found


def test_fakes_that_cost_less_agree_and_those_that_cost_more_disagree(make_run):
    run = make_run(CHANGES)
    less, _ = verdicts(run, {"random tokens": 0.75})
    assert {less["random tokens", "at random", m] for m in ("EV", "CE difference")} == {AGREES}
    more, found = verdicts(run, {"random tokens": 0.6})
    assert more["random tokens", "at random", "EV"] == DISAGREES
    assert more["own text", "at random", "EV"] == NO_DIFFERENCE
    said = shown.STATEMENTS["random tokens", "at random", "EV"]
    assert found.effect[said] == pytest.approx(-0.1, abs=0.005)


def test_fewer_bits_agree(make_run):
    run = make_run(CHANGES)
    fewer, found = verdicts(run, {}, {"random tokens": 0.8, "own text": 1.3})
    assert fewer["random tokens", WHOLE, "ratio"] == AGREES
    assert fewer["random tokens", "at random", "ratio"] == AGREES
    assert fewer["own text", WHOLE, "ratio"] == DISAGREES
    said = shown.STATEMENTS["random tokens", WHOLE, "ratio"]
    assert found.effect[said] == pytest.approx(0.2, abs=0.01)


def test_one_seed_decides_nothing(make_run):
    run = make_run(CHANGES)
    rows = {name: table.loc[table.seed == 0] for name, table in given(run, {}, {}).items()}
    found = shown.findings(run, rows).verdict
    assert {*found} == {NOT_TESTABLE, UNDECIDED}


def test_where_no_latent_is_fake_nothing_is_said(make_run):
    run = make_run(CHANGES)
    rows = given(run, {}, {})
    rows["pruning"] = rows["pruning"].assign(removed=0)
    assert {*shown.findings(run, rows).verdict} == {NOT_TESTABLE}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pruning.corpora": ["other"]}, "'other', which is not in sae.train_on"),
        ({"pruning.corpora": []}, "pruning.corpora must name some of sae.train_on"),
        ({"pruning.corpora": ["text"]}, "first, which is not the model's own text"),
        ({"pruning.text": "text"}, "pruning.text = 'text': SAEs that are measured on it"),
        ({"pruning.shares": [0.2, 0.1]}, r"pruning.shares = \[0.2, 0.1\] must rise"),
        ({"pruning.shares": [0.9]}, "pruning.shares leave 2 of 24 latents, fewer than sae.k = 4"),
        ({"pruning.tokens": 3}, "pruning.tokens = 3 must be at least a row"),
        ({"pruning.tasks": ["cola"]}, "'cola', which is not in probing.tasks"),
        ({"pruning.seeds": [7]}, r"pruning\.seeds = \[7\] must list some of sae\.seeds"),
        ({"sae.variant": {"name": "switch", "experts": 2}}, "sae.variant = switch: experts"),
    ],
)
def test_a_study_that_cannot_be_made(make_run, changes, said):
    with pytest.raises(ParamsError, match=said):
        make_run(CHANGES | changes)
