"""Explorer: the features of an index in a cell of a notebook (JupyterLab, VS Code, Notebook,
Colab).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


# tokens that a steered text goes on with, at most
WRITTEN = 40


class Explorer(anywidget.AnyWidget):
    """Browse the features of some indices: list, search, filter, contexts, readings, the twin in
    another seed, the nearest in another corpus, and what a text becomes with more of a feature.

    The browser asks for what it shows with messages {id, path[, text]}, answered {id, result} or
    {id, error}; the paths are those of `answer`. Where no Python runs (GitHub, nbviewer, a notebook
    opened again), the first features can still be read.

    Args:
        indices: what is shown, the first one first; also those of the seeds they were matched with,
            to show twins, and of other corpora.
        lm: the model (load_model) of all of them; None: no text is read or written.
        saes: SAEs of some indices, in any order, to read text and to steer with.
        latent: the feature shown first.

    Raises:
        FeatureError: no index, or two of one run, corpus and seed; a model without SAEs or the
            other way round; an SAE that is of none of the indices.
    """

    _esm = data.script("widget.js")
    _css = data.style()
    sets = traitlets.List().tag(sync=True)
    first = traitlets.Dict().tag(sync=True)
    latent = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        indices: Sequence[FeatureIndex],
        lm: LanguageModel | None = None,
        saes: Iterable[TopKSAE] = (),
        latent: int = 0,
    ):
        keys = [data.set_key(index.meta) for index in indices]
        self._indices = dict(zip(keys, indices, strict=True))
        if not keys or len(self._indices) < len(keys):
            raise FeatureError(
                f"Explorer: one index for each run, corpus and seed is needed, not {keys}"
            )
        saes = list(saes)
        if (lm is None) != (not saes):
            raise FeatureError(
                "Explorer: text is read with a language model and its SAEs: give lm and saes, or "
                "neither"
            )
        of_sae = {index.meta["sae"]: key for key, index in self._indices.items()}
        # by key of a set, what reads its text
        self._models = {}
        for model, sae in [(lm, sae.to(lm.device)) for sae in saes] if lm else []:
            if (checksum := sae_checksum(sae)) not in of_sae:
                raise FeatureError(
                    f"Explorer: an SAE is that of none of {', '.join(keys)}: give those that were "
                    "indexed"
                )
            self._models[of_sae[checksum]] = model, sae
        self._index = indices[0]
        key = keys[0]
        paths = [f"{key}/meta", f"{key}/rows/{latent // data.ROWS}", f"{key}/page/{latent}"]
        super().__init__(
            sets=[data.set_name(index) for index in indices],
            latent=latent,
            first={path: self.answer(path) for path in paths},
        )
        self.on_msg(self._hear)

    def answer(self, path: str, text: str | None = None) -> Any:
        """What the browser asks for.

        Args:
            path: <run>/<corpus>/seed<seed>/ and then `meta`, `overview`, `examples`,
                `rows/<chunk>`, `page/<latent>`, `words`, `words/<chunk>`, `labels`,
                `label/<latent>`, `text` or `steer/<latent>/<dose>`.
            text: that was typed in: a text to read or to go on with, or the label of a latent to
                keep.

        Returns:
            set_meta, set_overview, set_examples, set_rows or set_page of data.py; starts or a chunk
            of words.py; labels as labels.py has them; for text {tokens: [{token, features:
            [[latent, activation], ...]}]}; for steer {before, after}: how the text goes on as the
            model writes it, and with `dose` times the latent's largest activation added.

        Raises:
            KeyError: no such set here.
            ValueError: no such path.
            IndexError: no such chunk.
            FeatureError: no such latent; a text that is empty, too long, or for which there is no
                model.
        """
        run, corpus, seed, what, *which = path.split("/")
        key = f"{run}/{corpus}/{seed}"
        index = self._indices[key]
        if what == "text":
            return self._read(key, text)
        if what == "steer":
            return self._steer(key, int(which[0]), float(which[1]), text)
        if what == "meta":
            return data.set_meta(index) | {"can_read": key in self._models}
        if what == "overview":
            return data.set_overview(index)
        if what == "examples":
            return data.set_examples(index)
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

    def _model(self, key):
        """(language model, SAE) of a set."""
        if key not in self._models:
            raise FeatureError(
                f"no language model and SAE of {key} were given: Explorer(indices, lm, saes)"
            )
        return self._models[key]

    def _steer(self, key, latent, dose, text):
        # transformers come with it, which looking does without
        from faithful_sae.features.steering import continuation

        lm, sae = self._model(key)
        amount = dose * self._indices[key].page(latent)["max"]
        length = min(WRITTEN, lm.context // 2)
        before, after = continuation(lm, sae, text, latent, "add", amount, length)
        return {"before": before, "after": after}

    def _read(self, key, text):
        lm, sae = self._model(key)
        ids = text_ids(lm, text)[0, 1:].tolist()
        vocabulary = self._indices[key].vocabulary
        tokens = [{"token": vocabulary[i], "features": []} for i in ids]
        for row in features_of_text(lm, sae, text).to_dict("records"):
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
