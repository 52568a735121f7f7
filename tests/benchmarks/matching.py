"""Time and memory of match_features against dense solvers, on the same matrices, one after the
other, three times each.

    python tests/benchmarks/matching.py

The table is at n = 12,288 (about 20 minutes). `--n 32768 --repeats 1`: larger ones; dense solvers
only up to --dense-to rows. `--sae A B`: decoders of two SAE folders instead.

A dense solver's time includes the product that makes its matrix, in float32; ours includes
everything from the two matrices on.
"""

import argparse
import importlib.util
import itertools
import threading
import time

import numpy as np
import pandas as pd
import psutil
import torch
from scipy.optimize import linear_sum_assignment

from faithful_sae import load_sae, match_features, train_saes
from faithful_sae.files import ROOT

KINDS = ("planted 0.1", "planted 0.5", "planted 0.9", "clustered", "anisotropic", "trained")


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def dictionaries(kind, n, d, seed=0):
    """Unit rows of two dictionaries. planted p: a share p are permuted noisy copies (cosine 0.7 to
    0.99), the rest independent; clustered: near-duplicates around n / 20 centres; anisotropic: a
    common mean added. The last two with p = 0.5.
    """
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(n // 20, d, generator=g)
    mean = 0.7 * unit(torch.randn(1, d, generator=g))

    def draw():
        if kind == "clustered":
            return unit(
                centres[torch.randint(len(centres), (n,), generator=g)]
                + 0.3 * torch.randn(n, d, generator=g)
            )
        x = unit(torch.randn(n, d, generator=g))
        return unit(x + mean) if kind == "anisotropic" else x

    A = draw()
    share = float(kind.split()[1]) if kind.startswith("planted") else 0.5
    cosine = 0.7 + 0.29 * torch.rand(n, 1, generator=g)
    copies = cosine * A + (1 - cosine**2).sqrt() * unit(torch.randn(n, d, generator=g))
    B = unit(torch.where(torch.rand(n, 1, generator=g) < share, copies, draw()))
    return A, B[torch.randperm(n, generator=g)]


def trained(n, d, steps=300, k=48, batch=2048):
    """Decoders of two SAEs trained on sparse sums of n / 3 random directions; kept, since that
    takes minutes.
    """
    folder = ROOT / "artifacts" / "benchmarks" / f"sae-{n}-{d}-{steps}"
    if not folder.exists():
        g = torch.Generator().manual_seed(0)
        directions = unit(torch.randn(n // 3, d, generator=g))

        def batches():
            for _ in range(steps):
                # some far more often than others
                active = (torch.rand(batch, 32, generator=g) ** 2 * len(directions)).long()
                yield torch.nn.functional.embedding_bag(
                    active,
                    directions,
                    per_sample_weights=torch.rand(batch, 32, generator=g) + 0.5,
                    mode="sum",
                )

        for sae in train_saes(batches(), d, n, k, [0, 1], 5e-4, steps * batch, batch):
            sae.save(folder / f"seed{sae.metadata['seed']}")
    return tuple(load_sae(folder / f"seed{seed}").W_dec for seed in (0, 1))


def ours(A, B):
    found = match_features(A, B, progress=False)
    return found.permutation, {
        "rounds": found.rounds,
        "scanned again": f"{found.scanned:.1%}",
        "certified": found.certified,
    }


def scipy(A, B):
    return linear_sum_assignment(A.numpy() @ B.numpy().T, maximize=True)[1], {}


def lapx(A, B):
    return importlib.import_module("lap").lapjv(-(A.numpy() @ B.numpy().T))[1], {}


def measured(solver, A, B):
    """(seconds, GB used at the peak beyond what was in use before, permutation, more)."""
    process = psutil.Process()
    peak = [0]
    done = threading.Event()
    before = process.memory_info().rss

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    permutation, more = solver(A, B)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return seconds, (peak[0] - before) / 1e9, permutation, more


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=12288)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--sae", nargs=2, metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dense-to", type=int, default=12288)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    match_features(*dictionaries("planted 0.5", 2000, 64), progress=False)
    print(
        "first call, with compilation or loading what was compiled before: "
        f"{time.perf_counter() - start:.1f} s; "
        f"{args.threads} threads of ours\n",
        flush=True,
    )
    solvers = [ours]
    rows = []
    if args.n <= args.dense_to:
        solvers.append(scipy)
        if importlib.util.find_spec("lap"):
            solvers.append(lapx)
        else:
            print("lapx is not installed: left out\n")
    for kind in ["folders"] if args.sae else args.kinds:
        if args.sae:
            A, B = (load_sae(folder).W_dec for folder in args.sae)
        elif kind == "trained":
            A, B = trained(args.n, args.d)
        else:
            A, B = dictionaries(kind, args.n, args.d)
        for _, solver in itertools.product(range(args.repeats), solvers):
            seconds, memory, permutation, more = measured(solver, A, B)
            matched = torch.from_numpy(np.asarray(permutation, dtype=np.int64))
            value = (unit(A.double()) * unit(B.double())[matched]).sum().item()
            rows.append(
                {
                    "data": kind,
                    "n": len(A),
                    "solver": solver.__name__,
                    "s": seconds,
                    "GB": memory,
                    "objective": f"{value:.6f}",
                }
                | more
            )
            print(" ".join(f"{key}={item}" for key, item in rows[-1].items()), flush=True)
    table = pd.DataFrame(rows).astype(object).fillna("")
    keys = ["data", "n", "solver"]
    print(
        "\n"
        + table.groupby(keys, sort=False)
        .agg({c: {"s": "median", "GB": "max"}.get(c, "first") for c in table if c not in keys})
        .astype({"s": float, "GB": float})
        .round({"s": 2, "GB": 2})
        .reset_index()
        .to_markdown(index=False, disable_numparse=True)
    )


if __name__ == "__main__":
    main()
