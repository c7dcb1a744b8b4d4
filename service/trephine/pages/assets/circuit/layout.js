// --- layout: one band a layer that is used, one column a position; units are pixels at scale 1 -----
// A layer has a band for each of its sets, those that feed the others there below, so that every edge goes upwards.

const layout = (() => {
  const STEP = 15, ROW = 14, TARGET_STEP = 44, WIDEST_STEP = 78, TARGET_ROW = 24, BAND = 26, GAP = 14, EMPTY = 12, NARROWEST = 34;
  const inner = innerNodes, features = inner.filter(i => graph.kind[i] === "feature"), orders = ordersOfSets();
  const rankInLayer = i => orders.inLayer(graph.layer[i])[graph.set[i]];
  const lowest = new Map();  // rank in a layer: errors, which nothing enters, lie with the set below all others
  for (const i of features) lowest.set(graph.layer[i], Math.min(lowest.get(graph.layer[i]) ?? Infinity, rankInLayer(i)));
  const rankOf = i => graph.kind[i] === "feature" ? rankInLayer(i) : lowest.get(graph.layer[i]) ?? 0;
  const levelOf = i => graph.layer[i] * graph.sets.length + rankOf(i), levels = [...new Set(inner.map(levelOf))].sort((a, b) => a - b);
  const bandOf = new Map(levels.map((level, n) => [level, n + 1])), top = levels.length + 1;
  const band = i => graph.kind[i] === "token" ? 0 : graph.kind[i] === "logit" ? top : bandOf.get(levelOf(i));
  const letter = set => several && set >= 0 ? String.fromCharCode(97 + orders.overall[set]) : "";
  const names = levels.map(level => {
    const layer = Math.floor(level / graph.sets.length), set = orders.inLayer(layer).indexOf(level % graph.sets.length);
    return `L${layer}${letter(lowest.has(layer) ? set : -1)}`;
  });
  const last = graph.tokens.length - 1;
  const column = i => Math.max(0, Math.min(last, graph.position[i] < 0 ? last : graph.position[i]));

  const cells = new Map();
  for (const i of byInfluence) {
    const key = band(i) * graph.tokens.length + column(i);
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(i);
  }
  // A crowded cell is about twice as wide as high. Targets have room for their names between them.
  const perRow = (b, count) => Math.max(1, Math.min(count, b === top && count > 4 ? Math.ceil(Math.sqrt(count)) : Math.ceil(Math.sqrt(2 * count))));
  // Two have room at their sides.
  const nameOf = i => measureText(shortened(title(i), WIDEST_STEP, 11), 11) + 34;
  const targetStep = members => members.length < 3 ? TARGET_STEP : Math.min(WIDEST_STEP, Math.max(TARGET_STEP, ...members.map(nameOf)));
  const stepOf = (b, members) => b === top ? targetStep(members) : STEP, rowOf = b => b === top ? TARGET_ROW : ROW;
  const width = new Float64Array(graph.tokens.length).fill(EMPTY), height = new Float64Array(top + 1).fill(BAND);
  for (const [key, members] of cells) {
    const b = Math.floor(key / graph.tokens.length), c = key % graph.tokens.length, wide = perRow(b, members.length);
    if (b) width[c] = Math.max(width[c], NARROWEST, (wide - 1) * stepOf(b, members) + STEP);
    height[b] = Math.max(height[b], (Math.ceil(members.length / wide) - 1) * rowOf(b) + ROW + 10);
  }
  const start = new Float64Array(width.length + 1), bandTop = new Float64Array(top + 2);
  for (let c = 0; c < width.length; c++) start[c + 1] = start[c] + width[c] + GAP;
  for (let b = top; b >= 0; b--) bandTop[b] = b === top ? 0 : bandTop[b + 1] + height[b + 1];

  const x = new Float64Array(graph.size + graph.groups.length), y = new Float64Array(x.length);
  for (const [key, members] of cells) {
    const b = Math.floor(key / graph.tokens.length), c = key % graph.tokens.length, wide = perRow(b, members.length);
    const step = stepOf(b, members), rows = Math.ceil(members.length / wide);
    members.forEach((i, order) => {
      const row = Math.floor(order / wide), inRow = Math.min(wide, members.length - row * wide);
      x[i] = start[c] + GAP / 2 + width[c] / 2 + (order % wide - (inRow - 1) / 2) * step;
      y[i] = bandTop[b] + height[b] / 2 + (row - (rows - 1) / 2) * rowOf(b);
    });
  }
  graph.groups.forEach((group, g) => {
    const mean = values => group.members.reduce((sum, i) => sum + values[i], 0) / group.members.length;
    x[graph.size + g] = mean(x);
    y[graph.size + g] = mean(y);
  });
  return { names, key: graph.sets.map((name, n) => [letter(n), name]).sort(), top, band, column, x, y, start, bandTop, bandHeight: height, width: start[width.length], height: bandTop[0] + height[0], STEP };
})();

// The rank of every set in each layer: whoever feeds another there is below it; else as over all layers, which is how
// their letters go. A set may be attention's in one layer and the MLP's in another.
function ordersOfSets() {
  const unfed = () => graph.sets.map(() => graph.sets.map(() => 0)), whole = unfed(), feeds = new Map();
  for (let e = 0; e < graph.edgeCount; e++) {
    const a = graph.source[e], b = graph.target[e], layer = graph.layer[a];
    if (graph.kind[a] !== "feature" || graph.kind[b] !== "feature" || graph.layer[b] !== layer) continue;
    if (!feeds.has(layer)) feeds.set(layer, unfed());
    whole[graph.set[a]][graph.set[b]]++;
    feeds.get(layer)[graph.set[a]][graph.set[b]]++;
  }
  const overall = ranksBy(whole, graph.sets.map((_, n) => n));
  const byLayer = new Map([...feeds].map(([layer, counts]) => [layer, ranksBy(counts, overall)]));
  return { overall, inLayer: layer => byLayer.get(layer) ?? overall };
}

// Ranks from counts of edges between sets; those that no edge puts in order keep the one before.
function ranksBy(feeds, before) {
  const depth = feeds.map(() => 0);
  for (const _ of feeds) feeds.forEach((_, b) => feeds.forEach((_, a) => {
    if (feeds[a][b] > feeds[b][a]) depth[b] = Math.max(depth[b], Math.min(depth[a] + 1, feeds.length));
  }));
  const order = [...depth.keys()].sort((a, b) => depth[a] - depth[b] || before[a] - before[b]);
  return depth.map((_, n) => order.indexOf(n));
}
