// --- labels: names of nodes where there is room, layers at the left, tokens at the foot ---------------------

// A label may be as wide as this; where that has no room, shorter. A target's is of use when only its beginning fits.
const WIDEST = 130, SHORTER = { strong: [WIDEST, 76, 46], weak: [WIDEST, 92] };
let labels = [];
const onScreen = vertex => {
  const x = screenX(vertex), y = screenY(vertex);
  return x >= AXIS && x <= view.width && y >= 4 && y <= view.height - view.foot;
};
const nameable = vertex => vertex >= 0 && vertex < graph.size && state.owner[vertex] === vertex && state.shown[vertex] && onScreen(vertex);
const inside = box => box.left >= AXIS && box.left + box.width <= view.width - 2 && box.top >= 1 && box.top + box.height <= view.height - view.foot;

// Glyphs have their room first. A label that covers a node or another label is left out.
const drawLabels = (pen, focus, near) => {
  const room = shelf(state.groups.map(groupBox)), named = new Set();
  const spot = (vertex, width, spared) => besides(vertex, width).map(([left, top]) => ({ left, top, width, height: HIGH }))
    .find(box => inside(box) && room.free(box) && !covers(box, vertex, spared));
  const place = (vertex, strong, spared = () => false) => {
    if (!nameable(vertex) || named.has(vertex) || (graph.kind[vertex] === "token" && !strong)) return;
    const texts = new Set(SHORTER[strong ? "strong" : "weak"].map(width => shortened(title(vertex), width, 11)));
    for (const text of texts) {
      const box = spot(vertex, measureText(text, 11) + 6, spared);
      if (!box) continue;
      room.take(box);
      named.add(vertex);
      labels.push({ vertex, text, ...box });
      return writeLabel(pen, text, box, strong);
    }
  };
  labels = [];
  pen.font = font(11); pen.textAlign = "left"; pen.textBaseline = "middle";
  place(state.selected, true);
  for (const i of logits.filter(nameable).slice(0, MOST)) place(i, true);
  for (const i of state.pinned) place(i, true);
  if (focus >= 0 && focus !== state.selected && focus === state.hovered) place(focus, true);
  for (const i of near.slice(0, 12)) place(i, true);
  for (const i of state.matches.slice(0, 30)) place(i, true);
  if (state.selected >= 0) for (const i of [state.selected, ...near.slice(0, 12)]) place(i, true, dimmed(near));
  if (focus < 0 && state.inView.length - graph.tokens.length <= 70) for (const i of state.inView.toReversed()) place(i, false);
};
const logits = byInfluence.filter(i => graph.kind[i] === "logit");
// Where a node is chosen, others are faint, and its label and its neighbours' may lie on those if nothing else is free.
const dimmed = near => {
  const bright = new Set([state.selected, state.hovered, ...near, ...state.pinned, ...state.matches, ...logits]);
  return i => !bright.has(i);
};
const writeLabel = (pen, text, box, strong) => {
  pen.globalAlpha = strong ? .94 : .72; pen.fillStyle = strong ? colour.panel : colour.ground;
  pen.beginPath(); pen.roundRect(box.left, box.top, box.width, HIGH, 4); pen.fill();
  pen.globalAlpha = 1; pen.fillStyle = strong ? colour.ink : colour.faint;
  pen.fillText(text, box.left + 3, box.top + 8.5);
};

const drawAxis = pen => {
  pen.fillStyle = colour.ground; pen.globalAlpha = .88; pen.fillRect(0, 0, AXIS - 2, view.height); pen.globalAlpha = 1;
  pen.font = font(11); pen.textBaseline = "middle"; pen.textAlign = "right"; pen.fillStyle = colour.faint;
  let last = Infinity;
  for (let b = 0; b <= layout.top; b++) {
    const y = rowY(layout.bandTop[b] + layout.bandHeight[b] / 2);
    if (last - y < 13 || y < 6 || y > view.height - view.foot) continue;
    last = y;
    pen.fillText(b === 0 ? "emb" : b === layout.top ? "out" : layout.names[b - 1], AXIS - 6, y);
  }
};

// Tokens stand upright where they fit and lean where columns are narrow; of very narrow ones some are left out.
const LEAN = -Math.PI / 3;
const longest = Math.min(84, Math.max(...graph.tokens.map(text => measureText(visible(text).slice(0, 40), 12)), 8));
const upright = () => graph.tokens.length * 46 < layout.width * view.sx * view.k || longest < layout.width * view.sx * view.k / graph.tokens.length;
const footHeight = () => graph.tokens.length * 46 < Math.min(layout.width * view.sx, view.width * 2) ? 24 : Math.min(78, 26 + .86 * longest);
const drawTokens = (pen, focus) => {
  const top = view.height - view.foot, straight = upright();
  pen.fillStyle = colour.panel; pen.globalAlpha = .92; pen.fillRect(0, top, view.width, view.foot); pen.globalAlpha = 1;
  pen.strokeStyle = colour.line; pen.lineWidth = 1; pen.beginPath(); pen.moveTo(0, top + .5); pen.lineTo(view.width, top + .5); pen.stroke();
  pen.font = font(12); pen.textBaseline = "middle";
  const marked = focus >= 0 && focus < graph.size ? layout.column(focus) : -1;
  let free = -Infinity;
  const write = c => {
    const left = columnX(c), right = columnX(c + 1), x = (left + right) / 2;
    if (x < AXIS - 4 || x > view.width) return;
    if (c !== marked && (x - free < (straight ? 0 : 14) || (marked >= 0 && Math.abs(x - (columnX(marked) + columnX(marked + 1)) / 2) < 13 && !straight))) return;
    free = x;
    const text = shortened(graph.tokens[c], straight ? Math.max(12, right - left - 3) : 80, 12);
    pen.fillStyle = c === marked ? colour.accent : colour.ink;
    if (straight) { pen.textAlign = "center"; pen.fillText(text, x, top + view.foot / 2 + .5); return; }
    pen.save(); pen.translate(x + 3, top + 8); pen.rotate(LEAN); pen.textAlign = "right"; pen.fillText(text, 0, 0); pen.restore();
  };
  for (let c = 0; c < graph.tokens.length; c++) write(c);
};
