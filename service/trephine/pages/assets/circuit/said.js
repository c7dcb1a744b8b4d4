// --- what nodes are called in this page: kept for the tab, under the circuit's name, until it is saved -------
// Pins are in the address; labels are too long for one. Storage may be blocked, as it is for some files.

const SAID = `trephine labels ${graph.name}`;
const given = i => graph.given.get(i) ?? "";
let elsewhere = [], unkept = false;  // of nodes that another page of this circuit shows; not even kept
const recallLabels = () => {
  try {
    const said = JSON.parse(sessionStorage.getItem(SAID) ?? "[]").filter(([id, text]) => typeof id === "string" && typeof text === "string");
    elsewhere = said.filter(([id]) => !graph.indexOf.has(id));
    for (const [id, text] of said) if (graph.indexOf.has(id)) callBy(graph.indexOf.get(id), text);
  } catch { /* blocked, or not what this page wrote */ }
};
const keepLabels = () => {
  const said = [...elsewhere, ...[...named].map(([i, text]) => [idOf(i), text])];
  try { sessionStorage.setItem(SAID, JSON.stringify(said)); unkept = false; } catch { unkept = named.size > 0; }
};
const callBy = (i, text) => { if (text && text !== given(i)) named.set(i, text); else named.delete(i); };
addEventListener("beforeunload", event => { if (unkept) event.preventDefault(); });
