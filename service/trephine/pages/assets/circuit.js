"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("graph"), view = document.getElementById("view");
  const tip = document.getElementById("tip"), side = document.getElementById("side");
  const pen = canvas.getContext("2d");
  const nodes = data.nodes, edges = data.edges;
  const colour = {};
  let scale = 1, stretch = 1, shiftX = 0, shiftY = 0, fitted = 1, selected = -1, hovered = -1, found = new Set(), frame = 0;
  let shown = new Array(nodes.length).fill(true);

  // --- data -------------------------------------------------------------------------------------
  const into = nodes.map(() => []), out = nodes.map(() => []);
  edges.forEach(([source, target, weight]) => {
    out[source].push([target, weight]);
    into[target].push([source, weight]);
  });
  for (const list of [...into, ...out]) list.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const byInfluence = nodes.map((_, i) => i).sort((a, b) => nodes[b].influence - nodes[a].influence);
  const largestInfluence = Math.max(1e-12, ...nodes.filter(n => n.kind === "feature" || n.kind === "error").map(n => n.influence));

  const number = (value, digits = 3) => {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(2).replace("-", "−");
    return value.toFixed(size >= 100 ? 1 : digits).replace("-", "−");
  };
  const percent = (share, digits) => Number.isFinite(share) ? (100 * share).toFixed(digits) + " %" : "–";
  const signed = value => (value > 0 ? "+" : "") + number(value);
  const place = node => node.kind === "token" ? `position ${node.position}` :
    node.kind === "logit" ? "target" : `layer ${node.layer}, position ${node.position}`;
  const title = node => node.label || (node.kind === "feature" ? `neuron ${node.layer}:${node.feature}` : node.kind);

  // --- layout: one band a layer that is used, one column a position ------------------------------
  const layers = [...new Set(nodes.filter(n => n.kind === "feature" || n.kind === "error").map(n => n.layer))].sort((a, b) => a - b);
  const bandOf = new Map(layers.map((layer, i) => [layer, i + 1]));
  const top = layers.length + 1, STEP = 15, BAND = 34, GAP = 26, LEFT = 66, AXIS = 44;
  const band = node => node.kind === "token" ? 0 : node.kind === "logit" ? top : bandOf.get(node.layer);
  const cells = new Map();
  nodes.forEach((node, i) => {
    const key = `${band(node)}/${node.position}`;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(i);
  });
  const PER_ROW = 8;
  const columns = data.tokens.map((_, position) => {
    let widest = 1;
    for (const [key, members] of cells) if (+key.split("/")[1] === position) widest = Math.max(widest, Math.min(PER_ROW, members.length));
    return Math.max(54, widest * STEP);
  });
  const startOf = [];
  columns.reduce((x, width) => (startOf.push(x), x + width + GAP), LEFT);
  const bandHeight = new Array(top + 1).fill(BAND);
  for (const [key, members] of cells) {
    const b = +key.split("/")[0];
    bandHeight[b] = Math.max(bandHeight[b], Math.ceil(members.length / PER_ROW) * STEP + 18);
  }
  const bandTop = new Array(top + 1);
  let height = 34;
  for (let b = top; b >= 0; b--) { bandTop[b] = height; height += bandHeight[b]; }
  const width = startOf[startOf.length - 1] + columns[columns.length - 1] + 20;
  const spots = nodes.map(() => null);
  for (const [key, members] of cells) {
    const [b, position] = key.split("/").map(Number);
    members.sort((a, c) => nodes[c].influence - nodes[a].influence);
    members.forEach((i, order) => {
      const row = Math.floor(order / PER_ROW), inRow = Math.min(PER_ROW, members.length - row * PER_ROW);
      spots[i] = {
        x: startOf[position] + columns[position] / 2 + (order % PER_ROW - (inRow - 1) / 2) * STEP,
        y: bandTop[b] + bandHeight[b] / 2 + (row - (Math.ceil(members.length / PER_ROW) - 1) / 2) * STEP,
      };
    });
  }
  const radius = node => node.kind === "token" || node.kind === "logit" ? 6.5 : 2.6 + 4.4 * Math.sqrt(Math.min(1, node.influence / largestInfluence));

  // --- drawing ----------------------------------------------------------------------------------
  const readColours = () => {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ground", "panel", "ink", "faint", "line", "grid", "plus", "minus", "accent"]) colour[name] = style.getPropertyValue("--" + name).trim();
  };
  const schedule = () => { if (!frame) frame = requestAnimationFrame(() => { frame = 0; draw(); }); };
  const toScreen = spot => [spot.x * scale + shiftX, spot.y * scale * stretch + shiftY];
  const shape = (node, x, y, r) => {
    pen.beginPath();
    if (node.kind === "token") pen.rect(x - r, y - r * .8, 2 * r, 1.6 * r);
    else if (node.kind === "error") { pen.moveTo(x, y - r * 1.3); pen.lineTo(x + r * 1.3, y); pen.lineTo(x, y + r * 1.3); pen.lineTo(x - r * 1.3, y); pen.closePath(); }
    else if (node.kind === "logit") { pen.moveTo(x, y - r * 1.2); pen.lineTo(x + r * 1.2, y + r); pen.lineTo(x - r * 1.2, y + r); pen.closePath(); }
    else pen.arc(x, y, r, 0, 2 * Math.PI);
  };
  const drawEdges = (focus, list, incoming) => {
    const largest = Math.max(1e-12, ...list.map(e => Math.abs(e[1])));
    list.slice(0, 60).forEach(([other, weight]) => {
      if (!shown[other]) return;
      const [x1, y1] = toScreen(spots[incoming ? other : focus]), [x2, y2] = toScreen(spots[incoming ? focus : other]);
      const share = Math.abs(weight) / largest;
      pen.strokeStyle = weight >= 0 ? colour.plus : colour.minus;
      pen.globalAlpha = .18 + .72 * share;
      pen.lineWidth = .6 + 3 * share;
      pen.beginPath(); pen.moveTo(x1, y1);
      pen.bezierCurveTo(x1, (y1 + y2) / 2, x2, (y1 + y2) / 2, x2, y2); pen.stroke();
    });
    pen.globalAlpha = 1;
  };
  function draw() {
    const ratio = devicePixelRatio || 1, w = view.clientWidth, h = view.clientHeight;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio); }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = colour.ground; pen.fillRect(0, 0, w, h);
    const font = size => `${size}px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif`;
    data.tokens.forEach((_, p) => {
      pen.fillStyle = p % 2 ? colour.ground : colour.grid;
      pen.globalAlpha = .55;
      pen.fillRect((startOf[p] - GAP / 2) * scale + shiftX, 0, (columns[p] + GAP) * scale, h);
      pen.globalAlpha = 1;
    });
    for (let b = 1; b < top; b++) {
      const y = (bandTop[b] + bandHeight[b]) * scale * stretch + shiftY;
      pen.strokeStyle = colour.line; pen.globalAlpha = .35; pen.lineWidth = 1;
      pen.beginPath(); pen.moveTo(0, y); pen.lineTo(w, y); pen.stroke(); pen.globalAlpha = 1;
    }
    const focus = selected >= 0 ? selected : hovered;
    if (focus >= 0) { drawEdges(focus, into[focus], true); drawEdges(focus, out[focus], false); }
    const near = focus < 0 ? null : new Set([focus, ...into[focus].slice(0, 60).map(e => e[0]), ...out[focus].slice(0, 60).map(e => e[0])]);
    nodes.forEach((node, i) => {
      if (!shown[i]) return;
      const [x, y] = toScreen(spots[i]);
      if (x < -20 || y < -20 || x > w + 20 || y > h + 20) return;
      const r = radius(node) * Math.max(.75, Math.min(2, scale));
      pen.globalAlpha = near && !near.has(i) ? .22 : 1;
      shape(node, x, y, r);
      pen.fillStyle = node.kind === "token" || node.kind === "logit" ? colour.ink : node.effect >= 0 ? colour.plus : colour.minus;
      pen.fill();
      if (i === selected || i === hovered || found.has(i)) {
        pen.globalAlpha = 1; pen.lineWidth = 2; pen.strokeStyle = found.has(i) && i !== selected ? colour.accent : colour.ink;
        shape(node, x, y, r + 3); pen.stroke();
      }
      pen.globalAlpha = 1;
    });
    // Layer names keep to the left edge and tokens to the foot, whatever the zoom.
    pen.textBaseline = "middle"; pen.font = font(11);
    pen.fillStyle = colour.ground; pen.globalAlpha = .85; pen.fillRect(0, 0, 34, h); pen.globalAlpha = 1;
    let last = Infinity;
    for (let b = 0; b <= top; b++) {
      const y = (bandTop[b] + bandHeight[b] / 2) * scale * stretch + shiftY;
      if (last - y < 12) continue;
      last = y;
      pen.fillStyle = colour.faint; pen.textAlign = "right";
      pen.fillText(b === 0 ? "emb" : b === top ? "out" : `L${layers[b - 1]}`, 30, y);
    }
    pen.font = font(12); pen.textAlign = "center";
    const foot = Math.min(h - 14, (bandTop[0] + bandHeight[0] + 8) * scale * stretch + shiftY);
    data.tokens.forEach((token, p) => {
      const x = (startOf[p] + columns[p] / 2) * scale + shiftX, room = (columns[p] + GAP) * scale - 4;
      let text = token.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
      while (text.length > 1 && pen.measureText(text).width > room) text = text.length > 2 ? text.slice(0, -2) + "…" : "…";
      pen.fillStyle = colour.ground; pen.globalAlpha = .8; pen.fillRect(x - room / 2, foot - 9, room, 18); pen.globalAlpha = 1;
      pen.fillStyle = colour.ink; pen.fillText(text, x, foot);
    });
  }

  // --- moving about -----------------------------------------------------------------------------
  const fit = () => {
    const w = view.clientWidth, h = view.clientHeight;
    const inner = width - LEFT;  // the strip of layer names keeps its own width, whatever the scale
    fitted = scale = Math.min(2, (w - AXIS - 12) / inner, (h - 78) / height);
    stretch = Math.max(1, Math.min(4, (h - 78) / (height * scale)));  // layers use the room that is left
    shiftX = Math.max(AXIS, (w - inner * scale) / 2) - LEFT * scale; shiftY = 4;
    schedule();
  };
  const zoom = (factor, x, y) => {
    const next = Math.min(12, Math.max(fitted * .6, scale * factor));
    shiftX = x - (x - shiftX) * next / scale; shiftY = y - (y - shiftY) * next / scale; scale = next;
    schedule();
  };
  const reveal = i => {
    const [x, y] = toScreen(spots[i]), w = view.clientWidth, h = view.clientHeight;
    if (x < 50 || x > w - 20) shiftX += w / 2 - x;
    if (y < 20 || y > h - 60) shiftY += h / 2 - y;
  };
  const under = (x, y) => {
    let best = -1, distance = 14;
    spots.forEach((spot, i) => {
      if (!shown[i]) return;
      const [sx, sy] = toScreen(spot), d = Math.hypot(sx - x, sy - y);
      if (d < distance) { distance = d; best = i; }
    });
    return best;
  };

  // --- side panel: text only ever enters as text nodes -------------------------------------------
  const el = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) key === "class" ? element.className = value : element.setAttribute(key, value);
    element.append(...children.filter(c => c !== null));
    return element;
  };
  const facts = pairs => el("dl", {}, ...pairs.flatMap(([name, value, kind]) => [el("dt", {}, name), el("dd", kind ? { class: kind } : {}, value)]));
  const tokens = list => el("div", { class: "tokens" }, ...list.map(text => el("span", { class: "token" }, text)));
  const edgeList = (list, limit = 12) => {
    if (!list.length) return el("p", { class: "note" }, "none among the nodes shown here");
    return el("ol", { class: "edges" }, ...list.slice(0, limit).map(([other, weight]) => {
      const button = el("button", { type: "button" }, el("span", { class: "weight " + (weight >= 0 ? "plus" : "minus") }, signed(weight)),
        el("span", { class: "what" }, title(nodes[other]), el("span", { class: "faint" }, ` · ${place(nodes[other])}`)));
      button.addEventListener("click", () => select(other, true));
      return el("li", {}, button);
    }));
  };
  function panel() {
    side.replaceChildren();
    if (selected < 0) return overview();
    const node = nodes[selected];
    const close = el("button", { type: "button", title: "Escape" }, "Back to overview");
    close.addEventListener("click", () => select(-1));
    side.append(el("h2", {}, title(node)), facts([
      ["kind", { feature: data.replacement === "neurons" ? "neuron" : "feature", error: "error term", token: "token", logit: "target" }[node.kind]],
      ["where", place(node)],
      ...(node.position >= 0 && node.kind !== "logit" ? [["token there", data.tokens[node.position]]] : []),
      ...(node.kind === "feature" ? [["activation", number(node.activation)]] : []),
      ...(node.kind === "logit" ? [["probability", number(node.activation)]] : [["effect on target (estimate)", signed(node.effect) + " logits", node.effect >= 0 ? "plus" : "minus"]]),
      ["influence", percent(node.influence, 2)],
    ]));
    if (node.page) side.append(el("p", {}, el("a", { href: node.page }, "Page of this feature")));
    if (node.promotes.length) side.append(el("h2", {}, "Promotes (logit lens)"), tokens(node.promotes));
    if (node.suppresses.length) side.append(el("h2", {}, "Suppresses (logit lens)"), tokens(node.suppresses));
    if (node.row) {
      side.append(el("h2", {}, "Strongest edges in"), edgeList(into[selected]), facts([
        ["sum of all that enters", number(node.row.total)], ["of that: constants", number(node.row.bias)],
        ["of that: sources not in the graph", number(node.row.remainder)]]));
    }
    side.append(el("h2", {}, "Strongest edges out"), edgeList(out[selected]), close);
  }
  function overview() {
    const interval = ([value, low, high]) => `${number(value, 2)} (${number(low, 2)} to ${number(high, 2)})`;
    side.append(el("h2", {}, "This circuit"), facts([
      ["target on this prompt", number(data.figures.baseline) + " logits"],
      ["nodes shown of found", `${nodes.length} of ${data.all.nodes}`], ["edges shown of found", `${edges.length} of ${data.all.edges}`],
      ["influence inside the graph", percent(data.figures.selected, 1)],
      ["influence through errors", percent(data.figures.error, 1)],
    ]));
    if (data.quality) side.append(el("h2", {}, "Estimates against real ablations"), facts([
      ["ablated one by one", String(data.quality.nodes)], ["effects: slope", interval(data.quality.slope)], ["rank correlation", interval(data.quality.spearman)],
      [`${data.rule} edges: slope`, interval(data.quality.edge_slope)], ["rank correlation", interval(data.quality.edge_spearman)]]),
      el("p", { class: "note" }, data.quality.how));
    side.append(el("h2", {}, "Largest estimated effects"), el("ol", { class: "edges" }, ...byInfluence
      .filter(i => nodes[i].kind === "feature" || nodes[i].kind === "error")
      .sort((a, b) => Math.abs(nodes[b].effect) - Math.abs(nodes[a].effect)).slice(0, 14).map(i => {
        const button = el("button", { type: "button" }, el("span", { class: "weight " + (nodes[i].effect >= 0 ? "plus" : "minus") }, signed(nodes[i].effect)),
          el("span", { class: "what" }, title(nodes[i]), el("span", { class: "faint" }, ` · ${place(nodes[i])}`)));
        button.addEventListener("click", () => select(i, true));
        return el("li", {}, button);
      })));
    if (data.caveats.length) side.append(el("h2", {}, "Read with care"), el("ul", { class: "note" }, ...data.caveats.map(text => el("li", {}, text))));
    side.append(el("p", { class: "note" }, "Drag to move, wheel to zoom, click a node for its edges. Keys: arrows, Enter, Escape, / to find, f to fit, d for dark."),
      el("p", { class: "note mono" }, `${data.name} · ${data.model} · ${data.weights.slice(0, 12)} · edges: ${data.rule}`));
  }
  function select(i, move = false) {
    selected = i;
    if (i >= 0) { shown[i] = true; if (move) reveal(i); }
    side.scrollTop = 0; panel(); schedule();
  }
  function hover(i, x, y) {
    hovered = i;
    if (i < 0) tip.style.visibility = "hidden";
    else {
      const node = nodes[i];
      tip.replaceChildren(el("strong", {}, title(node)), el("div", { class: "faint" }, place(node)),
        node.kind === "logit" ? "" : el("div", { class: node.effect >= 0 ? "plus" : "minus" }, `effect ${signed(node.effect)} logits`),
        node.promotes.length ? el("div", {}, "→ " + node.promotes.slice(0, 5).join("  ")) : "");
      tip.style.visibility = "visible";
      tip.style.left = Math.max(4, Math.min(x + 14, view.clientWidth - tip.offsetWidth - 8)) + "px";
      tip.style.top = Math.max(4, Math.min(y + 14, view.clientHeight - tip.offsetHeight - 8)) + "px";
    }
    schedule();
  }

  // --- input ------------------------------------------------------------------------------------
  const pointers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); pointers.set(event.pointerId, [event.offsetX, event.offsetY]); moved = 0; canvas.classList.add("dragging"); });
  canvas.addEventListener("pointermove", event => {
    const from = pointers.get(event.pointerId);
    if (!from) return hover(under(event.offsetX, event.offsetY), event.offsetX, event.offsetY);
    const dx = event.offsetX - from[0], dy = event.offsetY - from[1];
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const before = Math.hypot(from[0] - other[0], from[1] - other[1]), now = Math.hypot(event.offsetX - other[0], event.offsetY - other[1]);
      if (before > 0) zoom(now / before, other[0], other[1]);
    } else { shiftX += dx; shiftY += dy; schedule(); }
    moved += Math.abs(dx) + Math.abs(dy);
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
  });
  const release = event => {
    if (pointers.delete(event.pointerId) && moved < 5 && event.type === "pointerup") select(under(event.offsetX, event.offsetY));
    canvas.classList.remove("dragging");
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", event => { event.preventDefault(); zoom(Math.exp(-event.deltaY * .0015), event.offsetX, event.offsetY); }, { passive: false });
  const step = (dx, dy) => {
    if (selected < 0) return select(byInfluence.find(i => shown[i] && nodes[i].kind !== "token") ?? 0, true);
    const here = spots[selected];
    let best = -1, cost = Infinity;
    spots.forEach((spot, i) => {
      const along = (spot.x - here.x) * dx + (spot.y - here.y) * dy, across = Math.abs((spot.x - here.x) * dy) + Math.abs((spot.y - here.y) * dx);
      if (shown[i] && along > 1 && along + 2.5 * across < cost) { cost = along + 2.5 * across; best = i; }
    });
    if (best >= 0) select(best, true);
  };
  const search = document.getElementById("search");
  document.addEventListener("keydown", event => {
    if (event.target === search) { if (event.key === "Escape") { search.value = ""; find(); canvas.focus(); } return; }
    const keys = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    if (keys[event.key] && document.activeElement === canvas) { event.preventDefault(); step(...keys[event.key]); }
    else if (event.key === "Escape") select(-1);
    else if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if (event.key === "f") fit();
    else if (event.key === "d") turn();
    else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1.25 : .8, view.clientWidth / 2, view.clientHeight / 2);
  });
  function find() {
    const text = search.value.trim().toLowerCase();
    found = new Set();
    if (text) nodes.forEach((node, i) => {
      const words = [title(node), ...node.promotes, ...node.suppresses, node.position >= 0 ? data.tokens[node.position] : ""];
      const layer = /^l(\d+)$/.exec(text), index = /^#(\d+)$/.exec(text);
      if (layer ? node.layer === +layer[1] : index ? node.feature === +index[1] : words.some(word => word.toLowerCase().includes(text))) found.add(i);
    });
    schedule();
  }
  search.addEventListener("input", find);
  search.addEventListener("change", () => { const first = byInfluence.find(i => found.has(i)); if (first !== undefined) select(first, true); });
  const cut = document.getElementById("cut"), count = document.getElementById("shown");
  function apply() {
    const inner = byInfluence.filter(i => nodes[i].kind === "feature" || nodes[i].kind === "error");
    const total = inner.reduce((sum, i) => sum + nodes[i].influence, 0) || 1;
    let sum = 0;
    inner.forEach(i => { shown[i] = +cut.value >= 1 || sum < +cut.value * total; sum += nodes[i].influence; });
    count.textContent = `${inner.filter(i => shown[i]).length} of ${inner.length}`;
    schedule();
  }
  cut.addEventListener("input", apply);
  function turn() {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    readColours(); schedule();
  }
  document.getElementById("theme").addEventListener("click", turn);
  document.getElementById("fit").addEventListener("click", fit);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); schedule(); });
  new ResizeObserver(() => { if (scale === fitted) fit(); else schedule(); }).observe(view);
  readColours(); apply(); panel(); fit();
  window.trephine = { data, select, spots, toScreen, get selected() { return selected; } };
})();
