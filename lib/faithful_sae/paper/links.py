"""The way of notebooks into the explorer: features as links, each to its page."""

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

import pandas as pd
from pandas.io.formats.style import Styler

from faithful_sae.features.explorer.data import set_key
from faithful_sae.features.index import FeatureError, FeatureIndex
from faithful_sae.runs.rows import lacking
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s09_explore_features import index_folders

# as seen from the executed notebooks of a profile, where they are made and on the site
EXPLORER = "../explorer"
# features of a kind, in each set
SHOWN = 8


def indexed(run: Run) -> bool:
    """Whether notebook 09 made the indices of a run with the parameters as they are now."""
    return bool(run.sae and run.features) and not lacking(run, "features")


def feature_links(runs: Sequence[Run]) -> Styler:
    """The orphan and the fake features that fire most, for each model, corpus and seed with an
    index, as a table for display.

    A number is a link to ../explorer/index.html, which `make explorer` writes beside the folder of
    the executed notebooks. A profile without an index gives a table without rows, and a damaged
    index is left out and named.
    """
    rows = []
    notes = [
        "Features that fire most; in brackets, how many there are. `make explorer` writes the "
        "page that the numbers lead to."
    ]
    made = (run for run in runs if indexed(run))
    for folder in (folder for run in made for folder in index_folders(run).values()):
        try:
            rows.append(_row(FeatureIndex(folder)))
        except FeatureError as error:
            notes.append(f"Left out: {error}.")
    if not rows:
        notes = ["No index of features yet: notebook 09 makes it.", *notes[1:]]
    columns = ["model", "corpus", "seed", "orphan", "", "fake", " "]
    return _table("features", rows, columns, notes)


def listed_links(run: Run, latents: pd.DataFrame) -> Styler:
    """Some latents as links to their pages, for display: a row for each kind, corpus and seed, of
    those that notebook 09 made an index of.

    Args:
        run: whose latents they are.
        latents: with columns kind, corpus, seed and latent.
    """
    rows = []
    notes = ["`make explorer` writes the page that the numbers lead to."]
    folders = index_folders(run) if indexed(run) else {}
    columns = ["kind", "corpus", "seed"]
    for _, part in latents.groupby(columns, sort=False):
        kind, corpus, seed = part[columns].iloc[0]
        if folder := folders.get((corpus, seed)):
            try:
                links = _links(FeatureIndex(folder).meta, part.latent)
            except FeatureError as error:
                notes.append(f"Left out: {error}.")
                continue
            rows.append([*map(escape, map(str, (kind, corpus, seed))), links])
    if not rows:
        notes = ["None of their SAEs has an index of features: see `features`.", *notes[1:]]
    return _table("listed", rows, ["found on", "corpus", "seed", "latents"], notes)


def _table(name, rows, columns, notes):
    style = pd.DataFrame(rows, columns=columns).style
    # without a name it is a random one
    return style.hide(axis="index").set_caption(escape(" ".join(notes))).set_uuid(name)


def _row(index: FeatureIndex) -> list[str]:
    latents = index.latents
    meta = index.meta
    found = [
        latents[latents.shared.map(lambda shared: shared is False)],
        latents[latents.fake.map(lambda fake: fake is True)],
    ]
    cells = [part for one in found for part in (_most_active(meta, one), f"({len(one)})")]
    return [escape(str(meta[name])) for name in ("label", "corpus", "seed")] + cells


def _most_active(meta, latents):
    return _links(meta, latents.nlargest(SHOWN, "frequency", keep="first").latent)


def _links(meta, latents):
    return " ".join(
        f'<a href="{escape(feature_address(meta, latent))}">{latent}</a>' for latent in latents
    )


def feature_address(meta: Mapping, latent: int) -> str:
    """A feature's page, as seen from the folder of the executed notebooks of the profile."""
    return f"{EXPLORER}/index.html#/{quote(set_key(meta))}/{latent}"
