"""The faithful dataset: sequences sampled from the model itself, prompted with BOS alone (paper
3.1).

Plain sampling (temperature 1, top-p 1) is the paper's; a higher temperature and a flat first token
are the switches its section 5.4 leaves open. What BOS means depends on how a model was trained: it
may begin a document, or a turn of a chat. So documents may be sampled after something else, too
(`start_ids`). The sampled ids are kept: the authors decode and re-tokenise, which changes them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as functional
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from faithful_sae.files import atomic_path, locked
from faithful_sae.lm.architectures import MODELS, cache_bytes, sampling_bytes
from faithful_sae.lm.decoding import open_decoder
from faithful_sae.lm.model import LanguageModel, ModelError
from faithful_sae.text.packing import joined, separate

# of the free memory may go to rows: the rest is for what a step computes
SAMPLING_SHARE = 0.9
# tokens of a block of the vocabulary
DRAWN = 256


def start_ids(tokenizer: Any, bos_id: int, start: str | None, name: str) -> list[int]:
    """The ids that documents are sampled after.

    Args:
        tokenizer: of the model.
        bos_id: what its rows begin with: BOS, or what takes its place.
        start: None: bos_id. "bos": BOS, which the tokenizer must have. "chat": what stands before
            the answer in the tokenizer's chat template, the question being empty. Any other text:
            its tokens, special ones among them, without BOS.
        name: of the model, for messages.

    Raises:
        ModelError: no BOS, no chat template, a text without tokens.
    """
    if start is None:
        return [bos_id]
    if start == "bos":
        if tokenizer.bos_token_id is None:
            raise ModelError(
                f"{name}: generate.start is bos, and its tokenizer has no BOS: write a token that "
                f"its documents begin after, such as start: {tokenizer.eos_token!r}"
            )
        return [tokenizer.bos_token_id]
    if start == "chat":
        if not tokenizer.chat_template:
            raise ModelError(
                f"{name}: generate.start is chat, and its tokenizer has no chat template: write "
                "the text that stands before an answer, or leave start out"
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False
        )
    else:
        text = start
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ModelError(f"{name}: generate.start = {start!r} has no token in its tokenizer")
    return ids


def end_ids(tokenizer: Any, start: Sequence[int]) -> set[int]:
    """The ids that end a document where the model samples them: EOS, BOS, and a start that is a
    single special token, as between the documents that the model was trained on.
    """
    ends = {i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None}
    if len(start) == 1:
        added = tokenizer.added_tokens_decoder.get(start[0])
        if added is not None and added.special:
            ends.add(start[0])
    return ends


@torch.inference_mode()
def sample(
    lm: LanguageModel,
    batch_rows: int,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
    first_token: str = "bos",
    tokens: int = 0,
    progress: Callable[[int], Any] = lambda n: None,
    start: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Sample documents, `batch_rows` side by side; where one ends the next begins, until there are
    `tokens` tokens.

    Whether another document is begun depends on what has been sampled before, and every document
    begun is finished: none is kept or left out for its length.

    Args:
        lm: to sample from.
        batch_rows: rows B, for which `require_memory` asks. At least so many documents are sampled.
        max_new_tokens: a document ends here, or where the model samples one of end_ids (kept as its
            last id).
        generator: torch.Generator on the model's device; the only source of randomness.
        temperature: divides the logits; 1 is the paper's.
        top_p: sample from the smallest set of tokens with this probability mass; 1 is the paper's.
        first_token: "bos" samples it from the model, after `start`; "flat" draws it uniformly from
            the vocabulary (paper 5.4).
        tokens: documents are begun in place of those that ended until so many tokens have been
            sampled; 0: none.
        progress: called with the number of tokens sampled in each step.
        start: the ids before each document, of start_ids; None: BOS, as lm.bos_id.

    Returns:
        int32 arrays, the ids after `start`, in the order in which the documents were begun.
    """
    given = np.array([lm.bos_id] if start is None else start)
    # before the first token that is sampled, beside one id
    before = len(given) - 1
    ends = [*end_ids(lm.tokenizer, given.tolist())]
    text = np.empty((batch_rows, max_new_tokens), np.int32)
    slots = np.arange(batch_rows)
    ids = np.full(batch_rows, given[0])
    number = slots.copy()  # of each row's document
    documents = {}
    sampled = 0
    begun = batch_rows
    with open_decoder(lm.model, batch_rows, max_new_tokens + before) as decoder:
        while len(slots):
            places = decoder.lengths.numpy()[slots] - before
            logits = decoder.step(torch.from_numpy(ids), torch.from_numpy(slots))[
                :, : lm.vocab_size
            ].float()
            own = places >= 0
            if not own.all():
                logits = logits[torch.from_numpy(own).to(lm.device)]
            p = next_token_probabilities(logits, temperature, top_p)
            if first_token == "flat":
                p[torch.from_numpy(places[own] == 0).to(lm.device)] = 1 / lm.vocab_size
            # rows that are still in what is given go on in it
            ids = given[np.where(own, 0, places + before + 1)]
            ids[own] = draw_tokens(p, generator)[:, 0].cpu().numpy()
            text[slots[own], places[own]] = ids[own]
            sampled += int(own.sum())
            progress(int(own.sum()))
            ended = own & (np.isin(ids, ends) | (places + 1 == max_new_tokens))
            for i in np.flatnonzero(ended):
                documents[number[slots[i]]] = text[slots[i], : places[i] + 1].copy()
            if sampled < tokens:
                again = slots[ended]
                number[again] = np.arange(begun, begun + len(again))
                begun += len(again)
                decoder.lengths[again] = 0
                ids[ended] = given[0]
            else:
                slots = slots[~ended]
                ids = ids[~ended]
    return [documents[i] for i in range(begun)]


def require_memory(lm: LanguageModel, batch_rows: int, max_new_tokens: int) -> None:
    """Stop before sampling that would run out of memory: keys and values of all rows, and logits
    with what is computed of them.

    Args:
        lm: to sample from.
        batch_rows: documents side by side.
        max_new_tokens: in a document.

    Raises:
        MemoryError: with the number of rows that would fit.
    """
    cache = cache_bytes(lm.shape, 1, max_new_tokens)
    logits = sampling_bytes(lm.shape, 1, max_new_tokens) - cache
    for device, share in lm.shares.items():  # of the blocks; logits come out on the last
        per_row = share * cache + logits * (device == lm.device)
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        else:
            free = psutil.virtual_memory().available
        fit = int(SAMPLING_SHARE * free / per_row)
        if batch_rows > fit:
            raise MemoryError(
                f"batch_rows = {batch_rows} needs {batch_rows * per_row / 1e9:,.1f} GB for keys, "
                f"values and logits, and {free / 1e9:,.1f} GB are free: at most {fit} rows fit"
            )


def next_token_probabilities(
    logits: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """What `sample` draws a token from, [B, V], from float logits [B, V]; with top_p below 1 the
    rows do not sum to 1.
    """
    p = torch.softmax(logits if temperature == 1 else logits / temperature, -1)
    if top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # mass before the token already suffices
        p = p.masked_fill(beyond.scatter(-1, index, beyond), 0)
    return p


def draw_tokens(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token per row by inverting the distribution function: int64 [B, 1]. One random number per
    row, where torch.multinomial takes one per token of the vocabulary.

    The function is summed up in float64 over blocks of the vocabulary, and token by token in the
    block alone that is drawn: all tokens of a large vocabulary would take longer than its softmax.

    Args:
        p: [B, V], 0 or more; rows need not sum to 1.
        generator: on the device of `p`.

    Raises:
        FloatingPointError: a row that is not finite.
    """
    if missing := -p.shape[-1] % DRAWN:
        p = functional.pad(p, (0, missing))
    blocks = p.unflatten(-1, (-1, DRAWN))
    sums = blocks.sum(-1, dtype=torch.float64)
    cdf = sums.cumsum(-1)
    if not cdf[:, -1].isfinite().all():
        raise FloatingPointError(
            "the language model's logits are not finite: its weights are damaged, or dtype is too "
            "narrow for them"
        )
    u = (
        torch.rand(len(p), 1, generator=generator, dtype=torch.float64, device=p.device)
        * cdf[:, -1:]
    )
    block = torch.searchsorted(cdf, u, right=True).clamp(max=cdf.shape[-1] - 1)
    before = cdf.gather(-1, block) - sums.gather(-1, block)
    rows = torch.arange(len(p), device=p.device)
    within = blocks[rows, block[:, 0]].cumsum(-1, dtype=torch.float64)
    # both ends are tokens that can be drawn, whatever the last digit of a sum is
    place = torch.searchsorted(within, (u - before).clamp(min=0), right=True)
    last = (within >= within[:, -1:]).int().argmax(-1, keepdim=True)
    return block * DRAWN + torch.minimum(place, last)


# --- shards ---------------------------------------------------------------------------------------


def write_shards(
    folder: Path,
    lm: LanguageModel,
    *,
    tokens: int,
    shard_tokens: int,
    seed: int,
    batch_rows: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    first_token: str,
    start: str | None = None,
    worker: int = 0,
    of: int = 1,
    title: str = "faithful text",
) -> None:
    """Sample the shards of a dataset that are not in its folder. A worker leaves one that another
    process is at to it; who is alone waits.

    Args:
        folder: of the shards.
        lm: to sample from; the other arguments that are not here are those of `sample`, and `start`
            is that of start_ids.
        tokens: of the whole dataset, at least.
        shard_tokens: of a shard, at least; the last one has what remains.
        seed: each shard has its own generator, seeded by (seed, shard).
        worker: number of the first shard written here.
        of: every so many shards one is written here.
        title: of the progress bar.
    """
    given = start_ids(lm.tokenizer, lm.bos_id, start, lm.model.name_or_path)
    if (kind := lm.model.config.model_type) not in MODELS:
        print(
            f"note: sampling with transformers' own cache, which is slower: the attention of a "
            f"model of type {kind!r} is not known here"
        )
    with tqdm(total=tokens // of, unit="token", unit_scale=True, desc=title) as bar:
        for shard in range(worker, math.ceil(tokens / shard_tokens), of):
            path = folder / f"shard_{shard:05d}.safetensors"
            with locked(folder / f".{path.stem}.lock", wait=of == 1) as free:
                if not free:
                    continue
                if path.exists():
                    bar.update(len(load_file(path)["ids"]))
                    continue
                state = np.random.SeedSequence([seed, shard]).generate_state(1, np.uint64)
                documents = sample(
                    lm,
                    batch_rows,
                    max_new_tokens,
                    torch.Generator(lm.device).manual_seed(int(state[0] >> 1)),
                    temperature,
                    top_p,
                    first_token,
                    min(shard_tokens, tokens - shard * shard_tokens),
                    bar.update,
                    given,
                )
                with atomic_path(path) as tmp:
                    save_file(joined(documents), tmp)


def read_shards(folder: Path) -> Iterator[np.ndarray]:
    """Yield the documents of a dataset (int32 ids without what they start after) in order."""
    for path in sorted(folder.glob("shard_*.safetensors")):
        yield from separate(load_file(path))
