"""An index of features against a dense recomputation, and its files against whatever may be wrong
with them.
"""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chi2, chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import BOS, packed_rows
from faithful_sae.features import collect as collecting
from faithful_sae.features.build import build_index, index_bytes
from faithful_sae.features.collect import Kept, collect, exact_counts
from faithful_sae.features.index import FeatureError, FeatureIndex, sae_checksum
from faithful_sae.features.text import features_of_text
from faithful_sae.features.vocabulary import display_strings, visible
from faithful_sae.files import is_current
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.kernels import latent_statistics
from faithful_sae.sae.sae import TopKSAE

KEPT = Kept(top=4, samples=2, strata=3, left=5, right=3, seed=7)
BATCH = 8


@pytest.fixture
def many_rows():
    return packed_rows(60)


@pytest.fixture
def sae():
    sae = TopKSAE(16, 24, 3, seed=3)
    # these never fire
    sae.b_enc[20:] = -1e4
    return sae


@pytest.fixture
def dense(lm, sae, many_rows):
    """Latents float32 [60, 12, 24], 0 at BOS, computed in the batches of the pass."""
    z = torch.cat(
        [
            sae.encode(lm.activations(torch.from_numpy(many_rows[i : i + BATCH])))
            for i in range(0, 60, BATCH)
        ]
    )
    return (z * torch.from_numpy(many_rows != BOS)[..., None]).numpy()


@pytest.fixture
def index(tmp_path, lm, sae, many_rows):
    return build_index(tmp_path / "index", lm, sae, many_rows, KEPT, batch_rows=BATCH, listed=5)


def peaks(dense, latent):
    """[(value, row, position)] of the rows in which a latent fires."""
    z = dense[..., latent]
    return [(z[r].max(), r, int(z[r].argmax())) for r in range(len(z)) if z[r].max() > 0]


def test_numbers_of_every_latent(index, dense, many_rows):
    tokens = int((many_rows != BOS).sum())
    edges = np.array(index.meta["histogram_edges"])
    assert index.meta["tokens"] == tokens
    assert index.meta["d_sae"] == 24
    assert index.meta["k"] == 3
    assert edges[0] <= dense[dense > 0].min()
    assert dense.max() < edges[-1]
    for latent, row in index.latents.iterrows():
        z = dense[..., latent][dense[..., latent] > 0]
        assert row.frequency == len(z) / tokens
        assert row.dead == (len(z) == 0) == (latent >= 20)
        assert row["max"] == z.max(initial=0)
        assert row["mean"] == np.float32(z.astype(np.float64).mean() if len(z) else 0)
        np.testing.assert_array_equal(row.histogram, np.histogram(z, edges)[0])


def test_top_contexts(index, dense, many_rows):
    for latent in range(24):
        wanted = sorted(peaks(dense, latent), key=lambda peak: (-peak[0], peak[1]))[: KEPT.top]
        found = [c for c in index.page(latent)["contexts"] if c["kind"] == "top"]
        assert [c["rank"] for c in found] == list(range(len(wanted)))
        for context, (value, row, position) in zip(found, wanted, strict=True):
            window = slice(max(position - KEPT.left, 0), position + KEPT.right + 1)
            assert context["activation"] == value
            assert context["position"] == position - window.start
            assert context["tokens"] == [index.vocabulary[i] for i in many_rows[row, window]]
            np.testing.assert_array_equal(
                np.float32(context["activations"]), dense[row, window, latent]
            )


def splitmix(seed, latent, row):
    z = 0
    for part in (seed, latent, row):
        z = z + part + 0x9E3779B97F4A7C15 & 2**64 - 1
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        z = (z ^ z >> 27) * 0x94D049BB133111EB & 2**64 - 1
        z ^= z >> 31
    return z >> 1


def test_sampled_contexts_are_those_with_the_smallest_keys_of_each_level(index, dense):
    for latent in range(24):
        all_peaks = peaks(dense, latent)
        top = int(np.floor(np.log2(max((p[0] for p in all_peaks), default=1))))
        wanted = []
        for stratum in range(KEPT.strata):
            inside = [
                p
                for p in all_peaks
                if min(top - int(np.floor(np.log2(p[0]))), KEPT.strata - 1) == stratum
            ]
            inside.sort(key=lambda p: splitmix(KEPT.seed, latent, p[1]))
            wanted += [(stratum, rank, p[0]) for rank, p in enumerate(inside[: KEPT.samples])]
        found = [
            (c["stratum"], c["rank"], c["activation"])
            for c in index.page(latent)["contexts"]
            if c["kind"] == "sample"
        ]
        assert found == wanted
    assert any(c["stratum"] == 2 for latent in range(24) for c in index.page(latent)["contexts"])


@pytest.mark.parametrize(
    "values",
    [np.full(60, 1.5), np.where(np.arange(60) < 40, np.geomspace(1, 1.99, 60), 64.0)],
    ids=["level", "moved down"],
)
def test_every_context_of_a_level_is_as_likely_as_any_other(values):
    """In the second case 40 weak rows are moved to the last stratum when row 40 comes."""
    picked = np.zeros(60)
    weak = values < 8
    for seed in range(600):
        state = latent_statistics.empty(1, top=1, strata=3, samples=4, window=1, tokens=2)
        for start in range(0, 60, 20):
            part = torch.from_numpy(values[start : start + 20, None].astype(np.float32))
            latent_statistics.add_rows_of_tokens(
                state,
                part,
                torch.zeros(20, 1, dtype=torch.int64),
                np.zeros((20, 1), np.int64),
                start,
                0,
                seed,
            )
        rows = state["sample_row"][0, 2 if not weak.all() else 0]
        assert len(set(rows)) == 4
        assert weak[rows].all()
        picked[rows] += 1
    # drawn without replacement, so the statistic is smaller than chi-square's by (n - m) / (n - 1)
    n = weak.sum()
    statistic = chisquare(picked[weak]).statistic * (n - 1) / (n - 4)
    assert 0.001 < chi2.sf(statistic, n - 1) < 0.999


def test_token_counters_are_exact_where_they_suffice_and_bounded_where_not():
    rng = np.random.default_rng(0)
    M = 8
    ids = np.minimum(rng.zipf(1.3, (40, 50)), 99)
    state = latent_statistics.empty(2, top=1, strata=1, samples=1, window=1, tokens=M)
    # latent 0 fires on all tokens, 1 on five of them
    values = np.stack([np.ones(2000), ids.ravel() < 6], 1).astype(np.float32)
    for start in range(0, 40, 8):
        part = torch.from_numpy(values[start * 50 : (start + 8) * 50])
        latent_statistics.add_rows_of_tokens(
            state,
            part,
            torch.tensor([[0, 1]]).expand(400, 2).contiguous(),
            ids[start : start + 8],
            start,
            0,
            0,
        )
    true = Counter(ids.ravel().tolist())
    found = [
        dict(zip(state["token"][f].tolist(), state["token_count"][f].tolist(), strict=True))
        for f in (0, 1)
    ]
    assert {t: n for t, n in found[1].items() if n} == {t: n for t, n in true.items() if t < 6}
    assert state["lost"][1] == 0
    lost = state["lost"][0]
    assert 0 < lost <= 2000 / (M + 1)
    assert all(n <= true[t] <= n + lost for t, n in found[0].items() if n)
    assert all(found[0].get(t, 0) for t, n in true.items() if n > lost)


def test_counts_are_exact_where_they_fit():
    assert exact_counts(512, 1024)
    assert exact_counts(4096, 16_384)
    assert not exact_counts(4096, 16_385)
    assert not exact_counts(12_288, 50_257)


def test_an_index_says_what_its_counts_lost(tmp_path, index, lm, sae, many_rows, monkeypatch):
    assert index.meta["mut_info_lost"] == 0
    monkeypatch.setattr(collecting, "EXACT_BYTES", 0)
    monkeypatch.setattr(collecting, "TOKEN_COUNTERS", 3)
    few = build_index(tmp_path / "few", lm, sae, many_rows, KEPT, batch_rows=BATCH, listed=5)
    assert 0 < few.meta["mut_info_lost"] <= 1 / 4
    said, exact = (
        i.explanations().query("method == 'MutInfo'").set_index(["latent", "text"]).value
        for i in (few, index)
    )
    assert not said.equals(exact)


@pytest.mark.parametrize("exact_bytes", [2**29, 0])
def test_memory_of_a_pass(lm, sae, many_rows, monkeypatch, exact_bytes):
    monkeypatch.setattr(collecting, "EXACT_BYTES", exact_bytes)
    state, _ = collect(lm, sae, many_rows, KEPT)
    taken = sum(array.nbytes for array in state.values())
    assert taken <= index_bytes(KEPT, 24, lm.model.config.vocab_size) <= 1.1 * taken


def test_a_killed_pass_goes_on_to_the_same_bytes(tmp_path, lm, sae, many_rows, monkeypatch):
    def files(folder):
        return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "provenance.json"}

    build_index(tmp_path / "whole", lm, sae, many_rows, KEPT, batch_rows=BATCH, key="k")
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: True))
    add = latent_statistics.add_rows_of_tokens
    calls = []

    def killed(*args):
        calls.append(args[4])
        if len(calls) == 4:
            raise KeyboardInterrupt
        add(*args)

    monkeypatch.setattr(collecting.latent_statistics, "add_rows_of_tokens", killed)
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "killed", lm, sae, many_rows, KEPT, batch_rows=BATCH, key="k")
    assert not (tmp_path / "killed").exists()
    assert list(tmp_path.glob("killed-k.partial"))
    build_index(tmp_path / "killed", lm, sae, many_rows, KEPT, batch_rows=BATCH, key="k")
    assert calls == [0, 8, 16, 24, 24, 32, 40, 48, 56]
    assert not list(tmp_path.glob("*.partial"))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_an_index_is_reused_unless_something_changed(index, lm, sae, many_rows):
    def stamp():
        return (index.folder / "provenance.json").stat().st_mtime_ns

    before = stamp()
    build_index(index.folder, lm, sae, many_rows, KEPT, batch_rows=BATCH, listed=5)
    assert stamp() == before
    build_index(index.folder, lm, sae, many_rows[:-1], KEPT, batch_rows=BATCH, listed=5)
    assert stamp() > before


def test_provenance_is_the_key_and_what_the_caller_says(tmp_path, index, lm, sae, many_rows):
    own = json.loads((index.folder / "provenance.json").read_text())
    assert set(own) == {"key", "content"}
    assert own["key"] == index.meta["key"]
    assert is_current(index.folder, own["key"])
    folder = tmp_path / "with a record"

    def record(seconds):
        assert 0 < seconds < 600
        assert not folder.exists()
        return {"parameters": {"seed": 1}}

    build_index(folder, lm, sae, many_rows, KEPT, key="k", record=record)
    assert is_current(folder, "k")
    said = json.loads((folder / "provenance.json").read_text())
    assert said["parameters"] == {"seed": 1}


def test_what_other_notebooks_know(tmp_path, lm, sae, many_rows):
    random = np.linspace(0, 0.2, 24)
    cosine = np.linspace(0, 1, 24)
    index = build_index(
        tmp_path / "index",
        lm,
        sae,
        many_rows,
        KEPT,
        random_frequency=random,
        ffr_frequency=0.1,
        twin=np.arange(24)[::-1],
        twin_cosine=cosine,
        sfr_threshold=0.7,
    )
    np.testing.assert_array_equal(index.latents.fake, random > 0.1)
    np.testing.assert_array_equal(index.latents.shared, cosine >= 0.7)
    page = index.page(23)
    assert (page["twin"], page["fake"], page["shared"], page["random_frequency"]) == (
        0,
        True,
        True,
        random[23],
    )
    assert json.loads(json.dumps(page)) == page
    assert index.find(shared=True, dead=False).latent.tolist() == [17, 18, 19]
    assert index.find(fake=True, order="twin").latent.tolist() == list(range(23, 11, -1))
    silent = index.find(frequency=(0, 0), order="latent", descending=True)
    assert silent.latent.tolist() == [23, 22, 21, 20]


def test_what_is_not_known_is_none(index):
    page = index.page(np.int64(22))
    assert [
        page[name] for name in ("twin", "twin_cosine", "random_frequency", "fake", "shared")
    ] == [None] * 5
    assert page["dead"]
    assert page["contexts"] == []
    assert set(page["explanations"]) == {"VocabProj", "VocabProjNegative"}
    assert index.find(shared=False).empty
    assert index.find(fake=True).empty


def test_without_pruning(tmp_path, lm, sae, many_rows):
    index = build_index(tmp_path / "index", lm, sae, many_rows, KEPT, pruned=0)
    written = {"MaxAct", "VocabProj", "VocabProjNegative", "MutInfo"}
    assert set(index.explanations().method) == written


def test_a_token_finds_the_latents_it_explains(index):
    said = index.explanations()
    token = said[said.method == "MutInfo"].text.iloc[0]
    wanted = said[(said.text == token) & said.method.isin(["MutInfo", "VocabProj"])].latent.unique()
    assert index.find(f"  {token.upper()} ").latent.tolist() == sorted(wanted)
    assert len(wanted)
    assert len(index.find("no such token")) == 0


def test_features_of_text(lm, sae, index):
    found = features_of_text(lm, sae, "w5 w9 w33")
    z = sae.encode(lm.activations(torch.tensor([[BOS, 5, 9, 33]]))[0, 1:]).numpy()
    assert found.token.unique().tolist() == ["w5", "w9", "w33"]
    assert len(found) == (z > 0).sum()
    np.testing.assert_array_equal(found.activation, z[found.position, found.latent])
    assert all(part.activation.is_monotonic_decreasing for _, part in found.groupby("position"))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [-1, 24, 1.0, "3", True, None])
def test_no_such_latent(index, latent):
    with pytest.raises(FeatureError, match="it has 0 to 23"):
        index.page(latent)


def test_bad_arguments(tmp_path, lm, sae, index, many_rows):
    for text in ("", "   "):
        with pytest.raises(FeatureError, match="has no tokens"):
            features_of_text(lm, sae, text)
    with pytest.raises(FeatureError, match="context of 32 is exceeded"):
        features_of_text(lm, sae, "w3 " * 40)
    with pytest.raises(FeatureError, match="cannot order by 'histogram'"):
        index.find(order="histogram")
    for rows, words in (
        (many_rows[:0], "corpus is empty"),
        (np.zeros((3, 5), int), "nothing but BOS"),
    ):
        with pytest.raises(FeatureError, match=words):
            build_index(tmp_path / "other", lm, sae, rows)
    other = TopKSAE(20, 24, 3, 0)
    for call in (
        lambda: build_index(tmp_path / "other", lm, other, many_rows),
        lambda: features_of_text(lm, other, "w3"),
    ):
        with pytest.raises(FeatureError, match="width 20"):
            call()
    bad: list[tuple[dict, str]] = [
        ({"twin": np.zeros(24)}, "come together"),
        ({"random_frequency": np.zeros(24)}, "without ffr_frequency"),
        ({"twin": np.zeros(24), "twin_cosine": np.zeros(24)}, "without sfr_threshold"),
        ({"random_frequency": np.zeros(5), "ffr_frequency": 0.1}, r"shape \[5\]"),
    ]
    for given, words in bad:
        with pytest.raises(FeatureError, match=words):
            build_index(tmp_path / "other", lm, sae, many_rows, **given)
    assert not (tmp_path / "other").exists()


def test_an_index_knows_its_sae(index, sae):
    assert index.meta["sae"] == sae_checksum(sae)
    assert index.meta["sae"] != sae_checksum(TopKSAE(16, 24, 3, seed=4))


def read_all(folder):
    index = FeatureIndex(folder)
    index.find("w5")
    return [index.page(latent) for latent in range(24)]


@pytest.mark.parametrize(
    "name",
    [
        "index.json",
        "latents.parquet",
        "contexts.parquet",
        "explanations.parquet",
        "vocabulary.json",
    ],
)
def test_missing_and_damaged_files_are_named(index, name):
    file = index.folder / name
    original = file.read_bytes()
    damaged = [original[: len(original) // 2], b"", b"[]" if name == "index.json" else b"nonsense"]
    if name.endswith("parquet"):
        # the footer is whole
        damaged.append(original[:20] + bytes(60) + original[80:])
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(FeatureError, match=f"{name}: damaged"):
            read_all(index.folder)
    file.unlink()
    with pytest.raises(FeatureError, match=f"{name} is missing"):
        read_all(index.folder)


def test_columns_of_something_else_are_refused(index):
    pd.DataFrame({"latent": range(24)}).to_parquet(index.folder / "contexts.parquet")
    with pytest.raises(FeatureError, match=r"contexts\.parquet: damaged .other columns"):
        read_all(index.folder)


# --- strings of tokens ----------------------------------------------------------------------------


def test_byte_level_pieces():
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = "a é€<b>\n\t"
    # and two of the three bytes of a character
    pieces = [*sorted(alphabet), "Ġthe", byte_level.pre_tokenize_str("€")[0][0][:2]]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|x|>")
    shown = display_strings(fast)
    assert shown[pieces.index("Ġthe")] == " the"
    assert shown[256 + 1] == "<0xE2><0x82>"
    assert shown[-1] == "<|x|>"
    joined = "".join(shown[i] for i in fast(text).input_ids)
    # one byte a piece here
    assert joined == "a <0xC3><0xA9><0xE2><0x82><0xAC><b>\n\t"


def test_sentencepiece_pieces():
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xE2>", "\u2581", "\u2581the", "a"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    assert display_strings(fast) == ["<unk>", "<s>", "</s>", "\n", "<0xE2>", " ", " the", "a"]


def test_white_space_is_made_visible():
    assert visible("\n a\tb \r\n") == "⏎ a⇥b ␍⏎"
    assert visible("  a b ") == "␣␣a b␣"
    assert visible("   ") == "␣␣␣"
    assert visible(" a\n", blanks=False) == " a⏎"
