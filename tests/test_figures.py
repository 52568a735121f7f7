"""What figures say: who has which colour, where axes begin, and how far whiskers reach."""

import itertools

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from faithful_sae.paper.exhibits import save_figure
from faithful_sae.paper.names import ROLE_NAMES, role_of, without_role
from faithful_sae.paper.plots import evaluation, features, geometry, paper, seeds, style
from faithful_sae.paper.plots.style import (
    GREYS,
    LOOKS,
    OTHERS,
    corpora_without_role,
    corpus_looks,
    spread,
)
from faithful_sae.runs.catalogue import HALF
from faithful_sae.runs.schema import BASELINES

NAMES = ["Faithful", "library (Pile)", "doctests (Alpaca)", *BASELINES]


def of_corpora(**columns):
    return pd.DataFrame([{"corpus": name, **columns} for name in NAMES])


def training_rows():
    row = {
        "fvu": 0.5,
        "fvu least": 0.4,
        "fvu most": 0.6,
        "l0": 8.0,
        "l0 least": 8.0,
        "l0 most": 8.0,
    }
    row |= {"dead": 3.0, "dead least": 1.0, "dead most": 4.0, "seeds": 2}
    return pd.concat([of_corpora(tokens=0, **row), of_corpora(tokens=8, **row)]).reset_index()


def bar_rows():
    here = of_corpora(model="Docs", source="here", sfr=0.5, half_width=0.1)
    theirs = pd.DataFrame(
        {"corpus": ["Faithful", "Pile", "Alpaca"], "model": "GPT-2", "source": "paper", "sfr": 0.3}
    )
    return pd.concat([here, theirs], ignore_index=True)


def probe_rows():
    scores = {"accuracy": 0.8, f"accuracy{HALF}": 0.05}
    parts = [of_corpora(representation=kind, **scores) for kind in ("sae", "reconstruction")]
    without = pd.DataFrame([{"corpus": None, "representation": "baseline", **scores}])
    return pd.concat([without, *parts], ignore_index=True).assign(model="Docs", task="a (SST-2)")


def mechanism_rows():
    rows = of_corpora(model="Docs", ce=3.0, ce_error=0.1, ce_as_sampled=np.nan, sfr=0.5)
    return rows.assign(half_width=0.1)


def curve_rows(**columns):
    parts = [of_corpora(**{name: values[i] for name, values in columns.items()}) for i in (0, 1)]
    return pd.concat(parts, ignore_index=True)


FIGURES = {
    "bars": lambda: paper.bars(bar_rows()),
    "probing": lambda: paper.probing(probe_rows()),
    "mechanism": lambda: paper.mechanism(mechanism_rows()),
    "training": lambda: paper.training(training_rows()),
    "cosines": lambda: paper.cosines(
        of_corpora(low=0.0, high=1.0, alive=5, dead=1, sfr=0.5, half_width=0.1, threshold=0.7)
    ),
    "sfr_curve": lambda: paper.sfr_curve(
        curve_rows(threshold=(0, 1), sfr=(1, 0), half_width=(0, 0), chosen=(0.7, 0.7))
    ),
    "firing": lambda: paper.firing(
        curve_rows(
            rank=(1, 2), frequency=(0.5, 0.1), low=(0.4, 0.1), high=(0.6, 0.2), tau=(0.1,) * 2
        )
    ),
    "geometry": lambda: geometry.nearest_cosines(
        curve_rows(cosine=(0, 1), share=(0, 1), random=(0.3, 0.3))
    ),
    "sharing": lambda: evaluation.sharing(
        of_corpora(seeds_sharing=0, latents=3, lower=0.4, median=0.6, upper=0.7)
    ),
}


@pytest.fixture(scope="module")
def drawn():
    return {name: draw() for name, draw in FIGURES.items()}


def hex_colours(figure):
    """All colours of lines, bars and bands, alpha apart."""
    found = set()
    for line in figure.findobj(lambda artist: hasattr(artist, "get_linestyle")):
        for getter in ("get_color", "get_facecolor"):
            colours = getattr(line, getter)() if hasattr(line, getter) else []
            for colour in [colours] if isinstance(colours, str) else np.atleast_2d(colours):
                if len(colour):
                    found.add(matplotlib.colors.to_hex(colour))
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_a_corpus_has_its_colour_in_every_figure(drawn, name):
    shown = hex_colours(drawn[name])
    wanted = {LOOKS[role].colour.lower() for role in ("faithful", "pile", "alpaca")}
    wanted |= {matplotlib.colors.to_hex(grey) for grey in GREYS}
    assert wanted <= shown
    others = {look.colour.lower() for look in LOOKS.values()} - wanted
    assert not others & shown


@pytest.mark.parametrize("name", FIGURES)
def test_text_is_7_points_on_a_page_of_its_width_and_on_white(drawn, name):
    figure = drawn[name]
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7
    assert figure.get_tightbbox().width <= style.WIDTH + 0.1
    assert figure.get_facecolor() == (1, 1, 1, 1)


def test_a_corpus_is_known_by_the_role_it_plays():
    assert {role_of(name) for name in ("Pile", "library (Pile)", "my (own) text (Pile)")} == {
        "pile"
    }
    assert [role_of(name) for name in ("library", "Pile (library)", "x(Pile)")] == [None] * 3
    assert all(role_of(said) == role for role, said in ROLE_NAMES.items())
    looks = corpus_looks(["mine", "library (Pile)", "yours"])
    assert len({look.colour for look in looks.values()}) == 3
    assert looks["library (Pile)"] == corpus_looks(["Pile"])["Pile"] == LOOKS["pile"]


TEXT = {"role": None, "path": "text.jsonl", "text_key": "text"}
OWN = {"corpora.mine": TEXT, "corpora.yours": TEXT}


def test_a_corpus_without_a_role_has_one_colour_in_a_profile(make_run):
    """Whatever else a figure shows."""
    run = make_run(OWN)
    names = without_role([run, run])
    assert names[-2:] == ["mine", "yours"]
    shown = (["yours"], ["Faithful", "yours", "mine"], ["mine", "Pile", "FLAN", "yours"])
    with corpora_without_role(names):
        looks = [corpus_looks(corpora) for corpora in shown]
    assert len({found["yours"] for found in looks}) == 1
    assert looks[1]["mine"] == looks[2]["mine"] != looks[0]["yours"]
    assert not {*LOOKS.values()} & {looks[0]["yours"], looks[1]["mine"]}


def test_a_saved_figure_knows_the_corpora_of_its_profile(make_run):
    run = make_run(OWN)
    drawn = []

    def draw(data):
        drawn.append(corpus_looks(data.corpus))
        return Figure(figsize=(1, 1))

    for corpora in (["yours"], ["mine", "yours"]):
        save_figure(run, "training", pd.DataFrame({"corpus": corpora}), draw)
    assert drawn[0]["yours"] == drawn[1]["yours"]


# Machado et al. (2009), severity 1, on linear RGB
SEEN_AS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour, seen_as):
    """CIE L*a*b* of a colour as somebody sees it."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(seen_as) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    part = np.array(to_xyz) @ linear / (0.9505, 1, 1.089)
    f = np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SEEN_AS)
def test_colour_blind_readers_tell_corpora_apart(sight):
    seen = [lab(look.colour, SEEN_AS[sight]) for look in (*LOOKS.values(), *OTHERS)]
    # a difference of 2.3 is just noticed side by side
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_in_grey_lines_and_markers_tell_corpora_apart():
    looks = [*LOOKS.values(), *OTHERS]
    assert len({look.line for look in looks}) == len(looks)
    assert len({look.marker for look in looks}) == len(looks)


@pytest.mark.parametrize("name", ["bars", "cosines"])
def test_bars_start_at_0(drawn, name):
    axes = [
        ax for ax in drawn[name].axes if any(isinstance(c, BarContainer) for c in ax.containers)
    ]
    assert axes
    assert {ax.get_ylim()[0] for ax in axes} == {0}


def test_corpora_share_the_axis_of_cosines_and_baselines_have_another():
    data = of_corpora(low=0.0, high=1.0, dead=0, sfr=0.5, half_width=0.1, threshold=0.7)
    figure = paper.cosines(data.assign(alive=[10, 20, 30, 100, 200]))
    tops = [ax.get_ylim()[1] for ax in figure.axes]
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]


def whiskers(ax):
    """(lower, upper) of every vertical whisker."""
    return [
        tuple(segment[:, 1])
        for container in ax.containers
        if isinstance(container, ErrorbarContainer)
        for bars in container.lines[2]
        for segment in bars.get_segments()
        if segment[0, 1] != segment[1, 1]
    ]


def test_whiskers_are_the_intervals(drawn):
    several = len(NAMES)
    np.testing.assert_allclose(whiskers(drawn["bars"].axes[0]), [(0.4, 0.6)] * several)
    assert not whiskers(drawn["bars"].axes[1])  # the paper has none
    np.testing.assert_allclose(whiskers(drawn["probing"].axes[0]), [(0.75, 0.85)] * 2 * several)
    np.testing.assert_allclose(whiskers(drawn["mechanism"].axes[0]), [(0.4, 0.6)] * several)


def test_bars_have_the_real_corpus_here_and_the_role_in_the_paper(drawn):
    here, theirs = (
        [text.get_text() for text in ax.get_legend().get_texts()] for ax in drawn["bars"].axes
    )
    assert here == NAMES
    assert theirs == ["Faithful", "Pile", "Alpaca"]


def test_a_guess_among_all_tokens_has_its_line():
    tokens = pd.DataFrame(
        {"token": list("abcd"), "model": [0.7, 0.1, 0.1, 0.1], "dataset": [0.5, 0.5, 0, 0]}
    )
    for ax in paper.first_token(tokens).axes:
        assert [
            np.asarray(line.get_ydata())[0] for line in ax.lines if "1/N" in str(line.get_label())
        ] == [0.25]
    log = pd.DataFrame({"tokens": [1, 2], "train_ce": [2.0, 1.0], "heldout_ce": [2.0, 1.5]})
    log = log.assign(model="Docs", vocab_size=8, ce_ngram=1.2, ngram_order=3)
    heights = {np.asarray(line.get_ydata())[0] for line in paper.lm_training(log).axes[0].lines[2:]}
    assert heights == {np.log(8), 1.2}


def test_l0_has_a_panel_only_where_it_is_not_the_same(drawn):
    assert len(drawn["training"].axes) == 2
    rows = training_rows()
    rows.loc[rows.corpus == "Faithful", ["l0", "l0 most"]] = 9.0
    assert len(paper.training(rows).axes) == 3


def test_each_steered_latent_is_named_in_the_panel_of_its_group():
    rows = pd.DataFrame(
        list(itertools.product([("shared", 1), ("shared", 7), ("fake", 3)], [0.0, 1.0])),
        columns=["which", "dose"],
    )
    rows = rows.assign(
        group=[which[0] for which in rows.which], latent=[which[1] for which in rows.which]
    ).assign(kl=rows.dose, probability=rows.dose / 2)
    figure = features.steering(rows)
    legends = {
        ax.get_title(): [
            text.get_text() for text in ax.findobj(Text) if "latent " in text.get_text()
        ]
        for ax in figure.axes[:2]
    }
    assert legends == {"shared": ["latent 1", "latent 7"], "fake": ["latent 3"]}
    styles = [line.get_linestyle() for line in figure.axes[0].lines]
    assert len(set(styles)) == 2


def test_bands_and_lines_of_thresholds_are_named():
    rows = pd.concat(
        pd.DataFrame({"definition": name, "threshold": [0.0, 1.0], "share": [1.0, 0.0]})
        for name in seeds.DEFINITIONS
    ).assign(share_low=0.0, share_high=1.0, chosen=0.7)
    (legend,) = seeds.thresholds(rows).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert "band: 95 % interval over seeds" in names
    assert "threshold that is used: 0.7" in names


def test_names_beside_curves_keep_their_order_and_a_step():
    # worked out by hand: the two that touch move by half of what lacks
    assert spread([0.5, 0.1, 0.52], 0.1) == pytest.approx([0.46, 0.1, 0.56])
    assert spread([], 0.1) == []
