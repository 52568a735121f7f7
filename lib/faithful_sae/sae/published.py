"""SAEs that are read instead of trained (`sae.published`): where their files are, whether they fit
the run, how they do on its text.
"""

import torch

from faithful_sae.files import file_hash
from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.sae.activations import rows_in_batches, token_activations
from faithful_sae.sae.formats import READERS
from faithful_sae.sae.formats.hooks import check_hook
from faithful_sae.sae.sae import SAEError, load_sae
from faithful_sae.text import hub

# all that the readers of formats/ open; a run of sparsify has its config.json one or two folders up
FILES = (
    *READERS,
    "cfg.json",
    "config.json",
    "sparsity.safetensors",
    "activation_scaler.json",
    "../config.json",
    "../../config.json",
)


def locate(run, name, seed):
    """(folder, origin) of the published SAE of a corpus and seed: where its files are on this
    machine, and where they are from.

    What is on the Hub is fetched, at the commit that is recorded for the profile.

    Raises:
        HubError: no such repository, revision or folder, or out of reach.
    """
    entry = run.published[name].of(seed)
    if entry.path:
        return run.resolve(entry.path), entry.path
    at = hub.Record(run.artifacts.parent / "hub.json").commit("model", entry.hub, entry.revision)
    folder = hub.fetch_folder("model", entry.hub, at, entry.folder, FILES)
    return folder, f"{entry.hub}{'/' + entry.folder if entry.folder else ''} at {at}"


def source_hashes(folder) -> dict[str, str]:
    """{name: hash} of the files an SAE is read from."""
    return {
        name: file_hash(folder / name)
        for name in FILES
        if "/" not in name and (folder / name).is_file()
    }


def load_published(run, name, width=None) -> dict:
    """{seed: TopKSAE} of a corpus, converted to float32 and to what sae.py computes.

    Args:
        width: the model's d_model, if it is known already.

    Raises:
        SAEError: as load_sae and check_hook; another width, d_sae or k than the model's and the
            YAML's; one SAE for two seeds.
        HubError: as locate.
    """
    saes = {}
    seen = {}
    for seed in run.sae.seeds:
        folder, _ = locate(run, name, seed)
        sae = load_sae(folder)
        check_hook(sae, run.model, run.layer, folder)
        if width not in (None, sae.d_model):
            raise SAEError(
                f"{folder}: takes activations of width {sae.d_model}, but those of {run.model} "
                f"are {width} wide"
            )
        for key, found in (("d_sae", sae.d_sae), ("k", sae.k)):
            wanted = getattr(run.sae, key)
            if found not in (None, wanted):  # no k: it has a threshold
                raise SAEError(
                    f"{folder}: has {key} = {found}, but {run.file} says sae.{key} = {wanted}: "
                    f"write {found} there, or take "
                    "another SAE"
                )
        weights = next(file_hash(folder / file) for file in READERS if (folder / file).is_file())
        if weights in seen:
            raise SAEError(
                f"{folder}: holds the weights of {seen[weights]}: two seeds of one corpus must be "
                "two SAEs"
            )
        saes[seed], seen[weights] = sae, folder
    return saes


@torch.no_grad()
def measure(saes, lm, rows, n_tokens, include_bos, batch_rows, batch_tokens):
    """What training would have logged at its end, of SAEs that were trained elsewhere: on the first
    n_tokens tokens of `rows`.

    Args:
        saes: list of TopKSAE on the model's device. rows: int [R, T]. batch_rows: rows per forward
            pass. batch_tokens: encoded at once.

    Returns:
        per SAE a dict: fvu (sum |x - x_hat|^2 / sum |x - mean x|^2 over all tokens, in float64), l0
            (latents above 0 per token), dead
        (latents that never fired), tokens, and firing, float32 [F], the share of tokens each latent
        fired on.

    Raises:
        ValueError: nothing but BOS in the rows, and BOS left out.
    """
    tokens = 0
    total = torch.zeros(lm.d_model, dtype=torch.float64, device=lm.device)
    squares = 0.0
    errors = [0.0] * len(saes)
    counts = [torch.zeros(sae.d_sae, dtype=torch.int64) for sae in saes]
    for ids in rows_in_batches(rows, batch_rows):
        if tokens >= n_tokens:
            break
        for x in token_activations(lm, ids, include_bos)[: n_tokens - tokens].split(batch_tokens):
            tokens = tokens + len(x)
            total = total + x.double().sum(0)
            squares = squares + x.double().pow(2).sum().item()
            for i, sae in enumerate(saes):
                errors[i] += (x - sae.reconstruct(x)).double().pow(2).sum().item()
                counts[i] += firing_counts(*sae.encode_topk(x), sae.d_sae, 0.0).cpu()
    if not tokens:
        raise ValueError(
            "the token rows hold nothing but BOS, and BOS is left out (include_bos: false)"
        )
    variance = squares - total.pow(2).sum().item() / tokens
    return [
        {
            "fvu": error / variance,
            "l0": count.sum().item() / tokens,
            "dead": int((count == 0).sum()),
            "tokens": tokens,
            "firing": count.float() / tokens,
        }
        for error, count in zip(errors, counts)
    ]
