// Steering: how the language model goes on with a text, as it is and with more, or less, of a feature.

const DOSES = { min: -8, max: 8, step: 0.5, value: 2 };   // in units of the feature's strongest activation
const BEGINNING = 8;   // tokens of its strongest context that stand there before somebody types

// `write`: (dose, text) -> Promise of {before, after}
function steering(page, write) {
  const [strongest] = page.contexts, dose = h("input", { type: "range", ...DOSES, "aria-label": "Dose", oninput: () => tell() }), said = h("output", {});
  // the first token may be the one that begins a row, which is no text
  const start = strongest ? strongest.tokens.slice(Math.max(1, strongest.position + 1 - BEGINNING), strongest.position + 1).join("") : "";
  const text = h("textarea", { rows: 2, "aria-label": "Beginning of a text", placeholder: "The beginning of a text", spellcheck: "false" }, start);
  const status = h("p", { class: "fx-note", role: "status" }), both = h("div", { class: "fx-written" });
  const tell = () => { said.textContent = `${dose.value} × ${number(page.max)}`; };
  const written = (title, going) => h("section", {}, h("h3", {}, title), h("p", { class: "fx-tokens" }, text.value, h("b", {}, going)));

  async function run(event) {
    event.preventDefault();
    const asked = dose.value;
    status.textContent = "writing…";
    try {
      const { before, after } = await write(asked, text.value);
      both.replaceChildren(written("as it is", before), written(`with a dose of ${asked}`, after));
      status.textContent = "";
    } catch (error) { both.replaceChildren(); status.textContent = error.message; }
  }

  tell();
  return h("section", { class: "fx-steering", "aria-label": "Steering" },
    h("h3", { title: "its decoder row is added at every position, as many times as the dose says its strongest activation" }, "Steering ", h("small", {}, "dose × strongest activation")),
    h("form", { onsubmit: run }, text, h("label", {}, h("span", {}, "dose"), dose, said), h("button", { type: "submit" }, "Write")), status, both);
}
