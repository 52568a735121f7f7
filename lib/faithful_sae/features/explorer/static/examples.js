// Features that are easiest to name, and some drawn at random beside them (features/examples.py).

// `meta`: of the set that is shown; `read`: (path) -> Promise; `to`: (set, latent, text, title) -> a link to a feature
async function namedAndDrawn(meta, read, to) {
  const found = await read(`${meta.key}/examples`);
  const list = (title, rows) => h("section", { "aria-label": title }, h("h3", {}, `${title} `, h("small", {}, "and the share of its contexts that a name fits")),
    rows.length ? h("ol", {}, rows.map(([latent, name, share, readings]) => h("li", {}, to(meta.key, latent, String(latent), `feature ${latent}`),
      h("span", { class: "fx-words" }, name != null && h("b", {}, name), name != null && " · ", readings.map((reading) => visible(reading, true)).join(" · ")), h("span", { class: "fx-value" }, percent(share)))))
      : h("p", { class: "fx-note" }, "None: no feature fires often enough."));
  return [
    h("p", { class: "fx-note" }, "A name is the token at which most contexts of a feature are strongest, of contexts of all levels of activation. With a name: the features whose names fit best, one for each name, fake and dense ones left out. ",
      "At random: some of all that fire, each as likely, to see what a feature is like that nobody chose."),
    h("div", { class: "fx-alone" }, list("With a name", found.named), list("At random", found.random))];
}
