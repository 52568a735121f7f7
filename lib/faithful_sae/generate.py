"""The faithful dataset: sequences sampled from the model itself, prompted with BOS alone (paper 3.1).

Plain sampling (temperature 1, top-p 1) is the paper's; a higher temperature and a flat first token are the switches its
section 5.4 leaves open. The sampled ids are kept: the authors decode and re-tokenise, which changes them.
"""

import math
import os
import time

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from faithful_sae.decoding import decoding
from faithful_sae.provenance import MissingInputError, atomic_path, is_current, remove, require_space, write_provenance

DROP_BELOW = 7 / 8   # documents that have ended leave the batch, and its cache is copied, when fewer than this share go on


@torch.inference_mode()
def sample(lm, n_documents, max_new_tokens, generator, temperature=1.0, top_p=1.0, first_token="bos"):
    """Sample documents from BOS alone.

    Args:
        lm: LanguageModel.
        n_documents: batch size B; memory is B x max_new_tokens of KV cache, time is max_new_tokens steps of B rows; rows
            that have ended are dropped from the batch now and then.
        max_new_tokens: a document ends here, or where the model samples EOS or BOS (kept as its last id).
        generator: torch.Generator on the model's device; the only source of randomness.
        temperature: divides the logits; 1 is the paper's.
        top_p: sample from the smallest set of tokens with this probability mass; 1 is the paper's.
        first_token: "bos" samples it from the model; "flat" draws it uniformly from the vocabulary (paper 5.4).

    Returns:
        list of B int32 arrays, the ids after BOS.
    """
    ends = torch.tensor([i for i in {lm.bos_id, lm.tokenizer.eos_token_id} if i is not None], device=lm.device)
    ids = torch.full((n_documents, 1), lm.bos_id, device=lm.device)
    documents = torch.full((n_documents, max_new_tokens), -1, dtype=torch.int32, device=lm.device)
    rows, going = torch.arange(n_documents, device=lm.device), torch.ones(n_documents, dtype=torch.bool, device=lm.device)
    with decoding(lm.model, max_new_tokens) as cache:
        for step in range(max_new_tokens):
            logits = lm.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1, :lm.vocab_size].float()
            if step == 0 and first_token == "flat":
                logits = torch.zeros_like(logits)
            ids = _draw(_probabilities(logits, temperature, top_p), generator)
            documents[rows[going], step] = ids[going, 0].int()
            going &= ~torch.isin(ids[:, 0], ends)
            if not going.any():
                break
            if going.sum() < DROP_BELOW * len(going):
                keep = going.nonzero()[:, 0]
                rows, ids, going = rows[keep], ids[keep], going[keep]
                cache.batch_select_indices(keep)
    lengths = (documents >= 0).sum(1).tolist()
    return [row[:length] for row, length in zip(documents.cpu().numpy(), lengths)]


def _probabilities(logits, temperature, top_p):
    p = torch.softmax(logits / temperature, -1)
    if top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # mass before the token already suffices
        p = p.masked_fill(beyond.scatter(-1, index, beyond), 0)
    return p


def _draw(p, generator):
    """One token per row by inverting the distribution function: int64 [B, 1]. One random number per row, where
    torch.multinomial takes one per token of the vocabulary."""
    cdf = p.double().cumsum(-1)
    if not cdf[:, -1].isfinite().all():
        raise FloatingPointError("the language model's logits are not finite: its weights are damaged, or dtype is too narrow for them")
    u = torch.rand(len(p), 1, generator=generator, dtype=torch.float64, device=p.device) * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True).clamp(max=p.shape[-1] - 1)


def generate_dataset(run, lm, key, inputs=None):
    """Make the faithful dataset of a run, shard by shard; shards that exist are kept, so a killed run goes on where it was.

    Each shard has its own generator, seeded by (seed, shard): the same tokens whether or not the run was interrupted.

    Raises:
        DiskFullError: before any work, if the tokens would not fit.
        ValueError: max_new_tokens beyond the model's context.
    """
    g, folder = run.generate, run.artifacts / "faithful"
    if g.max_new_tokens >= lm.context:
        raise ValueError(f"{run.file}: generate.max_new_tokens = {g.max_new_tokens} must be below the model's context of "
                         f"{lm.context} tokens: BOS takes one position")
    if is_current(folder, key):
        return folder
    start = time.time()
    require_space(folder, g.tokens * 4, "the faithful dataset")
    shards = folder.with_name(f"faithful-{key}.partial")
    shards.mkdir(parents=True, exist_ok=True)
    with tqdm(total=g.tokens, unit="token", unit_scale=True, desc=f"{run.name}: faithful text") as bar:
        for shard in range(math.ceil(g.tokens / g.shard_tokens)):
            path = shards / f"shard_{shard:05d}.safetensors"
            if not path.exists():
                _write_shard(path, run, lm, shard, bar)
            else:
                bar.update(len(load_file(path)["ids"]))
    write_provenance(shards / "provenance.json", key=key, parameters=run.settings("generate"), inputs=inputs,
                     seconds=time.time() - start, device=lm.device)
    remove(folder)
    os.replace(shards, folder)
    return folder


def _write_shard(path, run, lm, shard, bar):
    g = run.generate
    seed = int(np.random.SeedSequence([g.seed, shard]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(lm.device).manual_seed(seed)
    documents, count = [], 0
    while count < min(g.shard_tokens, g.tokens - shard * g.shard_tokens):
        new = sample(lm, g.batch_rows, g.max_new_tokens, generator, g.temperature, g.top_p, g.first_token)
        documents += new
        count += sum(map(len, new))
        bar.update(sum(map(len, new)))
    with atomic_path(path) as tmp:
        save_file({"ids": np.concatenate(documents), "lengths": np.array([len(d) for d in documents], np.int32)}, tmp)


def read_shards(run):
    """Yield the documents (int32 ids without BOS) of a run's faithful dataset.

    Raises:
        MissingInputError: notebook 01 has not made it.
    """
    folder = run.artifacts / "faithful"
    if not (folder / "provenance.json").exists():
        raise MissingInputError(f"{folder} is missing: run notebooks/01_generate_faithful for {run.profile}/{run.name} first")
    for path in sorted(folder.glob("shard_*.safetensors")):
        shard = load_file(path)
        yield from np.split(shard["ids"], np.cumsum(shard["lengths"])[:-1])
