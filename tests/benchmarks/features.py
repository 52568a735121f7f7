"""An index of features against the forward passes it rests on, those of the language model and the
SAE alone.

    python tests/benchmarks/features.py [--tokens 100000] [--d-model 256] [--d-sae 12288]

A random GPT-NeoX of 8 blocks, a random SAE, random tokens, one thread; forward passes and index
alternate. Times are those of the processor, since other jobs may be on the machine. What does not
grow with the tokens (VocabProj, MutInfo, files) is measured apart and added once to an index of a
million tokens. PruningMaxAct is left out: it runs the model again, on tokens whose number depends
on how long a context a latent needs, which on a random model says nothing. Then pages of the index
are read.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from faithful_sae.features.build import build_index
from faithful_sae.features.collect import Kept, collect
from faithful_sae.lm.model import LanguageModel
from faithful_sae.sae.activations import rows_in_batches
from faithful_sae.sae.sae import TopKSAE

VOCABULARY = 20_000
LENGTH = 128
BLOCKS = 8
K = 48
BATCH_ROWS = 32


def random_lm(d_model):
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=d_model,
            intermediate_size=4 * d_model,
            num_hidden_layers=BLOCKS + 1,
            num_attention_heads=d_model // 64,
            max_position_embeddings=LENGTH,
        )
    ).eval()
    words = {"<bos>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w1")), bos_token="<bos>"
    )
    return LanguageModel(model, tokenizer, BLOCKS, 0)


def forward(lm, sae, rows):
    for ids in rows_in_batches(rows, BATCH_ROWS):
        sae.encode_topk(lm.activations(ids).flatten(0, 1))


def seconds(function, *args):
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def one_pass(lm, sae, rows):
    collect(lm, sae, rows, Kept(), batch_rows=BATCH_ROWS)


def main():
    parser = argparse.ArgumentParser(description="An index of features against forward passes")
    for name, default in (("tokens", 100_000), ("d-model", 256), ("d-sae", 12288)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = random_lm(args.d_model)
    sae = TopKSAE(args.d_model, args.d_sae, K, seed=0)
    # as words are: a few of them often, many rarely
    rows = (
        np.random.default_rng(0).zipf(1.2, (args.tokens // LENGTH, LENGTH)) % (VOCABULARY - 1) + 1
    )
    rows[:, 0] = 0
    one_pass(lm, sae, rows[:2])  # compiles
    times = [
        [seconds(work, lm, sae, part) for work in (forward, one_pass)]
        for part in np.array_split(rows, 4)
    ]
    alone, indexing = np.array(times).sum(0) * 1e6 / rows.size
    print(f"d_model {args.d_model}, d_sae {args.d_sae:,}, k {K}; seconds per million tokens")
    print(
        f"forward passes alone {alone:.0f}, one pass of an index {indexing:.0f} "
        f"({indexing / alone:.2f}x)",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        few = rows[:64]
        start = time.process_time()
        index = build_index(Path(folder) / "index", lm, sae, few, batch_rows=BATCH_ROWS, pruned=0)
        rest = time.process_time() - start - indexing * few.size / 1e6
        index.page(0)
        pages = [
            seconds(index.page, int(latent))
            for latent in np.random.default_rng(1).integers(0, args.d_sae, 200)
        ]
    print(
        f"besides, whatever the tokens, {rest:.0f} s: an index of a million tokens takes "
        f"{(indexing + rest) / alone:.2f}x"
    )
    print(f"a page: {1e3 * np.median(pages):.1f} ms, the slowest of 200 {1e3 * max(pages):.1f} ms")


if __name__ == "__main__":
    main()
