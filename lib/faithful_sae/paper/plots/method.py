"""The overview of the method (paper, Figure 1): boxes and arrows, and the drawing of them."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from faithful_sae.paper.plots.style import WIDTH, styled

# in units of a canvas of 10 x 3.7; `|` breaks a line
BOXES = [  # group, x, y, width, height, text
    ("model", 0.1, 1.45, 1.5, 0.9, "language|model"),
    ("text", 2.6, 2.45, 1.75, 0.9, "faithful dataset|(its own samples)"),
    ("text", 2.6, 0.45, 1.75, 0.9, "web and instruction|corpora"),
    ("model", 5.2, 1.45, 1.45, 0.9, "activations|at layer L"),
    ("sae", 7.35, 2.5, 1.0, 0.8, "TopK SAE|seed 42"),
    ("sae", 7.35, 0.5, 1.0, 0.8, "TopK SAE|seed 49"),
    ("metric", 8.9, 2.9, 1.0, 0.5, "SFR"),
    ("metric", 8.9, 2.1, 1.0, 0.5, "FFR"),
    ("metric", 8.9, 1.2, 1.0, 0.5, "fidelity"),
    ("metric", 8.9, 0.4, 1.0, 0.5, "probing"),
]
ARROWS = [  # from x, y to x2, y2, text
    (1.65, 2.05, 2.55, 2.8, "BOS"),
    (4.42, 2.85, 5.2, 2.25, ""),
    (4.42, 0.95, 5.2, 1.55, ""),
    (1.68, 1.9, 5.12, 1.9, ""),
    (6.72, 2.1, 7.3, 2.75, ""),
    (6.72, 1.7, 7.3, 1.0, ""),
    (8.42, 2.95, 8.85, 3.15, ""),
    (8.42, 2.8, 8.85, 2.4, ""),
    (8.42, 1.0, 8.85, 1.4, ""),
    (8.42, 0.85, 8.85, 0.65, ""),
    (8.42, 1.15, 8.85, 2.95, ""),
]
FILL = {"model": "#DCE9F5", "text": "#FBE3D3", "sae": "#E3F1E5", "metric": "#F1F1F1"}


def method_boxes() -> pd.DataFrame:
    """The boxes and arrows of the diagram, one a row; `kind` says which."""
    boxes = pd.DataFrame(BOXES, columns=["group", "x", "y", "width", "height", "text"])
    arrows = pd.DataFrame(ARROWS, columns=["x", "y", "x2", "y2", "text"])
    return pd.concat([boxes.assign(kind="box"), arrows.assign(kind="arrow")], ignore_index=True)


@styled
def method(data: pd.DataFrame) -> Figure:
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
