// --- side panel: the circuit, a node or a supernode, and what is known of the feature -----------------------

const side = document.getElementById("side");
const row = (vertex, how, ...cells) => el("li", {}, el("button", { type: "button", ...how, onclick: () => select(vertex, true), onmouseenter: () => hover(vertex), onmouseleave: () => hover(-1) }, ...cells));
const nameAndPlace = vertex => [el("bdi", {}, visible(title(vertex))), el("span", { class: "faint" }, ` · ${where(vertex)}`)];
const linkRow = (vertex, value, ink) => row(vertex, {}, el("span", { class: "weight " + ink }, value), el("span", { class: "what" }, ...nameAndPlace(vertex)));
const targetRow = i => row(i, { class: "told" }, el("span", { class: "what" }, ...nameAndPlace(i)), el("span", { class: "faint" }, toldTarget(i)));
const edgeList = (list, incoming, limit = 12) => {
  if (!list.length) return el("p", { class: "note" }, "none among what is shown");
  const rows = list.map(([other, weight]) => [other, signed(weight), sign(weight)]);
  const ol = el("ol", { class: "edges", "data-direction": incoming ? "in" : "out" }, ...rows.slice(0, limit).map(row => linkRow(...row)));
  if (rows.length <= limit) return ol;
  const rest = el("button", { type: "button", class: "more", onclick: () => { ol.append(...rows.slice(limit, 200).map(row => linkRow(...row))); rest.remove(); } }, `${rows.length - limit} more`);
  return el("div", {}, ol, rest);
};

function panel() {
  const vertex = state.selected;
  side.replaceChildren(...(vertex < 0 ? overview() : groupOf(vertex) ? groupPanel(vertex) : nodePanel(vertex)).filter(Boolean));
  if (vertex >= 0) side.append(el("p", {}, el("button", { type: "button", title: "Escape", onclick: () => select(-1) }, "Back to the circuit")));
}
const edgeSections = vertex => {
  const into = edgesOf(vertex, true), out = edgesOf(vertex, false), count = list => el("span", { class: "faint" }, ` ${list.length}`);
  return [
    into.length || graph.kind[vertex] !== "token" ? el("h2", {}, "Strongest in", count(into)) : null, into.length || graph.kind[vertex] !== "token" ? edgeList(into, true) : null,
    ...enteringFacts(vertex),
    out.length || graph.kind[vertex] !== "logit" ? el("h2", {}, "Strongest out", count(out)) : null, out.length || graph.kind[vertex] !== "logit" ? edgeList(out, false) : null,
  ];
};
const enteringFacts = i => groupOf(i) || !Number.isFinite(graph.total[i]) ? [] : [facts([
  ["sum of all that enters", number(graph.total[i])], ["of that: constants", number(graph.bias[i])],
  ["of that: sources not in the graph", number(graph.remainder[i])]])];
const pinButton = i => el("button", { type: "button", "aria-pressed": String(state.pinned.has(i)), title: "Pin (p)", onclick: () => pin(i) }, state.pinned.has(i) ? "Unpin" : "Pin");
// Every letter is kept as it is typed: a page may be left at any time. A given label can be changed, not taken away.
const nameField = i => el("input", { type: "text", class: "name", "aria-label": "Call it", placeholder: "call it …", maxlength: "200", value: named.get(i) ?? given(i),
  title: "Kept in this tab; save it for good from the circuit's panel",
  oninput: event => callIt(i, event.target.value),
  onchange: event => { event.target.value = named.get(i) ?? given(i); say(); } });
// Pins and labels as `trephine circuits annotations --import` reads them: qParams of the JSON document.
const saidHere = () => ({ pinnedIds: [...state.pinned].map(idOf), supernodes: [], clerps: [...named].map(([i, text]) => [idOf(i), text]) });
const saveSaid = () => {
  const link = el("a", { href: URL.createObjectURL(new Blob([JSON.stringify(saidHere(), null, 1)], { type: "application/json" })), download: "said.json" });
  link.click();
  unkept = false;
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const saveButton = () => el("p", { class: "actions" }, el("button", { type: "button", id: "save", onclick: saveSaid }, "Save pins and labels"),
  el("span", { class: "note" }, "for ", el("span", { class: "mono" }, `trephine circuits annotations ${graph.name} --import said.json`)));

const nodePanel = i => {
  const kind = graph.kind[i], at = graph.position[i], group = graph.groups.findIndex(one => one.members.includes(i));
  return [
    el("h2", {}, el("bdi", {}, visible(title(i)))),
    facts([
      ["kind", kindWord(i)], several && kind === "feature" ? ["set", setOf(i)] : null, ["where", where(i)],
      at >= 0 && kind !== "token" && !graph.across ? ["token there", el("span", { class: "token" }, visible(graph.tokens[at] ?? ""))] : null,
      kind === "token" ? ["vocabulary id", String(graph.feature[i])] : null,
      kind === "feature" ? ["activation", number(graph.activation[i])] : kind === "logit" && Number.isFinite(graph.activation[i]) ? [valueWord(), valueOf(i)] : null,
      kind === "logit" && shareOf(i) !== undefined ? ["share of what is explained", percent(shareOf(i), 1)] : null,
      kind === "logit" || graph.across ? null : ["effect on target (estimate)", inUnits(signed(graph.effect[i])), sign(graph.effect[i])],
      ["influence", percent(graph.influence[i], 2)],
      address(i) ? ["in commands", el("span", { class: "mono" }, address(i))] : null,
      ["id", el("span", { class: "mono" }, graph.ids[i])],
    ]),
    el("p", { class: "actions" }, pinButton(i), nameField(i), graph.pages[i] ? el("a", { href: graph.pages[i] }, `Page of this ${kindWord(i)}`) : null,
      group >= 0 ? el("button", { type: "button", onclick: () => { collapse(group, true); select(graph.size + group, true); } }, "Close its supernode") : null),
    ...card(cardOf(i)),
    ...words(i),
    ...edgeSections(i),
  ];
};
const words = i => [["Promotes", graph.promotes(i)], ["Suppresses", graph.suppresses(i)]].filter(([, texts]) => texts.length)
  .flatMap(([name, texts]) => [el("h2", {}, name, el("span", { class: "faint" }, " logit lens")), tokenList(texts)]);
const card = known => {
  if (!known) return [];
  const shown = [known.label ? el("p", {}, el("bdi", {}, known.label)) : null];
  if (known.contexts === undefined) return shown;
  return [...shown,
    facts([["fires at", percent(known.density, 3) + " of positions"], ["mean where it fires", number(known.mean)], ["largest", number(known.largest)]]),
    el("h2", {}, "Fires on"), el("div", { class: "tokens" }, ...known.tokens.map(([text, share]) => el("span", { class: "token", title: percent(share, 1) + " of its activation" }, visible(text)))),
    el("h2", {}, "Strongest contexts"), el("ol", { class: "contexts" }, ...known.contexts.map(contextRow))];
};
const contextRow = context => el("li", {}, el("span", { class: "value" }, number(context.peak)), el("p", {}, ...context.tokens.map((text, n) => {
  const share = context.shares[n], cell = el("span", { class: sign(share) + (n === context.at ? " peak" : "") }, text);
  cell.style.setProperty("--share", Math.min(1, Math.abs(share)));
  return cell;
})));

const sumOver = (group, values) => group.members.reduce((total, i) => total + values[i], 0);
const groupRow = (group, g) => { const effect = sumOver(group, graph.effect); return linkRow(graph.size + g, signed(effect), sign(effect)); };
const groupPanel = vertex => {
  const g = vertex - graph.size, group = groupOf(vertex), members = group.members;
  const sum = values => sumOver(group, values);
  return [
    el("h2", {}, el("bdi", {}, title(vertex))),
    facts([["kind", "supernode"], ["members here", String(members.length)], ["effects, summed", inUnits(signed(sum(graph.effect))), sign(sum(graph.effect))], ["influence, summed", percent(sum(graph.influence), 2)]]),
    el("p", { class: "actions" }, el("button", { type: "button", id: "open-group", onclick: () => { collapse(g, false); select(members[0], true); } }, "Open it")),
    el("h2", {}, "Members"),
    el("ol", { class: "edges" }, ...members.map(i => linkRow(i, signed(graph.effect[i]), sign(graph.effect[i])))),
    ...edgeSections(vertex),
    el("p", { class: "note" }, "Edges of a supernode are sums over its members."),
  ];
};

const interval = ([value, low, high]) => `${number(value, 2)} (${number(low, 2)} to ${number(high, 2)})`;
const measured = ({ measured: way, edges, spearman, comparisons, how }) => [
  el("h2", {}, `On held-out texts, ${way}`), facts([[`rank correlation, ${edges} edges`, interval(spearman)],
    ...comparisons.map(([baseline, found, standing]) => [`${standing.toLowerCase()} ${baseline}`, interval(found)])]),
  el("p", { class: "note" }, how),
];
// Figures are those of the whole graph; where a part of it is shown, they say so.
const wholeGraph = graph.extent.part ? "whole graph" : "graph";
const overview = () => [
  el("h2", {}, "This circuit"), facts([
    graph.across || !Number.isFinite(graph.figures.baseline) ? null : ["target on this prompt", inUnits(number(graph.figures.baseline))], several ? ["features of", graph.sets.join(", ")] : null,
    [`nodes here, of ${graph.extent.of}`, `${graph.size} of ${graph.all.nodes}`], [`edges here, of ${graph.extent.of}`, `${graph.edgeCount} of ${graph.all.edges}`],
    ...(graph.across ? [
      ["measured between", `${graph.across.candidates.toLocaleString("en")} of ${graph.across.active.toLocaleString("en")} active`],
      graph.across.coverage ? ["direct effects that edges carry", interval(graph.across.coverage)] : null,
      graph.across.overlap === null ? null : ["edges that both halves keep", percent(graph.across.overlap, 0)],
    ] : [[`features' influence inside the ${wholeGraph}`, percent(graph.figures.selected, 1)], [`influence through errors${graph.extent.part ? `, ${wholeGraph}` : ""}`, percent(graph.figures.error, 1)]]),
  ]),
  ...graph.extent.told.map(text => el("p", { class: "note extent" }, text)),
  ...(graph.across ? graph.across.transfer.flatMap(measured) : []),
  ...listed("Pinned", [...state.pinned], 20), ...listed("Called here", [...named.keys()], 20),
  state.pinned.size || named.size ? saveButton() : null,
  ...(graph.groups.length ? [el("h2", {}, "Supernodes"), el("ol", { class: "edges" }, ...graph.groups.map(groupRow))] : []),
  ...listed(graph.across ? "Logits" : "Targets", logits.length > 1 ? logits : [], 10),
  ...listed("Largest estimated effects", strongestEffect, 14),
  ...(graph.quality ? [el("h2", {}, "Estimates against real ablations"), facts([
    ["ablated one by one", String(graph.quality.nodes)], ["effects: slope", interval(graph.quality.slope)], ["rank correlation", interval(graph.quality.spearman)],
    [`${graph.rule} edges: slope`, interval(graph.quality.edge_slope)], ["rank correlation", interval(graph.quality.edge_spearman)]]),
    el("p", { class: "note" }, graph.quality.how)] : []),
  ...(graph.caveats.length ? [el("h2", {}, "Read with care"), el("ul", { class: "note" }, ...graph.caveats.map(text => el("li", {}, text)))] : []),
  el("p", { class: "note mono" }, `${graph.name} · ${graph.model} · ${graph.weights.slice(0, 12)} · edges: ${graph.rule}`),
];
const listed = (name, nodes, limit) => nodes.length ? [el("h2", {}, name), el("ol", { class: "edges" }, ...nodes.slice(0, limit).map(i =>
  graph.kind[i] === "logit" ? targetRow(i) : linkRow(i, signed(graph.effect[i]), sign(graph.effect[i]))))] : [];
