"""The explorer as a folder of files, to open in a browser.

    index.html explorer.js explorer.css
    data/index.js                                every set there is
    data/<run>/<corpus>/seed<seed>/meta.js       what the set is
    data/<run>/<corpus>/seed<seed>/overview.js   what it has that other corpora have not
    data/<run>/<corpus>/seed<seed>/examples.js   some with a name, some at random (examples.py)
    data/<run>/<corpus>/seed<seed>/labels.js     what somebody called its features
    data/<run>/<corpus>/seed<seed>/words.js      the first word of each chunk of them (words.py)
    data/<run>/<corpus>/seed<seed>/words/<n>.js  words, and the features whose contexts have them
    data/<run>/<corpus>/seed<seed>/rows/<n>.js   the list, ROWS features a file
    data/<run>/<corpus>/seed<seed>/pages/<n>.js  the features' pages, as many a file as make about
                                                 CHUNK bytes

Data are scripts, explorerData(name, value), because a page opened from disk may load nothing else.
It needs no network, and the same index and labels give the same bytes.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from faithful_sae.features.explorer import data
from faithful_sae.features.explorer.words import Words
from faithful_sae.features.index import FeatureIndex
from faithful_sae.features.labels import read_labels
from faithful_sae.files import atomic_path

# bytes of pages read to show one
CHUNK = 40_000
# pages that say how large they are
SAMPLE = 32


def write_explorer(folder: str | Path, indices: Sequence[FeatureIndex]) -> None:
    """Write the page for some indices, in their order. In memory: the list and the
    words of one set, and one page.

    Raises:
        ValueError: no index, or two of one run, corpus and seed.
    """
    sets = [data.set_name(index) for index in indices]
    keys = [s["key"] for s in sets]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"{folder}: one index for each run, corpus and seed is needed, not {keys}")
    with atomic_path(folder) as tmp:
        tmp.mkdir()
        for name in ("index.html", "explorer.css"):
            shutil.copyfile(data.STATIC / name, tmp / name)
        (tmp / "explorer.js").write_text(data.script("page.js"), encoding="utf-8")
        _write(tmp, "index", json_script(sets))
        for index, key in zip(indices, keys, strict=True):
            _write_set(tmp, index, key)


def _write_set(folder, index, key):
    d_sae = index.meta["d_sae"]
    largest = max(
        len(json_script(data.set_page(index, latent)))
        for latent in range(0, d_sae, -(-d_sae // SAMPLE))
    )
    size = max(1, CHUNK // largest)
    _write(folder, f"{key}/meta", json_script(data.set_meta(index) | {"pages_per_chunk": size}))
    _write(folder, f"{key}/overview", json_script(data.set_overview(index)))
    _write(folder, f"{key}/examples", json_script(data.set_examples(index)))
    _write(folder, f"{key}/labels", json_script(read_labels(index)))
    words = Words(index)
    _write(folder, f"{key}/words", json_script(words.starts))
    for chunk in range(len(words.starts)):
        _write(folder, f"{key}/words/{chunk}", json_script(words.chunk(chunk)))
    for chunk in range(-(-d_sae // data.ROWS)):
        _write(folder, f"{key}/rows/{chunk}", json_script(data.set_rows(index, chunk)))
    for start in tqdm(range(0, d_sae, size), key, unit_scale=size, unit=" features"):
        pages = ",\n".join(
            json_script(data.set_page(index, latent))
            for latent in range(start, min(start + size, d_sae))
        )
        _write(folder, f"{key}/pages/{start // size}", f"[{pages}]")


def json_script(value: Any) -> str:
    """JSON that can stand in a script wherever that stands: ASCII, and neither < > nor & (so no
    </script> and no comment).
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _write(folder, name, text):
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"explorerData({json_script(name)},{text});\n", encoding="ascii")
