"""RAVEL's pairs for a language model that knows entities (Huang et al. 2024, arXiv 2402.17700;
ravel.py measures them): what it says behind a prompt is the readout.

    BOS  Paris  " is a city in the country of"      ->  " France"
         |
         x of the entity's last token, which is replaced

The entity stands first, so that its x is the same in the prompts of all attributes. An answer is
its first token, and the model's is the most probable of the answers that are known to be some
entity's. Only entities of which it knows all attributes count. Some of them select latents, and
others measure.

E entities, A attributes, N pairs, B of them at a time.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from faithful_sae.metrics.ravel import Pairs, Readout
from faithful_sae.text.packing import text_tokens

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

# share of the entities, and of the pairs, that select
TRAIN = 0.7
TEMPLATES = (" is a city in the country of", " is a city on the continent of")
_COUNTRIES = {
    "Europe": {
        "France": ("Paris", "Lyon", "Marseille"),
        "Germany": ("Berlin", "Munich", "Hamburg"),
        "Italy": ("Rome", "Milan", "Naples"),
        "Spain": ("Madrid", "Barcelona", "Seville"),
        "Poland": ("Warsaw", "Krakow"),
        "Greece": ("Athens",),
    },
    "Asia": {
        "Japan": ("Tokyo", "Osaka", "Kyoto"),
        "China": ("Beijing", "Shanghai", "Guangzhou"),
        "India": ("Mumbai", "Delhi", "Chennai"),
        "Thailand": ("Bangkok",),
        "Vietnam": ("Hanoi",),
    },
    "Africa": {
        "Egypt": ("Cairo", "Alexandria"),
        "Kenya": ("Nairobi", "Mombasa"),
        "Nigeria": ("Lagos", "Abuja"),
        "Morocco": ("Casablanca", "Marrakesh"),
    },
    "South America": {
        "Brazil": ("Rio de Janeiro", "Brasilia"),
        "Argentina": ("Buenos Aires",),
        "Peru": ("Lima", "Cusco"),
        "Chile": ("Santiago",),
    },
}
# an answer to each of TEMPLATES
CITIES = {
    city: (country, continent)
    for continent, countries in _COUNTRIES.items()
    for country, cities in countries.items()
    for city in cities
}


class TooFewError(ValueError):
    """A model knows too few entities for pairs."""


def entity_pairs(
    lm: "LanguageModel",
    facts: Mapping[str, Sequence[str]],
    templates: Sequence[str],
    n_pairs: int = 500,
    seed: int = 0,
    batch_rows: int = 16,
) -> tuple[Pairs, list[Readout], list[str]]:
    """Pairs of entities that a model knows, for `ravel.ravel`.

    Args:
        facts: an answer to each template by entity, e.g. CITIES.
        templates: what follows the entity, A of them, e.g. TEMPLATES; a blank goes before the
            answer.
        n_pairs: drawn, with replacement; base and source are never the same.
        seed: of the draw.
        batch_rows: prompts in a forward pass.

    Returns:
        (pairs on the model's device, a readout per template, the entities that the model knows).

    Raises:
        TooFewError: fewer than four entities that it knows, two of which select and two measure.
        ValueError: an entity with another number of answers than there are templates.
    """
    for entity, answers in facts.items():
        if len(answers) != len(templates):
            raise ValueError(
                f"{entity} has {len(answers)} answers to {len(templates)} templates: each needs one"
            )
    names = text_tokens([*facts], lm.tokenizer)
    at = torch.tensor([len(ids) for ids in names])
    right = torch.ones(len(facts), dtype=torch.bool)
    prompts, streams, choices, truths = [], [], [], []
    for template, answers in zip(templates, zip(*facts.values(), strict=True), strict=True):
        (behind,) = text_tokens([template], lm.tokenizer)
        asked = [torch.tensor([lm.bos_id, *ids, *behind]) for ids in names]
        first = [ids[0] for ids in text_tokens([f" {answer}" for answer in answers], lm.tokenizer)]
        known, truth = np.unique(first, return_inverse=True)
        said, stream = _asked(lm, asked, known, batch_rows)
        right &= said == torch.from_numpy(truth)
        prompts.append(asked)
        streams.append(stream)
        choices.append(known)
        truths.append(torch.from_numpy(truth))
    # what follows an entity changes nothing at its last token
    x = torch.stack([hidden[place] for hidden, place in zip(streams[-1], at, strict=True)])
    entities = right.nonzero().squeeze(-1)
    if len(entities) < 4:
        raise TooFewError(
            f"the model knows {len(entities)} of {len(facts)} entities, and at least 4 are needed: "
            "take others, or a larger model"
        )
    base, source, n_train = _drawn(entities.numpy(), n_pairs, seed)
    answers = torch.stack(truths, 1)
    readouts = [
        _readout(lm, [asked[e] for e in base], [stream[e] for e in base], at[base], known)
        for asked, stream, known in zip(prompts, streams, choices, strict=True)
    ]
    pairs = Pairs(
        x[base].to(lm.device),
        x[source].to(lm.device),
        answers[base].to(lm.device),
        answers[source].to(lm.device),
        n_train,
    )
    return pairs, readouts, [[*facts][e] for e in entities]


@torch.no_grad()
def _asked(lm, prompts, choices, batch_rows):
    """(which choice the model makes [E], the hooked tensor of each prompt, float32 [T, D])."""
    said, found = [], []
    for start in range(0, len(prompts), batch_rows):
        some = prompts[start : start + batch_rows]
        every = torch.arange(len(some))
        last = torch.tensor([len(ids) - 1 for ids in some])
        logits, x = lm.logits(pad_sequence(some, batch_first=True, padding_value=lm.bos_id))
        said.append(logits[every, last][:, choices].argmax(-1).cpu())
        found += [row[: len(ids)].cpu() for row, ids in zip(x, some, strict=True)]
    return torch.cat(said), found


def _drawn(entities, n_pairs, seed):
    """(base int64 [N], source [N], how many select): no entity selects and measures."""
    rng = np.random.default_rng(seed)
    entities = rng.permutation(entities)
    cut = min(max(round(TRAIN * len(entities)), 2), len(entities) - 2)
    n_train = round(TRAIN * n_pairs)
    base, source = [], []
    for part, n in ((entities[:cut], n_train), (entities[cut:], n_pairs - n_train)):
        first = rng.integers(0, len(part), n)
        # any but itself
        second = (first + rng.integers(1, len(part), n)) % len(part)
        base.append(part[first])
        source.append(part[second])
    return torch.from_numpy(np.concatenate(base)), torch.from_numpy(np.concatenate(source)), n_train


def _readout(lm, prompts, streams, at, choices) -> Readout:
    """What the model says to the prompt of each pair, with x in its entity's place. What comes
    before the hook is the same whatever x is, and is not computed again.
    """

    def readout(x: Tensor, pairs: Tensor) -> Tensor:
        some = [prompts[i] for i in pairs.tolist()]
        ids = pad_sequence(some, batch_first=True, padding_value=lm.bos_id)
        every, place = torch.arange(len(some)), at[pairs.cpu()]
        last = torch.tensor([len(one) - 1 for one in some])
        changed = pad_sequence([streams[i] for i in pairs.tolist()], batch_first=True)
        changed[every, place] = x.to(changed)
        ids, end = ids.to(lm.model.device), last[:, None].to(lm.model.device)
        with lm.at_layer(changed.to, skip=True):
            # the head is half of the work, and asked for the place where each prompt ends alone
            logits = lm.model(input_ids=ids, use_cache=False, logits_to_keep=end).logits
        return logits[:, 0, choices].float()

    return readout
