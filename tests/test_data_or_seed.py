"""The text or the seed: variance components by their expectations, kinds by hand, verdicts on
planted numbers.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from faithful_sae import TopKSAE
from faithful_sae.metrics.data_or_seed import (
    BETWEEN,
    COMPONENTS,
    EVERYWHERE,
    OWN_KIND,
    UNSTABLE,
    cosines_of,
    match_all,
    origins,
    variance_components,
)
from faithful_sae.paper import data_or_seed as shown
from faithful_sae.runs.rows import read_rows
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s14_data_or_seed import compare_sources, list_latents

SHAPE = (3, 2, 4)
NAMES = list(itertools.product(("faithful", "text"), (42, 49, 1)))


# --- variance components --------------------------------------------------------------------------


def same(effect):
    """[n, n]: which two of the numbers share all factors of an effect."""
    places = np.array(list(np.ndindex(SHAPE)))
    factors = ["LCT".index(factor) for factor in effect]
    return (places[:, None, factors] == places[None, :, factors]).all(2)


@pytest.fixture(scope="module")
def forms():
    """{component: Q} so that it is z' Q z, from its values at unit vectors and their sums."""
    n = np.prod(SHAPE)
    unit = np.eye(n)
    values = {name: np.zeros((n, n)) for name in COMPONENTS}
    for i, j in itertools.combinations_with_replacement(range(n), 2):
        for name, value in variance_components((unit[i] + unit[j]).reshape(SHAPE)).items():
            values[name][i, j] = values[name][j, i] = value
    found = {}
    for name, value in values.items():
        own = value.diagonal() / 4
        found[name] = (value - own[:, None] - own[None, :]) / 2
        found[name][np.diag_indices(n)] = own
    return found


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("planted", COMPONENTS)
def test_each_component_expects_its_own_variance_and_no_other(forms, component, planted):
    """E z'Qz = tr(QV) of random effects with covariance V."""
    expected = np.sum(forms[component] * same(COMPONENTS[planted]))
    assert expected == pytest.approx(float(component == planted), abs=1e-9)


def test_the_mean_has_no_variance():
    assert list(variance_components(np.full(SHAPE, 3.0)).values()) == pytest.approx([0] * 7)


def test_two_by_two_by_two_by_hand():
    """1 where latent and text agree. Mean squares: of latent x text 2, of all others 0."""
    z = np.zeros((2, 2, 2))
    z[0, 0] = z[1, 1] = 1
    assert variance_components(z) == pytest.approx(
        {
            "latent": -0.5,
            "text": -0.5,
            "seed": 0,
            "latent x text": 1,
            "latent x seed": 0,
            "text x seed": 0,
            "rest": 0,
        }
    )


def test_one_seed_has_no_variance():
    with pytest.raises(ValueError, match="at least two latents, corpora and seeds"):
        variance_components(np.ones((5, 3, 1)))


# --- where latents are found ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def saes():
    return {name: TopKSAE(16, 24, 4, i) for i, name in enumerate(NAMES)}


def test_cosines_are_scipys_in_both_directions(saes):
    _, cosines = match_all(saes)
    assert len(cosines) == 6 * 5
    for a, b in itertools.permutations(saes, 2):
        table = 1 - cdist(saes[a].W_dec.detach(), saes[b].W_dec.detach(), "cosine")
        rows, columns = linear_sum_assignment(-table)
        assert cosines[a, b] == pytest.approx(table[rows, columns], abs=1e-6)


def test_an_sae_is_compared_with_other_seeds_alone(saes):
    _, cosines = match_all(saes)
    z = cosines_of(cosines, ("text", 49), ("faithful", "text"), (42, 49, 1))
    assert z.shape == (24, 2, 2)
    assert z[:, 0, 1].tolist() == cosines[("text", 49), ("faithful", 1)].tolist()
    assert z[:, 1, 0].tolist() == cosines[("text", 49), ("text", 42)].tolist()


def test_kinds_by_hand():
    """Corpora 0 (its own), 1 of its kind, 2 of the other; two seeds."""
    high, low = 0.7, 0.69
    z = np.array(
        [
            [[high, low], [low, high], [high, high]],
            [[high, high], [high, high], [low, low]],
            [[high, high], [low, low], [low, low]],
            [[high, high], [low, low], [low, high]],
            [[low, low], [high, high], [high, high]],
        ]
    )
    found = origins(z, 0, [2], 0.7, 0.5)
    assert found.tolist() == [EVERYWHERE, OWN_KIND, OWN_KIND, BETWEEN, UNSTABLE]


def test_of_one_kind_of_text_nothing_is_its_own():
    z = np.array([[[1.0], [0.0]]])
    assert origins(z, 0, [], 0.7, 0.5).tolist() == [BETWEEN]


# --- the study ------------------------------------------------------------------------------------


@pytest.fixture
def run(make_run):
    return make_run({"sae.seeds": [42, 49, 1], "data_or_seed": {"listed": 2}})


def test_shares_of_kinds_add_up(run, saes):
    kinds = compare_sources(run, saes)["source_kinds"]
    sums = kinds.groupby(["corpus", "left_out"]).share.sum()
    assert len(sums) == 2 * 4
    assert sums.tolist() == pytest.approx([1] * 8)


def test_without_a_seed_is_as_if_it_had_never_been(run, saes, make_run):
    rows = compare_sources(run, saes)["source_kinds"]
    some = make_run({"sae.seeds": [42, 49, 1], "data_or_seed": {"seeds": [42, 49]}})
    fewer = {name: sae for name, sae in saes.items() if name[1] != 1}
    alone = compare_sources(some, fewer)["source_kinds"].query("left_out == -1")
    assert rows.query("left_out == 1").share.tolist() == alone.share.tolist()


def test_copies_are_found_everywhere(run):
    one = TopKSAE(16, 24, 4, 0)
    copies = {}
    for i, name in enumerate(NAMES):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(i))
        copies[name] = TopKSAE(16, 24, 4, 0)
        copies[name].W_dec.data = one.W_dec.data[order]
    rows = compare_sources(run, copies)
    assert (rows["source_pairs"].sfr == 1).all()
    everywhere = rows["source_kinds"].query("kind == @EVERYWHERE")
    assert (everywhere.share == 1).all()


def test_latents_are_listed_with_the_tokens_they_promote(run, saes):
    rows = compare_sources(run, saes)
    table = list_latents(run, saes, open_model(run), rows["source_latents"])
    assert len(table) == len(read_rows(run, "source_listed"))
    assert (table.promotes.str.split().str.len() == 5).all()
    assert (table.groupby(["kind", "corpus"]).size() <= 2).all()


def rows_of(sfr, corpora=("faithful", "text"), seeds=(1, 2, 3, 4)):
    """Rows of SAEs whose SFR a function says, and components that are alike without each seed."""
    names = list(itertools.product(corpora, seeds))
    pairs = [
        {
            **{"corpus_a": a[0], "seed_a": a[1], "corpus_b": b[0], "seed_b": b[1]},
            **{"sfr": sfr(a, b), "mean_cosine": sfr(a, b)},
        }
        for a, b in itertools.combinations(names, 2)
    ]
    components = [
        {"corpus": corpus, "left_out": seed, "component": name, "variance": 1.0 + 0.01 * seed}
        for corpus in corpora
        for seed in (-1, *seeds)
        for name in COMPONENTS
    ]
    return {"source_pairs": pd.DataFrame(pairs), "source_components": pd.DataFrame(components)}


def jitter(a, b):
    return 0.001 * ((7 * a[1] + 3 * b[1] + len(a[0] + b[0])) % 5)


@pytest.mark.parametrize(("of_text", "verdict"), [(0.3, "agrees"), (0.7, "disagrees")])
def test_text_against_seed_on_planted_numbers(run, of_text, verdict):
    """Two seeds share half, two texts a given share."""
    rows = rows_of(lambda a, b: (0.5 if a[0] == b[0] else of_text) + jitter(a, b))
    table = shown.findings(run, rows).set_index("question")
    found = table.loc["Another text costs more shared features than another seed"]
    assert found.verdict == verdict
    assert found.effect == pytest.approx(0.5 - of_text, abs=0.005)
    assert found.seeds == 4


def test_pairs_are_put_together_by_what_differs(run):
    def sfr(a, b):
        return {(True, False): 0.6, (False, True): 0.4, (False, False): 0.2}[
            a[0] == b[0], a[1] == b[1]
        ]

    table = shown.pairs_table(run, rows_of(sfr))
    assert table["SFR, other seed"].tolist() == pytest.approx([0.6, 0.6])
    assert table["SFR, other text"].tolist() == pytest.approx([0.4, 0.4])
    assert table["SFR, other seed and text"].tolist() == pytest.approx([0.2, 0.2])


def test_the_matrix_is_symmetric_and_of_two_seeds(run):
    rows = rows_of(lambda a, b: 0.9 if a[1] == b[1] else 0.5 if a[0] == b[0] else 0.3)
    matrix = shown.between(run, rows).pivot(index="row", columns="column", values="sfr")
    assert matrix.to_numpy() == pytest.approx(np.array([[0.5, 0.3], [0.3, 0.5]]))


def test_shares_of_components_add_up_to_a_hundred(run):
    table = shown.components_table(run, rows_of(jitter))
    assert table[list(COMPONENTS)].sum(axis=1).tolist() == pytest.approx([100, 100])


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"corpora": ["text"]}, "data_or_seed.corpora"),
        ({"corpora": ["text", "none"]}, "data_or_seed.corpora"),
        ({"seeds": [42]}, "data_or_seed.seeds"),
        ({"seeds": [42, 7]}, "data_or_seed.seeds"),
        ({"stable": 0}, "data_or_seed.stable"),
    ],
)
def test_bad_sections_are_refused(make_run, section, key):
    with pytest.raises(ParamsError, match=key.replace(".", r"\.")):
        make_run({"data_or_seed": section})
