// Features by the words of their contexts, looked up in chunks of sorted words: no model is needed. The index is made by words.py.

const WORD = /[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu;

// a word -> {fires: [[latent, activation], ...], the strongest first; all: the features whose contexts have it}
async function featuresOfWord(read, word) {
  const starts = await read("words");
  let low = 0, high = starts.length;
  while (low < high) {   // the first chunk that begins behind the word
    const middle = (low + high) >> 1;
    if (starts[middle] <= word) low = middle + 1; else high = middle;
  }
  const entry = low ? (await read(`words/${low - 1}`)).find(([other]) => other === word) : null;
  const [, flat = [], rest = []] = entry || [], fires = [];
  for (let i = 0; i < flat.length; i += 2) fires.push([flat[i], flat[i + 1]]);
  return { fires, all: [...fires.map(([latent]) => latent), ...rest] };
}

// the features in whose contexts all words of a text are; null: it has none
async function featuresOfContexts(read, text) {
  const words = new Set(text.toLowerCase().match(WORD));
  let found = null;
  for (const { all } of await Promise.all([...words].map((word) => featuresOfWord(read, word)))) {
    const here = new Set(all);
    found = found ? new Set([...found].filter((latent) => here.has(latent))) : here;
  }
  return found;
}

const STRONGEST = 40;   // features of a word

// what a model would say of a text's tokens, as far as the contexts that are kept say it of its words
async function readByWords(read, text) {
  const matches = [...text.matchAll(WORD)];
  const found = await Promise.all(matches.map((match) => featuresOfWord(read, match[0].toLowerCase())));
  const end = (i) => (i < 0 ? 0 : matches[i].index + matches[i][0].length);
  return {
    tokens: matches.map((match, i) => ({ token: text.slice(end(i - 1), end(i)), features: found[i].fires.slice(0, STRONGEST) })),
    note: "Looked up, without a model: features that fire on these words in the contexts kept of them, and how strongly at most.",
  };
}
