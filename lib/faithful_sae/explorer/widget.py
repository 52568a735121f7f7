"""Explorer: the features of an index in a cell of a notebook (JupyterLab, VS Code, Notebook, Colab)."""

import anywidget
import traitlets

from faithful_sae.explorer import data
from faithful_sae.explorer.fallback import feature_html, list_html


class Explorer(anywidget.AnyWidget):
    """Browse the features of an index: list, search, filter, contexts, readings, the twin in another seed.

    The browser asks for what it shows with messages {id, path[, text]}, answered {id, result} or {id, error}; the paths are those of
    `answer`. Where no Python runs (GitHub, nbviewer, a notebook opened again), the first features can still be read.

    Args:
        index: FeatureIndex.
        other: FeatureIndex of the seed it was matched with, to show each twin; None: not shown.
        lm, sae: the model (load_model) and SAE of `index`, to read text typed in; None: no text.
        latent: the feature shown first.

    Raises:
        ValueError: a model without SAE or the other way round; an SAE that is not the one indexed.
    """

    _esm = data.script("widget.js")
    _css = data.style()
    sets = traitlets.List().tag(sync=True)
    first = traitlets.Dict().tag(sync=True)
    latent = traitlets.Int(0).tag(sync=True)
    can_read = traitlets.Bool(False).tag(sync=True)

    def __init__(self, index, other=None, lm=None, sae=None, latent=0):
        if (lm is None) != (sae is None):
            raise ValueError("Explorer: text is read with a language model and its SAE: give lm and sae, or neither")
        self._indices = {data.set_key(i.meta): i for i in (index, other) if i is not None}
        self._lm, self._sae, self._index = lm, sae, index
        key = data.set_key(index.meta)
        paths = [f"{key}/meta", f"{key}/rows/{latent // data.ROWS}", f"{key}/page/{latent}"]
        super().__init__(sets=[data.set_name(i) for i in self._indices.values()], latent=latent, can_read=lm is not None,
                         first={path: self.answer(path) for path in paths})
        self.on_msg(self._hear)

    def answer(self, path, text=None) -> dict:
        """What the browser asks for: <run>/<corpus>/seed<seed>/ and then `meta`, `rows/<chunk>`, `page/<latent>` or `text`.

        Raises:
            KeyError: no such set here. ValueError: no such path; no model to read text with. IndexError, FeatureError: no such chunk, latent.
        """
        run, corpus, seed, what, *which = path.split("/")
        index = self._indices[f"{run}/{corpus}/{seed}"]
        if what == "text":
            return self._read(index, text)
        if what == "meta":
            return data.set_meta(index)
        if what in ("rows", "page"):
            return (data.set_rows if what == "rows" else data.set_page)(index, int(which[0]))
        raise ValueError(f"nothing is at {path}")

    def _hear(self, _, message, buffers):
        if not isinstance(message, dict) or not {"id", "path"} <= set(message):
            return   # not ours
        try:
            self.send({"id": message["id"], "result": self.answer(message["path"], message.get("text"))})
        except Exception as error:  # shown in the cell: an exception in a message handler is seen nowhere
            self.send({"id": message["id"], "error": f"{type(error).__name__}: {error}"})

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        content, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return content | {"text/html": list_html(self._index) + feature_html(self._index.page(self.latent), self._index.meta)}, metadata
