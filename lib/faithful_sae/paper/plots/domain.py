"""The figure of notebook 19."""

from typing import Any

from matplotlib.figure import Figure
from pandas import DataFrame

from faithful_sae.paper.plots.style import LOOKS, WIDTH, grid, legend_below, styled

DIRECTION = {"EV": "higher is better", "CE difference": "lower is better"}


@styled
def by_share(data: DataFrame) -> Figure:
    """EV and CE difference against the share of real text, alone and with the model's own; the
    model's own alone as a level.
    """
    texts = list(dict.fromkeys(data.text))
    measures = list(dict.fromkeys(data.measure))
    places = [(measure, text) for measure in measures for text in texts]
    figure, axes = grid(len(places), len(texts), 2.2, WIDTH, sharex=True)
    real, own, both = LOOKS["pile"], LOOKS["faithful"], LOOKS["faithful-other"]
    for ax, (measure, text) in zip(axes, places, strict=True):
        part: Any = data[(data.measure == measure) & (data.text == text)]
        level = part[part.share == 0].iloc[0]
        ends = (level.value - level.half, level.value + level.half)
        ax.axhspan(*ends, color=own.colour, alpha=0.2, linewidth=0)
        ax.axhline(level.value, **own.curve(), label="own text alone")
        for with_own, look, name in (
            (False, real, "real text alone"),
            (True, both, "half real, half own"),
        ):
            curve: Any = part[(part.share > 0) & (part.with_own == with_own)]
            if len(curve):
                points = look.points() | {"linestyle": look.line}
                ax.errorbar(100 * curve.share, curve.value, curve.half, label=name, **points)
        ax.set_xscale("log")
        ax.set_title(f"on {text}")
        ax.set_ylabel(f"{measure}\n({DIRECTION[measure]})")
        ticks = sorted({100 * share for share in part.share if share > 0})
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    for ax in axes[-len(texts) :]:
        ax.set_xlabel("real text, % of what there is (log)")
    legend_below(figure, axes[0], 3)
    return figure
