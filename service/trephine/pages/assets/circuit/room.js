// --- room for labels: where no glyph, no supernode's box and no other label is -------------------------------

const overlap = (a, b) => a.left < b.left + b.width && b.left < a.left + a.width && a.top < b.top + b.height && b.top < a.top + a.height;

// Boxes by strips of the screen, so that each is held against its neighbours alone.
const STRIP = 32;
const shelf = boxes => {
  const strips = new Map();
  const through = box => {
    const first = Math.floor(box.top / STRIP), last = Math.floor((box.top + box.height) / STRIP);
    return Array.from({ length: last - first + 1 }, (_, n) => first + n);
  };
  const take = box => { for (const s of through(box)) strips.set(s, [...strips.get(s) ?? [], box]); };
  boxes.forEach(take);
  return { take, free: box => !through(box).some(s => strips.get(s)?.some(other => overlap(box, other))) };
};

// Half of what a glyph takes up, with the ring around it if it has one.
const SPREAD = { error: 1.3, logit: 1.2 };
const ringed = i => i === state.selected || state.pinned.has(i);
const extent = i => radius(i) * (SPREAD[graph.kind[i]] ?? 1) + (ringed(i) ? 4 : 0);

// Other labels stay farther from a target than its own, which begins at OWN, so that none seems to name it.
const OWN = 4, APART = 7, REACH = 28;
const glyphBox = i => {
  const half = extent(i) + (graph.kind[i] === "logit" ? APART : 1);
  return { left: screenX(i) - half, top: screenY(i) - half, width: 2 * half, height: 2 * half };
};
// Would a label of `own` there cover another node? The tree of what is shown leads to those nearby.
const covers = (box, own, spared) => {
  const left = (box.left - REACH - view.x) / view.k, right = (box.left + box.width + REACH - view.x) / view.k;
  const top = (box.top - REACH - view.y) / view.k, bottom = (box.top + box.height + REACH - view.y) / view.k;
  let found = false;
  view.tree.visit((quad, x0, y0, x1, y1) => {
    if (found || x0 > right || x1 < left || y0 > bottom || y1 < top) return true;
    for (let leaf = quad.length ? null : quad; leaf && !found; leaf = leaf.next) found = leaf.data !== own && !spared(leaf.data) && overlap(box, glyphBox(leaf.data));
    return found;
  });
  return found;
};

// Where a label of some width may stand, best first: beside, above, below; then above and below, to one side.
const HIGH = 16;
const besides = (vertex, width) => {
  const x = screenX(vertex), y = screenY(vertex), half = extent(vertex), away = half + OWN;
  const above = y - away - HIGH, below = y + away, middle = Math.max(AXIS, Math.min(view.width - 2 - width, x - width / 2));
  return [[x + away, y - 8], [x - away - width, y - 8], [middle, above], [middle, below],
    [x - half, above], [x + half - width, above], [x - half, below], [x + half - width, below]];
};
