"""Explorer: the features of an index in a cell of a notebook (JupyterLab, VS Code, Notebook,
Colab).
"""

import anywidget
import traitlets

from faithful_sae.features.explorer import data
from faithful_sae.features.explorer.fallback import feature_html, list_html
from faithful_sae.features.index import FeatureError
from faithful_sae.features.text import features_of_text, text_ids
from faithful_sae.files.checkpoint import checksum


class Explorer(anywidget.AnyWidget):
    """Browse the features of an index: list, search, filter, contexts, readings, the twin in
    another seed.

    The browser asks for what it shows with messages {id, path[, text]}, answered {id, result} or
    {id, error}; the paths are those of `answer`. Where no Python runs (GitHub, nbviewer, a notebook
    opened again), the first features can still be read.

    Args:
        index: FeatureIndex.
        other: FeatureIndex of the seed it was matched with, to show each twin; None: not shown.
        lm, sae: the model (load_model) and SAE of `index`, to read text typed in; None: no text.
        latent: the feature shown first.

    Raises:
        FeatureError: a model without SAE or the other way round; an SAE that is not the one
            indexed; two indices of one seed.
    """

    _esm = data.script("widget.js")
    _css = data.style()
    sets = traitlets.List().tag(sync=True)
    first = traitlets.Dict().tag(sync=True)
    latent = traitlets.Int(0).tag(sync=True)

    def __init__(self, index, other=None, lm=None, sae=None, latent=0):
        if (lm is None) != (sae is None):
            raise FeatureError(
                "Explorer: text is read with a language model and its SAE: give lm and sae, or "
                "neither"
            )
        if sae is not None:
            sae = sae.to(lm.device)
            index.require(
                checksum(
                    {
                        name: tensor.detach().cpu().contiguous()
                        for name, tensor in sae.weights.items()
                    }
                )
            )
        given = [i for i in (index, other) if i is not None]
        self._indices = {data.set_key(i.meta): i for i in given}
        if len(self._indices) < len(given):
            raise FeatureError(
                f"Explorer: index and other are both {data.set_key(index.meta)}: give the index "
                "of another seed"
            )
        self._lm = lm
        self._sae = sae
        self._index = index
        key = data.set_key(index.meta)
        paths = [f"{key}/meta", f"{key}/rows/{latent // data.ROWS}", f"{key}/page/{latent}"]
        super().__init__(
            sets=[data.set_name(i) for i in given],
            latent=latent,
            first={path: self.answer(path) for path in paths},
        )
        self.on_msg(self._hear)

    def answer(self, path, text=None) -> dict:
        """What the browser asks for: <run>/<corpus>/seed<seed>/ and then `meta`, `rows/<chunk>`,
        `page/<latent>` or `text`.

        Returns:
            set_meta, set_rows or set_page of data.py; for text {tokens: [{token, features:
            [[latent, activation], ...]}]}.

        Raises:
            KeyError: no such set here. ValueError: no such path. IndexError, FeatureError: no such
                chunk, latent; a text that is empty,
            too long, or for which there is no model.
        """
        run, corpus, seed, what, *which = path.split("/")
        index = self._indices[f"{run}/{corpus}/{seed}"]
        if what == "text":
            return self._read(index, text)
        if what == "meta":
            others = [key for key, one in self._indices.items() if one is not index]
            return (
                data.set_meta(index)
                | {"can_read": self._reads(index)}
                | {"twin_set": key for key in others}
            )
        if what in ("rows", "page"):
            return (data.set_rows if what == "rows" else data.set_page)(index, int(which[0]))
        raise ValueError(f"nothing is at {path}")

    def _reads(self, index):
        return self._lm is not None and index is self._index

    def _read(self, index, text):
        if not self._reads(index):
            raise FeatureError(
                "no language model and SAE were given to read text with: Explorer(index, other, "
                "lm, sae)"
            )
        ids = text_ids(self._lm, text)[0, 1:].tolist()
        tokens = [{"token": index.vocabulary[i], "features": []} for i in ids]
        for row in features_of_text(self._lm, self._sae, text).itertuples():
            tokens[row.position]["features"].append(
                [row.latent, data.shorten(float(row.activation))]
            )
        return {"tokens": tokens}

    def _hear(self, _, message, buffers):
        if not isinstance(message, dict) or not {"id", "path"} <= set(message):
            return  # not ours
        try:
            self.send(
                {"id": message["id"], "result": self.answer(message["path"], message.get("text"))}
            )
        except (
            Exception
        ) as error:  # shown in the cell: an exception in a message handler is seen nowhere
            self.send(
                {
                    "id": message["id"],
                    "error": str(error)
                    if isinstance(error, FeatureError)
                    else f"{type(error).__name__}: {error}",
                }
            )

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        content, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return content | {
            "text/html": list_html(self._index)
            + feature_html(self._index.page(self.latent), self._index.meta)
        }, metadata
