// Host 2: a cell of a notebook. Whatever is not in the cell's `first` answers is asked of Python.

const PATIENCE = 60_000;   // milliseconds

function render({ model, el }) {
  const waiting = new Map(), view = Math.random().toString(36).slice(2), kept = new Map();
  let n = 0;
  const hear = (answer) => {
    const question = waiting.get(answer.id);
    if (!question) return;   // another view of this widget asked
    waiting.delete(answer.id);
    clearTimeout(question.timer);
    answer.error ? question.reject(new Error(answer.error)) : question.resolve(answer.result);
  };
  const send = (path, text) => new Promise((resolve, reject) => {
    const id = `${view}-${n++}`;
    const timer = setTimeout(() => { waiting.delete(id); kept.delete(path); reject(new Error("Python does not answer: run the cell again.")); }, PATIENCE);
    waiting.set(id, { resolve, reject, timer });
    model.send({ id, path, text });
  });
  const ask = (path, text) => {
    const first = model.get("first");
    if (path in first) return Promise.resolve(first[path]);
    if (text !== undefined) return send(path, text);
    if (!kept.has(path)) kept.set(path, send(path).catch((error) => { kept.delete(path); throw error; }));
    return kept.get(path);
  };
  model.on("msg:custom", hear);
  const root = h("div", { class: "fx-widget" });
  el.append(root);
  const sets = model.get("sets");
  const explorer = mountExplorer(root, { sets, ask });
  explorer.go(sets[0].key, model.get("latent"), "arrived");
  return () => { model.off("msg:custom", hear); explorer.destroy(); };
}

export default { render };
