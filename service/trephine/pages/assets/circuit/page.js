// --- beginning, and what others may read ---------------------------------------------------------------------------

const vertexOf = id => graph.indexOf.get(id) ?? (/^group \d+$/.test(id) ? graph.size + +id.slice(6) : -1);
const lowest = innerNodes.reduce((least, i) => Math.min(least, graph.cumulative[i]), 1);
document.getElementById("legend").open = innerWidth > 860;
if (withEffect.length < innerNodes.length) document.querySelector("#legend ul").append(el("li", {}, el("i", { class: "faint" }, "●"), "effect not known"));
if (several) document.querySelector("#legend ul").append(...layout.key.map(([letter, name]) => el("li", { class: "set" }, el("i", {}, letter), name)));
nodeSlider.min = Math.floor(lowest * 100) / 100;
groupsButton.hidden = !graph.groups.length;
nameEdges();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColours);
const restAtFirst = state.atRest;
let fitted = false, written = location.hash;
new ResizeObserver(() => {
  const untouched = !fitted || (view.k === 1 && view.spread === 1);
  measure();
  if (untouched) surface.call(zoom.transform, home());
  fitted = true;
  schedule();
}).observe(frame);
recallLabels(); measure(); readColours(); threshold(); fit(); panel(); recall(); takeFocus();
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => schedule());

// Arrow keys and Home work at once. In a frame, as of a notebook, the focus stays where the reader has it.
function takeFocus() {
  const top = window === window.top || document.hasFocus();
  if (top && [null, document.body].includes(document.activeElement)) over.focus({ preventScroll: true, focusVisible: false });
}
const skip = document.getElementById("skip");
skip.addEventListener("click", event => { event.preventDefault(); over.focus(); });  // the address says what is chosen

// A page is printed dark on light, whatever it is on the screen.
let worn;
addEventListener("beforeprint", () => { worn = document.documentElement.dataset.theme; wear("light"); weaveNow(); draw(); });
addEventListener("afterprint", () => wear(worn));
addEventListener("beforeunload", remember);  // what was chosen last may not have been noted yet

// What was chosen is in the address, so that a bookmark or a link shows it again.
function recall() {
  const said = new URLSearchParams(location.hash.slice(1)), list = name => (said.get(name) ?? "").split(",").filter(Boolean);
  if (said.has("pinned")) state.pinned = new Set(list("pinned").map(vertexOf).filter(i => i >= 0 && i < graph.size));
  for (const g of list("open")) if (graph.groups[+g]) state.collapsed[+g] = false;
  if (said.has("nodes")) nodeSlider.value = said.get("nodes");
  if (said.has("edges")) edgeSlider.value = said.get("edges");
  if (["strongest", "all", "none"].includes(said.get("rest"))) state.atRest = said.get("rest");
  nameEdges(); nameGroups(); threshold();
  const chosen = vertexOf(said.get("node") ?? "");
  if (chosen >= 0 && (chosen < graph.size || groupOf(chosen))) select(chosen, true); else panel();
}
function remember() {
  const said = new URLSearchParams();
  if (state.selected >= 0) said.set("node", idOf(state.selected));
  if (state.pinned.size || graph.pinned.length) said.set("pinned", [...state.pinned].map(idOf).join(","));
  const open = [...state.collapsed.keys()].filter(g => !state.collapsed[g]);
  if (open.length) said.set("open", open.join(","));
  if (+nodeSlider.value < 1) said.set("nodes", nodeSlider.value);
  if (+edgeSlider.value > 0) said.set("edges", edgeSlider.value);
  if (state.atRest !== restAtFirst) said.set("rest", state.atRest);
  const hash = said.size ? `#${said}` : "";
  if (hash === written) return;
  written = hash;
  try { history.replaceState(null, "", hash || location.pathname + location.search); } catch { /* a frame of a notebook has no address of its own */ }
}

// Read-only: what is shown, in the ids of the JSON document. Tests and notebooks look here; nothing can be set.
const listedEdges = (vertex, incoming) => edgesOf(vertex, incoming).map(([other, weight, share]) => ({ id: idOf(other), weight, share }));
window.trephine = Object.freeze({
  get nodes() { return graph.size; },
  get edges() { return graph.edgeCount; },
  get shown() { return { nodes: state.shown.reduce((sum, one) => sum + one, 0), edges: state.edgesShown, vertices: [...state.vertices, ...state.groups].map(idOf) }; },
  get selected() { return state.selected < 0 ? null : idOf(state.selected); },
  get hovered() { return state.hovered < 0 ? null : idOf(state.hovered); },
  get pinned() { return [...state.pinned].map(idOf); },
  get said() { return saidHere(); },
  /** The labels that are drawn, in pixels of the page. */
  get labels() { const at = over.getBoundingClientRect(); return labels.map(({ vertex, left, top, ...rest }) => ({ id: idOf(vertex), left: at.left + left, top: at.top + top, ...rest })); },
  get matches() { return state.matches.map(idOf); },
  get groups() { return graph.groups.map((group, g) => ({ label: group.label, members: group.members.map(idOf), collapsed: state.collapsed[g] })); },
  get transform() { return { k: view.k, x: view.x, y: view.y }; },
  get cuts() { return { nodes: state.nodeCut, edges: state.edgeCut }; },
  get edgesAtRest() { return { which: state.atRest, drawn: state.atRest === "none" ? 0 : resting.from.length }; },
  get theme() { return isDark() ? "dark" : "light"; },
  get drawing() { return { milliseconds: [...draws], edgesReady: state.atRest === "none" || (sameAs(weave.at) && !weave.stale) }; },
  /** Names of the bands between tokens and targets, from below. */
  get bands() { return [...layout.names]; },
  /** Where a node or supernode is, in pixels of the page. */
  spot(id) { const box = over.getBoundingClientRect(), vertex = vertexOf(id); return { x: box.left + screenX(vertex), y: box.top + screenY(vertex), r: vertex < graph.size ? radius(vertex) : 0 }; },
  node(id) {
    const i = graph.indexOf.get(id);
    return { id, kind: graph.kind[i], layer: graph.layer[i], position: graph.position[i], feature: graph.feature[i], set: graph.kind[i] === "feature" ? setOf(i) : null, activation: graph.activation[i], influence: graph.influence[i],
      cumulative: graph.cumulative[i], effect: graph.effect[i], label: title(i), total: graph.total[i], bias: graph.bias[i], remainder: graph.remainder[i] };
  },
  into(id) { return listedEdges(vertexOf(id), true); },
  out(id) { return listedEdges(vertexOf(id), false); },
});
