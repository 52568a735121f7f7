"""Static HTML of a feature and of a list of them: what remains of the explorer where no widget runs
(GitHub, nbviewer).

Sanitisers take away styles and scripts, so nothing here depends on them: the strongest token is
bold, and values are titles.
"""

from html import escape

from faithful_sae.features.explorer.data import flags, set_key

NAMES = {"f": "fake", "o": "orphan", "s": "shared", "d": "dead", "n": "dense"}
CONTEXTS = 8  # of a feature
LISTED = 20  # features of a list


def feature_html(page, meta=None) -> str:
    """One feature as HTML.

    Args:
        page: FeatureIndex.page(latent). meta: FeatureIndex.meta, to say which set it is of; None:
            not said.
    """
    of = f" of {escape(set_key(meta))}" if meta else ""
    kinds = ", ".join(NAMES[flag] for flag in flags(page))
    twin = (
        ""
        if page["twin"] is None
        else f"; best match in the other seed: {page['twin']}, cosine "
        f"{_number(page['twin_cosine'])}"
    )
    rows = "".join(
        f"<tr><th>{escape(method)}</th><td>{_words(words)}</td></tr>"
        for method, words in page["explanations"].items()
    )
    contexts = "".join(
        f"<li>{_number(context['activation'])} &nbsp; {_tokens(context, page['max'])}</li>"
        for context in page["contexts"][:CONTEXTS]
    )
    return (
        f"<div><h4>Feature {page['latent']}{of}{f' ({kinds})' if kinds else ''}</h4>"
        f"<p>fires on {_percent(page['frequency'])} of tokens, "
        f"{_percent(page['random_frequency'])} of random tokens; mean "
        f"{_number(page['mean'])}, max {_number(page['max'])}{twin}</p>"
        f"<table>{rows}</table><ol>{contexts}</ol></div>"
    )


def list_html(index) -> str:
    """The features that fire most, apart from dense ones, as an HTML table."""
    latents = index.latents
    top = (
        latents[latents.frequency <= 0.1]
        .nlargest(LISTED, "frequency", keep="first")
        .latent.tolist()
    )
    rows = "".join(_row(index.page(latent)) for latent in top)
    return (
        f"<div><p>{escape(set_key(index.meta))}: {len(latents)} features; the {len(top)} that "
        "fire most often (run the notebook to browse "
        "all of them)</p><table><tr><th>feature</th><th>fires "
        f"on</th><th></th><th>readings</th></tr>{rows}</table></div>"
    )


def _row(page):
    words = [word for words in page["explanations"].values() for word in words[:2]]
    return (
        f"<tr><td>{page['latent']}</td><td>{_percent(page['frequency'])}</td><td>{' '.join(NAMES[flag] for flag in flags(page))}</td>"
        f"<td>{_words(words)}</td></tr>"
    )


def _words(words):
    return " ".join(
        f'<code title="{_number(value)}">{_visible(text)}</code>' for text, value in words
    )


def _tokens(context, strongest):
    shown = []
    for place, (token, value) in enumerate(zip(context["tokens"], context["activations"])):
        text = _visible(token)
        if value > 0:
            heat = min(value / strongest, 1) if strongest else 1
            text = (
                f'<span title="{_number(value)}" style="background: rgba(245, 158, 11, '
                f'{0.15 + 0.5 * heat:.2f})">{text}</span>'
            )
        shown.append(f"<b>{text}</b>" if place == context["position"] else text)
    return "".join(shown)


def _visible(text):
    return escape(text.replace("\n", "⏎").replace("\t", "⇥"))


def _number(value):
    return "–" if value is None else f"{value:.3g}"


def _percent(share):
    return "–" if share is None else f"{share * 100:.3g} %"
