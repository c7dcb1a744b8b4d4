// --- drawing: the ground (bands, edges at rest, nodes) and, over it, what the pointer and the keys touch ----

const colour = {}, sprites = new Map(), draws = [];
const ratio = () => devicePixelRatio || 1;
const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const readColours = () => {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ground", "panel", "ink", "faint", "line", "grid", "plus", "minus", "accent"]) colour[name] = style.getPropertyValue("--" + name).trim();
  sprites.clear();
  schedule();
};
let pending = 0, whole = true, noting = 0;
const schedule = (ground = true) => {
  whole ||= ground;
  pending ||= requestAnimationFrame(() => { pending = 0; draw(); });
};
function draw() {
  const began = performance.now();
  if (whole) drawGround();
  whole = false;
  drawOver();
  if (draws.push(performance.now() - began) > 600) draws.shift();
  weaveSoon();
  clearTimeout(noting);
  noting = setTimeout(remember, 250);
}
const penOn = canvas => {
  const wide = Math.round(view.width * ratio()), high = Math.round(view.height * ratio());
  if (canvas.width !== wide || canvas.height !== high) { canvas.width = wide; canvas.height = high; }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio(), 0, 0, ratio(), 0, 0);
  return pen;
};

// --- nodes: pictures of every shape, colour and size, made once ----------------------------------------
const growth = () => Math.max(.55, Math.min(1.9, Math.min(view.sx, view.sy * 1.15) * view.k));
const radius = i => {
  const end = graph.kind[i] === "token" || graph.kind[i] === "logit";
  const size = end ? 5.5 : 3.3 + 4.3 * Math.sqrt(Math.min(1, graph.influence[i] / largestInfluence));
  return Math.max(1.8, size * (end ? Math.max(.7, Math.min(1.2, growth())) : growth()));
};
const shape = (pen, kind, x, y, r) => {
  pen.beginPath();
  if (kind === "token") pen.rect(x - r, y - r * .8, 2 * r, 1.6 * r);
  else if (kind === "error") { pen.moveTo(x, y - r * 1.3); pen.lineTo(x + r * 1.3, y); pen.lineTo(x, y + r * 1.3); pen.lineTo(x - r * 1.3, y); pen.closePath(); }
  else if (kind === "logit") { pen.moveTo(x, y - r * 1.2); pen.lineTo(x + r * 1.2, y + r); pen.lineTo(x - r * 1.2, y + r); pen.closePath(); }
  else pen.arc(x, y, r, 0, 2 * Math.PI);
};
const inkOf = i => graph.inner(i) ? sign(graph.effect[i]) : "ink";
const sprite = (kind, ink, r) => {
  const size = Math.round(r * 2) / 2, key = `${kind} ${ink} ${size}`;
  let made = sprites.get(key);
  if (made?.ratio === ratio()) return made;
  const half = Math.ceil(size * 1.3 + 2), canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.ceil(2 * half * ratio());
  const pen = canvas.getContext("2d");
  pen.scale(ratio(), ratio());
  shape(pen, kind, half, half, size);
  pen.fillStyle = colour[ink]; pen.fill();
  pen.lineWidth = .8; pen.strokeStyle = colour.ground; pen.stroke();
  sprites.set(key, made = { canvas, half, ratio: ratio() });
  return made;
};
const drawNode = (pen, i) => {
  const x = screenX(i), y = screenY(i);
  if (x < -12 || y < -12 || x > view.width + 12 || y > view.height + 12) return false;
  const { canvas, half } = sprite(graph.kind[i], inkOf(i), radius(i));
  pen.drawImage(canvas, x - half, y - half, 2 * half, 2 * half);
  return true;
};

const drawGround = () => {
  const pen = penOn(ground);
  part();
  pen.fillStyle = colour.ground; pen.fillRect(0, 0, view.width, view.height);
  drawBands(pen);
  if (state.atRest !== "none" && weave.at) {
    const scale = view.k / weave.at.k;
    pen.globalAlpha = focusOf() >= 0 && state.selected >= 0 ? .22 : 1;
    pen.drawImage(weave.picture, view.x - weave.at.x * scale, view.y - weave.at.y * scale, weave.at.width * scale, weave.at.height * scale);
  }
  state.inView = [];
  pen.globalAlpha = state.selected >= 0 ? .3 : 1;
  for (const i of state.vertices) if (drawNode(pen, i)) state.inView.push(i);
  for (const vertex of state.groups) drawGroup(pen, vertex);
  pen.globalAlpha = 1;
  for (const g of graph.groups.keys()) if (!state.collapsed[g]) drawOutline(pen, g);
};
const drawBands = pen => {
  const step = Math.abs(columnX(1) - columnX(0));
  pen.fillStyle = colour.grid; pen.globalAlpha = .55;
  if (step > 5 || graph.tokens.length < 100) for (let c = 0; c < graph.tokens.length; c += 2) {
    const left = columnX(c), right = columnX(c + 1);
    if (right > AXIS && left < view.width) pen.fillRect(left, 0, right - left, view.height);
  }
  pen.strokeStyle = colour.line; pen.globalAlpha = .4; pen.lineWidth = 1;
  pen.beginPath();
  for (let b = 1; b <= layout.top; b++) {
    const y = Math.round(rowY(layout.bandTop[b - 1])) + .5;
    if (y > 0 && y < view.height) { pen.moveTo(0, y); pen.lineTo(view.width, y); }
  }
  pen.stroke(); pen.globalAlpha = 1;
};

// --- supernodes: a box with its name where its members would be, or an outline around them ---------------
// Boxes that would cover one another are stacked.
const part = () => {
  const above = [];
  view.lift.fill(0);
  for (const vertex of state.groups) {
    let box = groupBox(vertex), blocking;
    while (above.length < 60 && (blocking = above.find(other => overlap(box, other)))) {
      view.lift[vertex - graph.size] += blocking.top - 3 - box.height - box.top;
      box = groupBox(vertex);
    }
    above.push(box);
  }
};
const groupBox = vertex => {
  const width = Math.min(150, 26 + measureText(title(vertex), 12)), height = 22;
  // At the edge of the view it moves inwards; what is out of view stays out.
  const left = screenX(vertex) - width / 2, inner = view.width - width - 3;
  const inside = screenX(vertex) > AXIS && screenX(vertex) < view.width ? Math.max(AXIS, Math.min(inner, left)) : left;
  return { left: inside, top: screenY(vertex) - height / 2, width, height };
};
const drawGroup = (pen, vertex, strong = false) => {
  const box = groupBox(vertex);
  pen.beginPath(); pen.roundRect(box.left, box.top, box.width, box.height, 7);
  pen.fillStyle = colour.panel; pen.fill();
  pen.lineWidth = strong ? 2.4 : 1.4; pen.strokeStyle = colour.accent; pen.stroke();
  pen.font = font(12); pen.fillStyle = colour.ink; pen.textAlign = "center"; pen.textBaseline = "middle";
  pen.fillText(shortened(title(vertex), box.width - 10, 12), box.left + box.width / 2, box.top + box.height / 2 + .5);
};
const drawOutline = (pen, g) => {
  const members = graph.groups[g].members.filter(i => state.shown[i]);
  if (!members.length) return;
  pen.strokeStyle = colour.accent; pen.lineWidth = 1.2;
  pen.setLineDash([3, 3]);
  for (const i of members) { pen.beginPath(); pen.arc(screenX(i), screenY(i), radius(i) + 3.5, 0, 2 * Math.PI); pen.stroke(); }
  pen.setLineDash([]);
};

// --- over it: edges of the node in focus, rings, labels, axis and tokens -----------------------------------
const MOST = 60;
const focusOf = () => state.hovered >= 0 ? state.hovered : state.selected;
const drawOver = () => {
  const pen = penOn(over), focus = focusOf();
  pen.clearRect(0, 0, view.width, view.height);
  const near = [];
  if (focus >= 0) {
    for (const incoming of [true, false]) {
      const list = edgesOf(focus, incoming).slice(0, MOST);
      drawEdges(pen, focus, list, incoming);
      near.push(...list.map(edge => edge[0]));
    }
    for (const vertex of new Set(near)) if (vertex < graph.size) drawNode(pen, vertex); else drawGroup(pen, vertex);
    if (focus < graph.size) drawNode(pen, focus); else drawGroup(pen, focus, true);
  }
  for (const i of state.matches) ring(pen, i, colour.accent, 1.6);
  for (const i of state.pinned) if (state.owner[i] === i && state.shown[i]) { drawNode(pen, i); ring(pen, i, colour.ink, 1.2); }
  for (const vertex of [state.selected, state.hovered]) if (vertex >= 0) ring(pen, vertex, vertex === state.selected ? colour.ink : colour.faint, 2.2);
  drawLabels(pen, focus, near);
  drawAxis(pen);
  drawTokens(pen, focus);
};
const ring = (pen, vertex, ink, width) => {
  if (vertex >= graph.size || state.owner[vertex] !== vertex || !state.shown[vertex]) return;
  pen.lineWidth = width; pen.strokeStyle = ink;
  shape(pen, graph.kind[vertex], screenX(vertex), screenY(vertex), radius(vertex) + 3);
  pen.stroke();
};
const drawEdges = (pen, focus, list, incoming) => {
  const largest = Math.abs(list[0]?.[1] ?? 1) || 1;
  for (const [other, weight] of list.toReversed()) {
    const [from, to] = incoming ? [other, focus] : [focus, other], share = Math.abs(weight) / largest;
    const x1 = screenX(from), y1 = screenY(from), x2 = screenX(to), y2 = screenY(to);
    pen.strokeStyle = weight >= 0 ? colour.plus : colour.minus;
    pen.globalAlpha = .3 + .65 * share; pen.lineWidth = .7 + 3.3 * share;
    pen.beginPath(); pen.moveTo(x1, y1);
    pen.bezierCurveTo(x1, (y1 + y2) / 2, x2, (y1 + y2) / 2, x2, y2);
    pen.stroke();
  }
  pen.globalAlpha = 1;
};
