// --- edges as shown: above the cut, between shown vertices, those of a collapsed supernode added up ------

const edgeShown = e => graph.share[e] >= state.edgeCut && state.shown[graph.source[e]] && state.shown[graph.target[e]];
const membersOf = vertex => groupOf(vertex) ? groupOf(vertex).members.filter(i => state.owner[i] === vertex) : [vertex];

// Edges into (or out of) a vertex as [other vertex, weight, share], strongest first.
const edgesOf = (vertex, incoming) => {
  const sums = new Map(), other = incoming ? graph.source : graph.target;
  for (const i of membersOf(vertex)) for (const e of incoming ? graph.into(i) : graph.out(i)) {
    const at = state.owner[other[e]];
    if (at === vertex || !edgeShown(e)) continue;
    sums.set(at, (sums.get(at) ?? 0) + graph.weight[e]);
  }
  const entering = incoming ? () => massInto(vertex) : massInto;
  return [...sums].map(([at, weight]) => [at, weight, Math.abs(weight) / (entering(at) || 1)]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
};
const massInto = vertex => membersOf(vertex).reduce((sum, i) => sum + graph.entering[i], 0);

// All edges as shown: parallel columns, weakest first; or the few that carry most of the influence, an edge's
// share of what enters its target times the target's influence. Counted always, drawn where wanted.
const FEW = 220;
let resting = { from: new Int32Array(0), to: new Int32Array(0), weight: new Float32Array(0), share: new Float32Array(0) };
const restEdges = () => {
  const from = [], to = [], weight = [], slot = new Map(), vertices = graph.size + graph.groups.length;
  let kept = 0;
  for (let e = 0; e < graph.edgeCount; e++) {
    if (!edgeShown(e)) continue;
    kept++;
    const a = state.owner[graph.source[e]], b = state.owner[graph.target[e]];
    if (a === b && a >= graph.size) continue;
    const merged = a >= graph.size || b >= graph.size, key = a * vertices + b;
    if (merged && slot.has(key)) { weight[slot.get(key)] += graph.weight[e]; continue; }
    if (merged) slot.set(key, from.length);
    from.push(a); to.push(b); weight.push(graph.weight[e]);
  }
  const share = Float32Array.from(weight, (value, n) => Math.abs(value) / (massInto(to[n]) || 1));
  let order = Uint32Array.from(share.keys());
  if (state.atRest === "strongest" && order.length > FEW) {
    const through = Float32Array.from(share, (value, n) => value * influenceOf(to[n]));
    order = order.sort((a, b) => through[b] - through[a]).slice(0, FEW);
  }
  order.sort((a, b) => share[a] - share[b]);
  const pick = values => order.length ? Array.from(order, n => values[n]) : [];
  resting = { from: Int32Array.from(pick(from)), to: Int32Array.from(pick(to)), weight: Float32Array.from(pick(weight)), share: Float32Array.from(pick(share)) };
  state.edgesShown = kept;
  weave.stale = true;
};

const influenceOf = vertex => membersOf(vertex).reduce((sum, i) => sum + graph.influence[i], 0);

// The edges at rest are drawn into a picture beside the screen, a few milliseconds at a time; a gesture moves
// the picture that there is, and the new one takes its place when it is whole.
const weave = { picture: document.createElement("canvas"), next: document.createElement("canvas"), at: null, stale: true, timer: 0, run: 0 };
const LEVELS = [[.004, .10, .6], [.02, .16, .8], [.06, .26, 1.1], [.15, .42, 1.6], [.4, .6, 2.3], [2, .78, 3.2]];
const sameAs = at => at && at.k === view.k && at.x === view.x && at.y === view.y && at.sx === view.sx && at.sy === view.sy && at.width === view.width && at.height === view.height && at.ratio === ratio() && at.dark === isDark();
const weaveSoon = () => {
  if (state.atRest === "none" || (sameAs(weave.at) && !weave.stale)) return;
  clearTimeout(weave.timer);
  weave.timer = setTimeout(startWeaving, weave.at ? 90 : 0);
};
const weaveNow = () => { if (state.atRest !== "none") startWeaving(false); };
const startWeaving = (slowly = true) => {
  const run = ++weave.run, { next } = weave;
  const at = { k: view.k, x: view.x, y: view.y, sx: view.sx, sy: view.sy, width: view.width, height: view.height, ratio: ratio(), dark: isDark() };
  next.width = Math.round(view.width * at.ratio); next.height = Math.round(view.height * at.ratio);
  const pen = next.getContext("2d");
  pen.setTransform(at.ratio, 0, 0, at.ratio, 0, 0);
  weave.stale = false;
  let n = 0;
  const slice = () => {
    if (run !== weave.run) return;
    const until = slowly ? performance.now() + 7 : Infinity;
    while (n < resting.from.length && performance.now() < until) n = strands(pen, n, 48);
    if (n < resting.from.length) return void setTimeout(slice, 0);
    [weave.picture, weave.next] = [next, weave.picture];
    weave.at = at;
    schedule();
  };
  slice();
};
// Draw up to `count` edges of one colour and level from number `n` on; returns where it came to.
const strands = (pen, n, count) => {
  const level = LEVELS.findIndex(one => resting.share[n] < one[0]), positive = resting.weight[n] >= 0;
  pen.beginPath();
  const end = Math.min(resting.from.length, n + count);
  let m = n;
  for (; m < end && resting.share[m] < LEVELS[level][0]; m++) {
    if (resting.weight[m] >= 0 === positive) strand(pen, resting.from[m], resting.to[m]);
    else aside.push(m);
  }
  finish(pen, level, positive);
  pen.beginPath();
  for (const other of aside) strand(pen, resting.from[other], resting.to[other]);
  finish(pen, level, !positive);
  aside.length = 0;
  return m;
};
const aside = [];
const finish = (pen, level, positive) => {
  pen.strokeStyle = positive ? colour.plus : colour.minus;
  const few = resting.from.length <= FEW;  // each of a few can be followed by eye
  pen.globalAlpha = few ? Math.max(.26, .75 * LEVELS[level][1]) : LEVELS[level][1] * Math.max(.09, Math.min(.7, 900 / resting.from.length));
  pen.lineWidth = Math.min(LEVELS[level][2], resting.from.length > 8000 ? 1 : 9);
  pen.stroke();
};
const strand = (pen, a, b) => {
  const x1 = screenX(a), y1 = screenY(a), x2 = screenX(b), y2 = screenY(b);
  if (Math.max(x1, x2) < 0 || Math.min(x1, x2) > view.width || Math.max(y1, y2) < 0 || Math.min(y1, y2) > view.height) return;
  pen.moveTo(x1, y1);
  if (resting.from.length > 4000) pen.lineTo(x2, y2);
  else pen.bezierCurveTo(x1, (y1 + y2) / 2, x2, (y1 + y2) / 2, x2, y2);
};
