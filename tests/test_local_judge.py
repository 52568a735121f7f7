"""A judge in this process: against plain forward passes and transformers' own generation."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from conftest import EOS, make_model, make_tokenizer
from faithful_sae.features.index import FeatureError
from faithful_sae.features.judging import Explanation, Windows
from faithful_sae.features.language_judges import local
from faithful_sae.features.language_judges.answers import Answers
from faithful_sae.features.language_judges.judge import LanguageJudge, NoAnswerError
from faithful_sae.features.language_judges.local import LocalModel
from faithful_sae.lm.model import LanguageModel, load_model

# a question and an answer to it, words apart
TEMPLATE = (
    "<bos> {% for m in messages %}w{{ 3 if m.role == 'user' else 4 }} {{ m.content }} "
    "<eos> {% endfor %}{% if add_generation_prompt %}w4 {% endif %}"
)
# w62 and w63 are the two answers
ANSWERS = {"[1]": 62, "[0]": 63}
TURNS = [
    {"role": "user", "content": "w10 w11 w12"},
    {"role": "assistant", "content": "w13"},
]


def question(text):
    return [*TURNS, {"role": "user", "content": text}]


def ids_of(text):
    """The ids of a question up to the answer, written out."""
    words = [int(word[1:]) for word in text.split()]
    return [0, 3, 10, 11, 12, EOS, 4, 13, EOS, 3, *words, EOS, 4]


def make_instruct(architecture="llama", template=TEMPLATE, spread=0.6):
    tokenizer = make_tokenizer(62)
    tokenizer.add_tokens(list(ANSWERS))
    tokenizer.chat_template = template
    model = make_model(architecture, spread=spread).eval()
    model.name_or_path = "tiny"
    return LanguageModel(model, tokenizer, 0, 0)


@pytest.fixture
def lm():
    return make_instruct()


def plainly(lm, ids):
    """The probability of yes by one pass over all ids, without a cache."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    both = logits[[ANSWERS["[1]"], ANSWERS["[0]"]]].exp()
    return (both[0] / both.sum()).item()


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "gemma2", "qwen3"])
def test_probabilities_are_those_of_a_plain_pass(architecture):
    lm = make_instruct(architecture)
    model = LocalModel(lm)
    texts = ["w20 w21", "w22", "w20 w21", "w30 w31 w32 w33 w34"]
    found = [model.decide(question(text), 1).p[0] for text in texts]
    # float32, in two pieces and in one
    assert found == pytest.approx([plainly(lm, ids_of(text)) for text in texts], abs=1e-5)
    assert found[0] == found[2]
    assert len({round(p, 4) for p in found}) == 3


def test_the_worked_examples_are_read_once(lm, monkeypatch):
    read = []
    old = lm.model.forward

    def count(*args, **kwargs):
        read.append(kwargs["input_ids"].shape[1])
        return old(*args, **kwargs)

    monkeypatch.setattr(lm.model, "forward", count)
    model = LocalModel(lm)
    start = model._read
    starts = []
    monkeypatch.setattr(model, "_read", lambda ids: starts.append(len(ids)) or start(ids))
    for text in ("w20 w21", "w22", "w23"):
        model.decide(question(text), 1)
    # up to where the question's own words begin
    assert starts == [10]
    assert read == [4, 3, 3]


def test_an_interrupted_pass_spoils_nothing(lm, monkeypatch):
    model = LocalModel(lm)
    expected = model.decide(question("w20 w21"), 1).p

    def half(*args, **kwargs):
        lm.model.base_model(**kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lm.model, "forward", half)
        with pytest.raises(KeyboardInterrupt):
            model.decide(question("w20 w21"), 1)
    assert model.decide(question("w20 w21"), 1).p == expected


def test_texts_are_what_transformers_writes_greedily(lm):
    lm.model.generation_config.eos_token_id = EOS
    # the model's embedding has rows that no token uses
    unused = [*range(64, 72)]
    plain = GenerationConfig(
        max_new_tokens=9, do_sample=False, eos_token_id=EOS, suppress_tokens=unused
    )
    for word in ("w20", "w33", "w41"):
        ids = torch.tensor([ids_of(word)])
        written = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=plain
        )[0]
        expected = lm.tokenizer.decode(written[ids.shape[1] :], skip_special_tokens=True)
        assert LocalModel(lm).write(question(word), 9).text == expected


def test_a_text_ends_where_the_turn_ends(lm):
    first = LocalModel(lm).write(question("w20"), 3).text.split()
    lm.model.generation_config.eos_token_id = [EOS, lm.tokenizer.convert_tokens_to_ids(first[1])]
    assert LocalModel(lm).write(question("w20"), 3).text.split() == first[:1]


def test_what_a_template_adds_behind_a_turn_is_part_of_the_prompt():
    thinks = TEMPLATE.replace("{{ m.content }}", "{% if loop.last %}w50 {% endif %}{{ m.content }}")
    lm = make_instruct(template=thinks)
    # the model is asked behind w50, which the template has before every last turn
    ids = [*ids_of("w20"), 50]
    assert LocalModel(lm).decide(question("w20"), 1).p == pytest.approx(
        [plainly(lm, ids)], abs=1e-5
    )


def test_a_template_with_a_date_has_the_same_one_every_day():
    template = "{{ date_string if date_string is defined else strftime_now('%d') }} " + TEMPLATE
    model = LocalModel(make_instruct(template=template))
    assert model._rendered(TURNS).startswith(local.FIXED["date_string"])


def test_a_special_token_in_a_text_is_not_one(lm):
    model = LocalModel(lm)
    assert model._ids(model._rendered(question("w20 <eos>"))).count(EOS) == len(TURNS) + 1


def test_a_prompt_that_does_not_fit_is_no_answer(lm):
    model = LocalModel(lm)
    long = question(" ".join(["w20"] * 30))
    with pytest.raises(NoAnswerError, match="context of 32 tokens"):
        model.decide(long, 1)
    with pytest.raises(NoAnswerError, match="context of 32 tokens"):
        model.write(question("w20"), 30)


def test_tokens_counted_are_those_that_are_read_each_time(lm):
    model = LocalModel(lm)
    assert model.count(question("w20 w21")) == len(ids_of("w20 w21")) - 10
    assert model.count(TURNS[:1]) == 7


def test_identity_of_a_folder_is_its_content_and_not_its_place(lm, tmp_path):
    def identity(name):
        lm.model.save_pretrained(tmp_path / name / "judge")
        lm.tokenizer.save_pretrained(tmp_path / name / "judge")
        loaded = load_model(tmp_path / name / "judge", 0, "cpu", "float32")
        return LocalModel(loaded).identity()

    one, two = identity("one"), identity("two")
    assert one == two
    assert one["model"] == "judge"
    assert one["dtype"] == "float32"
    with torch.no_grad():
        next(lm.model.parameters()).add_(1)
    assert identity("three")["revision"] != one["revision"]


def test_a_model_without_a_chat_template_is_refused(lm):
    lm.tokenizer.chat_template = None
    with pytest.raises(FeatureError, match="take an instruct model"):
        LocalModel(lm)


def test_answers_that_are_one_token_are_refused(lm):
    lm.tokenizer = make_tokenizer()
    lm.tokenizer.chat_template = TEMPLATE
    with pytest.raises(FeatureError, match="cannot be told apart"):
        LocalModel(lm)


def test_a_whole_judge(tmp_path):
    torch.manual_seed(0)
    lm = make_instruct()
    lm.context = 4096
    lm.model.config.max_position_embeddings = 4096
    vocabulary = [f"w{i} " for i in range(64)]
    judge = LanguageJudge(LocalModel(lm), vocabulary, Answers(tmp_path / "answers"), 1, 4)
    ids = np.arange(10, 26).reshape(4, 4)
    some = Windows(ids, (ids % 3 == 0).astype(np.float32))
    found = judge.detect(Explanation("w7"), some)
    assert all(p is not None and 0 < p < 1 for p in found)
    assert judge.tally.called == 4
    again = LanguageJudge(LocalModel(lm), vocabulary, Answers(tmp_path / "answers"), 1, 4)
    assert again.detect(Explanation("w7"), some) == found
    assert again.tally.called == 0
