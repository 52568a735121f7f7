// The explorer itself. A host gives it `source`: sets (what there is: {key, run, label, corpus, seed}), ask(path, text) -> Promise,
// went({key, latent, query, how}) (told where one is; how: arrived, browsed or opened), address(key, latent, query) (where there are addresses),
// keys (whose keys it hears; by default its own element's), embed(address) (the code that shows a feature in another page, where there is one).
// Paths: <set>/meta, overview, examples, rows/<n>, page/<latent>, words, words/<n>, labels, label/<latent>, text, steer/<latent>/<dose>.

function mountExplorer(root, source) {
  let meta, latent = -1, version = 0, showing = 0;   // the last go and the last show: an answer to an earlier one comes too late
  const ask = source.ask, keys = source.keys || root, named = new Map();   // labels, by set
  let besideKey = null;   // of the set that is shown beside; null: the twin's
  const status = h("p", { class: "fx-status", role: "alert", hidden: true });
  const say = (message) => { status.textContent = message || ""; status.hidden = !message; };
  const list = featureList({ read: (path) => ask(`${meta.key}/${path}`), open: (which, focus, browsing) => show(which, focus, browsing ? "browsed" : "opened"), status: say,
    address: (which) => source.address?.(meta.key, which, list.query()), changed: () => tell("browsed"), labels: () => named.get(meta.key) || {} });
  const detail = h("div", { class: "fx-detail", tabindex: -1 });
  const choices = h("div", { class: "fx-choices" });
  const facts = h("p", { class: "fx-facts" });
  const values = h("button", { type: "button", class: "fx-chip", "aria-pressed": "false", title: "show every activation as a number (v)", onclick: () => toggleValues() }, "values");
  const reader = textReader({ read: (text) => (meta.can_read ? ask(`${meta.key}/text`, text) : readByWords((path) => ask(`${meta.key}/${path}`), text)), words: list.words, open: list.select });
  // of the same model and seed, the one that is shown first
  const across = () => [meta, ...source.sets].filter((set, i, all) => set.run === meta.run && set.seed === meta.seed && all.findIndex((other) => other.key === set.key) === i);
  const overview = panel("Corpora side by side", () => corporaSideBySide(across(), ask, to), () => across().length > 1);
  const some = panel("Features that have a name, and features drawn at random", () => namedAndDrawn(meta, ask, to), () => true);
  root.classList.add("fx");
  root.setAttribute("data-lm-suppress-shortcuts", "true");   // JupyterLab's one-letter commands stay out of it
  root.replaceChildren(
    h("header", { class: "fx-head" }, h("h1", {}, "Feature explorer"), choices, values, h("span", { class: "fx-help" }, h("kbd", {}, "/"), " search ", h("kbd", {}, "↑"), h("kbd", {}, "↓"), " browse ", h("kbd", {}, "t"), " twin ", h("kbd", {}, "v"), " values")),
    facts, status, overview.root, some.root, reader.root, h("div", { class: "fx-main" }, list.root, detail));
  keys.addEventListener("keydown", onKey);

  function onKey(event) {
    event.stopPropagation();   // not a command of the notebook
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const action = { "/": list.focusSearch, t: () => detail.querySelector(".fx-follow")?.click(), v: toggleValues }[event.key];
    if (action) { event.preventDefault(); action(); }
  }

  function toggleValues() {
    values.setAttribute("aria-pressed", root.classList.toggle("fx-values"));
  }

  function drawChoices() {
    const here = source.sets.find((set) => set.key === meta.key);
    const pick = (name, label, fixed) => {
      const all = source.sets.filter((set) => fixed.every((field) => set[field] === here[field]));
      const options = [...new Map(all.map((set) => [set[name], set])).values()];
      if (options.length === 1) return h("span", { class: "fx-only" }, `${label} `, h("b", {}, String(here[name === "run" ? "label" : name] ?? "–")));
      return h("label", {}, h("span", {}, label), h("select", { onchange: (event) => { const set = options[event.target.selectedIndex]; go(nearest(set, here)); } },
        options.map((set) => h("option", { selected: set[name] === here[name] }, name === "run" ? set.label : String(set[name])))));
    };
    choices.replaceChildren(pick("run", "model", []), pick("corpus", "corpus", ["run"]), pick("seed", "seed", ["run", "corpus"]));
  }

  // what is said of a set as a whole: read when it is opened, and again for another set
  function panel(title, make, there) {
    const body = h("div", {}), root = h("details", { class: "fx-overview", ontoggle: () => draw() }, h("summary", {}, h("h2", {}, title)), body);
    async function draw() {
      if (!root.open || !meta || body.dataset.key === meta.key) return;   // opened before there is a set
      const { key } = meta;
      body.dataset.key = key;
      try {
        const found = await make();
        if (key === meta.key) body.replaceChildren(...found);
      } catch (error) { delete body.dataset.key; say(error.message); }
    }
    return { root, show() { root.hidden = !there(); draw(); } };
  }

  // another model has perhaps not this corpus or seed: then the first it has
  function nearest(set, here) {
    const fits = (fields) => source.sets.find((s) => s.run === set.run && fields.every((field) => s[field] === (set.run === here.run && field === "corpus" ? set : here)[field]));
    if (set.run === here.run && set.corpus === here.corpus) return set.key;
    return (fits(["corpus", "seed"]) || fits(["corpus"]) || set).key;
  }

  const tell = (how) => { if (latent >= 0) source.went?.({ key: meta.key, latent, query: list.query(), how }); };

  // goes to a set, and in it to a feature; `query`: of the list, null as it was
  async function go(key, which = 0, how = "opened", query = null) {
    const mine = ++version;
    try {
      if (!source.sets.some((set) => set.key === key)) throw new Error(`There is no ${key} here: choose a model, corpus and seed above.`);
      const found = meta?.key === key ? meta : await ask(`${key}/meta`);
      if (mine !== version) return;
      if (!(which >= 0 && which < found.d_sae)) throw new Error(`There is no feature ${which} in ${key}: it has 0 to ${found.d_sae - 1}.`);
      if (found !== meta) {
        meta = found; latent = -1;
        drawChoices();
        facts.textContent = [`${count(meta.d_sae)} features`, meta.k != null && `${meta.k} active per token`, meta.layer != null && `layer ${meta.layer}`, meta.hook && `${meta.hook} output`,
          meta.tokens != null && `indexed on ${count(meta.tokens)} tokens`].filter(Boolean).join(" · ");
        reader.clear();
        overview.show();
        some.show();
        if (!named.has(key)) ask(`${key}/labels`).then((found) => { named.set(key, found); nameIt(); list.draw(); }, () => {});
        await list.show(meta, query);
      } else if (query !== null && query !== list.query()) await list.show(meta, query);
      list.select(which, true);
      await show(which, false, how);
    } catch (error) { if (mine === version) { say(error.message); if (!meta && source.sets.length) go(source.sets[0].key, 0, "arrived").then(() => say(error.message)); } }
  }

  async function show(which, focus = false, how = "opened") {
    say("");
    if (which === latent) { if (focus) focusDetail(); return; }
    const mine = ++showing, set = meta;
    latent = which;
    detail.setAttribute("aria-busy", "true");
    try {
      const page = await ask(`${set.key}/page/${which}`);
      if (mine !== showing) return;
      const beside = h("div", { class: "fx-beside" });
      detail.replaceChildren(featureCard(page, set, {
        heading: h("h2", { tabindex: -1 }, `Feature ${page.latent} `, h("small", {}, `seed ${set.seed}`)), label: labelOf(page.latent, set), to,
        more: set.can_read && page.max > 0 && steering(page, (dose, text) => ask(`${set.key}/steer/${which}/${dose}`, text)),
        actions: [source.address && h("button", { type: "button", title: "copy the address of this feature", onclick: (event) => copy(event, here()) }, "copy link"),
          source.embed && h("button", { type: "button", title: "copy the code that shows this feature in another page", onclick: (event) => copy(event, source.embed(here())) }, "embed"),
          h("button", { type: "button", title: "all that stands here, as a file", onclick: () => saveJson(page, set, named.get(set.key)?.[page.latent]) }, "JSON")] }), beside);
      detail.scrollTop = 0;
      tell(how);
      reader.colour(which);
      if (focus) focusDetail();
      await showBeside(beside, page, set);
    } catch (error) { if (mine === showing) { detail.replaceChildren(); say(error.message); } }
    finally { if (mine === showing) detail.removeAttribute("aria-busy"); }
  }

  const focusDetail = () => detail.querySelector("h2")?.focus();

  const here = () => new URL(source.address(meta.key, latent, ""), document.baseURI).href;

  async function copy(event, text) {
    // a page over plain http may not write to the clipboard
    try { await navigator.clipboard.writeText(text); event.target.textContent = "copied"; } catch { say(text); }
  }

  // a link to a feature of a set, or a button where there are no addresses
  function to(key, which, text, title) {
    const follow = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;   // a tab of its own
      event.preventDefault();
      go(key, which).then(focusDetail);
    };
    const known = key === meta.key && { onpointerenter: (event) => list.words(which).then((words) => { event.target.title = words; }, () => {}) };
    return source.address ? h("a", { href: source.address(key, which, ""), title, onclick: follow, ...known }, text)
      : h("button", { type: "button", class: "fx-link", title, onclick: follow, ...known }, text);
  }

  function labelOf(which, set) {
    const keep = async (event) => {
      try {
        named.set(set.key, await ask(`${set.key}/label/${which}`, event.target.value));
        list.draw();
      } catch (error) { say(error.message); }
    };
    return h("input", { class: "fx-label", "aria-label": "Your label", placeholder: "Your label", value: named.get(set.key)?.[which], "data-latent": which, onchange: keep });
  }

  // labels that came after the card
  function nameIt() {
    const input = detail.querySelector(".fx-label");
    if (input && !input.value) input.value = named.get(meta.key)?.[input.dataset.latent] || "";
  }

  // beside it: the twin, or the nearest decoder row in a set of another corpus
  async function showBeside(beside, page, set) {
    const elsewhere = page.related.elsewhere.filter(([key]) => source.sets.some((s) => s.key === key));
    const other = elsewhere.find(([key]) => key === besideKey);
    const choose = (event) => { besideKey = event.target.value || null; beside.replaceChildren(); showBeside(beside, page, set); };
    const name = (key) => source.sets.find((s) => s.key === key);
    const choice = elsewhere.length > 0 && h("label", { class: "fx-choice" }, h("span", {}, "beside it"), h("select", { onchange: choose },
      h("option", { value: "" }, "twin in the other seed"),
      elsewhere.map(([key, , cosine]) => h("option", { value: key, selected: key === besideKey }, `nearest of ${name(key).corpus}, seed ${name(key).seed} (${number(cosine)})`))));
    const card = other ? await otherCard(...other) : await twinCard(page, set);
    beside.replaceChildren(...[choice, card].filter(Boolean));
  }

  async function otherCard(key, which, cosine) {
    const [page, set] = await Promise.all([ask(`${key}/page/${which}`), ask(`${key}/meta`)]);
    return featureCard(page, set, {
      heading: h("h2", {}, `Feature ${which} `, h("small", {}, `Nearest of ${set.corpus}, seed ${set.seed}, cosine ${number(cosine)}`)),
      actions: [h("button", { type: "button", class: "fx-follow", title: "make it the feature shown (t)", onclick: () => go(key, which).then(focusDetail) }, "open")] });
  }

  async function twinCard(page, set) {
    const twinKey = set.twin_set;
    if (page.twin == null) return h("p", { class: "fx-none" }, "No other seed was compared with this one.");
    const words = `${page.shared ? "Twin" : "Best match, below the threshold"} in seed ${set.other_seed}`;
    if (!source.sets.some((s) => s.key === twinKey)) return h("p", { class: "fx-none" }, `${words}: feature ${page.twin}, cosine ${number(page.twin_cosine)} (not part of this explorer).`);
    const [twin, twinMeta] = await Promise.all([ask(`${twinKey}/page/${page.twin}`), ask(`${twinKey}/meta`)]);
    return featureCard(twin, twinMeta, {
      heading: h("h2", {}, `Feature ${twin.latent} `, h("small", {}, `${words}, cosine ${number(page.twin_cosine)}`)),
      actions: [h("button", { type: "button", class: "fx-follow", title: "make it the feature shown (t)", onclick: () => go(twinKey, page.twin).then(focusDetail) }, "open twin")] });
  }

  return { go, compare: () => { overview.root.open = true; }, destroy: () => { list.destroy(); keys.removeEventListener("keydown", onKey); } };
}
