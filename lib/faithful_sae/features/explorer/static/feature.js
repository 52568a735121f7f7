// One feature's page: numbers, histogram, readings side by side, contexts with coloured tokens.

const METHODS = {   // MaxAct is the list of strongest contexts
  PruningMaxAct: ["Shortest context", "shortest end of its strongest contexts that keeps half the activation (PruningMaxAct)"],
  MutInfo: ["Input tokens", "tokens that say most about whether it fires (MutInfo, nats)"],
  VocabProj: ["Output tokens", "tokens whose logits its decoder direction raises most (VocabProj)"],
  VocabProjNegative: ["Output, negative", "tokens whose logits its decoder direction lowers most (VocabProjNegative)"],
};

// `to`: (set, latent, text, title) -> a link to another feature; without it, what is near the feature is not shown; `more`: stands before its contexts
function featureCard(page, meta, { heading, to, label, more, actions = [] }) {
  return h("article", { class: "fx-card", "aria-label": `Feature ${page.latent}, seed ${meta.seed}` },
    h("header", {}, heading, h("span", { class: "fx-flags" }, badges(flagsOf(page, meta))), actions),
    label, numbers(page, meta), histogram(page, meta), judged(page), readings(page), to && related(page, meta, to), more, contexts(page, meta));
}

function saveJson(page, meta, label) {
  const blob = new Blob([JSON.stringify({ set: meta.key, label, ...page }, null, 1)], { type: "application/json" }), url = URL.createObjectURL(blob);
  h("a", { href: url, download: `${meta.key.replaceAll("/", "-")}-${page.latent}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const flagsOf = (page, meta) => [page.fake && "f", page.shared === false && "o", page.shared && "s", page.dead && "d",
  page.frequency > meta.dense && "n"].filter(Boolean).join("");

function numbers(page, meta) {
  const fact = (name, value, why) => h("div", { title: why }, h("dt", {}, name), h("dd", {}, value));
  return h("dl", { class: "fx-numbers" },
    fact("fires on", percent(page.frequency), "share of the corpus' tokens on which it is active"),
    fact("on random tokens", percent(page.random_frequency), "share of uniformly random tokens on which it is active"),
    fact("mean", number(page.mean), "mean activation over the tokens on which it is active"),
    fact("max", number(page.max), "strongest activation on the corpus"),
    page.twin != null && fact(`match in seed ${meta.other_seed}`, `${page.twin}, cosine ${number(page.twin_cosine)}`, "the feature it is matched with, and the cosine of their decoder rows"));
}

function histogram(page, meta) {
  const counts = page.histogram || [], edges = meta.histogram_edges || [], most = Math.max(...counts, 0);
  if (!most) return null;
  const WIDTH = 320, HEIGHT = 64, step = WIDTH / counts.length;
  const height = (n) => (n ? Math.max(2, (Math.log1p(n) / Math.log1p(most)) * HEIGHT) : 0);
  const range = (i) => (edges.length === counts.length + 1 ? `${number(edges[i])} to ${number(edges[i + 1])}` : `bin ${i + 1}`);
  const mode = counts.indexOf(most), last = counts.findLastIndex((n) => n > 0);
  const label = `Histogram of its activations: most often ${range(mode)} (${count(most)} tokens), up to ${range(last)}; heights are logarithmic`;
  return h("figure", { class: "fx-histogram" },
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, preserveAspectRatio: "none" },
      counts.map((n, i) => svg("g", {}, svg("title", {}, `${range(i)}: ${count(n)} tokens`),
        svg("rect", { class: "fx-hit", x: i * step, y: 0, width: step, height: HEIGHT }),
        svg("rect", { class: "fx-bar", x: i * step + 0.5, y: HEIGHT - height(n), width: Math.max(step - 1, 0.5), height: height(n) })))),
    h("figcaption", {}, h("span", {}, edges.length ? number(edges[0]) : ""), h("span", {}, "activation (tokens per bin, log height)"),
      h("span", {}, edges.length ? number(edges[edges.length - 1]) : "")));
}

function judged(page) {
  const said = ({ judge, scored, text, ...scores }) => h("li", {},
    h("p", {}, h("b", {}, judge), " ", text || (scored ? "no explanation" : "")),
    scored ? h("dl", { class: "fx-numbers" }, Object.entries(SCORES).map(([column, [name, why]]) =>
      h("div", { title: why }, h("dt", {}, name), h("dd", {}, number(scores[column]))))) : h("p", { class: "fx-none" }, "fires too rarely to be scored"));
  return page.judged.length > 0 && h("div", { class: "fx-judged" }, h("h3", {}, "Explanations by judges ", h("small", {}, `scores 0 to 1; guessing scores ${GUESSING}`)),
    h("ul", {}, page.judged.map(said)));
}

function readings(page) {
  const methods = Object.entries(METHODS).filter(([method]) => page.explanations[method]?.length);
  if (!methods.length) return null;
  return h("div", { class: "fx-readings" }, methods.map(([method, [title, why]]) =>
    h("section", {}, h("h3", { title: why }, title, " ", h("small", {}, method)), h("ul", {}, page.explanations[method].map(([text, value]) =>
      h("li", {}, h("span", { class: "fx-word" }, visible(text, true)), h("span", { class: "fx-value" }, number(value))))))));
}

function related(page, meta, to) {
  const { decoder, correlated, elsewhere } = page.related;
  const lines = [
    ["Nearest decoder rows", "features that write alike: cosine of decoder rows", decoder.map(([latent, cosine]) => [meta.key, latent, String(latent), number(cosine)])],
    ["Correlated", "features that fire alike: correlation of activations over tokens, and the tokens on which both fire", correlated.map(([latent, r, n]) => [meta.key, latent, String(latent), `${number(r)} (${count(n)})`])],
    ["In other corpora", "the nearest decoder row in the SAE of each other corpus, by cosine", elsewhere.map(([key, latent, cosine]) => [key, latent, `${key.split("/")[1]} ${latent}`, number(cosine)])],
  ].filter(([, , entries]) => entries.length);
  return lines.length > 0 && h("div", { class: "fx-related" }, lines.map(([title, why, entries]) => h("section", {}, h("h3", { title: why }, title),
    h("ul", {}, entries.map(([key, latent, text, value]) => h("li", {}, to(key, latent, text, why), h("span", { class: "fx-value" }, value)))))));
}

function contexts(page, meta) {
  const weaker = quantiles(page, meta);
  const group = (title, list) => list.length && [h("h3", {}, title), h("ol", { class: "fx-contexts" }, list.map((context) => contextLine(context, page.max, weaker(context.activation))))];
  return h("div", {},
    page.contexts.some((context) => context.loss_change) && h("p", { class: "fx-note" }, h("span", { class: "fx-helped" }, "Solid"), " line: without the feature this token is less likely. ",
      h("span", { class: "fx-hindered" }, "Dashed"), `: likelier. Where the loss changes by ${NOTABLE} nats or more (ablation, the SAE's error kept).`),
    group(["Strongest contexts ", h("small", {}, "MaxAct")], page.contexts.filter((context) => context.kind === "top")),
    group("Sampled contexts, from weak to strong", page.contexts.filter((context) => context.kind !== "top").sort((a, b) => a.activation - b.activation)),
    !page.contexts.length && h("p", { class: "fx-none" }, "It fires nowhere in this corpus."));
}

// activation -> share of its activations that lie in weaker bins of the histogram
function quantiles(page, meta) {
  const total = page.histogram.reduce((sum, n) => sum + n, 0);
  return (activation) => page.histogram.reduce((sum, n, i) => (meta.histogram_edges[i + 1] <= activation ? sum + n : sum), 0) / total;
}

function contextLine(context, strongest, weaker) {
  const peak = Math.max(...context.activations);
  return h("li", { class: "fx-context" },
    h("span", { class: "fx-peak", title: "activation at the strongest token; below, the share of its activations that are weaker (by the histogram's bins)" },
      number(context.activation), h("small", {}, `${Math.floor(100 * weaker)} %`)),
    h("span", { class: "fx-tokens" }, tokenSpans(context.tokens, context.activations, strongest, peak, context.loss_change)),
    h("small", { class: "fx-place" }, `row ${context.row}, token ${context.place}${context.document == null ? "" : `, document ${context.document}`}`));
}

const NOTABLE = 0.05;   // nats

// colour, underline of the strongest and title say the same three times: none of them needs the other two
// `changes`: of each token's loss where the feature is ablated, if that was measured
function tokenSpans(tokens, activations, strongest, peak, changes) {
  return tokens.map((token, i) => {
    const value = activations[i], change = changes?.[i] || 0, notable = Math.abs(change) >= NOTABLE;
    const text = notable ? h("span", { class: change > 0 ? "fx-helped" : "fx-hindered", title: `loss without the feature: ${signed(change)} nats`, "data-change": signed(change) }, visible(token)) : visible(token);
    if (!value) return text;
    return h("span", { class: value === peak ? "fx-on fx-strongest" : "fx-on", title: number(value), "data-value": number(value),
      "--heat": Math.min(1, 0.15 + (0.85 * value) / (strongest || value)).toFixed(3) }, text);
  });
}
