"""The overview of the method (paper, Figure 1): boxes and arrows, and the drawing of them."""

import io

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from pandas import DataFrame, read_csv

from faithful_sae.paper.plots.style import WIDTH, styled

# in units of a canvas of 10 x 3.7; `|` breaks a line, an arrow goes from x, y to x2, y2
DIAGRAM = """
group, x,    y,    width, height, text,                              kind,  x2,   y2
text,  0.1,  2.5,  2.0,   0.9,    faithful dataset|(its own samples), box,   ,
text,  0.1,  0.3,  2.0,   0.9,    web and instruction|corpora,       box,   ,
model, 2.9,  1.4,  1.3,   0.9,    language|model,                    box,   ,
model, 4.75, 1.4,  1.2,   0.9,    activations|at layer L,            box,   ,
frame, 6.5,  0.1,  1.4,   3.5,    SAEs of one corpus,                box,   ,
sae,   6.65, 2.2,  1.1,   0.8,    TopK SAE|one seed,                 box,   ,
sae,   6.65, 0.7,  1.1,   0.8,    TopK SAE|another seed,             box,   ,
metric,8.75, 2.9,  1.2,   0.6,    SFR|of two seeds,                  box,   ,
metric,8.75, 1.95, 1.2,   0.6,    FFR|of each SAE,                   box,   ,
metric,8.75, 1.05, 1.2,   0.6,    fidelity|of each SAE,              box,   ,
metric,8.75, 0.15, 1.2,   0.6,    probing|of each SAE,               box,   ,
,      3.2,  2.35, ,      ,       samples after BOS,                 arrow, 2.15, 3.1
,      2.15, 2.6,  ,      ,       ,                                  arrow, 2.85, 2.1
,      2.15, 0.85, ,      ,       ,                                  arrow, 2.85, 1.6
,      4.25, 1.85, ,      ,       ,                                  arrow, 4.7,  1.85
,      6.0,  1.85, ,      ,       ,                                  arrow, 6.45, 1.85
,      7.95, 3.2,  ,      ,       ,                                  arrow, 8.7,  3.2
,      7.95, 1.95, ,      ,       ,                                  arrow, 8.7,  2.2
,      7.95, 1.5,  ,      ,       ,                                  arrow, 8.7,  1.35
,      7.95, 1.05, ,      ,       ,                                  arrow, 8.7,  0.5
"""
FILL = {"model": "#DCE9F5", "text": "#FBE3D3", "sae": "#E3F1E5", "metric": "#F1F1F1"}
# around boxes: its text stands at the top
FILL["frame"] = "#FFFFFF"


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
            box.y + box.height - 0.25 if box.group == "frame" else box.y + box.height / 2,
            box.text.replace("|", "\n"),
            ha="center",
            va="center",
            fontsize=7,
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
            (arrow.x + arrow.x2) / 2 + 0.1,
            (arrow.y + arrow.y2) / 2 + 0.1,
            arrow.text.replace("|", "\n"),
            ha="left",
            fontsize=7,
            color="0.25",
            style="italic",
        )
    return figure
