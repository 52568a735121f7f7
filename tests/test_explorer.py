"""The explorer without a browser: what it writes and answers is what the index holds, and nothing
of a corpus becomes markup.
"""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from faithful_sae.features.explorer import data
from faithful_sae.features.explorer.fallback import feature_html, list_html
from faithful_sae.features.explorer.page import json_script, write_explorer
from faithful_sae.features.explorer.widget import Explorer
from faithful_sae.features.explorer.words import Words, words_of
from faithful_sae.features.index import FeatureError, FeatureIndex, sae_checksum
from faithful_sae.features.labels import labels_file, read_labels, write_label
from faithful_sae.features.steering import continuation
from faithful_sae.features.text import features_of_text, text_ids
from faithful_sae.features.vocabulary import visible
from faithful_sae.files import file_hash
from faithful_sae.paper.links import feature_address, feature_links, listed_links
from faithful_sae.runs import provenance
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.rows import write_rows
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.stages.s09_explore_features import judged
from feature_folders import EVIL, words_in, write_index

KEYS = ("neox/faithful/seed42", "neox/faithful/seed49")


@pytest.fixture(scope="module")
def indices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    return [
        FeatureIndex(write_index(folder, seed=seed, other_seed=other, d_sae=150))
        for seed, other in ((42, 49), (49, 42))
    ]


@pytest.fixture(scope="module")
def written(indices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "explorer"
    write_explorer(folder, indices)
    return folder


def read_script(path):
    """(name, value) of a data file, read as strictly as a JavaScript engine would: one call with
    two JSON arguments.
    """
    match = re.fullmatch(
        r'explorerData\(("[^"]*"),(.*)\);\n', path.read_text(encoding="ascii"), re.S
    )
    assert match
    return json.loads(match[1]), json.loads(match[2])


class Parsed(HTMLParser):
    """Tags and text of an HTML fragment; fails where tags do not pair."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.tags = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert not any(name.startswith("on") for name, _ in attrs)
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# --- what both hosts show -------------------------------------------------------------------------


def test_numbers_are_shortened_to_four_digits_and_stay_json():
    assert data.shorten({"a": [0.123456, 2.0, float("nan"), float("inf"), None, True, 7, "x"]}) == {
        "a": [0.1235, 2, None, None, None, True, 7, "x"]
    }
    assert json.dumps(data.shorten([1e-7, 123456.0])) == "[1e-07, 123500]"


def test_flags():
    row = {"fake": False, "shared": None, "dead": False, "frequency": 0.1}
    assert data.flags(row) == ""  # neither shared nor an orphan where no other seed was compared
    assert data.flags(row | {"shared": False}) == "o"
    assert data.flags(row | {"shared": True, "fake": True}) == "fs"
    assert data.flags(row | {"dead": True, "frequency": 0.11}) == "dn"


def test_rows_of_the_list_are_those_of_the_index(indices):
    index = indices[0]
    chunks = [data.set_rows(index, chunk) for chunk in range(2)]
    assert [len(chunk["flags"]) for chunk in chunks] == [128, 22]
    for name in ("frequency", "mean", "max", "twin_cosine"):
        assert chunks[0][name] + chunks[1][name] == pytest.approx(
            index.latents[name].tolist(), rel=5e-4
        )
    counts = data.set_meta(index)["counts"]
    latents = index.latents
    assert counts == {
        "f": latents.fake.eq(True).sum(),
        "o": latents.shared.eq(False).sum(),
        "s": latents.shared.eq(True).sum(),
        "d": latents.dead.sum(),
        "n": (latents.frequency > 0.1).sum(),
    }
    for outside in (-1, 2):
        with pytest.raises(IndexError, match="150 latents"):
            data.set_rows(index, outside)


def test_words_of_the_list(indices):
    words = data.set_rows(indices[0], 0)["words"][7].split("\n")
    page = indices[0].page(7)["explanations"]

    def shown(method):
        return [visible(text, blanks=False) for text, _ in page[method]]

    # the first of each method
    assert words[:3] == ["part7 word7", " word7", shown("VocabProj")[0]]
    assert set(shown("MutInfo") + shown("VocabProj")) <= set(words)
    # one whole context, last
    assert words[-1] == shown("MaxAct")[0]
    assert shown("MaxAct")[1] not in words
    # what it speaks against finds no latent
    assert "lowered" not in words
    assert len(set(words)) == len(words)


def table_of_judges():
    """Two judges of latents 130 and 131, of which the second fires too rarely; a third judge of 131
    alone, whose answer could not be read.
    """
    scores = {"detection_random": 0.61, "detection_hard": 0.52}
    scores |= {"fuzz_random": 0.83, "fuzz_wrong": float("nan")}
    none = dict.fromkeys(scores, float("nan"))
    rows = [
        {"latent": 130, "judge": "tokens", "scored": True, "text": "fires on <b>", **scores},
        {"latent": 131, "judge": "tokens", "scored": False, "text": float("nan"), **none},
        {"latent": 130, "judge": "ngram", "scored": True, "text": "after (", **scores},
        {"latent": 131, "judge": "ngram", "scored": False, "text": float("nan"), **none},
        {"latent": 131, "judge": "a model", "scored": True, "text": "", **none},
    ]
    return pd.DataFrame(rows)


def test_what_judges_say_is_on_the_page_of_the_latent_and_in_the_list(indices):
    index = FeatureIndex(indices[0].folder, table_of_judges())
    page = data.set_page(index, 130)["judged"]
    assert [said["judge"] for said in page] == ["tokens", "ngram"]
    assert page[0]["text"] == "fires on <b>"
    assert page[0]["fuzz_wrong"] is None
    assert data.set_meta(index)["judges"] == ["tokens", "ngram", "a model"]
    listed = data.set_rows(index, 1)["judged"]
    # latents 128 to 149
    assert listed["ngram"]["detection_random"] == [None, None, 0.61, *[None] * 19]
    assert data.set_rows(index, 0)["judged"] == {}


def test_an_index_without_judges_has_none(indices):
    assert data.set_meta(indices[0])["judges"] == []
    assert data.set_page(indices[0], 130)["judged"] == []


def test_judges_of_another_sae_are_refused(indices):
    other = table_of_judges().assign(latent=150)
    with pytest.raises(FeatureError, match="other latents than 0 to 149"):
        FeatureIndex(indices[0].folder, other)


def test_the_static_page_says_what_judges_say(indices):
    index = FeatureIndex(indices[0].folder, table_of_judges())
    shown = Parsed(feature_html(index.page(130))).text
    assert "fires on <b>; detection 0.61, fuzzing 0.83 (guessing: 0.5)" in shown
    rare = Parsed(feature_html(index.page(131))).text
    assert rare.count("fires too rarely to be scored") == 2
    assert "no explanation; detection \N{EN DASH}" in rare


def test_judged_are_the_rows_of_one_sae_of_notebook_12(tmp_path, monkeypatch):
    monkeypatch.setattr("faithful_sae.runs.schema.ROOT", tmp_path)
    (run,) = load_profile("smoke")
    assert judged(run, "faithful", 42) is None
    both = [table_of_judges().assign(corpus="faithful", seed=seed) for seed in (42, 49)]
    write_rows(run, "interpretation", pd.concat(both))
    found = judged(run, "faithful", 49)
    assert found is not None
    assert found.seed.tolist() == [49] * 5
    assert judged(run, "library", 42) is None
    evaluation = run.evaluation
    assert evaluation
    other = run.changed(evaluation=evaluation.changed(budget=evaluation.budget + 1))
    assert judged(other, "faithful", 42) is None, "rows of other parameters"


def test_what_a_corpus_has_that_another_has_not(tmp_path):
    """Counted from each latent's page."""
    index = FeatureIndex(write_index(tmp_path, d_sae=150, near=lambda latent: latent % 5 / 5))
    found = data.set_overview(index)
    assert (found["features"], found["threshold"]) == (150, 0.7)
    assert found["dead"] == sum(index.latents.dead)
    assert found["shared"] == 100
    (other,) = found["elsewhere"]
    assert other == "neox/a library/seed42"
    # a cosine of 0.8 alone is one of at least 0.7
    assert found["elsewhere"][other]["found"] == found["anywhere"] == 30
    pages = [index.page(latent) for latent in range(150)]
    alone = [
        (-page["frequency"], page["latent"])
        for page in pages
        if page["latent"] % 5 != 4 and not page["dead"] and not page["fake"]
    ]
    named = found["elsewhere"][other]["alone"]
    assert [latent for latent, _, _ in named] == [latent for _, latent in sorted(alone)[:10]]
    assert [cosine for _, cosine, _ in named] == [latent % 5 / 5 for latent, _, _ in named]
    assert (
        named[0][2]
        == data.set_rows(index, named[0][0] // 128)["words"][named[0][0] % 128].split("\n")[:4]
    )


def test_without_a_threshold_nothing_is_compared(tmp_path):
    index = FeatureIndex(write_index(tmp_path, sfr_threshold=None))
    found = data.set_overview(index)
    assert (found["anywhere"], found["elsewhere"]) == (0, {})


def test_examples_have_names_and_readings(indices):
    found = data.set_examples(indices[0])
    assert {group: len(rows) for group, rows in found.items()} == {"named": 20, "random": 20}
    latent, name, share, readings = found["named"][0]
    # each latent's word is at the peak of all its contexts
    assert (name, share) == (f"word{latent}", 1)
    words = data.set_rows(indices[0], latent // 128)["words"][latent % 128]
    assert readings == words.split("\n")[:4]


def test_a_latent_without_sampled_contexts_has_no_name(tmp_path):
    index = FeatureIndex(write_index(tmp_path, sampled=0))
    found = data.set_examples(index)
    assert found["named"] == []
    assert [row[1:3] for row in found["random"]] == [[None, None]] * 20


# --- the page -------------------------------------------------------------------------------------


def test_chunks_hold_the_pages_of_the_index(written, indices):
    assert read_script(written / "data" / "index.js")[1] == [
        data.set_name(index) for index in indices
    ]
    for key, index in zip(KEYS, indices, strict=True):
        folder = written / "data" / key
        name, meta = read_script(folder / "meta.js")
        assert name == f"{key}/meta"
        assert meta["twin_set"] == KEYS[1 - KEYS.index(key)]
        assert meta["d_sae"] == 150
        size = meta["pages_per_chunk"]
        found = []
        assert len(list((folder / "pages").iterdir())) == -(-150 // size)
        assert len(list((folder / "rows").iterdir())) == 2
        for chunk in range(-(-150 // size)):
            name, pages = read_script(folder / "pages" / f"{chunk}.js")
            assert name == f"{key}/pages/{chunk}"
            found += pages
        assert found == [data.set_page(index, latent) for latent in range(150)]
        assert (
            found[5]["contexts"][0]["tokens"]
            == indices[KEYS.index(key)].page(5)["contexts"][0]["tokens"]
        )


def test_the_same_index_gives_the_same_bytes(written, indices, tmp_path):
    write_explorer(tmp_path / "again", indices)
    assert file_hash(tmp_path / "again") == file_hash(written)


def test_nothing_of_the_corpus_is_markup_or_leaves_its_string(written):
    texts = {path: path.read_text(encoding="ascii") for path in (written / "data").rglob("*.js")}
    assert any(r"\u003cscript\u003e" in text for text in texts.values())
    assert any(r"\u2028" in text for text in texts.values())
    for text in texts.values():
        assert not set("<>&") & set(text)
    assert json.loads(json_script(EVIL)) == EVIL
    html = (written / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert not re.search(r"<script>|\son\w+=|style=", html)
    # text becomes nodes in one way only, and no address leads out
    other_ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|"
        "XMLHttpRequest"
    )
    for source in data.STATIC.glob("*.js"):
        assert not re.search(other_ways, source.read_text(encoding="utf-8")), source
    outside = {
        address
        for path in written.rglob("*.*")
        for address in re.findall(
            r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", path.read_text(encoding="utf-8")
        )
    }
    # the name of SVG's namespace
    assert outside == {"http://www.w3.org"}


def test_the_first_view_is_small(tmp_path):
    """Under 200 kB before the first feature and its twin are shown, with contexts of 64 tokens;
    nothing of it grows with d_sae, and only the list of sets with their number (here 100).
    """
    index = FeatureIndex(write_index(tmp_path, d_sae=256, length=64))
    write_explorer(tmp_path / "page", [index])
    first = [
        "index.html",
        "explorer.js",
        "explorer.css",
        f"data/{KEYS[0]}/meta.js",
        f"data/{KEYS[0]}/labels.js",
        f"data/{KEYS[0]}/rows/0.js",
    ]
    pages = max(
        path.stat().st_size for path in (tmp_path / "page" / "data" / KEYS[0] / "pages").iterdir()
    )
    sets = 100 * len(json_script(data.set_name(index)))
    assert (
        sum((tmp_path / "page" / name).stat().st_size for name in first) + 2 * pages + sets
        < 200_000
    )


def test_words_of_a_context_fire_as_their_tokens_do():
    tokens = ["Un", "til", " 12", "(", "x_y", "\n", " ", " caf\u00e9,"]
    found = words_of(tokens, [0, 2, 0.5, 0, 0, 3, 0, 1])
    assert found == [("until", 2), ("12", 0.5), ("(", 0), ("x_y", 0), ("caf\u00e9", 1), (",", 1)]


def test_every_word_of_the_contexts_is_in_one_chunk(indices, written, monkeypatch):
    monkeypatch.setattr("faithful_sae.features.explorer.words.CHUNK", 5000)
    fires, has = {}, {}
    for latent in range(150):
        for context in indices[0].page(latent)["contexts"]:
            for word, value in words_in(context):
                has.setdefault(word, set()).add(latent)
                if value > fires.get((word, latent), 0):
                    fires[word, latent] = value
    words = Words(indices[0])
    chunks = [words.chunk(number) for number in range(len(words.starts))]
    assert len(chunks) > 3
    assert [chunk[0][0] for chunk in chunks] == words.starts
    entries = [entry for chunk in chunks for entry in chunk]
    order = [entry[0] for entry in entries]
    assert order == sorted(set(order))
    by_word = {word: (flat, rest) for word, flat, rest in entries}
    for word in ("word7", "word149", "script"):
        flat, rest = by_word[word]
        assert set(flat[::2]) | set(rest) == has[word]
        assert not set(flat[::2]) & set(rest)
        assert flat[1::2] == sorted(flat[1::2], reverse=True)
        expected = {latent: value for (w, latent), value in fires.items() if w == word}
        assert dict(zip(flat[::2], flat[1::2], strict=True)) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(IndexError, match="no chunk"):
        words.chunk(len(chunks))
    page = read_script(written / "data" / KEYS[0] / "words.js")[1]
    assert page == sorted(page)


def test_labels_are_kept_beside_the_index(tmp_path):
    index = FeatureIndex(write_index(tmp_path, d_sae=20))
    widget = Explorer([index])
    assert widget.answer(f"{KEYS[0]}/labels") == {}
    assert widget.answer(f"{KEYS[0]}/label/7", " months ") == {"7": "months"}
    write_label(index, 12, "caf\u00e9")
    assert read_labels(index) == {"7": "months", "12": "caf\u00e9"}
    assert write_label(index, 7, " ") == {"12": "caf\u00e9"}
    assert labels_file(index).parent == index.folder.parent
    write_explorer(tmp_path / "page", [index])
    assert read_script(tmp_path / "page/data" / KEYS[0] / "labels.js")[1] == {"12": "caf\u00e9"}
    with pytest.raises(FeatureError, match="it has 0 to 19"):
        write_label(index, 20, "none")
    # of an SAE that was trained again
    index.meta["sae"] = "1"
    assert read_labels(index) == {}
    write_label(index, 1, "new")
    index.meta["sae"] = "0"
    assert read_labels(index) == {"12": "caf\u00e9"}
    labels_file(index).write_text("{")
    with pytest.raises(FeatureError, match=r"seed42\.labels\.json: damaged"):
        read_labels(index)


def test_one_index_for_each_set(indices, tmp_path):
    for wrong in ([], [indices[0], indices[0]]):
        with pytest.raises(ValueError, match="one index for each"):
            write_explorer(tmp_path / "page", wrong)
    assert not (tmp_path / "page").exists()


def test_without_an_index_it_says_who_makes_one():
    def run(profile):
        command = [sys.executable, "-m", "faithful_sae", "explorer", profile]
        return subprocess.run(command, capture_output=True, text=True)

    result = run("paper")
    assert result.returncode == 1
    assert "09_explore_features" in result.stderr
    assert "Traceback" not in result.stderr
    assert "no such profile" in run("nowhere").stderr


# --- static HTML ----------------------------------------------------------------------------------


def test_fallback_is_well_formed_and_shows_text_as_text(indices):
    shown = Parsed(feature_html(indices[0].page(5), indices[0].meta))
    assert shown.tags <= {
        "div",
        "h4",
        "p",
        "table",
        "tr",
        "th",
        "td",
        "code",
        "ol",
        "li",
        "span",
        "b",
    }
    assert "Feature 5 of neox/faithful/seed42 (shared)" in shown.text
    context = next(
        c
        for c in indices[0].page(5)["contexts"]
        if any("<script>" in token for token in c["tokens"])
    )
    assert visible("".join(context["tokens"]), blanks=False) in shown.text
    listed = Parsed(list_html(indices[0]))
    assert listed.text.count("shared") + listed.text.count("orphan") == 20
    dead = Parsed(feature_html(indices[0].page(15)))
    assert "fires on 0 % of tokens" in dead.text
    assert "dead" in dead.text


def test_fallback_of_an_index_without_another_seed(indices):
    page = indices[0].page(5) | {
        "twin": None,
        "twin_cosine": None,
        "shared": None,
        "fake": None,
        "random_frequency": None,
    }
    assert "\N{EN DASH} of random tokens" in Parsed(feature_html(page)).text


# --- the widget -----------------------------------------------------------------------------------


def messages(widget, monkeypatch):
    sent = []
    monkeypatch.setattr(widget, "send", sent.append)
    return sent


def test_the_widget_answers_messages(indices, monkeypatch):
    widget = Explorer(indices)
    sent = messages(widget, monkeypatch)
    asked = ("0/rows/1", "1/page/7", "1/meta", "0/words", "0/words/0")
    for number, path in enumerate(KEYS[int(one[0])] + one[1:] for one in asked):
        widget._handle_custom_msg({"id": f"view-{number}", "path": path}, [])
    assert [answer["id"] for answer in sent] == [f"view-{n}" for n in range(5)]
    assert sent[0]["result"] == data.set_rows(indices[0], 1)
    assert sent[1]["result"] == data.set_page(indices[1], 7)
    assert sent[2]["result"]["twin_set"] == KEYS[0]
    assert not sent[2]["result"]["can_read"]
    assert sent[4]["result"][0][0] == sent[3]["result"][0]
    json.dumps(sent, allow_nan=False)


def test_the_widget_answers_a_wrong_question_with_an_error(indices, monkeypatch):
    widget = Explorer(indices[:1])
    sent = messages(widget, monkeypatch)
    for path in (
        f"{KEYS[0]}/page/150",
        f"{KEYS[1]}/meta",
        f"{KEYS[0]}/page/x",
        f"{KEYS[0]}/nothing",
        "",
        f"{KEYS[0]}/text",
    ):
        widget._handle_custom_msg({"id": 0, "path": path}, [])
    widget._handle_custom_msg({"method": "somebody else's"}, [])
    assert len(sent) == 6
    assert all(set(answer) == {"id", "error"} for answer in sent)
    assert "0 to 149" in sent[0]["error"]
    assert "no language model" in sent[5]["error"]


def test_the_first_view_needs_no_python(indices):
    widget = Explorer(indices[:1], latent=130)
    assert set(widget.first) == {f"{KEYS[0]}/{path}" for path in ("meta", "rows/1", "page/130")}
    content, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in content
    assert "Feature 130" in Parsed(content["text/html"]).text


def test_text_typed_in(indices, lm, tmp_path, monkeypatch):
    sae = TopKSAE(d_model=lm.d_model, d_sae=150, k=4, seed=0)
    index = FeatureIndex(write_index(tmp_path, d_sae=150, sae=sae_checksum(sae)))
    widget = Explorer([index, indices[1]], lm, [sae])
    assert widget.answer(f"{KEYS[0]}/meta")["can_read"]
    assert not widget.answer(f"{KEYS[1]}/meta")["can_read"]
    tokens = widget.answer(f"{KEYS[0]}/text", "w5 w9 w5")["tokens"]
    assert [entry["token"] for entry in tokens] == [
        index.vocabulary[i] for i in text_ids(lm, "w5 w9 w5")[0, 1:]
    ]
    expected = features_of_text(lm, sae, "w5 w9 w5")
    assert len(expected)
    assert [
        [place, latent] for place, entry in enumerate(tokens) for latent, _ in entry["features"]
    ] == expected[["position", "latent"]].values.tolist()
    sent = messages(widget, monkeypatch)
    widget._handle_custom_msg({"id": 1, "path": f"{KEYS[0]}/text", "text": ""}, [])
    assert "no tokens" in sent[0]["error"]
    assert "FeatureError" not in sent[0]["error"]


def test_what_does_not_belong_together_is_refused(indices, lm):
    with pytest.raises(FeatureError, match="give lm and saes, or neither"):
        Explorer(indices, lm)
    stranger = TopKSAE(d_model=lm.d_model, d_sae=150, k=4, seed=0)
    with pytest.raises(FeatureError, match=f"that of none of {KEYS[0]}, {KEYS[1]}: give those"):
        Explorer(indices, lm, [stranger])
    for wrong in ([], [indices[0], indices[0]]):
        with pytest.raises(FeatureError, match="one index for each run, corpus and seed"):
            Explorer(wrong)


def test_steering_in_the_widget(indices, lm, tmp_path, monkeypatch):
    """As `continuation` has it, with the dose in units of the latent's largest activation."""
    sae = TopKSAE(d_model=lm.d_model, d_sae=150, k=4, seed=0)
    index = FeatureIndex(write_index(tmp_path, d_sae=150, sae=sae_checksum(sae)))
    widget = Explorer([index, indices[1]], lm, [sae])
    amount = 4 * index.latents["max"][7].item()
    # so long that the model's context is not exceeded
    before, after = continuation(lm, sae, "w5 w9", 7, "add", amount, min(40, lm.context // 2))
    assert widget.answer(f"{KEYS[0]}/steer/7/4", "w5 w9") == {"before": before, "after": after}
    assert before != after
    nothing = widget.answer(f"{KEYS[0]}/steer/7/0", "w5 w9")
    assert nothing["before"] == nothing["after"] == before
    sent = messages(widget, monkeypatch)
    for path, text in ((f"{KEYS[1]}/steer/7/4", "w5"), (f"{KEYS[0]}/steer/7/4", "")):
        widget._handle_custom_msg({"id": 1, "path": path, "text": text}, [])
    assert "no language model and SAE of neox/faithful/seed49" in sent[0]["error"]
    assert "has no tokens: type at least one word" in sent[1]["error"]


# --- links from 07 --------------------------------------------------------------------------------


def test_links_lead_to_features_of_the_parameters_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr("faithful_sae.runs.schema.ROOT", tmp_path)
    (run,) = load_profile("smoke")
    features = run.features
    assert features
    run = run.changed(features=features.changed(corpora=("faithful",), seeds=(42,)))
    assert "No index" in feature_links([run]).to_html()
    index = FeatureIndex(write_index(run.artifacts.parent))
    assert "No index" in feature_links([run]).to_html(), "no rows of 09 say what it was made with"
    write_rows(run, "features", index.latents[["latent"]])
    html = feature_links([run]).to_html()
    linked = [
        int(latent)
        for latent in re.findall(
            r'<a href="../explorer/index.html#/neox/faithful/seed42/(\d+)">', html
        )
    ]
    assert len(linked) == 16
    assert not any(index.latents.shared[linked[:8]])
    assert all(index.latents.fake[linked[8:]])
    assert "(32)" in html
    assert "(12)" in html
    assert "make explorer" in html
    latents = pd.DataFrame({"kind": "own", "seed": 42, "latent": [3, 5, 4]})
    latents["corpus"] = ["faithful", "library", "faithful"]
    html = listed_links(run, latents).to_html()
    assert re.findall(r'index.html#/neox/faithful/seed42/(\d+)">\1</a>', html) == ["3", "4"]
    assert "library" not in html, "it has no index"
    (index.folder / "latents.parquet").write_bytes(b"damaged")
    assert "Left out" in feature_links([run]).to_html()
    assert "<a" not in feature_links([run]).to_html()
    (index.folder / "index.json").write_bytes(b"damaged")
    assert "Left out" in listed_links(run, latents).to_html()
    library = features.changed(corpora=("library",), seeds=(42,))
    of_another_corpus = [run.changed(features=library)]
    assert "No index" in feature_links(of_another_corpus).to_html()
    assert (
        feature_address(index.meta | {"corpus": "a b"}, 3)
        == "../explorer/index.html#/neox/a%20b/seed42/3"
    )
