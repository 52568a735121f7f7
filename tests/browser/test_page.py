"""The explorer's page in Chromium, opened from disk and from a web server, with a corpus full of
HTML and script.
"""

import functools
import http.server
import json
import re
import threading
from itertools import pairwise

import pandas as pd
import pytest
from driver import NARROW, watched_page

from faithful_sae.features.explorer.data import set_page
from faithful_sae.features.explorer.page import write_explorer
from faithful_sae.features.index import FeatureIndex
from faithful_sae.features.judging import SCORES
from feature_folders import words_in, write_index

D_SAE = 300


@pytest.fixture(scope="module")
def indices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    sets = (
        ("neox", "faithful", 42, 49),
        ("neox", "faithful", 49, 42),
        ("llama", "a library", 42, 49),
    )
    return [
        FeatureIndex(write_index(folder, run, corpus, seed, other, d_sae=D_SAE))
        for run, corpus, seed, other in sets
    ]


@pytest.fixture(scope="module")
def folder(indices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "explorer"
    write_explorer(folder, indices)
    return folder


@pytest.fixture
def page(browser, folder):
    with watched_page(browser) as one:
        one.goto(f"file://{folder}/index.html")
        one.wait_for_selector(".fx-beside .fx-card")
        yield one
        assert one.evaluate("window.hacked") is None


def heading(page, text):
    page.wait_for_function(
        "text => document.querySelector('.fx-detail h2')?.textContent.startsWith(text)", arg=text
    )


def total(page, text):
    page.wait_for_function(
        "text => document.querySelector('.fx-total').textContent === text", arg=text
    )


def shown(page):
    return [int(text) for text in page.locator(".fx-row .fx-latent").all_text_contents()]


def test_what_is_shown_is_what_the_index_holds(page, indices):
    page.locator(".fx-row", has=page.get_by_text("7", exact=True)).click()
    heading(page, "Feature 7 ")
    held = indices[0].page(7)
    lines = page.locator(".fx-card").first.locator(".fx-context")
    assert lines.count() == len(held["contexts"])
    assert lines.first.locator(".fx-tokens").text_content() == "".join(
        held["contexts"][0]["tokens"]
    ).replace("\n", "⏎").replace("\t", "⇥")
    strongest = lines.first.locator(".fx-strongest")
    assert strongest.text_content() == " word7"
    assert float(strongest.get_attribute("title")) == pytest.approx(held["max"], rel=5e-3)
    words = (
        page.locator(".fx-card")
        .first.locator(".fx-readings section", has_text="MutInfo")
        .locator(".fx-word")
    )
    assert words.all_text_contents() == [
        re.sub("^ ", "␣", text) for text, _ in held["explanations"]["MutInfo"]
    ]
    assert page.locator(".fx-bar").count() == 2 * len(held["histogram"])
    assert "Histogram of its activations" in page.locator(".fx-histogram svg").first.get_attribute(
        "aria-label"
    )


def test_search_filter_sort(page, indices):
    latents = indices[0].latents
    page.get_by_role("button", name="orphan").click()
    total(page, "100 of 300 features")
    page.get_by_role("button", name="fake").click()
    both = latents[latents.fake & ~latents.shared.astype(bool)]
    total(page, f"{len(both)} of 300 features")
    page.get_by_label("Sort by").select_option("max")
    page.get_by_role("button", name="lowest first").click()
    page.get_by_role("button", name="highest first").wait_for()
    assert (
        shown(page) == both.sort_values("max", ascending=False).latent.tolist()[: len(shown(page))]
    )
    page.get_by_role("button", name="clear").click()
    total(page, "300 features")
    page.get_by_label("max frequency").fill("0.1")
    total(page, f"{(latents.frequency <= 0.001).sum()} of 300 features")
    page.get_by_label("max frequency").fill("")
    page.get_by_role("searchbox").fill("WORD123")
    page.wait_for_function(
        "() => document.querySelector('.fx-row .fx-words')?.textContent.includes('word123')"
    )
    assert 123 in shown(page)
    page.get_by_role("searchbox").fill("<script>")  # text like any other
    page.wait_for_function(
        "() => /^[1-9]\\d* of 300/.test(document.querySelector('.fx-total').textContent)"
    )
    page.get_by_role("searchbox").fill("no such word")
    page.get_by_text("No feature matches.").wait_for()


def test_number_first_and_exact_tokens(page, indices):
    page.get_by_role("searchbox").fill("17")
    # more than that one: tokens with 17 in them
    page.wait_for_function("() => / of 300/.test(document.querySelector('.fx-total').textContent)")
    assert shown(page)[0] == 17
    assert len(shown(page)) > 1
    page.get_by_role("searchbox").fill('" word17"')
    table = indices[0].explanations()
    short = table[(table.method != "MaxAct") | (table["rank"] == 0)]
    exact = short[short.text == " word17"].latent.nunique()
    total(page, f"{exact} of 300 features")
    page.get_by_role("searchbox").fill('"word17"')
    page.get_by_text("No feature matches.").wait_for()


def test_address_keeps_feature_and_filters(page):
    page.get_by_role("button", name="orphan").click()
    page.get_by_label("Sort by").select_option("max")
    total(page, "100 of 300 features")
    first, other = shown(page)[2:4]
    row = page.locator(".fx-row", has=page.get_by_text(str(first), exact=True))
    address = row.get_attribute("href")
    row.click()
    heading(page, f"Feature {first} ")
    assert page.url.endswith(address)
    page.locator(".fx-row", has=page.get_by_text(str(other), exact=True)).click()
    heading(page, f"Feature {other} ")
    assert page.title().startswith(f"Feature {other} ")
    page.go_back()
    heading(page, f"Feature {first} ")
    page.go_forward()
    heading(page, f"Feature {other} ")
    page.reload()
    heading(page, f"Feature {other} ")
    total(page, "100 of 300 features")
    assert page.get_by_label("Sort by").input_value() == "max"


def test_headings_are_in_order(page):
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((node) => Number(node.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_a_feature_as_json_and_as_a_link(page, indices):
    with page.expect_download() as waiting:
        page.get_by_role("button", name="JSON").click()
    held = json.loads(waiting.value.path().read_text(encoding="utf-8"))
    assert held == {"set": "neox/faithful/seed42"} | set_page(indices[0], 0)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="copy link").click()
    page.get_by_role("button", name="copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.endswith("/index.html#/neox/faithful/seed42/0")


def test_scores_of_judges(browser, indices, tmp_path):
    scores = dict.fromkeys(SCORES, 0.9)
    said = [
        {"latent": 5, "judge": "a model", "scored": True, "text": "words of five", **scores},
        {"latent": 6, "judge": "a model", "scored": False, "text": None},
        {"latent": 8, "judge": "a model", "scored": True, "text": "eight", **scores}
        | {"detection_random": 0.4},
    ]
    write_explorer(tmp_path / "page", [FeatureIndex(indices[0].folder, pd.DataFrame(said))])
    with watched_page(browser) as page:
        page.goto(f"file://{tmp_path}/page/index.html#/neox/faithful/seed42/6")
        page.get_by_text("fires too rarely to be scored").wait_for()
        page.get_by_label("Score to filter by").select_option("detection_random/a model")
        page.get_by_label("max score").fill("0.5")
        total(page, "1 of 300 features")
        assert shown(page) == [8]
        page.get_by_role("button", name="clear").click()
        page.get_by_label("Sort by").select_option("detection_random/a model")
        page.get_by_role("button", name="lowest first").click()
        page.wait_for_function("document.querySelector('.fx-latent').textContent === '5'")
        assert shown(page)[:2] == [5, 8]
        page.locator(".fx-row").first.click()
        page.get_by_text("words of five").wait_for()
        page.get_by_text("guessing scores 0.5").wait_for()


def test_text_is_looked_up_in_contexts(page, indices):
    """Without a model: features that fire on the words, the strongest first."""
    page.get_by_role("textbox", name="Your own text").fill("WORD123\n(nowhere")
    page.get_by_role("button", name="Read").click()
    page.get_by_text("Looked up, without a model").wait_for()
    rows = page.locator(".fx-active tr")
    assert rows.locator("th").all_text_contents() == ["WORD123", "⏎(", "nowhere"]
    fires = {}
    for latent, contexts in indices[0].contexts():
        for context in contexts:
            for word, value in words_in(context):
                if word == "word123" and value > 0:
                    fires[latent] = max(value, fires.get(latent, 0))
    strongest = sorted(fires, key=lambda latent: -fires[latent])[:6]
    found = rows.first.locator(".fx-jump b").all_text_contents()
    assert found == [str(latent) for latent in strongest]
    assert rows.last.locator("td").text_content() == "no feature"
    rows.first.locator(".fx-jump").first.click()
    heading(page, f"Feature {strongest[0]} ")


def test_search_in_contexts(page, indices):
    def having(*words):
        return [
            latent
            for latent, contexts in indices[0].contexts()
            if set(words) <= {word for context in contexts for word, _ in words_in(context)}
        ]

    page.get_by_label("Search in").select_option("contexts")
    page.get_by_role("searchbox").fill("word150")
    total(page, f"{len(having('word150'))} of 300 features")
    page.get_by_role("searchbox").fill("Word150 word151")
    both = having("word150", "word151")
    total(page, f"{len(both)} of 300 features")
    assert 0 < len(both) < len(having("word150"))
    assert shown(page) == both[: len(shown(page))]
    page.reload()
    total(page, f"{len(both)} of 300 features")
    assert page.get_by_label("Search in").input_value() == "contexts"
    page.get_by_role("searchbox").fill("word15")  # a whole word alone
    total(page, f"{len(having('word15'))} of 300 features")


def test_a_label_is_kept_and_found(page):
    page.get_by_label("Your label").fill("months <b>")
    page.get_by_label("Your label").press("Enter")
    page.locator(".fx-row").first.get_by_text("months <b>").wait_for()
    page.reload()
    page.locator(".fx-row").first.get_by_text("months <b>").wait_for()
    assert page.get_by_label("Your label").input_value() == "months <b>"
    page.get_by_role("searchbox").fill("MONTHS")
    total(page, "1 of 300 features")
    assert shown(page) == [0]
    page.get_by_label("Your label").fill("")
    page.get_by_label("Your label").press("Enter")
    page.reload()
    page.get_by_text("No feature matches.").wait_for()


def test_near_features_are_links(page):
    page.locator(".fx-row", has=page.get_by_text("7", exact=True)).click()
    heading(page, "Feature 7 ")
    near = page.locator(".fx-card").first.locator(".fx-related")
    assert near.locator("section").nth(1).locator("li").all_text_contents() == ["60.5 (17)"]
    rows = near.locator("section").first.locator("a")
    assert rows.all_text_contents() == ["8", "9"]
    address = rows.last.get_attribute("href")
    rows.last.click()
    heading(page, "Feature 9 ")
    assert page.url.endswith(address)
    page.go_back()
    heading(page, "Feature 7 ")


def test_the_nearest_of_another_corpus_stands_beside(browser, folder):
    with watched_page(browser) as page:
        page.goto(f"file://{folder}/index.html#/llama/a%20library/seed42/177")
        heading(page, "Feature 177 ")
        page.get_by_label("beside it").select_option("nearest of a library, seed 42 (0.7)")
        beside = page.locator(".fx-beside h2")
        page.get_by_text("Nearest of a library, seed 42, cosine 0.7").wait_for()
        assert beside.text_content().startswith("Feature 180 ")
        # it stays there as one browses
        page.locator(".fx-list").focus()
        page.keyboard.press("ArrowDown")
        beside.get_by_text("Feature 181 ").wait_for()


def test_corpora_side_by_side(browser, tmp_path):
    """Who asks for no feature sees it, with links to features that one corpus alone has."""
    sets = (("faithful", "a library", 2), ("a library", "faithful", 3))
    write_explorer(
        tmp_path / "page",
        [
            FeatureIndex(
                write_index(
                    *(tmp_path, "neox", corpus),
                    elsewhere=other,
                    near=lambda latent, n=n: 0.9 if latent % n else 0.2,
                )
            )
            for corpus, other, n in sets
        ],
    )
    with watched_page(browser) as page:
        page.goto(f"file://{tmp_path}/page/index.html")
        overview = page.locator(".fx-overview").first
        overview.locator("td").first.wait_for()
        lines = [text.split("\t") for text in overview.locator("table").inner_text().split("\n")]
        assert lines[0][1:] == ["faithful", "a library"]
        assert ["in a library", "50 %", "\N{EN DASH}"] in lines
        assert ["in faithful", "\N{EN DASH}", "66.7 %"] in lines
        alone = overview.get_by_role("region", name="Only on a library, not on faithful")
        latents = [int(text) for text in alone.locator("a").all_text_contents()]
        assert len(latents) == 10
        assert not any(latent % 3 for latent in latents)
        alone.locator("a").first.click()
        heading(page, f"Feature {latents[0]} ")
        assert page.url.endswith(f"#/neox/a%20library/seed42/{latents[0]}")
        # the corpus that is shown stands first
        overview.locator("thead th").first.get_by_text("a library").wait_for()
        assert page.evaluate(CONTRAST) == []
        page.reload()
        heading(page, f"Feature {latents[0]} ")
        assert overview.locator("table").count() == 0


def test_features_with_a_name_and_at_random(page):
    panel = page.locator(".fx-overview").last
    panel.locator("summary").click()
    named = panel.get_by_role("region", name="With a name")
    named.locator("li").first.wait_for()
    assert panel.get_by_role("region", name="At random").locator("li").count() == 20
    latents = named.locator("a").all_text_contents()
    assert len(latents) == 20
    # of 200 words
    name = named.locator("li").first.locator("b").text_content()
    assert name == f"word{int(latents[0]) % 200}"
    assert page.evaluate(CONTRAST) == []
    named.locator("a").nth(1).click()
    heading(page, f"Feature {latents[1]} ")


def test_where_contexts_are_and_what_ablation_does(page):
    line = page.locator(".fx-card").first.locator(".fx-context").first
    assert line.locator(".fx-place").text_content() == "row 0, token 100, document 0"
    # from -1 to 2 nats over 24 tokens, of which the ninth has 0.043: below 0.05 nothing is marked
    assert line.locator(".fx-hindered").count() == 8
    assert line.locator(".fx-helped").count() == 15
    last = line.locator(".fx-helped").last
    assert last.get_attribute("title") == "loss without the feature: +2 nats"
    other = page.locator(".fx-card").first.locator(".fx-context").nth(1)
    assert other.locator(".fx-place").text_content() == "row 1, token 101"
    assert other.locator(".fx-helped, .fx-hindered").count() == 0


def test_a_feature_in_a_frame(browser, folder, page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="embed").click()
    page.get_by_role("button", name="copied").wait_for()
    (folder.parent / "other.html").write_text(page.evaluate("navigator.clipboard.readText()"))
    page.goto(f"file://{folder.parent}/other.html")
    frame = page.frame_locator("iframe")
    frame.locator(".fx-card").first.wait_for()
    assert frame.locator(".fx-detail h2").first.is_visible()
    assert frame.locator(".fx-list").is_hidden()
    page.goto(f"file://{folder}/index.html")
    page.wait_for_selector(".fx-beside .fx-card")
    assert page.locator(".fx-list").is_visible()


def test_keyboard_alone(page, indices):
    page.keyboard.press("/")
    page.keyboard.type("#250")
    total(page, "1 of 300 features")
    page.keyboard.press("Enter")
    heading(page, "Feature 250 ")
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    total(page, "300 features")
    page.keyboard.press("Home")
    heading(page, "Feature 0 ")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    heading(page, "Feature 3 ")
    page.keyboard.press("End")
    heading(page, "Feature 299 ")
    box = page.locator(".fx-list")
    assert (
        page.locator(f"[id='{box.get_attribute('aria-activedescendant')}']").get_attribute(
            "aria-posinset"
        )
        == "300"
    )
    page.keyboard.press("v")
    assert page.locator(".fx-values").count() == 1
    page.keyboard.press("t")
    heading(page, "Feature 0 seed 49")
    assert page.evaluate("document.activeElement.tagName") == "H2"
    # everything that can be clicked can be reached
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') || "
                "document.activeElement.textContent"
            )
        )
    assert {
        "Sort by",
        "Features",
        "open twin",
        "Search features by text, number or exact token in quotes",
        "lowest first",
        "values",
    } <= seen
    assert any(name.startswith("orphan") for name in seen)


def test_the_twin_and_the_address(page, folder):
    page.locator(".fx-row", has=page.get_by_text("5", exact=True)).click()
    heading(page, "Feature 5 seed 42")
    assert (
        page.locator(".fx-beside h2").text_content() == "Feature 294 Twin in seed 49, cosine 0.95"
    )
    page.get_by_role("button", name="open twin").click()
    heading(page, "Feature 294 seed 49")
    assert page.url.endswith("#/neox/faithful/seed49/294")
    page.go_back()
    heading(page, "Feature 5 seed 42")
    page.get_by_label("model").select_option("Docs-llama")
    heading(page, "Feature 0 seed 42")
    assert page.url.endswith("#/llama/a%20library/seed42/0")
    page.get_by_text("not part of this explorer").wait_for()


def test_deep_links(browser, folder):
    with watched_page(browser) as page:
        page.goto(f"file://{folder}/index.html#/llama/a%20library/seed42/177")
        heading(page, "Feature 177 ")
        assert page.locator(".fx-row[aria-selected=true] .fx-latent").text_content() == "177"
        page.evaluate("location.hash = '#/neox/faithful/seed49/12'")
        heading(page, "Feature 12 seed 49")
        # asked twice, shown
        page.evaluate(
            "location.hash = '#/neox/faithful/seed49/200'; dispatchEvent(new Event('hashchange'))"
        )
        heading(page, "Feature 200 ")
        for wrong in ("#/neox/faithful/seed49/9999", "#/neox/nothing/seed1/0"):
            page.evaluate("hash => { location.hash = hash }", wrong)
            page.get_by_text("There is no").wait_for()
            page.evaluate("location.hash = '#/neox/faithful/seed49/13'")
            heading(page, "Feature 13 ")
            assert page.locator(".fx-status").is_hidden()
    with watched_page(browser) as page:
        page.goto(f"file://{folder}/index.html#/neox/nothing/seed1/0")
        page.get_by_text("There is no neox/nothing/seed1 here").wait_for()
        heading(page, "Feature 0 ")


def test_first_view_over_http(browser, folder):
    """What a web server sends until the feature and its twin stand there."""
    handler = functools.partial(
        type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}),
        directory=folder,
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with watched_page(browser) as page:
            sizes = []
            page.on("response", lambda response: sizes.append(len(response.body())))
            page.goto(
                f"http://127.0.0.1:{server.server_address[1]}/index.html", wait_until="networkidle"
            )
            page.wait_for_selector(".fx-beside .fx-card")
            assert 50_000 < sum(sizes) < 200_000, sizes
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_clipped_and_text_has_contrast(browser, folder, scheme):
    """No sideways scrolling at 390 and 1280 pixels; every text at least 4.5 : 1 (WCAG AA) on what
    is behind it.
    """
    for size in (NARROW, {"width": 1280, "height": 800}):
        with watched_page(browser, color_scheme=scheme) as page:
            page.set_viewport_size(size)
            page.goto(f"file://{folder}/index.html#/neox/faithful/seed42/4")
            page.wait_for_selector(".fx-beside .fx-card")
            page.keyboard.press("v")
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            assert page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const d = canvas.getImageData(0, 0, 1, 1).data;
    return [d[0], d[1], d[2], d[3] / 255];
  };
  const over = (top, back) => top.slice(0, 3).map((c, i) => c * top[3] + back[i] * (1 - top[3]));
  const linear = (c) => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const failed = [];
  for (const node of document.querySelectorAll(".fx *")) {
    const hasText = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!hasText || !node.offsetParent) continue;
    const behind = [];
    for (let n = node; n; n = n.parentElement)
      behind.unshift(rgba(getComputedStyle(n).backgroundColor));
    const back = behind.reduce((under, colour) => over(colour, under), [255, 255, 255]);
    const text = over(rgba(getComputedStyle(node).color), back);
    const [a, b] = [light(text), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5)
      failed.push(`${node.className} ${node.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return failed;
}"""
