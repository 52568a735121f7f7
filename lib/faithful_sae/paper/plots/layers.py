"""The figure of notebook 11."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pandas import DataFrame

from faithful_sae.paper.plots.style import WIDTH, grid, styled


@styled
def distances(data: DataFrame) -> Figure:
    """Angular distances of layers, groups outlined."""
    matrix = data.pivot(index="layer_a", columns="layer_b", values="distance")
    layers = list(matrix.index)
    figure, (ax,) = grid(1, 1, 2.8, WIDTH * 0.55)
    image = ax.imshow(matrix, cmap="Blues", vmin=0, vmax=max(0.5, matrix.max().max()))
    # more would not be read
    if len(layers) <= 12:
        for i, j in ((i, j) for i in range(len(layers)) for j in range(len(layers))):
            value = matrix.iloc[i, j]
            colour = "white" if value > 0.3 else "0.1"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    for _, part in data.loc[data.group >= 0].groupby("group"):
        first, last = layers.index(part.layer_a.min()), layers.index(part.layer_a.max())
        size = last - first + 1
        where = (first - 0.5, first - 0.5)
        # whole, where it lies on the edge
        look = {"fill": False, "edgecolor": "0.1", "linewidth": 1.2, "clip_on": False}
        ax.add_patch(Rectangle(where, size, size, **look))
    step = max(len(layers) // 10, 1)
    places = range(0, len(layers), step)
    names = [str(layers[i]) for i in places]
    ax.set(xlabel="layer", ylabel="layer", xticks=places, yticks=places)
    ax.set_xticklabels(names)
    ax.set_yticklabels(names)
    figure.colorbar(image, ax=ax, label="angle / π", shrink=0.8)
    return figure
