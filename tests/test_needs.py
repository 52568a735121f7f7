"""What a stage needs, against tensors that are really allocated, files that are really written, and
numbers worked by hand.
"""

import pytest
import torch
from safetensors import safe_open

from conftest import ARCHITECTURES, SEED_DEPENDENCE, make_model
from faithful_sae.lm.architectures import Shape, cache_bytes, sampling_bytes, weights
from faithful_sae.lm.decoding import Decoder
from faithful_sae.runs.needs import CUDA, PROCESS, needs
from faithful_sae.runs.registry import model_stages, stages
from faithful_sae.sae.activation_cache import activations_disk
from faithful_sae.sae.sae import TopKSAE, sae_bytes
from faithful_sae.sae.train import training_bytes, training_disk
from faithful_sae.sae.variants import Archetypal, TopK
from faithful_sae.stages.corpus import make_faithful
from faithful_sae.stages.model import model_shape, open_model
from faithful_sae.stages.s01_generate_faithful import text_disk
from faithful_sae.stages.s08_seed_dependence import SeedDependence, study, swept_saes
from faithful_sae.stages.training import train_all
from faithful_sae.text.packing import rows_disk

GPT2 = Shape(
    layers=12,
    d_model=768,
    heads=12,
    kv_heads=12,
    head_dim=64,
    d_mlp=3072,
    vocab_size=50257,
    parameters=124_439_808,
    context=1024,
    bytes_per_weight=4,
)

WITH_MODEL = ("01_generate_faithful", "02_train_sae", "04_ffr", "05_fidelity", "06_probing")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_without_weights_are_those_of_the_model(make_run, model_folders, architecture):
    run = make_run({"model": str(model_folders[architecture])})
    (model_folders[architecture] / "model.safetensors").stat()  # it is there, and not read
    shape = model_shape(run)
    model = make_model(architecture)
    groups = 1 if architecture in ("llama", "gemma2") else 2
    assert shape == Shape(
        layers=3,
        d_model=16,
        heads=2,
        kv_heads=groups,
        head_dim=8,
        d_mlp=64 if architecture == "gpt2" else 32,
        vocab_size=72 if architecture == "llama" else 64,
        parameters=sum(w.numel() for w in model.parameters()),
        context=32,
        bytes_per_weight=4,
    )
    assert (
        model_shape(
            make_run({"model": str(model_folders[architecture]), "dtype": "bfloat16"})
        ).bytes_per_weight
        == 2
    )
    assert open_model(run).shape == shape


def test_gpt2_by_hand():
    embedding = (50257 + 1024) * 768
    block = 12 * 768**2 + 13 * 768
    norm = 2 * 768
    assert weights(GPT2) == 4 * (embedding + 12 * block + norm) == 497_759_232
    # keys and values of 1023 tokens lie in 16 tiles of 64; 14 layers of 768 numbers
    assert cache_bytes(GPT2, 128, 1023) == 128 * 1024 * 2 * 14 * 768 * 4
    assert sampling_bytes(GPT2, 1, 1023) == 1024 * 2 * 14 * 768 * 4 + 24 * 50257
    assert sae_bytes(768, 12288) == 4 * (2 * 768 * 12288 + 768 + 12288)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_and_values_are_as_large_as_what_the_decoder_allocates(
    make_run, model_folders, architecture
):
    lm = open_model(make_run({"model": str(model_folders[architecture])}))
    with torch.inference_mode(), Decoder(lm.model, 5, 70) as decoder:
        decoder.step(torch.zeros(5, dtype=torch.long), torch.arange(5))
    allocated = sum(t.numel() * t.element_size() for pair in decoder.layers.values() for t in pair)
    assert len(decoder.layers) == 3
    # and room for two layers more
    assert allocated * 5 / 3 == cache_bytes(lm.shape, 5, 70)


def numbers(folder):
    """Bytes of the tensors in the safetensors files of a folder, without their headers."""
    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(t.numel() * t.element_size() for t in map(file.get_tensor, file.keys()))
    return total


def test_files_are_as_large_as_foreseen(make_run):
    run = make_run(
        {
            "sae.cache_activations": True,
            "sae.include_bos": True,
            "sae.lm_batch_rows": 4,
            "sae.tokens": 900,
        }
    )
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    shape = lm.shape
    saes = run.artifacts / "saes" / "text"
    assert numbers(saes) == 2 * (sae_bytes(16, 24) + 4 * 24)  # and each latent's firing frequency
    assert training_disk(16, [24, 24], [TopK, TopK]) == 7 * 2 * sae_bytes(16, 24)
    # two checkpoints with moments of a mixture [24, 24], archetypes and relaxation [24, 16]
    beside = training_disk(16, [24], [Archetypal]) - training_disk(16, [24], [TopK])
    assert beside == 6 * 4 * (24 * 24 + 2 * 24 * 16)
    text = numbers(run.artifacts / "faithful")
    assert (
        4 * run.generate.tokens < text < text_disk(run.generate) + 4 * 300
    )  # a document may be one token, and has a length
    rows = run.artifacts / "corpora" / "text" / "rows.npy"
    assert rows.stat().st_size == rows_disk(600) // 2 + 128  # numpy's header
    (kept,) = (run.artifacts / "activations").glob("text-*")
    assert numbers(kept) == activations_disk(480, 16, 4)
    for name in ("01_generate_faithful", "02_train_sae"):
        need = needs(run, shape, stages()[name])
        assert need.disk > 0
        assert need.device_memory == 0
    training = needs(run, shape, stages()["02_train_sae"])
    assert training.tokens == 2 * 480  # each once, since they are kept
    assert (
        training.disk
        > numbers(run.artifacts / "saes") + numbers(run.artifacts / "activations") + 2 * 4 * 600
    )


def test_a_gpus_memory_is_no_ram_and_the_weights_pass_through_it(make_run):
    run, on_gpu = make_run(), make_run({"device": "cuda"})
    without_model = {stage for stage in model_stages(run) if not stage.memory(run, GPT2).weights}
    assert stages()["13_geometry"] in without_model
    assert not {stages()[name] for name in WITH_MODEL} & without_model
    for stage in model_stages(run):
        cpu = needs(run, GPT2, stage)
        gpu = needs(on_gpu, GPT2, stage)
        assert cpu.device_memory == 0
        assert (gpu.device_memory == 0) == (stage in without_model)
        assert cpu.memory - PROCESS >= gpu.device_memory - CUDA
        assert gpu.memory >= PROCESS + (0 if stage in without_model else weights(GPT2))


def test_probing_holds_the_saes_of_its_seeds_and_what_they_make_of_each_text(make_run):
    """sae.seeds are 42 and 49, there are two corpora, and 80 texts at most."""
    one, both = (make_run({"probing.seeds": seeds}) for seeds in ([49], None))
    stage = stages()["06_probing"]
    less, more = (stage.memory(run, GPT2) for run in (one, both))
    each = 4 * (24 + 768)
    assert more.host - less.host == 2 * 80 * each
    assert more.device - less.device == 2 * (sae_bytes(768, 24) + 64 * each)
    # logits of a batch of 64 texts of 12 tokens
    assert more.device > weights(GPT2) + 10 * 64 * 12 * 50257


def test_the_study_of_seeds_trains_what_it_is_said_to(make_run):
    seeds = stages()["08_seed_dependence"]
    run = make_run({"seed_dependence": SEED_DEPENDENCE, "sae.seeds": [1, 2, 3]})
    assert study(run) == {1: swept_saes(run, 1, 400), 0: swept_saes(run, 0, 400)}
    assert [len(wanted) for wanted in study(run).values()] == [6, 2]
    # the swept budget is below that of the SAEs with another d_sae or k
    assert seeds.tokens(run) == 800
    shorter = run.changed(seed_dependence=SeedDependence(corpus="text", tokens=(200,)))
    assert seeds.tokens(shorter) == 200


def test_a_study_that_trains_nothing_needs_no_model(make_run):
    run = make_run({"seed_dependence": {"corpus": "text", "sweep_seeds": 2}})
    stage = stages()["08_seed_dependence"]
    assert not study(run)
    assert not stage.tokens(run)
    assert not stage.disk(run, GPT2)
    assert needs(run.changed(device="cuda"), GPT2, stage).device_memory == 0


def test_training_holds_eight_arrays_for_each_sae(make_run):
    one, two = (training_bytes(768, [12288] * n, [TopK] * n, 4096, 262144) for n in (1, 2))
    assert two - one == 4 * 4 * (2 * 768 * 12288 + 768 + 12288)
    # an archetypal one has a mixture, archetypes and a relaxation as well, whatever the others have
    own = training_bytes(768, [12288] * 2, [TopK, Archetypal], 4096, 262144) - two
    ahead = 2 * 15 * 4096 * 4 * 768
    step = 2 * 4 * 12288 * 768
    assert own == 4 * 4 * (12288 * 12288 + 2 * 12288 * 768) + ahead + step
    sae = TopKSAE(16, 24, 4, 0)
    assert sum(w.numel() * w.element_size() for w in sae.weights.values()) == sae_bytes(16, 24)
