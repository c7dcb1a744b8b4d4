// --- beginning, and what others may read ---------------------------------------------------------------------------

const lowest = byInfluence.filter(graph.inner).reduce((least, i) => Math.min(least, graph.cumulative[i]), 1);
document.getElementById("legend").open = innerWidth > 860;
nodeSlider.min = Math.floor(lowest * 100) / 100;
groupsButton.hidden = !graph.groups.length;
nameEdges();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColours);
let fitted = false;
new ResizeObserver(() => {
  const untouched = !fitted || (view.k === 1 && view.spread === 1);
  measure();
  if (untouched) surface.call(zoom.transform, home());
  fitted = true;
  schedule();
}).observe(frame);
measure(); readColours(); threshold(); fit(); panel();
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => schedule());

// Read-only: what is shown, in the ids of the JSON document. Tests and notebooks look here; nothing can be set.
const listedEdges = (vertex, incoming) => edgesOf(vertex, incoming).map(([other, weight, share]) => ({ id: idOf(other), weight, share }));
const vertexOf = id => graph.indexOf.get(id) ?? (/^group \d+$/.test(id) ? graph.size + +id.slice(6) : -1);
window.trephine = Object.freeze({
  get nodes() { return graph.size; },
  get edges() { return graph.edgeCount; },
  get shown() { return { nodes: state.shown.reduce((sum, one) => sum + one, 0), edges: state.edgesShown, vertices: [...state.vertices, ...state.groups].map(idOf) }; },
  get selected() { return state.selected < 0 ? null : idOf(state.selected); },
  get hovered() { return state.hovered < 0 ? null : idOf(state.hovered); },
  get pinned() { return [...state.pinned].map(idOf); },
  get matches() { return state.matches.map(idOf); },
  get groups() { return graph.groups.map((group, g) => ({ label: group.label, members: group.members.map(idOf), collapsed: state.collapsed[g] })); },
  get transform() { return { k: view.k, x: view.x, y: view.y }; },
  get cuts() { return { nodes: state.nodeCut, edges: state.edgeCut }; },
  get edgesAtRest() { return { which: state.atRest, drawn: state.atRest === "none" ? 0 : resting.from.length }; },
  get theme() { return isDark() ? "dark" : "light"; },
  get drawing() { return { milliseconds: [...draws], edgesReady: state.atRest === "none" || (sameAs(weave.at) && !weave.stale) }; },
  /** Where a node or supernode is, in pixels of the page. */
  spot(id) { const box = over.getBoundingClientRect(), vertex = vertexOf(id); return { x: box.left + screenX(vertex), y: box.top + screenY(vertex) }; },
  node(id) {
    const i = graph.indexOf.get(id);
    return { id, kind: graph.kind[i], layer: graph.layer[i], position: graph.position[i], feature: graph.feature[i], activation: graph.activation[i], influence: graph.influence[i],
      cumulative: graph.cumulative[i], effect: graph.effect[i], label: title(i), total: graph.total[i], bias: graph.bias[i], remainder: graph.remainder[i] };
  },
  into(id) { return listedEdges(vertexOf(id), true); },
  out(id) { return listedEdges(vertexOf(id), false); },
});
