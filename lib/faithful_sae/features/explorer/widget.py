"""Explorer: the features of an index in a cell of a notebook (JupyterLab, VS Code, Notebook,
Colab).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from faithful_sae.features.explorer import data
from faithful_sae.features.explorer.fallback import feature_html, list_html
from faithful_sae.features.explorer.words import words
from faithful_sae.features.index import FeatureError, FeatureIndex, sae_checksum
from faithful_sae.features.labels import read_labels, write_label
from faithful_sae.features.text import features_of_text, text_ids

# the explorer works without a model, and then need not wait for transformers
if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel
    from faithful_sae.sae.sae import TopKSAE


class Explorer(anywidget.AnyWidget):
    """Browse the features of an index: list, search, filter, contexts, readings, the twin in
    another seed.

    The browser asks for what it shows with messages {id, path[, text]}, answered {id, result} or
    {id, error}; the paths are those of `answer`. Where no Python runs (GitHub, nbviewer, a notebook
    opened again), the first features can still be read.

    Args:
        index: what is shown.
        other: of the seed it was matched with, to show each twin; None: not shown.
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

    def __init__(
        self,
        index: FeatureIndex,
        other: FeatureIndex | None = None,
        lm: LanguageModel | None = None,
        sae: TopKSAE | None = None,
        latent: int = 0,
    ):
        if (lm is None) != (sae is None):
            raise FeatureError(
                "Explorer: text is read with a language model and its SAE: give lm and sae, or "
                "neither"
            )
        if lm and sae:
            index.require(sae_checksum(sae.to(lm.device)))
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

    def answer(self, path: str, text: str | None = None) -> Any:
        """What the browser asks for.

        Args:
            path: <run>/<corpus>/seed<seed>/ and then `meta`, `rows/<chunk>`, `page/<latent>`,
                `words`, `words/<chunk>`, `labels`, `label/<latent>` or `text`.
            text: that was typed in: a text to read, or the label of a latent to keep.

        Returns:
            set_meta, set_rows or set_page of data.py; starts or a chunk of words.py; labels as
            labels.py has them; for text {tokens: [{token, features: [[latent, activation],
            ...]}]}.

        Raises:
            KeyError: no such set here.
            ValueError: no such path.
            IndexError: no such chunk.
            FeatureError: no such latent; a text that is empty, too long, or for which there is no
                model.
        """
        run, corpus, seed, what, *which = path.split("/")
        index = self._indices[f"{run}/{corpus}/{seed}"]
        if what == "text":
            return self._read(index, text)
        if what == "meta":
            meta = data.set_meta(index)
            meta["can_read"] = self._lm is not None and index is self._index
            for key, one in self._indices.items():
                if one is not index:
                    meta["twin_set"] = key
            return meta
        if what == "rows":
            return data.set_rows(index, int(which[0]))
        if what == "page":
            return data.set_page(index, int(which[0]))
        if what == "words":
            found = words(index)
            return found.chunk(int(which[0])) if which else found.starts
        if what == "labels":
            return read_labels(index)
        if what == "label":
            return write_label(index, int(which[0]), text or "")
        raise ValueError(f"nothing is at {path}")

    def _read(self, index, text):
        if self._lm is None or self._sae is None or index is not self._index:
            raise FeatureError(
                "no language model and SAE were given to read text with: "
                "Explorer(index, other, lm, sae)"
            )
        ids = text_ids(self._lm, text)[0, 1:].tolist()
        tokens = [{"token": index.vocabulary[i], "features": []} for i in ids]
        for row in features_of_text(self._lm, self._sae, text).to_dict("records"):
            feature = [row["latent"], data.shorten(row["activation"])]
            tokens[row["position"]]["features"].append(feature)
        return {"tokens": tokens}

    def _hear(self, _, message, buffers):
        if not isinstance(message, dict) or not {"id", "path"} <= set(message):
            return  # not ours
        try:
            answer = {"result": self.answer(message["path"], message.get("text"))}
        except FeatureError as error:
            answer = {"error": str(error)}
        except Exception as error:
            # shown in the cell: an exception in a message handler is seen nowhere
            answer = {"error": f"{type(error).__name__}: {error}"}
        self.send({"id": message["id"], **answer})

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        content, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        first = feature_html(self._index.page(self.latent), self._index.meta)
        return {**(content or {}), "text/html": list_html(self._index) + first}, metadata
