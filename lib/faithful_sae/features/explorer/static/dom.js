// Elements, numbers and tokens. Text of a corpus only ever becomes a text node: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

// three significant digits, as a person would write them
function number(value) {
  if (value == null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

const signed = (value) => `${value > 0 ? "+" : "\u2212"}${number(Math.abs(value))}`;
const percent = (share) => (share == null ? "–" : `${number(share * 100)} %`);
const count = (value) => value.toLocaleString("en-US");

// white space as one sees it: the twin of visible() in features/vocabulary.py. `spaced`: blanks at the
// ends too, where no neighbour shows that they are there
function visible(token, spaced = false) {
  const shown = token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
  return spaced ? shown.replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length)) : shown;
}

const FLAGS = {
  f: ["fake", "fires on more random tokens than the threshold"],
  o: ["orphan", "its best match in the other seed is below the threshold"],
  s: ["shared", "the other seed has it too"],
  d: ["dead", "never fires on this corpus"],
  n: ["dense", "fires on more than a tenth of the tokens"],
};

// balanced accuracies of what a judge says: features/interpretation.py
const SCORES = {
  detection_random: ["detection", "tells windows in which it fires from others"],
  detection_hard: ["detection, hard", "tells windows in which it fires from others with its top token"],
  fuzz_random: ["fuzzing", "tells tokens on which it fires from tokens of other windows"],
  fuzz_wrong: ["fuzzing, hard", "tells tokens on which it fires from others of the same windows"],
};
const GUESSING = "0.5";

const badges = (flags) => [...flags].map((flag) => h("span", { class: `fx-badge fx-${FLAGS[flag][0]}`, title: FLAGS[flag][1] }, FLAGS[flag][0]));
