"""Tokens per second of processor time of sampling from BOS: ours, and transformers' generate at the
best of some batches.

    python tests/benchmarks/generation.py MODEL [--tokens 127 511] [--rows 128 512]
    [--batches 32 64 128] [--dtype float32] [--threads 1] [--rounds 3]

MODEL is a folder or Hub id. generate goes on behind the end of a document, with the next one or
with padding: its rate is given for all tokens and for those of documents, which are all that ours
samples. Both are run in turn, and the medians are compared. Time is the processor's, of one thread:
beside other work, too, it says what a core to itself would take.
"""

import argparse
import statistics
import time

import numpy as np
import torch

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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load_model(arguments.model, 0, "auto", arguments.dtype)
    names = [
        "generate, best batch",
        "generate, all",
        "generate, documents",
        *(f"here, {rows} rows" for rows in arguments.rows),
    ]
    print("| new tokens | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for tokens in arguments.tokens:
        theirs = {batch: [] for batch in arguments.batches}
        ours = {rows: [] for rows in arguments.rows}
        for seed in range(arguments.rounds + 1):
            for batch, rates in theirs.items():
                start = time.process_time()
                counts = by_generate(lm, tokens, batch, seed)
                seconds = time.process_time() - start
                rates.append([count / seconds for count in counts])
            for rows, rates in ours.items():
                start = time.process_time()
                n = by_us(lm, tokens, rows, seed)
                rates.append(n / (time.process_time() - start))
        # the first round warms up
        medians = {batch: np.median(rates[1:], 0) for batch, rates in theirs.items()}
        best = max(medians, key=lambda batch: medians[batch][0])
        rates = [*medians[best], *(statistics.median(rates[1:]) for rates in ours.values())]
        print(f"| {tokens} | {best} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
