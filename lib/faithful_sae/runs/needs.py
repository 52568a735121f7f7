"""What each stage of a run needs, computed from its parameters and the sizes of its language model:
no weights are read.

Each formula stands here alone; what guards a stage while it runs (generate, stages/training,
corpora) and what is known beforehand (check, a cluster's limits) use the same. Bytes are whole
numbers.

B tokens of a batch, D model, F latents, n SAEs.
"""

import math
from dataclasses import dataclass

from faithful_sae.runs.schema import stage_corpora, wanted_saes

PROCESS = (
    1_000_000_000  # bytes of RAM of a notebook and its libraries; 0.6 to 0.8 GB measured on a CPU
)
CUDA = 600_000_000  # bytes of GPU memory that CUDA takes for itself
CUDA_PROCESS = 2_000_000_000  # bytes of RAM that its libraries take beside
SAMPLING_SHARE = 0.9  # of the free memory may go to rows: the rest is for what a step computes
# bytes per logit of fidelity: logits, log p, log q, three terms of KL, float32, and one in the
# model's own
LOGIT = 26
FFR_ROWS = 32  # rows of random tokens in a forward pass
# bytes a row of a dictionary takes while it is matched, beside a copy of it; 5,200 measured
MATCHING_ROW = 5_500
LATENT_COUNTS = (
    1_700  # bytes of the histogram and the token counters of one latent in a pass of notebook 09
)
DENSE_ROWS = 12_288  # up to so many rows, scipy's three float64 matrices may be what is left


@dataclass(frozen=True)
class Needs:
    """Of one stage, in bytes at its peak; `tokens`: those the language model reads or writes, each
    counted once per pass over it.

    `device_memory`: of the fullest GPU, CUDA's own included; 0 for a run on a CPU, where it is part
    of `memory`. `disk`: of the artefacts it leaves, and of the checkpoints and parts beside them.
    """

    device_memory: int
    memory: int
    disk: int
    tokens: int


def needs(run, shape, stage) -> Needs:
    """What one of `model_stages(run)` needs for one language model.

    `device: auto` counts as CPU, and `cuda` as a GPU: what is computed there is `device_memory`,
    and RAM holds the weights on their way and what the stage gathers.
    """
    device, host = _memory(run, shape, stage)
    if run.device != "cuda":
        return Needs(0, PROCESS + device + host, disk(run, shape, stage), tokens(run, stage))
    staged = 0 if stage == "03_sfr" else weights(shape)  # weights are read into RAM, then moved
    elsewhere = weights(shape) - math.ceil(
        weights(shape) / run.gpus
    )  # the last GPU has the hooked block or logits, and all else
    return Needs(
        CUDA + device - elsewhere if device else 0,
        PROCESS + CUDA_PROCESS + staged + host,
        disk(run, shape, stage),
        tokens(run, stage),
    )


# --- memory ---------------------------------------------------------------------------------------


def weights(shape) -> int:
    """parameters x bytes each."""
    return shape.parameters * shape.bytes_per_weight


def cache_bytes(shape, rows, length) -> int:
    """Keys and values of all layers, in whole tiles, and the copy of two layers that some devices
    and models need: rows x length x 2 x (layers + 2) x kv_heads x head_dim x bytes.
    """
    from faithful_sae.kernels.one_token_attention import TILE

    return (
        rows
        * math.ceil(length / TILE)
        * TILE
        * 2
        * (shape.layers + 2)
        * shape.kv_heads
        * shape.head_dim
        * shape.bytes_per_weight
    )


def sampling_bytes(shape, rows, length) -> int:
    """Sampling: keys and values, and per row 24 bytes a logit: float32, its probability, two
    float64 sums of them.
    """
    return cache_bytes(shape, rows, length) + rows * 24 * shape.vocab_size


def forward_bytes(shape, tokens) -> int:
    """A forward pass without logits: of each token the residual stream and its norm (also in
    float32), queries, keys, values and their mixture, and three widths of the MLP. Attention keeps
    no scores.
    """
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return tokens * (
        shape.bytes_per_weight * (4 * shape.d_model + attention + 3 * shape.d_mlp)
        + 12 * shape.d_model
    )


def sae_bytes(d_model, d_sae) -> int:
    """W_enc, W_dec, b_enc, b_dec in float32: 4 (2 F D + F + D)."""
    return 4 * (2 * d_sae * d_model + d_sae + d_model)


def training_bytes(d_model, d_saes, batch_tokens, buffer_tokens) -> int:
    """SAEs in training, and the activations they are trained on.

    Each: 8 arrays [D, F] of float32 (weights, gradients, Adam's moments). One at a time: a bfloat16
    copy of W_enc, and AuxK with all latents dead: copies of both weights, both gradients, three
    arrays [B, F]. Two windows of buffer_tokens + B activations, with the order of one, and four
    arrays [B, D].
    """
    largest = max(d_saes)
    kept = sum(4 * sae_bytes(d_model, d_sae) for d_sae in d_saes)
    step = (
        2 * largest * d_model
        + 4 * 4 * largest * d_model
        + 3 * 4 * batch_tokens * largest
        + 4 * 4 * batch_tokens * d_model
    )
    return kept + step + (buffer_tokens + batch_tokens) * (2 * 4 * d_model + 8)


def matching_bytes(d_model, d_sae, n_seeds) -> int:
    """Matching the seeds of one corpus: each prepared once, and scipy's matrices where the search
    might not end.
    """
    return n_seeds * d_sae * (MATCHING_ROW + 4 * d_model) + (
        3 * 8 * d_sae**2 if d_sae <= DENSE_ROWS else 0
    )


def index_bytes(features, d_sae) -> int:
    """What a pass keeps of all latents (kernels/latent_statistics.py): contexts with their windows,
    histograms and token counters.
    """
    f = features
    places = f.top + f.strata * f.samples
    return d_sae * (places * (4 * (f.left + 1 + f.right) + 24) + LATENT_COUNTS)


def language_model_training_bytes(embedded, shape) -> int:
    """The embedded model: weights, gradients, two moments and what Muon computes of them; of each
    token in a batch the activations of all layers (16 D + 4 d_mlp numbers each) and five times its
    logits; the corpus as text, and counts of five-grams (250 bytes a token).
    """
    tokens = embedded.batch_rows * embedded.context
    activations = (
        tokens * 4 * (shape.layers * (16 * shape.d_model + 4 * shape.d_mlp) + 5 * shape.vocab_size)
    )
    return 6 * 4 * shape.parameters + activations + 250 * embedded.train_tokens


def _memory(run, shape, stage):
    """(bytes on the device, bytes in RAM beside them)."""
    s = run.sae
    length = run.sequence_length
    if stage == "01_generate_faithful":
        g = run.generate
        trained = language_model_training_bytes(run.embedded, shape) if run.embedded else 0
        rows = math.ceil(sampling_bytes(shape, g.batch_rows, g.max_new_tokens) / SAMPLING_SHARE)
        return max(weights(shape) + rows, trained), 8 * g.shard_tokens
    if stage == "02_train_sae":
        training = training_bytes(
            shape.d_model, [s.d_sae] * len(s.seeds), s.batch_tokens, s.buffer_tokens
        )
        saved = len(s.seeds) * 3 * sae_bytes(shape.d_model, s.d_sae)
        if len(run.published) == len(s.train_on):  # read and measured, not trained
            training = (
                len(s.seeds) * sae_bytes(shape.d_model, s.d_sae) + 3 * 4 * s.batch_tokens * s.d_sae
            )
            saved = 0
        return weights(shape) + _group(run, shape) + training, _reading(run) + _saving(run, saved)
    if stage == "08_seed_dependence":
        d = run.seed_dependence
        layers = study(run)
        training = max(
            training_bytes(
                shape.d_model, [entry["d_sae"] for entry in wanted], s.batch_tokens, s.buffer_tokens
            )
            for wanted in layers.values()
        )
        saes = [
            sae_bytes(shape.d_model, entry["d_sae"])
            for wanted in layers.values()
            for entry in wanted
        ]
        largest = max(
            3 * sum(sae_bytes(shape.d_model, entry["d_sae"]) for entry in wanted)
            for wanted in layers.values()
        )
        matching = matching_bytes(shape.d_model, max(s.d_sae, *d.d_sae, 0), len(d.seeds))
        models = min(len(layers), 2)  # one is loaded before the last is let go
        return models * weights(shape) + _group(run, shape) + training, _reading(run) + _saving(
            run, largest
        ) + sum(saes) + matching
    n = len(s.train_on) * len(s.seeds)
    saes = n * sae_bytes(shape.d_model, s.d_sae)
    if stage == "03_sfr":
        return 0, saes + matching_bytes(shape.d_model, s.d_sae, len(s.seeds))
    if stage == "04_ffr":
        batch = FFR_ROWS * length
        return weights(shape) + saes + forward_bytes(shape, batch) + 2 * 4 * batch * s.d_sae, 0
    if stage == "05_fidelity_matrix":
        batch = run.fidelity.batch_rows * length
        logits = batch * shape.vocab_size * LOGIT
        # logits are not there yet while the blocks run, and SAEs' latents are gone when KL is
        # computed
        return weights(shape) + saes + forward_bytes(shape, batch) + logits, _reading(run)
    if stage == "09_explore_features":
        f = run.features
        batch = run.features.batch_rows * length
        steered = length * shape.vocab_size * LOGIT  # a row at a time
        return (
            weights(shape)
            + saes
            + max(
                forward_bytes(shape, batch) + 3 * 4 * batch * s.d_sae,
                forward_bytes(shape, length) + steered,
            ),
            _reading(run) + 3 * index_bytes(f, s.d_sae),
        )  # the state, as it is saved, and as it is written
    p = run.probing
    batch = p.batch_rows * p.max_tokens
    latents = (
        4 * batch * (n * (s.d_sae + shape.d_model) + 3 * s.d_sae)
    )  # of all SAEs at once, and one being encoded
    texts = (p.max_train + p.max_test) * 4 * (n * (s.d_sae + shape.d_model) + shape.d_model)
    return weights(shape) + saes + forward_bytes(shape, batch) + latents, texts


def _group(run, shape):
    """A forward pass of the activation stream, float32 results included."""
    tokens = min(
        run.sae.lm_batch_rows * run.sequence_length, max(run.sae.buffer_tokens, run.sequence_length)
    )
    return forward_bytes(shape, tokens) + 4 * tokens * shape.d_model


def _reading(run):
    """A corpus while it is packed: its ids, joined, then cut into rows."""
    return 3 * 4 * run.corpus_tokens


def _saving(run, state):
    """A checkpoint on its way from a GPU to the disk; from RAM it is written as it stands."""
    return state if run.device == "cuda" else 0


# --- disk -----------------------------------------------------------------------------------------


def text_disk(generate) -> int:
    """The faithful dataset: 4 bytes a token. Documents that were begun are finished, so a shard may
    be longer than asked for.
    """
    return 4 * (
        generate.tokens
        + math.ceil(generate.tokens / generate.shard_tokens)
        * generate.batch_rows
        * generate.max_new_tokens
    )


def rows_disk(corpus_tokens) -> int:
    """A corpus as token rows: 4 bytes a token, and as much for the parts it is made of, until it is
    made.
    """
    return 2 * 4 * corpus_tokens


def training_disk(d_model, d_saes) -> int:
    """SAEs, and until they are trained two checkpoints with Adam's moments: 7 times their weights."""
    return sum(7 * sae_bytes(d_model, d_sae) for d_sae in d_saes)


def activations_disk(tokens, d_model, bytes_per_weight) -> int:
    """Activations that are kept (sae.cache_activations): tokens x D numbers in the model's dtype."""
    return tokens * d_model * bytes_per_weight


def disk(run, shape, stage) -> int:
    """What the artefacts of a stage take while it runs, at their largest; a corpus that an earlier
    stage has packed is not counted.
    """
    s = run.sae
    if stage == "01_generate_faithful":
        model = (
            4 * weights(shape) if run.embedded else 0
        )  # itself, and a checkpoint with three numbers a weight
        return text_disk(run.generate) + model
    earlier = set(stage_corpora(run, "02_train_sae")) | set(
        stage_corpora(run, "05_fidelity_matrix") if stage == "08_seed_dependence" else ()
    )
    corpora = set(stage_corpora(run, stage)) - (earlier if stage != "02_train_sae" else set())
    packed = 4 * len(corpora) * run.corpus_tokens + (
        rows_disk(run.corpus_tokens) // 2 if corpora else 0
    )
    kept = (
        activations_disk(_train_tokens(run), shape.d_model, shape.bytes_per_weight)
        if s and s.cache_activations
        else 0
    )
    if stage == "02_train_sae":
        saes = [s.d_sae] * len(s.seeds)
        done = sum(sae_bytes(shape.d_model, d_sae) for d_sae in saes)
        trained = len(s.train_on) - len(run.published)
        return (
            packed
            + len(s.train_on) * done
            + trained * kept
            + (training_disk(shape.d_model, saes) - done if trained else 0)
        )
    if stage == "08_seed_dependence":
        layers = [[entry["d_sae"] for entry in wanted] for wanted in study(run).values()]
        done = [sum(sae_bytes(shape.d_model, d_sae) for d_sae in saes) for saes in layers]
        return (
            packed
            + sum(done)
            + len(layers) * kept
            + max(training_disk(shape.d_model, saes) for saes in layers)
            - max(done)
        )
    if stage == "09_explore_features":  # tokens beside activations, before they are compressed
        return packed + len(run.features.seeds) * 2 * index_bytes(run.features, s.d_sae)
    return packed


# --- tokens ---------------------------------------------------------------------------------------


def _train_tokens(run):
    return round(run.corpus_tokens * (1 - run.heldout))


def budget(run, tokens) -> int:
    """Tokens an SAE is trained on, if its corpus has corpus_tokens: cut to sae.max_epochs passes
    over it.
    """
    return min(tokens, _train_tokens(run) * run.sae.max_epochs)


def read(run, tokens) -> int:
    """Tokens that the language model reads for SAEs of so many: all, or, where their activations
    are kept, each once.
    """
    return (
        min(budget(run, tokens), _train_tokens(run))
        if run.sae.cache_activations
        else budget(run, tokens)
    )


def study(run) -> dict[int, list]:
    """{layer: SAEs as stages.seed_study trains them} of notebook 08."""
    d = run.seed_dependence
    return {
        layer: wanted_saes(run, layer, budget(run, max(run.sae.tokens, *d.tokens, 0)))
        for layer in dict.fromkeys((run.layer, *d.layers))
    }


def tokens(run, stage) -> int:
    """Tokens that the language model reads or writes: sampled; read for SAEs (in every epoch, or
    once where activations are kept); of fidelity's rows and probing's texts, each once, at their
    longest.
    """
    s = run.sae
    e = run.embedded
    if stage == "01_generate_faithful":
        return run.generate.tokens + (e.steps * e.batch_rows * e.context if e else 0)
    return {
        "02_train_sae": lambda: (
            (len(s.train_on) - len(run.published)) * read(run, s.tokens)
            + len(run.published) * (s.tokens // 10)
        ),
        "03_sfr": lambda: 0,
        "04_ffr": lambda: run.ffr.tokens,
        "05_fidelity_matrix": lambda: (
            len(run.fidelity.corpora) * run.fidelity.rows * run.sequence_length
        ),
        "06_probing": lambda: (
            len(run.tasks) * (run.probing.max_train + run.probing.max_test) * run.probing.max_tokens
        ),
        "08_seed_dependence": lambda: sum(
            read(run, max(entry["tokens"] for entry in wanted)) for wanted in study(run).values()
        ),
        "09_explore_features": lambda: (
            len(run.features.seeds) * min(run.features.tokens, _train_tokens(run))
        ),
    }[stage]()
