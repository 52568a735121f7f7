"""Static HTML of a feature and of a list of them: what remains of the explorer where no widget runs
(GitHub, nbviewer).

Sanitisers take away styles and scripts, so nothing here depends on them: the strongest token is
bold, and values are titles.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from faithful_sae.features.explorer.data import METHODS, flags, set_key
from faithful_sae.features.index import DENSE, FeatureIndex
from faithful_sae.features.vocabulary import visible

NAMES = {"f": "fake", "o": "orphan", "s": "shared", "d": "dead", "n": "dense"}
# of a feature
CONTEXTS = 8
# what guessing scores, of judges
GUESSING = 0.5
# features of a list
LISTED = 20


def feature_html(page: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> str:
    """One feature as HTML.

    Args:
        page: FeatureIndex.page(latent).
        meta: FeatureIndex.meta, to say which set it is of; None: not said.
    """
    of = f" of {escape(set_key(meta))}" if meta else ""
    kinds = f" ({', '.join(_kinds(page))})" if flags(page) else ""
    twin = ""
    if page["twin"] is not None:
        cosine = _number(page["twin_cosine"])
        twin = f"; best match in the other seed: {page['twin']}, cosine {cosine}"
    rows = "".join(
        f"<tr><th>{escape(method)}</th><td>{_words(words)}</td></tr>"
        for method, words in page["explanations"].items()
    )
    rows += "".join(
        f"<tr><th>judge {escape(said['judge'])}</th><td>{_judged(said)}</td></tr>"
        for said in page["judged"]
    )
    contexts = "".join(
        f"<li>{_number(context['activation'])} &nbsp; {_tokens(context, page['max'])}</li>"
        for context in page["contexts"][:CONTEXTS]
    )
    return (
        f"<div><h4>Feature {page['latent']}{of}{kinds}</h4>"
        f"<p>fires on {_percent(page['frequency'])} of tokens, "
        f"{_percent(page['random_frequency'])} of random tokens; mean "
        f"{_number(page['mean'])}, max {_number(page['max'])}{twin}</p>"
        f"<table>{rows}</table><ol>{contexts}</ol></div>"
    )


def list_html(index: FeatureIndex) -> str:
    """The features that fire most, apart from dense ones, as an HTML table."""
    latents = index.latents
    top = latents.loc[latents.frequency <= DENSE].nlargest(LISTED, "frequency", keep="first").latent
    rows = "".join(_row(index.page(latent)) for latent in top)
    return (
        f"<div><p>{escape(set_key(index.meta))}: {len(latents)} features; the {len(top)} that "
        "fire most often (run the notebook to browse all of them)</p>"
        "<table><tr><th>feature</th><th>fires on</th><th></th><th>readings</th></tr>"
        f"{rows}</table></div>"
    )


def _row(page):
    words = [word for name in METHODS for word in page["explanations"].get(name, [])[:2]]
    return (
        f"<tr><td>{page['latent']}</td><td>{_percent(page['frequency'])}</td>"
        f"<td>{' '.join(_kinds(page))}</td><td>{_words(words)}</td></tr>"
    )


def _judged(said):
    if not said["scored"]:
        return "fires too rarely to be scored"
    detection, fuzzing = (_number(said[name]) for name in ("detection_random", "fuzz_random"))
    scores = f"detection {detection}, fuzzing {fuzzing} (guessing: {GUESSING})"
    return f"{escape(said['text'] or 'no explanation')}; {scores}"


def _kinds(page):
    return [NAMES[flag] for flag in flags(page)]


def _words(words):
    return " ".join(
        f'<code title="{_number(value)}">{_escaped(text)}</code>' for text, value in words
    )


def _tokens(context, strongest):
    shown = []
    pairs = zip(context["tokens"], context["activations"], strict=True)
    for place, (token, value) in enumerate(pairs):
        text = _escaped(token)
        if value > 0:
            heat = min(value / strongest, 1) if strongest else 1
            text = (
                f'<span title="{_number(value)}" style="background: rgba(245, 158, 11, '
                f'{0.15 + 0.5 * heat:.2f})">{text}</span>'
            )
        shown.append(f"<b>{text}</b>" if place == context["position"] else text)
    return "".join(shown)


def _escaped(text):
    return escape(visible(text, blanks=False))


def _number(value):
    return "–" if value is None else f"{value:.3g}"


def _percent(share):
    return "–" if share is None else f"{share * 100:.3g} %"
