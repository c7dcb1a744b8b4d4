// --- doing: select, hover, pin, collapse, thresholds, keys -----------------------------------------------------

function select(vertex, move = false) {
  if (vertex >= graph.size && !groupShown(vertex)) state.collapsed[vertex - graph.size] = true;
  if (vertex >= 0 && vertex < graph.size && state.owner[vertex] >= graph.size) state.collapsed[state.owner[vertex] - graph.size] = false;
  const before = state.selected;
  state.selected = vertex;
  if (graph.size && [before, vertex].some(i => i >= graph.size || (i >= 0 && (!state.shown[i] || forced(i) || state.owner[i] !== i)))) decide();
  if (vertex >= 0 && move) reveal(vertex);
  side.scrollTop = 0;
  say(); panel(); schedule();
}
const forced = i => graph.inner(i) && graph.cumulative[i] > state.nodeCut;
const say = () => {
  const vertex = state.selected;
  status.textContent = vertex < 0 ? "Nothing selected" : `${title(vertex)}, ${where(vertex)}${vertex < graph.size && graph.kind[vertex] !== "logit" ? `, effect ${inUnits(signed(graph.effect[vertex]))}` : ""}, ` +
    `${plural(edgesOf(vertex, true).length, "edge")} in, ${edgesOf(vertex, false).length} out`;
};
function hover(vertex, px, py) {
  if (vertex !== state.hovered) { state.hovered = vertex; schedule(false); }
  if (vertex < 0 || px === undefined) { tip.style.visibility = "hidden"; return; }
  const node = vertex < graph.size, promoted = node ? graph.promotes(vertex) : [];
  tip.replaceChildren(el("strong", {}, visible(title(vertex))), el("div", { class: "faint" }, where(vertex)),
    node && graph.kind[vertex] !== "logit" ? el("div", { class: sign(graph.effect[vertex]) }, `effect ${inUnits(signed(graph.effect[vertex]))}`) : "",
    node && graph.kind[vertex] === "logit" ? el("div", {}, toldTarget(vertex)) : "",
    promoted.length ? el("div", {}, "→ " + promoted.slice(0, 5).map(visible).join("  ")) : "");
  tip.style.left = Math.max(4, Math.min(px + 14, view.width - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(4, py + 14 + tip.offsetHeight > view.height ? py - tip.offsetHeight - 10 : py + 14) + "px";
  tip.style.visibility = "visible";
}
const pin = i => {
  if (i < 0 || i >= graph.size) return;
  if (!state.pinned.delete(i)) state.pinned.add(i);
  decide(); panel(); remember();  // at once: the page may be left before what is drawn is noted
};
// The panel is not made anew: what is clicked on leaving the field would be gone under the pointer.
const callIt = (i, text) => {
  callBy(i, text.trim());
  haystacks[i] = undefined;
  keepLabels();
  side.querySelector("h2 bdi").textContent = visible(title(i));
  schedule();
};
const collapse = (g, closed) => { state.collapsed[g] = closed; decide(); nameGroups(); };
const nameGroups = () => groupsButton.setAttribute("aria-pressed", String(state.collapsed.every(Boolean)));
const collapseAll = () => {
  const closed = !state.collapsed.every(Boolean);
  state.collapsed.fill(closed);
  if (state.selected >= graph.size && !closed) state.selected = -1;
  decide();
  if (state.selected >= 0 && state.selected < graph.size && state.owner[state.selected] !== state.selected) state.selected = state.owner[state.selected];
  nameGroups(); say(); panel();
};

// --- thresholds ------------------------------------------------------------------------------------------------
const nodeSlider = document.getElementById("node-cut"), edgeSlider = document.getElementById("edge-cut");
const nodeCount = document.getElementById("nodes-shown"), edgeCount = document.getElementById("edges-shown");
// The slider of edges is logarithmic: from all, over 0.1 %, to what alone is all that enters a node.
const edgeShare = place => place <= 0 ? 0 : 10 ** (-3 + 3 * place / 100);
const threshold = () => {
  state.nodeCut = +nodeSlider.value; state.edgeCut = edgeShare(+edgeSlider.value);
  decide();
  if (state.selected >= 0) panel();
  const shown = state.shown.reduce((sum, one) => sum + one, 0);  // tokens and targets too, as in the panel and the files
  nodeCount.textContent = shown === graph.size ? `all ${shown}` : `${shown} of ${graph.size}`;
  edgeCount.textContent = state.edgesShown === graph.edgeCount ? `all ${graph.edgeCount}` : `${state.edgesShown} of ${graph.edgeCount}`;
  nodeSlider.setAttribute("aria-valuetext", `up to ${percent(state.nodeCut, 0)} of the influence: ${nodeCount.textContent} nodes`);
  edgeSlider.setAttribute("aria-valuetext", `at least ${percent(state.edgeCut, 1)} of what enters a node: ${edgeCount.textContent} edges`);
};
nodeSlider.addEventListener("input", threshold);
edgeSlider.addEventListener("input", threshold);

// --- pointer ---------------------------------------------------------------------------------------------------
over.addEventListener("pointermove", event => { if (!event.buttons) hover(vertexAt(event.offsetX, event.offsetY), event.offsetX, event.offsetY); });
over.addEventListener("pointerleave", () => hover(-1));
over.addEventListener("click", event => { over.focus({ preventScroll: true }); select(vertexAt(event.offsetX, event.offsetY)); });
over.addEventListener("dblclick", event => { const vertex = vertexAt(event.offsetX, event.offsetY); if (groupOf(vertex)) toggleGroup(vertex); });
const toggleGroup = vertex => { collapse(vertex - graph.size, false); select(groupOf(vertex).members[0], true); };

// --- keys --------------------------------------------------------------------------------------------------------
const step = (dx, dy) => {
  if (state.selected < 0) return select(logits.find(i => state.shown[i]) ?? state.vertices.at(-1) ?? -1, true);
  const x = baseX(state.selected), y = baseY(state.selected);
  let best = -1, least = Infinity;
  for (const vertex of [...state.vertices, ...state.groups]) {
    const along = (baseX(vertex) - x) * dx + (baseY(vertex) - y) * dy, across = Math.abs((baseX(vertex) - x) * dy) + Math.abs((baseY(vertex) - y) * dx);
    const cost = along + 2.5 * across;
    if (along > .5 && cost < least) { least = cost; best = vertex; }
  }
  if (best >= 0) select(best, true);
};
const follow = incoming => { const first = state.selected >= 0 && edgesOf(state.selected, incoming)[0]; if (first) select(first[0], true); };
const help = document.getElementById("help");
const edgesButton = document.getElementById("edges"), groupsButton = document.getElementById("groups");
const toggleEdges = () => {
  const order = ["strongest", "all", "none"];
  state.atRest = order[(order.indexOf(state.atRest) + 1) % order.length];
  nameEdges(); restEdges(); schedule();
};
const nameEdges = () => { edgesButton.textContent = `Edges: ${state.atRest}`; };
const wear = theme => {
  if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
  readColours();
};
const turn = () => wear(isDark() ? "light" : "dark");
const KEYS = {
  f: fit, d: turn, e: toggleEdges, g: () => graph.groups.length && collapseAll(), p: () => pin(state.selected), i: () => follow(true), o: () => follow(false),
  n: () => jump(1), N: () => jump(-1), "+": () => zoomBy(1.3), "=": () => zoomBy(1.3), "-": () => zoomBy(1 / 1.3), "[": () => widen(1 / 1.4), "]": () => widen(1.4),
  "/": () => { search.focus(); search.select(); }, "?": () => help.showModal(), Escape: () => select(-1),
};
const ON_GRAPH = {
  ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1), ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), Home: () => select(logits[0] ?? -1, true),
  Enter: () => { if (groupOf(state.selected)) toggleGroup(state.selected); else if (state.selected < 0) step(0, 1); else side.focus(); },
};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || event.target.matches("input[type=search],input[type=text]")) return;
  const slider = event.target.matches("input"), act = (document.activeElement === over && ON_GRAPH[event.key]) || (slider && /^(Arrow|Home)/.test(event.key) ? null : KEYS[event.key]);
  if (!act) return;
  event.preventDefault();
  act();
});
const clicks = { fit, theme: turn, edges: toggleEdges, groups: collapseAll, closer: () => zoomBy(1.3), farther: () => zoomBy(1 / 1.3), wider: () => widen(1.4), narrower: () => widen(1 / 1.4), keys: () => help.showModal(), "close-help": () => help.close() };
for (const [id, act] of Object.entries(clicks)) document.getElementById(id).addEventListener("click", act);
