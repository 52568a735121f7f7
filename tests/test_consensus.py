"""The consensus of seeds: groups by hand, against brute force and in a planted world; its SAE
against its equation; and the study.
"""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import EVALUATION, TEXT
from faithful_sae import TopKSAE, fake_feature_ratio, fidelity, shared_feature_ratio
from faithful_sae.metrics.consensus import agreement, common_features, consensus_sae
from faithful_sae.metrics.pruning import with_latents
from faithful_sae.metrics.uncertainty import jackknife
from faithful_sae.paper import consensus as shown
from faithful_sae.paper.plots import consensus as plots
from faithful_sae.paper.verdicts import VERDICTS
from faithful_sae.runs.registry import model_stages
from faithful_sae.runs.rows import read_rows
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.corpus import corpus, make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s17_consensus import (
    KINDS,
    STAGE,
    Which,
    consensus_saes,
    find_features,
    folder,
    least_seeds,
    measure_saes,
    pair_saes,
)
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import train_all


def sae_of(rows, k=2, seed=0):
    """An SAE with these decoder rows, and an encoder and biases drawn at random."""
    rows = torch.as_tensor(np.asarray(rows), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    sae = TopKSAE(rows.shape[1], len(rows), min(k, len(rows)), seed)
    sae.W_dec = torch.nn.functional.normalize(rows, dim=1)
    sae.W_enc = torch.randn(rows.shape[1], len(rows), generator=generator)
    sae.b_enc = torch.randn(len(rows), generator=generator)
    sae.b_dec = torch.randn(rows.shape[1], generator=generator)
    return sae


def at_angles(*degrees):
    angles = np.radians(degrees)
    return sae_of(np.stack([np.cos(angles), np.sin(angles)], axis=1))


COS_30 = math.cos(math.radians(30))

# --- which latents are one feature ----------------------------------------------------------------


def test_groups_by_hand():
    """10 degrees are joined first; the mean at 5 is within 30 of 25, and 180 of nothing."""
    saes = [at_angles(0, 90), at_angles(10, 180), at_angles(25, 100)]
    found = common_features(saes, COS_30)
    assert found.tolist() == [[0, 0, 0], [1, -1, 1], [-1, 1, -1]]


def test_a_seed_is_in_a_feature_once():
    """Both latents of the first seed are within 30 degrees of the second's; the closer has it."""
    found = common_features([at_angles(0, 20), at_angles(5)], COS_30)
    assert found.tolist() == [[0, 0], [1, -1]]


def test_a_chain_is_no_feature():
    """25 degrees from one to the next, 50 from end to end: the middle is one's alone."""
    found = common_features([at_angles(0), at_angles(24), at_angles(50)], COS_30)
    assert found.tolist() == [[0, 0, -1], [-1, -1, 0]]


def brute_force(saes, threshold):
    """All groups against all others, again after each that is joined."""
    groups = [[(s, f)] for s, sae in enumerate(saes) for f in range(sae.d_sae)]
    rows = [sae.W_dec.double().numpy() for sae in saes]
    while True:
        best = threshold, None
        for i, j in itertools.combinations(range(len(groups)), 2):
            if {s for s, _ in groups[i]} & {s for s, _ in groups[j]}:
                continue
            a, b = (np.sum([rows[s][f] for s, f in groups[g]], axis=0) for g in (i, j))
            cosine = a @ b / np.sqrt((a @ a) * (b @ b))
            if cosine >= best[0]:
                best = cosine, (i, j)
        if best[1] is None:
            return {frozenset(group) for group in groups}
        i, j = best[1]
        groups[i] += groups.pop(j)


def as_sets(found):
    return {frozenset((s, f) for s, f in enumerate(row) if f >= 0) for row in found.tolist()}


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((6, 4))
    saes = [
        sae_of(truth[rng.permutation(6)[:5]] + 0.4 * rng.standard_normal((5, 4))) for _ in range(3)
    ]
    found = common_features(saes, 0.7)
    assert as_sets(found) == brute_force(saes, 0.7)
    assert (found >= 0).sum() == 15


def test_the_order_of_seeds_is_of_no_account():
    rng = np.random.default_rng(0)
    saes = [sae_of(rng.standard_normal((20, 5))) for _ in range(4)]
    found = common_features(saes, 0.6)
    assert ((found >= 0).sum(1) > 2).any()
    order = [2, 0, 3, 1]
    again = common_features([saes[i] for i in order], 0.6)
    back = again[:, np.argsort(order)]
    assert as_sets(back) == as_sets(found)


def test_planted_features_are_found_by_the_seeds_that_have_them():
    rng = np.random.default_rng(3)
    truth = np.linalg.qr(rng.standard_normal((32, 32)))[0][:12]
    has = rng.random((5, 12)) < 0.6
    chosen = [rng.permutation(np.flatnonzero(row)) for row in has]
    saes = [sae_of(truth[part] + 0.03 * rng.standard_normal((len(part), 32))) for part in chosen]
    found = common_features(saes, 0.7)
    planted = {tuple(has[:, g].tolist()) for g in range(12) if has[:, g].any()}
    assert {tuple(row) for row in (found >= 0).tolist()} == planted
    for row in found:
        assert len({int(chosen[s][f]) for s, f in enumerate(row) if f >= 0}) == 1


# --- the SAE of features --------------------------------------------------------------------------


def test_the_consensus_of_copies_is_the_sae():
    rng = np.random.default_rng(1)
    sae = sae_of(rng.standard_normal((6, 12)), k=3)
    copies = [sae, *(with_latents(sae, rng.permutation(6)) for _ in range(3))]
    features = common_features(copies, 0.9)
    assert (features >= 0).all()
    found = consensus_sae(copies, features)
    for name, tensor in sae.weights.items():
        torch.testing.assert_close(found.weights[name], tensor, rtol=0, atol=1e-6)
    assert found.k == 3


def test_two_rows_at_an_angle_by_hand():
    """Rows 60 degrees apart: their mean is sqrt(3)/2 long, and the latent as much smaller."""
    a, b = at_angles(0), at_angles(60)
    for sae, bias in ((a, 1.0), (b, 3.0)):
        sae.W_enc = torch.tensor([[2.0], [0.0]])
        sae.b_enc = torch.tensor([bias])
        sae.b_dec = torch.zeros(2)
    found = consensus_sae([a, b], np.array([[0, 0]]))
    x = torch.tensor([5.0, 7.0])
    # 11 and 13 before TopK
    length = math.sqrt(3) / 2
    assert found.encode(x).item() == pytest.approx(12 * length, rel=1e-6)
    direction = [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    assert found.W_dec[0].tolist() == pytest.approx(direction, rel=1e-6)


def test_a_latent_is_the_mean_of_what_its_seeds_compute():
    """Each seed has a b_dec of its own, also those that a feature is not found by."""
    rng = np.random.default_rng(2)
    saes = [sae_of(rng.standard_normal((5, 8)), seed=seed) for seed in range(3)]
    features = np.array([[0, 3, -1], [2, 1, 4], [-1, -1, 2]])
    found = consensus_sae(saes, features)
    x = torch.from_numpy(rng.standard_normal((10, 8))).float()
    for g, row in enumerate(features):
        has = [(saes[s], f) for s, f in enumerate(row) if f >= 0]
        mean = np.mean([sae.W_dec[f].numpy() for sae, f in has], axis=0)
        p = torch.stack([sae.affine(x)[:, f] for sae, f in has]).mean(0)
        expected = p * float(np.linalg.norm(mean))
        torch.testing.assert_close(found.affine(x)[:, g], expected, rtol=0, atol=1e-5)
        cosine = found.W_dec[g].numpy() @ mean / np.linalg.norm(mean)
        assert cosine == pytest.approx(1, abs=1e-6)
    b_dec = np.mean([sae.b_dec.numpy() for sae in saes], axis=0)
    assert found.b_dec.numpy() == pytest.approx(b_dec, abs=1e-6)


def test_what_no_consensus_can_be_made_of():
    sae = at_angles(0, 90)
    with pytest.raises(ValueError, match="no features"):
        consensus_sae([sae, sae], np.empty((0, 2), int))
    other = TopKSAE(2, 2, 1, 0)
    with pytest.raises(ValueError, match="TopK with one k"):
        consensus_sae([sae, other], np.array([[0, 0]]))
    threshold = TopKSAE(2, 2, None, 0)
    with pytest.raises(ValueError, match="TopK with one k"):
        consensus_sae([threshold, threshold], np.array([[0, 0]]))


def test_an_sae_cut_down_has_the_latents_that_are_kept():
    rng = np.random.default_rng(4)
    sae = sae_of(rng.standard_normal((6, 4)), k=3)
    x = torch.from_numpy(rng.standard_normal((20, 4))).float()
    found = with_latents(sae, [4, 0])
    assert found.k == 2
    assert torch.equal(found.affine(x), sae.affine(x)[:, [4, 0]])
    assert torch.equal(found.W_dec, sae.W_dec[[4, 0]])
    torch.testing.assert_close(with_latents(sae, range(6)).reconstruct(x), sae.reconstruct(x))
    assert sae.d_sae == 6


def test_agreement_by_hand():
    a, b = at_angles(0, 90, 180), at_angles(92, 3)
    assert agreement(a, b, 0.9) == (0.8, 2)
    assert agreement(b, a, 0.9) == (0.8, 2)
    assert agreement(a, b, 0.999) == (0.4, 1)


def test_agreement_of_equal_sizes_is_sfr():
    rng = np.random.default_rng(5)
    a, b = (sae_of(rng.standard_normal((30, 6))) for _ in range(2))
    sfr, alike = agreement(a, b, 0.7)
    assert 0 < sfr < 1
    assert sfr == pytest.approx(shared_feature_ratio(a, b))
    assert alike == round(30 * sfr)


# --- the study ------------------------------------------------------------------------------------

CORPORA = ["mine", "text"]
CHANGES = {
    "corpora": {
        "mine": {"faithful": "self"},
        "text": {"role": "pile", **TEXT},
        "other": TEXT,
    },
    "fidelity.corpora": ["text"],
    "sae.train_on": CORPORA,
    "sae.seeds": [42, 49, 1, 2],
    # of SAEs that are hardly trained, few latents are alike
    "sfr.threshold": 0.5,
    "evaluation": EVALUATION | {"corpora": CORPORA, "forget": "text", "retain": "other"},
    "consensus": {"corpora": CORPORA, "seeds": [42, 49], "rows": 8, "tokens": 1200},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"consensus.corpora": ["mine"]}, "consensus.corpora must name two corpora"),
        ({"consensus.corpora": ["text", "mine"]}, "has text first, whose text is not the model's"),
        ({"consensus.corpora": ["mine", "other"]}, "'other', of which sae.train_on trains no SAEs"),
        ({"consensus.group": 3}, r"consensus\.group = 3 must divide the number"),
        ({"consensus.seeds": [7]}, r"consensus\.seeds = \[7\] must list some of sae\.seeds"),
        ({"consensus.share": 1.5}, r"consensus\.share"),
        ({"sae.variant": {"name": "relu"}}, r"sae\.variant = relu: latents are averaged as TopK's"),
    ],
)
def test_a_study_that_cannot_be_made(make_run, changes, said):
    with pytest.raises(ParamsError, match=said):
        make_run(CHANGES | changes)


@pytest.mark.parametrize("without", [{"evaluation": None}, {"sae.seeds": [42]}])
def test_it_is_left_out_where_it_lacks_what_it_needs(make_run, without):
    run = make_run(CHANGES | {"consensus": {"corpora": CORPORA}} | without)
    assert STAGE not in model_stages(run)


@pytest.fixture
def study(make_run):
    run = make_run(CHANGES)
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    saes = load_saes(run, lm, run.consensus.corpora)
    counts, features = find_features(run, saes)
    made = consensus_saes(run, lm, saes, features)
    rows = {"consensus_found": counts, "consensus_pairs": pair_saes(run, saes, made)}
    return run, lm, saes, made, rows | measure_saes(run, lm, made)


def test_the_study(study):
    run, _, saes, made, rows = study
    least = least_seeds(run)
    assert least == 2
    # beside the consensus of all seeds there is one without each
    wanted = {Which("text", "consensus", least, without=out) for out in (None, 42, 49, 1, 2)}
    assert wanted <= {*made}
    whole = made[Which("text", "consensus", least)]
    for kind in ("trained", "frequent", "random"):
        assert made[Which("text", kind, least, 42)].d_sae == whole.d_sae, kind
    assert made[Which("text", "mutual", seed=42)].d_sae == run.sae.d_sae
    # the features of three seeds
    others = [saes["text", seed] for seed in (49, 1, 2)]
    found = common_features(others, 0.5)
    without = made[Which("text", "consensus", least, without=42)]
    assert without.d_sae == ((found >= 0).sum(1) >= 2).sum()
    counts = rows["consensus_found"].query("corpus == 'text' and without == 42 and least == 3")
    # three of four are three of three
    assert counts.features.item() == ((found >= 0).sum(1) >= 3).sum()


def test_numbers_are_those_of_the_metrics(study):
    run, lm, _, made, rows = study
    which = Which("text", "consensus", least_seeds(run))
    sae = made[which]
    saes = shown.measured(run, rows)
    here = (saes.corpus == "text") & (saes.kind == "consensus") & saes.without.isna()
    row = shown.of_size(run, saes.loc[here]).iloc[0]
    for suffix, name in (("", "text"), (shown.ELSEWHERE, "other")):
        heldout = corpus(run, name, lm).heldout[: run.consensus.rows]
        expected = fidelity(sae, lm, heldout, include_bos=False)
        assert row[f"EV{suffix}"] == pytest.approx(expected.explained_variance)
        assert row[f"CE difference{suffix}"] == pytest.approx(expected.ce_diff)
    f = run.ffr
    expected = fake_feature_ratio(sae, lm, f.tokens, sequence_length=run.sequence_length)
    assert row.ffr == expected
    assert row.l0 <= run.sae.k


def test_the_error_of_a_difference_is_the_jackknifes(study):
    run, *_, rows = study
    least = least_seeds(run)
    fidelities = rows["consensus_fidelity"].query("corpus == evaluated_on and corpus == 'text'")
    ev = {
        (
            row.kind,
            None if row.seed is pd.NA else row.seed,
            None if row.without is pd.NA else row.without,
        ): row.explained_variance
        for row in fidelities.itertuples()
        if row.least is pd.NA or row.least == least
    }

    def difference(kept):
        (out,) = {*run.sae.seeds} - {*kept} or {None}
        singles = [ev["trained", seed, None] for seed in (42, 49) if seed in kept]
        return ev["consensus", None, out] - np.mean(singles)

    expected = jackknife(difference, run.sae.seeds)
    found = shown.Study(run, rows).above("EV", "text", "consensus", "trained")
    assert found.value == pytest.approx(expected.value)
    assert found.seed_error == pytest.approx(expected.seed_error)
    assert found.text_error > 0


def test_dictionaries_that_are_compared_have_no_seed_in_common(study):
    *_, rows = study
    pairs = rows["consensus_pairs"].query("corpus == 'text'")
    for row in pairs.itertuples():
        assert not {*row.seeds_a.split()} & {*row.seeds_b.split()}
    counts = pairs.groupby("kind").size()
    # two and two of four seeds; two single seeds, which are coupled; all seeds that are whole
    assert counts.to_dict() == {
        "consensus": 3,
        "frequent": 1,
        "random": 1,
        "trained": 1,
        "whole": 6,
    }


def test_what_is_trained_is_made_once(study):
    run, lm, saes, made, _ = study
    file = folder(run, "text") / "provenance.json"
    stamp = file.stat().st_mtime_ns
    again = consensus_saes(run, lm, saes, find_features(run, saes)[1])
    assert file.stat().st_mtime_ns == stamp
    assert {*again} == {*made}


def test_tables_and_figures_of_the_study(study):
    run, *_, rows = study
    table = shown.table(run, rows)
    assert len(table) == 2 * len(KINDS)
    assert table["EV"].notna().all()
    findings = shown.findings(run, rows)
    assert findings.verdict.isin(VERDICTS).all()
    # notebook 07 has them from the files
    written = {name: read_rows(run, name) for name in STAGE.rows}
    pd.testing.assert_frame_equal(shown.findings(run, written), findings)
    data = shown.variance(run, rows)
    (ax, _) = plots.variance(data).axes
    assert ax.get_xlabel() == "latents"
    (ax,) = plots.found(shown.found(run, rows)).axes
    assert [tick for tick in ax.get_xticks()] == [2, 3, 4]


def test_a_consensus_of_nothing_is_refused(study):
    run, lm, saes, *_ = study
    strict = run.changed(sfr=run.sfr.changed(threshold=1.0))
    features = find_features(strict, saes)[1]
    with pytest.raises(ValueError, match="no feature is found by 2 of 4 seeds: lower consensus.sh"):
        consensus_saes(strict, lm, saes, features)
