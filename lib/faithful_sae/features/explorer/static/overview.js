// Corpora side by side: how many features each has, the share of them that others have too, and links to those that they have not.

// `sets`: of one model and seed, the first the one that is shown; `read`: (path) -> Promise; `to`: (set, latent, text, title) -> a link to a feature
async function corporaSideBySide(sets, read, to) {
  const found = await Promise.all(sets.map((set) => read(`${set.key}/overview`)));
  const saes = [...new Set(found.flatMap((one) => Object.keys(one.elsewhere)))], corpus = (key) => key.split("/")[1];
  const share = (of, n) => (n == null ? "–" : percent(n / of.features));
  const line = (name, value) => h("tr", {}, h("th", { scope: "row" }, name), found.map((one) => h("td", {}, value(one))));
  const table = h("table", {},
    h("thead", {}, h("tr", {}, h("td", {}), sets.map((set) => h("th", { scope: "col" }, set.corpus)))),
    h("tbody", {}, line("features", (one) => count(one.features)), line("dead", (one) => count(one.dead)), line("in the other seed", (one) => share(one, one.shared)),
      saes.map((key) => line(`in ${corpus(key)}`, (one) => share(one, one.elsewhere[key]?.found))), line("in any other corpus", (one) => share(one, one.anywhere))));
  const alone = (one, set, other) => h("section", { "aria-label": `Only on ${set.corpus}, not on ${other.corpus}` }, h("h3", {}, `Only on ${set.corpus}, not on ${other.corpus} `, h("small", {}, "and how near the nearest is")),
    h("ol", {}, (one.elsewhere[other.key]?.alone || []).map(([latent, cosine, readings]) => h("li", {}, to(set.key, latent, String(latent), `feature ${latent} of ${set.corpus}`),
      h("span", { class: "fx-words" }, readings.map((reading) => visible(reading, true)).join(" · ")), h("span", { class: "fx-value" }, number(cosine))))));
  return [
    h("p", { class: "fx-note" }, `Share of the features that have a counterpart: in the other seed, the one they are matched with; in another corpus, the nearest decoder row of its SAE of this seed; with a cosine of at least ${number(found[0].threshold)}. `,
      "Below, those without that fire most, dense and fake ones left out."),
    h("div", { class: "fx-across", role: "region", "aria-label": "Corpora side by side", tabindex: 0 }, table),
    h("div", { class: "fx-alone" }, sets.slice(1).map((other, i) => [alone(found[0], sets[0], other), alone(found[i + 1], other, sets[0])]))];
}
