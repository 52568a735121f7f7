// Type your own text: every token with the features active on it, strongest first; a click opens one.

const SHOWN = 6;   // features per token before "more"

function textReader({ read, words, open }) {
  let tokens = [], version = 0;
  const input = h("textarea", { rows: 2, "aria-label": "Your own text", placeholder: "Type your own text and see each token's features", spellcheck: "false",
    onkeydown: (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); run(); } } });
  const strip = h("p", { class: "fx-tokens fx-strip", hidden: true });
  const table = h("div", { class: "fx-active", role: "region", "aria-label": "Active features of each token", tabindex: 0, hidden: true });
  const note = h("p", { class: "fx-note", role: "status" });
  const root = h("section", { class: "fx-reader", "aria-label": "Your own text" },
    h("form", { onsubmit: (event) => { event.preventDefault(); run(); } }, input, h("button", { type: "submit" }, "Read")), note, strip, table);

  async function run() {
    if (!input.value.trim()) return clear();
    const mine = ++version;
    note.textContent = "reading…";
    try {
      const answer = await read(input.value);
      if (mine !== version) return;
      tokens = answer.tokens;
      note.textContent = answer.note || "";
      draw();
    } catch (error) { if (mine === version) { tokens = []; draw(); note.textContent = error.message; } }
  }

  function draw() {
    strip.hidden = table.hidden = !tokens.length;
    table.replaceChildren(h("table", {}, h("tbody", {}, tokens.map(({ token, features }) => h("tr", {}, h("th", { scope: "row" }, visible(token, true)), h("td", {}, chips(features)))))));
    colour(-1);
  }

  function chips(features) {
    const chip = ([latent, value]) => {
      const button = h("button", { type: "button", class: "fx-jump", "aria-label": `feature ${latent}, activation ${number(value)}`, onclick: () => open(latent) }, h("b", {}, String(latent)), ` ${number(value)}`);
      button.addEventListener("pointerenter", () => words(latent).then((text) => { button.title = text; }, () => {}), { once: true });
      return button;
    };
    const rest = features.slice(SHOWN);
    const more = rest.length ? h("button", { type: "button", class: "fx-link", onclick: () => more.replaceWith(...rest.map(chip)) }, `${rest.length} more`) : null;
    return features.length ? [features.slice(0, SHOWN).map(chip), more] : "no feature";
  }

  // the text in the colours of the feature that is open
  function colour(latent) {
    const activations = tokens.map(({ features }) => features.find(([which]) => which === latent)?.[1] || 0), peak = Math.max(...activations, 0);
    strip.replaceChildren(...tokenSpans(tokens.map(({ token }) => token), activations, peak, peak));
    for (const button of table.querySelectorAll(".fx-jump")) button.toggleAttribute("data-open", button.firstChild.textContent === String(latent));
  }

  function clear() {
    version++; tokens = []; note.textContent = ""; draw();
  }

  return { root, colour, clear };
}
