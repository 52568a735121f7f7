"""The overview of the method (paper, Figure 1): boxes and arrows, and the drawing of them."""

import io

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from pandas import DataFrame, read_csv

from faithful_sae.paper.plots.style import WIDTH, styled

# in units of a canvas of 10 x 3.7; `|` breaks a line, an arrow goes from x, y to x2, y2
DIAGRAM = """
group, x,    y,    width, height, text,                              kind,  x2,   y2
model, 0.1,  1.45, 1.5,   0.9,    language|model,                    box,   ,
text,  2.6,  2.45, 1.75,  0.9,    faithful dataset|(its own samples), box,   ,
text,  2.6,  0.45, 1.75,  0.9,    web and instruction|corpora,       box,   ,
model, 5.2,  1.45, 1.45,  0.9,    activations|at layer L,            box,   ,
sae,   7.35, 2.5,  1.0,   0.8,    TopK SAE|seed 42,                  box,   ,
sae,   7.35, 0.5,  1.0,   0.8,    TopK SAE|seed 49,                  box,   ,
metric,8.9,  2.9,  1.0,   0.5,    SFR,                               box,   ,
metric,8.9,  2.1,  1.0,   0.5,    FFR,                               box,   ,
metric,8.9,  1.2,  1.0,   0.5,    fidelity,                          box,   ,
metric,8.9,  0.4,  1.0,   0.5,    probing,                           box,   ,
,      1.65, 2.05, ,      ,       BOS,                               arrow, 2.55, 2.8
,      4.42, 2.85, ,      ,       ,                                  arrow, 5.2,  2.25
,      4.42, 0.95, ,      ,       ,                                  arrow, 5.2,  1.55
,      1.68, 1.9,  ,      ,       ,                                  arrow, 5.12, 1.9
,      6.72, 2.1,  ,      ,       ,                                  arrow, 7.3,  2.75
,      6.72, 1.7,  ,      ,       ,                                  arrow, 7.3,  1.0
,      8.42, 2.95, ,      ,       ,                                  arrow, 8.85, 3.15
,      8.42, 2.8,  ,      ,       ,                                  arrow, 8.85, 2.4
,      8.42, 1.0,  ,      ,       ,                                  arrow, 8.85, 1.4
,      8.42, 0.85, ,      ,       ,                                  arrow, 8.85, 0.65
,      8.42, 1.15, ,      ,       ,                                  arrow, 8.85, 2.95
"""
FILL = {"model": "#DCE9F5", "text": "#FBE3D3", "sae": "#E3F1E5", "metric": "#F1F1F1"}


def method_boxes() -> DataFrame:
    """The boxes and arrows of the diagram, one a row; `kind` says which."""
    return read_csv(io.StringIO(DIAGRAM), skipinitialspace=True)


@styled
def method(data: DataFrame) -> Figure:
    """The diagram of the rows of `method_boxes`."""
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 3.7))
    ax.axis("off")
    for _, box in data.loc[data.kind == "box"].iterrows():
        ax.add_patch(
            FancyBboxPatch(
                (box.x, box.y),
                box.width,
                box.height,
                boxstyle="round,pad=0.04,rounding_size=0.08",
                facecolor=FILL[box.group],
                edgecolor="0.35",
                linewidth=0.7,
            )
        )
        ax.text(
            box.x + box.width / 2,
            box.y + box.height / 2,
            box.text.replace("|", "\n"),
            ha="center",
            va="center",
            fontsize=6.6,
        )
    for _, arrow in data.loc[data.kind == "arrow"].fillna({"text": ""}).iterrows():
        ax.annotate(
            "",
            (arrow.x2, arrow.y2),
            (arrow.x, arrow.y),
            arrowprops={
                "arrowstyle": "-|>",
                "linewidth": 0.8,
                "color": "0.25",
                "shrinkA": 1,
                "shrinkB": 1,
            },
        )
        ax.text(
            (arrow.x + arrow.x2) / 2,
            (arrow.y + arrow.y2) / 2 + 0.1,
            arrow.text.replace("|", "\n"),
            ha="center",
            fontsize=6,
            color="0.25",
            style="italic",
        )
    return figure
