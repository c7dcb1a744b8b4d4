// --- search: label, token, promoted token, L12, #345, 12:345, 12:345@6, SET:12:345, or an id ---------------------------------------

const search = document.getElementById("search"), matchCount = document.getElementById("matches");
const haystacks = [];
const haystack = i => haystacks[i] ??= [title(i), ...graph.promotes(i), ...graph.suppresses(i), graph.tokens[graph.position[i]] ?? "", cardOf(i)?.label ?? "", several && graph.kind[i] === "feature" ? setOf(i) : ""]
  .join("\u0000").toLowerCase();
const matching = text => {
  const layer = /^l(\d+)$/.exec(text), index = /^#(\d+)$/.exec(text), pair = /^(?:([a-z0-9][\w.-]*):)?l?(\d+):(\d+)(?:@(\d+|all))?$/.exec(text), feature = i => graph.kind[i] === "feature";
  if (layer) return i => graph.inner(i) && graph.layer[i] === +layer[1];
  if (index) return i => feature(i) && graph.feature[i] === +index[1];
  if (pair) return i => feature(i) && graph.layer[i] === +pair[2] && graph.feature[i] === +pair[3] && (pair[4] === undefined || String(placed(i)) === pair[4].replace(/^0+(?=\d)/, "")) &&
    (pair[1] === undefined || setOf(i).toLowerCase() === pair[1]);
  if (graph.indexOf.has(text.toUpperCase())) return i => i === graph.indexOf.get(text.toUpperCase());
  return i => haystack(i).includes(text) || visible(haystack(i)).includes(text);
};
let atMatch = -1;
const find = () => {
  const text = search.value.replace(/^\s+/, "").toLowerCase(), meets = text.trim() && matching(text.trim().match(/^(([a-z0-9][\w.-]*:)?l?\d+:\d+(@(\d+|all))?|l\d+|#\d+|[\w-]+_[\w-]+)$/) ? text.trim() : text);
  state.matches = meets ? byInfluence.filter(meets) : [];
  atMatch = -1;
  countMatches(); schedule(false);
};
const countMatches = () => {
  const all = state.matches.length;
  matchCount.textContent = !search.value.trim() ? "" : atMatch < 0 ? plural(all, "match").replace("matchs", "matches") : `${atMatch + 1} of ${all}`;
};
const jump = step => {
  if (!state.matches.length) return;
  atMatch = (atMatch + step + state.matches.length + (atMatch < 0 && step < 0 ? 1 : 0)) % state.matches.length;
  select(state.matches[atMatch], true);
  countMatches();
};
search.addEventListener("input", find);
search.addEventListener("keydown", event => {
  if (event.key === "Enter") { event.preventDefault(); jump(event.shiftKey ? -1 : 1); }
  else if (event.key === "Escape") { event.stopPropagation(); search.value = ""; find(); over.focus(); }
});
document.getElementById("previous").addEventListener("click", () => jump(-1));
document.getElementById("next").addEventListener("click", () => jump(1));
