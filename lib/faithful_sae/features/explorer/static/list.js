// The list of features: only the rows in sight exist. In the order of their numbers the rows are read as they come into sight;
// to search, sort or filter, all of them are read first.

const ROW = 44;        // pixels, as in explorer.css
const SORTS = {
  latent: "number", frequency: "frequency", max: "strongest activation", mean: "mean activation",
  twin_cosine: "cosine to the twin", random_frequency: "frequency on random tokens",
};

// `address`: of a feature, while the list is as it is; `changed`: called when somebody searched, sorted or filtered; `labels`: () -> {latent: label}
function featureList({ read, open, status, address, changed, labels }) {
  let meta, chunks, order, hits, selected = -1, version = 0;   // hits: of a search in contexts
  const chosen = new Set();

  const search = h("input", { type: "search", class: "fx-search", placeholder: "Search: text, number or \"exact token\"", "aria-label": "Search features by text, number or exact token in quotes",
    autocomplete: "off", spellcheck: "false", oninput: () => apply(120), onkeydown: searchKey });
  const scope = h("select", { "aria-label": "Search in", title: "readings: what is said of a feature; contexts: whole words, all of them in contexts of it", onchange: () => apply() },
    ["readings", "contexts"].map((value) => h("option", { value }, `in ${value}`)));
  const sort = h("select", { "aria-label": "Sort by", onchange: () => apply() });
  const turn = h("button", { type: "button", class: "fx-turn", onclick: () => { setDown(!down()); apply(); } });
  const setDown = (on) => { turn.dataset.down = on ? "1" : ""; turn.textContent = on ? "↓" : "↑"; turn.setAttribute("aria-label", on ? "highest first" : "lowest first"); turn.title = turn.getAttribute("aria-label"); };
  const down = () => turn.dataset.down === "1";
  const limit = (label, what, max) => h("input", { type: "number", min: 0, max, step: "any", placeholder: label, "aria-label": `${label} ${what}`, oninput: () => apply(200) });
  const [least, most] = ["min", "max"].map((label) => limit(label, "frequency in percent of tokens", 100));
  const [worst, best] = ["min", "max"].map((label) => limit(label, "score", 1));
  const score = h("select", { "aria-label": "Score to filter by", onchange: () => apply() });
  const scores = h("span", { class: "fx-range", role: "group", "aria-label": `Score of an explanation, 0 to 1; guessing scores ${GUESSING}`, title: `0 to 1; guessing scores ${GUESSING}` }, score, worst, "–", best);
  const chips = Object.fromEntries(Object.entries(FLAGS).map(([flag, [name, why]]) => [flag,
    h("button", { type: "button", class: `fx-chip fx-${name}`, title: why, "aria-pressed": "false", onclick: () => toggle(flag) })]));
  const reset = h("button", { type: "button", class: "fx-link", hidden: true, onclick: () => { clear(); apply(); search.focus(); } }, "clear");
  const total = h("span", { class: "fx-total", role: "status" });
  const space = h("div", { class: "fx-space", role: "presentation" });
  const box = h("div", { class: "fx-list", role: "listbox", tabindex: 0, "aria-label": "Features", onscroll: draw, onkeydown: key }, space);
  const root = h("section", { class: "fx-side", "aria-label": "List of features" },
    h("div", { class: "fx-find" }, search, scope),
    h("div", { class: "fx-chips", role: "group", "aria-label": "Show only" }, Object.values(chips)),
    h("div", { class: "fx-tools" },
      h("label", {}, h("span", {}, "sort"), sort), turn,
      h("span", { class: "fx-range", role: "group", "aria-label": "Frequency, percent of tokens" }, h("span", {}, "frequency %"), least, "–", most), scores),
    h("div", { class: "fx-count" }, total, reset),
    box);
  const resized = new ResizeObserver(() => meta && draw());
  resized.observe(box);
  setDown(false);

  const length = () => (order ? order.length : meta.d_sae);
  const at = (place) => (order ? order[place] : place);
  const placeOf = (latent) => (order ? order.indexOf(latent) : latent);
  const chunkOf = (latent) => Math.floor(latent / meta.rows_per_chunk);

  function load(chunk) {
    chunks[chunk] ??= read(`rows/${chunk}`).then((rows) => { chunks[chunk].rows = rows; return rows; });
    return chunks[chunk];
  }

  function row(latent) {
    const rows = chunks[chunkOf(latent)]?.rows, i = latent % meta.rows_per_chunk;
    return rows && { words: rows.words[i], flags: rows.flags[i], of: (by) => {
      const [column, judge] = by.split("/");
      return judge ? rows.judged[judge]?.[column][i] : by === "latent" ? latent : rows[by][i];
    } };
  }

  function clear() {
    for (const input of inputs) input.value = "";
    choose("");
  }

  function choose(flags) {
    chosen.clear();
    for (const flag of flags) chosen.add(flag);
    for (const [flag, chip] of Object.entries(chips)) chip.setAttribute("aria-pressed", chosen.has(flag));
  }

  function toggle(flag) {
    choose(chosen.has(flag) ? [...chosen].filter((other) => other !== flag) : [...chosen, flag]);
    apply();
  }

  // what was searched, sorted and filtered, as it stands in the address
  function query() {
    const asked = { q: search.value.trim(), in: scope.value === "readings" ? "" : scope.value, only: [...chosen].join(""), min: least.value, max: most.value };
    if (worst.value || best.value) Object.assign(asked, { score: score.value, from: worst.value, to: best.value });
    if (sort.value !== "latent" || down()) asked.sort = (down() ? "-" : "") + sort.value;
    return new URLSearchParams(Object.entries(asked).filter(([, value]) => value)).toString();
  }

  function ask(text) {
    const asked = new URLSearchParams(text), by = asked.get("sort") || "latent";
    const pick = (select, value) => { select.value = value; if (select.selectedIndex < 0) select.selectedIndex = 0; };
    search.value = asked.get("q") || "";
    pick(scope, asked.get("in") || "readings");
    for (const [input, name] of [[least, "min"], [most, "max"], [worst, "from"], [best, "to"]]) input.value = asked.get(name) || "";
    choose([...(asked.get("only") || "")].filter((flag) => flag in FLAGS));
    pick(sort, by.replace(/^-/, ""));
    pick(score, asked.get("score"));
    setDown(by.startsWith("-"));
  }

  // `wait`: milliseconds, while somebody types; `quiet`: nobody did
  async function apply(wait = 0, quiet = false) {
    const mine = ++version;
    if (wait) await new Promise((done) => setTimeout(done, wait));
    if (mine !== version) return;
    const words = search.value.trim(), narrowed = chosen.size || inputs.some((input) => input.value.trim());
    reset.hidden = !narrowed;
    if (!narrowed && sort.value === "latent" && !down()) order = null;
    else {
      try {
        hits = words && scope.value === "contexts" ? await featuresOfContexts(read, words) : null;
        if (!await loadAll(mine)) return;
      } catch (error) { status(error.message); return; }
      order = matching(words);
    }
    box.scrollTop = Math.max(0, (placeOf(selected) - 2) * ROW);
    total.textContent = length() === meta.d_sae ? `${count(meta.d_sae)} features` : `${count(length())} of ${count(meta.d_sae)} features`;
    draw();
    if (!quiet) changed();
  }

  async function loadAll(mine) {
    const n = chunkOf(meta.d_sae - 1) + 1;
    let next = 0, done = 0;
    const worker = async () => {
      while (next < n && mine === version) {
        await load(next++);
        if (++done < n) total.textContent = `reading the list: ${Math.round((100 * done) / n)} %`;
      }
    };
    await Promise.all(Array.from({ length: 6 }, worker));
    return mine === version;
  }

  function matching(words) {
    const low = (parseFloat(least.value) || 0) / 100, high = most.value === "" ? 1 : parseFloat(most.value) / 100;
    const scored = score.value && (worst.value || best.value), from = parseFloat(worst.value) || 0, to = best.value === "" ? 1 : parseFloat(best.value);
    const asked = /^#?\d+$/.test(words) ? Number(words.replace("#", "")) : -1, exact = words.match(/^"(.+)"$/)?.[1], text = words.toLowerCase();
    const by = sort.value, sign = down() ? -1 : 1, kept = [];
    for (let latent = 0; latent < meta.d_sae; latent++) {
      const r = row(latent), frequency = r.of("frequency"), value = scored ? r.of(score.value) : null;
      if (frequency < low || frequency > high || [...chosen].some((flag) => !r.flags.includes(flag))) continue;
      if (scored && (value == null || value < from || value > to)) continue;
      if (words && latent !== asked && !(hits ? hits.has(latent) : labels()[latent]?.toLowerCase().includes(text) || (exact ? r.words.split("\n").includes(exact) : r.words.toLowerCase().includes(text)))) continue;
      kept.push([r.of(by), latent]);
    }
    // the feature whose number was typed comes first; what has no value (a feature without a twin) last, whichever way
    kept.sort(([a, i], [b, j]) => (j === asked) - (i === asked) || (a == null) - (b == null) || sign * (a - b) || i - j);
    return kept.map(([, latent]) => latent);
  }

  function draw() {
    const n = length(), first = Math.max(0, Math.floor(box.scrollTop / ROW) - 6), last = Math.min(n, first + Math.ceil(box.clientHeight / ROW) + 12);
    space.style.height = `${n * ROW}px`;
    const shown = [];
    for (let place = first; place < last; place++) {
      const latent = at(place), r = row(latent);
      if (!r) load(chunkOf(latent)).then(draw, (error) => status(error.message));
      const pick = (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;   // a tab of its own
        event.preventDefault();
        select(latent);
        box.focus({ preventScroll: true });
      };
      shown.push(h("a", { class: "fx-row", role: "option", id: `${box.id}-${latent}`, "aria-selected": latent === selected ? "true" : "false", href: address(latent), tabindex: -1,
        "aria-setsize": n, "aria-posinset": place + 1, "--place": place, onclick: pick },
        h("span", { class: "fx-latent" }, String(latent)),
        h("span", { class: "fx-words" }, labels()[latent] && h("b", {}, `${labels()[latent]} · `), r ? summary(r) : "…"),
        h("span", { class: "fx-frequency", title: "share of tokens it fires on" }, r ? [percent(r.of("frequency")), scoreOf(r)] : ""),
        h("span", { class: "fx-flags" }, r ? badges(r.flags) : "")));
    }
    space.replaceChildren(...shown, ...(n ? [] : [h("p", { class: "fx-none" }, "No feature matches.")]));
    box.setAttribute("aria-activedescendant", placeOf(selected) >= first && placeOf(selected) < last ? `${box.id}-${selected}` : "");
  }

  const summary = (r) => r.words.split("\n").slice(0, 5).map((word) => visible(word, true)).join(" · ") || "(no words)";

  // the one that is sorted by, or filtered by
  function scoreOf(r) {
    const by = sort.value.includes("/") ? sort.value : worst.value || best.value ? score.value : "";
    return by && ` · ${SCORES[by.split("/")[0]][0]} ${number(r.of(by))}`;
  }

  function select(latent, quiet = false, browsing = false) {
    selected = latent;
    const place = placeOf(latent);
    if (place >= 0) {
      if (place * ROW < box.scrollTop) box.scrollTop = place * ROW;
      if ((place + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (place + 1) * ROW - box.clientHeight;
    }
    draw();
    if (!quiet) open(latent, false, browsing);
  }

  function move(place) {
    if (length()) select(at(Math.min(Math.max(place, 0), length() - 1)), false, true);
  }

  function key(event) {
    const page = Math.max(1, Math.floor(box.clientHeight / ROW) - 1), here = placeOf(selected);
    const goal = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page, Home: 0, End: length() - 1 }[event.key];
    if (goal !== undefined) { event.preventDefault(); move(goal); }
    else if (event.key === "Enter") { event.preventDefault(); open(selected, true); }
  }

  function searchKey(event) {
    if (event.key === "Escape") { search.value = ""; apply(); box.focus(); }
    if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); box.focus(); if (event.key === "Enter") move(0); }
  }

  const inputs = [search, least, most, worst, best];
  let named = 0;
  return {
    root, select, query, draw, focusSearch: () => { search.focus(); search.select(); }, destroy: () => resized.disconnect(),
    words: (latent) => load(chunkOf(latent)).then(() => summary(row(latent))),
    // of another set, or with another query; null: the same as before
    show(newMeta, text) {
      const asked = text ?? (meta ? query() : "");
      if (newMeta === meta) { ask(asked); return apply(0, true); }
      const judged = () => newMeta.judges.map((judge) => h("optgroup", { label: `judge ${judge}` },
        Object.entries(SCORES).map(([column, [name]]) => h("option", { value: `${column}/${judge}` }, `${name} (${judge})`))));
      sort.replaceChildren(...Object.entries(SORTS).map(([value, name]) => h("option", { value }, name)), ...judged());
      score.replaceChildren(...judged());
      scores.hidden = !newMeta.judges.length;
      ask(asked);
      meta = newMeta; chunks = []; order = null; selected = -1;
      box.id = `fx-${meta.key.replace(/[^\w]/g, "-")}-${++named}-${Math.random().toString(36).slice(2, 7)}`;
      for (const [flag, chip] of Object.entries(chips)) chip.textContent = `${FLAGS[flag][0]} ${count(meta.counts[flag])}`;
      box.scrollTop = 0;
      return apply(0, true);
    },
  };
}
