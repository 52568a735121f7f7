"""Tokens per second of processor time of sampling from BOS: ours, transformers' generate at the
best of some batches, and llama.cpp at the best of the same.

    python tests/benchmarks/generation.py MODEL [--tokens 127 511] [--rows 128 512]
    [--batches 32 64 128] [--dtype float32] [--gguf FILE] [--threads 1] [--rounds 3]

MODEL is a folder or Hub id, FILE the same model for llama.cpp. generate and llama.cpp go on behind
the end of a document: their rates are given for all tokens and for those of documents, which are
all that ours samples. All are run in turn, and the medians are compared. Time is the processor's,
of one thread: beside other work, too, it says what a core to itself would take.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from peers import llama_cpp

from faithful_sae.lm.model import load_model
from faithful_sae.lm.sampling import sample


def by_generate(lm, tokens, batch, seed):
    """(tokens sampled, tokens up to the end of each document)."""
    torch.manual_seed(seed)
    bos = torch.full((batch, 1), lm.bos_id, device=lm.device)
    with torch.inference_mode():
        ids = (
            lm.model.generate(
                bos,
                attention_mask=torch.ones_like(bos),
                do_sample=True,
                top_k=0,
                max_new_tokens=tokens,
                pad_token_id=lm.bos_id,
            )[:, 1:]
            .cpu()
            .numpy()
        )
    return counts(lm, ids)


def counts(lm, ids):
    """(how many of the ids, one row for each document and what comes behind it, how many of
    documents).
    """
    ends = np.isin(ids, [lm.bos_id, lm.tokenizer.eos_token_id])
    return ids.size, int(np.where(ends.any(1), ends.argmax(1) + 1, ids.shape[1]).sum())


def by_us(lm, tokens, rows, seed):
    """Twice the rows' room, so that ended documents are replaced."""
    documents = sample(
        lm, rows, tokens, torch.Generator(lm.device).manual_seed(seed), tokens=2 * rows * tokens
    )
    return sum(map(len, documents))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[127, 511])
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--gguf")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load_model(arguments.model, 0, "auto", arguments.dtype)
    by_name = {"generate": by_generate}
    if arguments.gguf:
        library = llama_cpp(arguments.gguf, arguments.threads)
        by_name["llama.cpp"] = lambda lm, *size: counts(lm, library.sample(lm.bos_id, *size))
    names = [
        f"{name}, {what}" for name in by_name for what in ("best batch", "all", "documents")
    ] + [f"here, {rows} rows" for rows in arguments.rows]
    print("| new tokens | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for tokens in arguments.tokens:
        theirs = {name: {batch: [] for batch in arguments.batches} for name in by_name}
        ours = {rows: [] for rows in arguments.rows}
        for seed in range(arguments.rounds + 1):
            for name, of_batch in theirs.items():
                for batch, rates in of_batch.items():
                    start = time.process_time()
                    found = by_name[name](lm, tokens, batch, seed)
                    seconds = time.process_time() - start
                    rates.append([count / seconds for count in found])
            for rows, rates in ours.items():
                start = time.process_time()
                n = by_us(lm, tokens, rows, seed)
                rates.append(n / (time.process_time() - start))
        cells = []
        for of_batch in theirs.values():
            # the first round warms up
            medians = {batch: np.median(rates[1:], 0) for batch, rates in of_batch.items()}
            best = max(medians, key=lambda batch: medians[batch][0])
            cells += [str(best), *(f"{rate:,.0f}" for rate in medians[best])]
        cells += [f"{statistics.median(rates[1:]):,.0f}" for rates in ours.values()]
        print(f"| {tokens} | " + " | ".join(cells) + " |")
