// --- words and elements: text only ever enters as text nodes --------------------------------------

const number = (value, digits = 3) => {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(2).replaceAll("-", "−");
  return value.toFixed(size >= 100 ? 1 : digits).replace("-", "−");
};
const percent = (share, digits) => Number.isFinite(share) ? (100 * share).toFixed(digits) + " %" : "–";
const signed = value => (value > 0 ? "+" : "") + number(value);
const inUnits = text => graph.units ? `${text} ${graph.units}` : text;
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
// What is above 0 is not shown as 0.
const likely = share => share > 0 && share < .0005 ? "< 0.1 %" : percent(share, 1);
const sign = value => Number.isNaN(value) ? "faint" : value >= 0 ? "plus" : "minus";  // what is not known has no sign
// Spaces at the ends, several in a row and line ends are part of a token and must be seen.
const visible = text => text.replace(/^ | $| (?= )|(?<= ) /g, "␣").replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥");

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

// Of a feature its set; where a graph spans several, an index alone does not name a feature.
const setOf = i => graph.sets[graph.set[i]], several = graph.sets.length > 1;
const indexed = i => `${several ? `${setOf(i)}:` : ""}${graph.layer[i]}:${graph.feature[i]}`;

// A vertex is a node by its number, or a supernode by `graph.size` and its number.
const groupOf = vertex => vertex >= graph.size ? graph.groups[vertex - graph.size] : null;
const idOf = vertex => groupOf(vertex) ? `group ${vertex - graph.size}` : graph.ids[vertex];
const where = vertex => {
  const group = groupOf(vertex);
  if (group) return plural(group.members.length, "node");
  const at = graph.position[vertex];
  if (graph.across) return { token: "embedding", logit: "logit" }[graph.kind[vertex]] ?? `L${graph.layer[vertex]}`;  // of no prompt
  if (graph.kind[vertex] === "token") return `position ${at}`;
  if (graph.kind[vertex] === "logit") return at < 0 ? "target" : `target at position ${at}`;
  const place = `L${graph.layer[vertex]}${several && graph.kind[vertex] === "feature" ? ` of ${setOf(vertex)}` : ""}`;
  return at < 0 ? `${place}, all positions` : `${place}, position ${at}`;
};
const cardOf = i => graph.cards[graph.card[i]];
const KIND_WORDS = { error: "error term", token: "token", logit: "target" };
const kindWord = i => graph.kind[i] === "feature" ? setOf(i) === "neurons" ? "neuron" : "feature" : KIND_WORDS[graph.kind[i]] ?? graph.kind[i];
// How commands and the client write a node.
const site = i => graph.feature[i] < -1 ? `:${graph.sites[-1 - graph.feature[i]]}` : "";  // of an error that is not the MLP's
const placed = i => graph.position[i] < 0 ? "all" : graph.position[i];
const address = i => ({
  feature: `${indexed(i)}@${placed(i)}`, error: `error:${graph.layer[i]}${site(i)}@${placed(i)}`, token: `token@${placed(i)}`,
})[graph.kind[i]];
// Of a target its part of what is explained, and what the model gives it on the prompt: each number with its word.
const valueWord = () => graph.units ? "probability" : "value";
const valueOf = i => graph.units ? likely(graph.activation[i]) : number(graph.activation[i]);
const shareOf = i => graph.across ? undefined : graph.shares[i];  // over many texts no quantity is explained
const toldTarget = i => [
  shareOf(i) === undefined ? "" : `share ${percent(shareOf(i), 0)}`, Number.isFinite(graph.activation[i]) ? `${valueWord()} ${valueOf(i)}` : "",
].filter(Boolean).join(", ");
const named = new Map();  // what nodes are called in this page, by number
const title = vertex => {
  const group = groupOf(vertex);
  if (group) return group.label || "supernode";
  if (named.has(vertex)) return named.get(vertex);
  return graph.label[vertex] || (graph.kind[vertex] === "feature" ? `${kindWord(vertex)} ${indexed(vertex)}` :
    graph.kind[vertex] === "token" ? graph.tokens[graph.position[vertex]] ?? "token" : kindWord(vertex));
};

const el = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
};
const facts = pairs => el("dl", {}, ...pairs.filter(Boolean).flatMap(([name, value, kind]) => [el("dt", {}, name), el("dd", kind ? { class: kind } : {}, value)]));
const tokenList = texts => el("div", { class: "tokens" }, ...texts.map(text => el("span", { class: "token" }, visible(text))));
