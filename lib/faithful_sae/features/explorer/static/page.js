// Host 1: a folder of files, from disk or a web server. Data are scripts, because a page opened from disk may load no other file.
// The address says where one is: index.html#/<run>/<corpus>/seed<seed>/<feature>?<what was searched, sorted and filtered>.

const arrived = new Map(), awaited = new Map();

function explorerData(name, value) {   // what each data file calls
  arrived.set(name, value);
}

function fetchData(name) {
  if (!awaited.has(name)) awaited.set(name, new Promise((resolve, reject) => {
    const script = h("script", { src: `data/${name.split("/").map(encodeURIComponent).join("/")}.js` });
    const end = (ok) => { script.remove(); ok && arrived.has(name) ? resolve(arrived.get(name)) : (awaited.delete(name), reject(new Error(`data/${name}.js could not be read: is the folder complete?`))); };
    script.onload = () => end(true);
    script.onerror = () => end(false);
    document.head.append(script);
  }));
  return awaited.get(name);
}

// labels are kept by the browser, beside those that came with the page: of this SAE, so that another's are not taken for its
async function labels(key, latent, label) {
  const { sae } = await fetchData(`${key}/meta`), name = `faithful-sae labels ${key} ${sae}`;
  const own = JSON.parse(localStorage.getItem(name) || "{}");
  if (latent !== undefined) {
    own[latent] = label.trim();   // an empty one too, as it may hide one that came with the page
    localStorage.setItem(name, JSON.stringify(own));
  }
  return { ...await fetchData(`${key}/labels`), ...own };
}

async function ask(path, text) {
  const labelled = path.match(/^(.*)\/label(s|\/\d+)$/);
  if (labelled) return labels(labelled[1], labelled[2] === "s" ? undefined : labelled[2].slice(1), text);
  const parts = path.match(/^(.*)\/page\/(\d+)$/);
  if (!parts) return fetchData(path);
  const meta = await fetchData(`${parts[1]}/meta`), chunk = Math.floor(parts[2] / meta.pages_per_chunk);
  return (await fetchData(`${parts[1]}/pages/${chunk}`))[parts[2] % meta.pages_per_chunk];
}

function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  return parts.length >= 3 ? { key: parts.slice(0, 3).join("/"), latent: Number(parts[3] || 0), query } : null;
}

fetchData("index").then((sets) => {
  const address = (key, latent, query) => `#/${[...key.split("/"), latent].map(encodeURIComponent).join("/")}${query && `?${query}`}`;
  // index.html?embed#/... is a feature alone, for a frame in another page
  const root = document.getElementById("explorer");
  root.classList.toggle("fx-embedded", new URLSearchParams(location.search).has("embed"));
  const embed = (link) => `<iframe src="${link.replace(/(\?[^#]*)?#/, "?embed#")}" title="a feature" width="100%" height="600"></iframe>`;
  const explorer = mountExplorer(root, { sets, ask, address, embed, keys: document, went({ key, latent, query, how }) {
    const { label, corpus, seed } = sets.find((set) => set.key === key), here = address(key, latent, query);
    document.title = `Feature ${latent} · ${label}, ${corpus}, seed ${seed} · Feature explorer`;
    // what is opened is a step that goes back; browsing and typing are none
    if (how !== "arrived" && here !== location.hash) history[how === "opened" ? "pushState" : "replaceState"](null, "", here);
  } });
  const arrive = () => { const { key, latent, query } = place() || { key: sets[0].key, latent: 0, query: "" }; return explorer.go(key, latent, "arrived", query); };
  addEventListener("hashchange", arrive);
  // who asked for no feature sees what there is
  if (!place()) explorer.compare();
  return arrive();
}).catch((error) => { document.getElementById("explorer").textContent = error.message; });
