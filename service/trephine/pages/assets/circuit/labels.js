// --- labels: names of nodes where there is room, layers at the left, tokens at the foot ---------------------

const font = size => `${size}px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif`;
const ruler = document.createElement("canvas").getContext("2d"), widths = new Map();
const measureText = (text, size) => {
  const key = size + text;
  if (!widths.has(key)) { ruler.font = font(size); widths.set(key, ruler.measureText(text).width); }
  return widths.get(key);
};
// Cut to a width by whole characters, so that no surrogate pair and few combining marks are torn.
const shortened = (text, room, size) => {
  const shown = visible(text);
  if (measureText(shown, size) <= room) return shown;
  const letters = [...shown.slice(0, 80)];
  let low = 0, high = letters.length;
  while (low < high) { const middle = (low + high + 1) >> 1; if (measureText(letters.slice(0, middle).join("") + "…", size) <= room) low = middle; else high = middle - 1; }
  return low ? letters.slice(0, low).join("") + "…" : "";
};

const drawLabels = (pen, focus, near) => {
  const taken = state.groups.map(groupBox), named = new Set(), place = (vertex, strong) => {
    if (vertex < 0 || vertex >= graph.size || named.has(vertex) || state.owner[vertex] !== vertex || !state.shown[vertex]) return;
    if (graph.kind[vertex] === "token" && !strong) return;
    const x = screenX(vertex), y = screenY(vertex), r = radius(vertex);
    if (x < AXIS || x > view.width || y < 4 || y > view.height - view.foot) return;
    const text = shortened(title(vertex), 130, 11), width = measureText(text, 11) + 6;
    const tries = [[x + r + 3, y - 8], [x - r - 3 - width, y - 8], [x - width / 2, y - r - 19], [x - width / 2, y + r + 3]];
    for (const [left, top] of tries) {
      const box = { left, top, width, height: 16 };
      if (left < AXIS || left + width > view.width - 2 || top < 1 || taken.some(other => overlap(box, other))) continue;
      taken.push(box);
      named.add(vertex);
      pen.globalAlpha = strong ? .94 : .72; pen.fillStyle = strong ? colour.panel : colour.ground;
      pen.beginPath(); pen.roundRect(left, top, width, 16, 4); pen.fill();
      pen.globalAlpha = 1; pen.fillStyle = strong ? colour.ink : colour.faint;
      pen.fillText(text, left + 3, top + 8.5);
      return;
    }
  };
  pen.font = font(11); pen.textAlign = "left"; pen.textBaseline = "middle";
  place(state.selected, true);
  for (const i of state.pinned) place(i, true);
  if (focus >= 0 && focus !== state.selected && focus === state.hovered) place(focus, true);
  for (const i of logits) place(i, true);
  for (const i of near.slice(0, 12)) place(i, true);
  for (const i of state.matches.slice(0, 30)) place(i, true);
  if (focus < 0 && state.inView.length - graph.tokens.length <= 70) for (const i of state.inView.toReversed()) place(i, false);
};
const logits = byInfluence.filter(i => graph.kind[i] === "logit");
const overlap = (a, b) => a.left < b.left + b.width && b.left < a.left + a.width && a.top < b.top + b.height && b.top < a.top + a.height;

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
