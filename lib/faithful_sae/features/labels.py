"""Labels that somebody gave to latents, in a file beside the index: <index>.labels.json.

    {checksum of the SAE's weights: {latent: label}}

An index that is made again, of an SAE that was trained again, has no labels; the file keeps those
of the SAE before.
"""

import json
from pathlib import Path

from faithful_sae.features.index import FeatureError, FeatureIndex
from faithful_sae.files import atomic_path, read_json


def labels_file(index: FeatureIndex) -> Path:
    """Where an index' labels are, or will be."""
    return index.folder.with_name(f"{index.folder.name}.labels.json")


def read_labels(index: FeatureIndex) -> dict[str, str]:
    """{latent: label}, as JSON has it, of the SAE of an index; empty where there are none.

    Raises:
        FeatureError: a damaged file.
    """
    return _all(index).get(index.meta["sae"], {})


def write_label(index: FeatureIndex, latent: int, label: str) -> dict[str, str]:
    """Keep a label, or with an empty one forget it; all labels there are then.

    Raises:
        FeatureError: no such latent; a damaged file.
    """
    if not 0 <= latent < index.meta["d_sae"]:
        raise FeatureError(
            f"{index.folder}: no latent {latent}: it has 0 to {index.meta['d_sae'] - 1}"
        )
    found = _all(index)
    own = found.setdefault(index.meta["sae"], {})
    own.pop(str(latent), None)
    if label.strip():
        own[str(latent)] = label.strip()
    with atomic_path(labels_file(index)) as tmp:
        tmp.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
    return own


def _all(index) -> dict[str, dict[str, str]]:
    file = labels_file(index)
    if not file.exists():
        return {}
    try:
        return read_json(file)
    except ValueError as error:
        raise FeatureError(f"{file}: damaged ({error}): mend or delete it") from None
