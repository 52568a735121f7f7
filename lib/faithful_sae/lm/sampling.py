"""The faithful dataset: sequences sampled from the model itself, prompted with BOS alone (paper
3.1).

Plain sampling (temperature 1, top-p 1) is the paper's; a higher temperature and a flat first token
are the switches its section 5.4 leaves open. The sampled ids are kept: the authors decode and
re-tokenise, which changes them.
"""

import math
import os
import time

import numpy as np
import psutil
import torch
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from faithful_sae import vllm_backend
from faithful_sae.files import (
    MissingInputError,
    atomic_path,
    is_current,
    locked,
    remove,
    remove_others,
    require_space,
)
from faithful_sae.lm.decoding import Decoder
from faithful_sae.runs import needs
from faithful_sae.runs.provenance import write_provenance


@torch.inference_mode()
def sample(
    lm,
    batch_rows,
    max_new_tokens,
    generator,
    temperature=1.0,
    top_p=1.0,
    first_token="bos",
    tokens=0,
    progress=lambda n: None,
):
    """Sample documents from BOS alone, `batch_rows` side by side; where one ends the next begins,
    until there are `tokens` tokens.

    Whether another document is begun depends on what has been sampled before, and every document
    begun is finished: none is kept or left out for its length.

    Args:
        lm: LanguageModel.
        batch_rows: rows B, for which `require_memory` asks. At least so many documents are sampled.
        max_new_tokens: a document ends here, or where the model samples EOS or BOS (kept as its
            last id).
        generator: torch.Generator on the model's device; the only source of randomness.
        temperature: divides the logits; 1 is the paper's.
        top_p: sample from the smallest set of tokens with this probability mass; 1 is the paper's.
        first_token: "bos" samples it from the model; "flat" draws it uniformly from the vocabulary
            (paper 5.4).
        tokens: documents are begun in place of those that ended until so many tokens have been
            sampled; 0: none.
        progress: called with the number of tokens sampled in each step.

    Returns:
        list of int32 arrays, the ids after BOS, in the order in which the documents were begun.
    """
    ends = [i for i in {lm.bos_id, lm.tokenizer.eos_token_id} if i is not None]
    text = np.empty((batch_rows, max_new_tokens), np.int32)
    slots = np.arange(batch_rows)
    ids = np.full(batch_rows, lm.bos_id)
    number = slots.copy()  # of each row's document
    documents = {}
    sampled = 0
    begun = batch_rows
    with Decoder(lm.model, batch_rows, max_new_tokens) as decoder:
        while len(slots):
            places = decoder.lengths.numpy()[slots]
            logits = decoder.step(torch.from_numpy(ids), torch.from_numpy(slots))[
                :, : lm.vocab_size
            ].float()
            p = next_token_probabilities(logits, temperature, top_p)
            if first_token == "flat":
                p[torch.from_numpy(places == 0).to(lm.device)] = 1 / lm.vocab_size
            ids = draw_tokens(p, generator)[:, 0].cpu().numpy()
            text[slots, places] = ids
            sampled += len(slots)
            progress(len(slots))
            ended = np.isin(ids, ends) | (places + 1 == max_new_tokens)
            for i in np.flatnonzero(ended):
                documents[number[slots[i]]] = text[slots[i], : places[i] + 1].copy()
            if sampled < tokens:
                again = slots[ended]
                number[again], begun = np.arange(begun, begun + len(again)), begun + len(again)
                decoder.lengths[again], ids[ended] = 0, lm.bos_id
            else:
                slots = slots[~ended]
                ids = ids[~ended]
    return [documents[i] for i in range(begun)]


def require_memory(run, lm):
    """Stop before sampling that would run out of memory: keys and values of all rows, and logits
    with what is computed of them.

    Raises:
        MemoryError: with the number of rows that would fit.
    """
    g = run.generate
    cache = needs.cache_bytes(lm.shape, 1, g.max_new_tokens)
    logits = needs.sampling_bytes(lm.shape, 1, g.max_new_tokens) - cache
    for device, share in lm.shares.items():  # of the blocks; logits come out on the last
        per_row = share * cache + logits * (device == lm.device)
        free = (
            torch.cuda.mem_get_info(device)[0]
            if device.type == "cuda"
            else psutil.virtual_memory().available
        )
        fit = int(needs.SAMPLING_SHARE * free / per_row)
        if g.batch_rows > fit:
            raise MemoryError(
                f"{run.file}: generate.batch_rows = {g.batch_rows} needs "
                f"{g.batch_rows * per_row / 1e9:,.1f} GB for keys, values "
                f"and logits, and {free / 1e9:,.1f} GB are free: at most {fit} rows fit"
            )


def next_token_probabilities(logits, temperature, top_p):
    p = torch.softmax(logits if temperature == 1 else logits / temperature, -1)
    if top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # mass before the token already suffices
        p = p.masked_fill(beyond.scatter(-1, index, beyond), 0)
    return p


def draw_tokens(p, generator):
    """One token per row by inverting the distribution function: int64 [B, 1]. One random number per
    row, where torch.multinomial takes one per token of the vocabulary.
    """
    cdf = p.cumsum(-1, dtype=torch.float64)
    if not cdf[:, -1].isfinite().all():
        raise FloatingPointError(
            "the language model's logits are not finite: its weights are damaged, or dtype is too "
            "narrow for them"
        )
    u = (
        torch.rand(len(p), 1, generator=generator, dtype=torch.float64, device=p.device)
        * cdf[:, -1:]
    )
    return torch.searchsorted(cdf, u, right=True).clamp(max=p.shape[-1] - 1)


def generate_dataset(run, lm, key, inputs=None):
    """Make the faithful dataset of a run, shard by shard; shards that exist are kept, so a killed
    run goes on where it was.

    Each shard has its own generator, seeded by (seed, shard): the same tokens whether or not the
    run was interrupted, and however many processes sample_share's shards beforehand. While one of
    them still runs, this waits.

    Raises:
        DiskFullError: before any work, if the tokens would not fit.
        MemoryError: before any work, if batch_rows rows would not fit in memory.
        ValueError: max_new_tokens beyond the model's context.
    """
    folder = run.artifacts / "faithful"
    with locked(run.artifacts / ".faithful.lock"):
        if is_current(folder, key):
            return folder
        start = time.time()
        shards = folder.with_name(f"faithful-{key}.partial")
        remove_others(shards)
        _sample_shards(run, lm, shards)
        for unfinished in shards.glob(".*"):  # of a process killed while it wrote, and locks
            remove(unfinished)
        write_provenance(
            shards / "provenance.json",
            key=key,
            parameters=run.settings("generate"),
            inputs=inputs,
            seconds=time.time() - start,
            device=lm.device,
        )
        remove(folder)
        os.replace(shards, folder)
    return folder


def sample_share(run, lm, key, worker, of):
    """Sample every `of`-th shard of the dataset from number `worker` on, beside other processes
    that do; generate_dataset joins them.

    Raises as generate_dataset.
    """
    folder = run.artifacts / "faithful"
    with locked(run.artifacts / ".faithful.lock", shared=True):
        if not is_current(folder, key):
            _sample_shards(run, lm, folder.with_name(f"faithful-{key}.partial"), worker, of)


def _sample_shards(run, lm, shards, worker=0, of=1):
    """Write the shards that are not there. A worker leaves one that a worker of a killed run is
    still at to it; who is alone waits.
    """
    g = run.generate
    numbers = range(worker, math.ceil(run.generate.tokens / run.generate.shard_tokens), of)
    if g.max_new_tokens >= lm.context:
        raise ValueError(
            f"{run.file}: generate.max_new_tokens = {g.max_new_tokens} must be below the model's "
            "context of "
            f"{lm.context} tokens: BOS takes one position"
        )
    require_space(shards, needs.text_disk(g) // of, "the faithful dataset")
    draw = vllm_backend.sampler(run, lm) if g.backend == "vllm" else _sampler(run, lm)
    with tqdm(
        total=g.tokens // of, unit="token", unit_scale=True, desc=f"{run.name}: faithful text"
    ) as bar:
        for shard in numbers:
            path = shards / f"shard_{shard:05d}.safetensors"
            with locked(shards / f".{path.stem}.lock", wait=of == 1) as free:
                if free and not path.exists():
                    _write_shard(path, run, draw, shard, bar)
                elif free:
                    bar.update(len(load_file(path)["ids"]))


def _sampler(run, lm):
    """A function (seed, tokens, progress) that samples documents as the run asks."""
    require_memory(run, lm)
    g = run.generate

    def draw(seed, tokens, progress):
        generator = torch.Generator(lm.device).manual_seed(seed)
        return sample(
            lm,
            g.batch_rows,
            g.max_new_tokens,
            generator,
            g.temperature,
            g.top_p,
            g.first_token,
            tokens,
            progress,
        )

    return draw


def _write_shard(path, run, draw, shard, bar):
    g = run.generate
    seed = int(np.random.SeedSequence([g.seed, shard]).generate_state(1, np.uint64)[0] >> 1)
    documents = draw(seed, min(g.shard_tokens, g.tokens - shard * g.shard_tokens), bar.update)
    with atomic_path(path) as tmp:
        save_file(
            {
                "ids": np.concatenate(documents),
                "lengths": np.array([len(d) for d in documents], np.int32),
            },
            tmp,
        )


def read_shards(run):
    """Yield the documents (int32 ids without BOS) of a run's faithful dataset.

    Raises:
        MissingInputError: notebook 01 has not made it.
    """
    folder = run.artifacts / "faithful"
    if not (folder / "provenance.json").exists():
        raise MissingInputError(
            f"{folder} is missing: run notebooks/01_generate_faithful for "
            f"{run.profile}/{run.name} first"
        )
    for path in sorted(folder.glob("shard_*.safetensors")):
        shard = load_file(path)
        yield from np.split(shard["ids"], np.cumsum(shard["lengths"])[:-1])
