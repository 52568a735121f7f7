"""The figure of notebook 15, drawn from its data alone (paper/pruning.py)."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from pandas import DataFrame

from faithful_sae.paper.plots.style import (
    INK,
    LEVEL,
    OLIVE,
    VIOLET,
    Look,
    grid,
    groups,
    legend_below,
    styled,
)

# of the orders in which latents are removed, as they come
LOOKS = (
    Look(INK, "-", "o"),
    Look(VIOLET, (0, (4, 1.5)), "s"),
    Look(OLIVE, (0, (6, 1.2, 1, 1.2)), "^"),
    Look("0.7", "-", "v"),
    Look("0.45", (0, (1, 1.2)), "D"),
)


@styled
def curves(data: DataFrame) -> Figure:
    """What is measured against the share of latents that is gone: a row of panels per corpus, a
    line per order with its interval over seeds. Dashed is the whole SAE; the first point of each
    line, where it is apart, is as many latents as are fake.
    """
    corpora, measures = (list(dict.fromkeys(data[name])) for name in ("corpus", "measure"))
    n = len(measures)
    figure, axes = grid(n * len(corpora), n, 1.8, sharex=True, sharey="col")
    panels = [(corpus, measure) for corpus in corpora for measure in measures]
    for ax, (corpus, measure) in zip(axes, panels, strict=True):
        part = data.loc[(data.corpus == corpus) & (data.measure == measure)]
        whole = part.loc[part.order == part.order.iloc[0]]
        lines = groups(part.drop(whole.index), "order")
        for ((order,), line), look in zip(lines, LOOKS, strict=True):
            # where no latent is fake, there is no such share on a logarithmic axis
            line = line.loc[line.removed > 0].sort_values("removed")
            ax.plot(line.removed, line.value, marker=look.marker, label=order, **look.curve())
            edges = {"color": look.colour, "alpha": 0.2, "linewidth": 0}
            ax.fill_between(line.removed, line.low, line.high, **edges)
        ax.axhline(whole.value.item(), label="none: the whole SAE", **LEVEL)
        ax.set(xscale="log", ylabel=measure, title=corpus)
    for ax in axes[n - 1 :: n]:
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(FuncFormatter(_plain))
    for ax in axes:
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
        ax.xaxis.set_minor_formatter(NullFormatter())
    for ax in axes[-n:]:
        ax.set_xlabel("latents removed (%)")
    legend_below(figure, axes[0], 3, title="removed first: latents that fire")
    return figure


def _plain(number, _):
    return f"{number:g}"
