// --- the view: what is shown, where on the screen; d3-zoom turns wheel, drag and pinch into a transform --

const frame = document.getElementById("frame"), tip = document.getElementById("tip"), status = document.getElementById("status");
const ground = document.getElementById("graph"), over = document.getElementById("over");
const AXIS = 36, HEAD = 22;
const state = {
  selected: -1, hovered: -1, pinned: new Set(graph.pinned), matches: [], matched: new Set(),
  collapsed: graph.groups.map(() => true), nodeCut: 1, edgeCut: 0, atRest: graph.edgeCount <= 400 ? "all" : "strongest",
  shown: new Uint8Array(graph.size).fill(1), owner: Int32Array.from({ length: graph.size }, (_, i) => i), vertices: [],
};
const view = { width: 0, height: 0, foot: 0, sx: 1, sy: 1, spread: 1, k: 1, x: 0, y: 0, tree: null, lift: new Float64Array(graph.groups.length) };
const baseX = vertex => AXIS + layout.x[vertex] * view.sx, baseY = vertex => HEAD + layout.y[vertex] * view.sy;
const screenX = vertex => baseX(vertex) * view.k + view.x, screenY = vertex => baseY(vertex) * view.k + view.y + (vertex < graph.size ? 0 : view.lift[vertex - graph.size]);
const columnX = c => (AXIS + layout.start[c] * view.sx) * view.k + view.x;
const rowY = y => (HEAD + y * view.sy) * view.k + view.y;

const zoom = d3.zoom().clickDistance(5).on("zoom", event => {
  Object.assign(view, { k: event.transform.k, x: event.transform.x, y: event.transform.y });
  if (event.sourceEvent) hover(-1);
  schedule();
});
const surface = d3.select(over).call(zoom).on("dblclick.zoom", null);

// The whole graph in the room between axis, head and foot; a long prompt keeps readable columns instead.
const measure = () => {
  view.width = frame.clientWidth; view.height = frame.clientHeight;
  const room = view.width - AXIS - 10, legible = 13 * graph.tokens.length;
  const whole = room / layout.width;
  view.sx = Math.min(1.9, Math.max(whole, legible > 3 * room ? 13 * graph.tokens.length / layout.width : 0)) * view.spread;
  view.foot = footHeight();
  view.sy = Math.min(3.2, (view.height - HEAD - view.foot - 4) / layout.height);
  const far = Math.max(14, 90 / (view.sx * layout.STEP));
  zoom.extent([[0, 0], [view.width, view.height]]).scaleExtent([Math.min(.6, .9 * room / (layout.width * view.sx)), far]);
  plant();
};
// Where nothing is zoomed: centred if it all fits, else at the end of the prompt.
const home = () => {
  const left = AXIS + layout.width * view.sx, spare = view.width - left - 8;
  const high = HEAD + layout.height * view.sy, room = view.height - view.foot;
  return d3.zoomIdentity.translate(spare > 0 ? spare / 2 : spare, Math.max(0, (room - high) / 2));
};
const fit = () => { view.spread = 1; measure(); surface.call(zoom.transform, home()); };
const widen = factor => {
  const middle = (view.width / 2 - view.x) / view.k;
  view.spread = Math.max(.05, Math.min(30, view.spread * factor));
  measure();
  surface.call(zoom.transform, d3.zoomIdentity.translate(view.width / 2 - (AXIS + (middle - AXIS) * factor) * view.k, view.y).scale(view.k));
};
const zoomBy = factor => surface.call(zoom.scaleBy, factor);
const reveal = vertex => {
  const into = (at, low, high) => at < low ? low + 40 - at : at > high ? high - 40 - at : 0;
  const dx = into(screenX(vertex), AXIS, view.width - 6), dy = into(screenY(vertex), 8, view.height - view.foot - 2);
  if (dx || dy) surface.call(zoom.transform, d3.zoomIdentity.translate(view.x + dx, view.y + dy).scale(view.k));
};

// Which vertices there are: shown nodes, and one for every collapsed supernode.
const decide = () => {
  for (let i = 0; i < graph.size; i++) {
    state.owner[i] = i;
    state.shown[i] = !graph.inner(i) || state.nodeCut >= 1 || graph.cumulative[i] <= state.nodeCut || state.pinned.has(i) || i === state.selected ? 1 : 0;
  }
  graph.groups.forEach((group, g) => {
    if (state.collapsed[g]) for (const i of group.members) if (state.owner[i] === i) state.owner[i] = graph.size + g;
  });
  state.vertices = [];
  for (let n = graph.size - 1; n >= 0; n--) { const i = byInfluence[n]; if (state.shown[i] && state.owner[i] === i) state.vertices.push(i); }
  state.groups = graph.groups.map((_, g) => graph.size + g).filter(vertex => groupShown(vertex));
  plant(); restEdges(); schedule();
};
const groupShown = vertex => state.collapsed[vertex - graph.size] && groupOf(vertex).members.some(i => state.owner[i] === vertex && state.shown[i]);
const plant = () => { view.tree = d3.quadtree().x(baseX).y(baseY).addAll(state.vertices); };
const vertexAt = (px, py) => {
  for (const vertex of state.groups ?? []) {
    const box = groupBox(vertex);
    if (px >= box.left && px <= box.left + box.width && py >= box.top && py <= box.top + box.height) return vertex;
  }
  if (py > view.height - view.foot) return tokenAt(px);
  return view.tree.find((px - view.x) / view.k, (py - view.y) / view.k, 13 / view.k) ?? -1;
};
const tokenAt = px => {
  const c = columnUnder(px);
  return c < 0 ? -1 : state.vertices.findLast(i => graph.kind[i] === "token" && layout.column(i) === c) ?? -1;
};
const columnUnder = px => {
  const at = ((px - view.x) / view.k - AXIS) / view.sx;
  return columnHolding(layout.start, at);
};
const columnHolding = (start, at) => {
  if (at < start[0] || at >= start[start.length - 1]) return -1;
  let low = 0, high = start.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (start[middle] <= at) low = middle; else high = middle; }
  return low;
};
