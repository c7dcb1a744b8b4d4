// --- the graph: columns from the page's data, adjacency, shares ---------------------------------

const graph = (() => {
  const island = JSON.parse(document.getElementById("data").textContent);
  const bytes = text => {
    const raw = atob(text), into = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) into[i] = raw.charCodeAt(i);
    return into.buffer;
  };
  const integers = ([width, text]) => new (width === 16 ? Int16Array : Int32Array)(bytes(text)), floats = text => new Float32Array(bytes(text));
  const orZero = text => floats(text).map(value => Number.isFinite(value) ? value : 0);  // imported graphs may lack them
  const lists = column => {
    const start = integers(column.start), item = integers(column.item);
    return i => Array.from(item.subarray(start[i], start[i + 1]), number => island.texts[number]);
  };
  const { nodes, edges } = island, size = nodes.count;
  const kind = Array.from(integers(nodes.kind), number => island.kinds[number]);
  const label = Array.from(integers(nodes.label), number => island.texts[number]);
  const source = integers(edges.source), target = integers(edges.target), weight = floats(edges.weight);

  // Of every node its edges in and out, strongest first: edge numbers behind `start`.
  const strength = Float32Array.from(weight, Math.abs);
  const order = Uint32Array.from(weight.keys()).sort((a, b) => strength[b] - strength[a] || a - b);
  const adjacency = end => {
    const start = new Uint32Array(size + 1), edge = new Uint32Array(edges.count);
    for (let e = 0; e < edges.count; e++) start[end[e] + 1]++;
    for (let i = 0; i < size; i++) start[i + 1] += start[i];
    const next = start.slice(0, size);
    for (const e of order) edge[next[end[e]]++] = e;
    return i => edge.subarray(start[i], start[i + 1]);
  };
  // What enters a node over the edges of this page, in absolute terms; an edge's share is of that.
  const entering = new Float64Array(size), share = new Float32Array(edges.count);
  for (let e = 0; e < edges.count; e++) entering[target[e]] += strength[e];
  for (let e = 0; e < edges.count; e++) share[e] = entering[target[e]] ? strength[e] / entering[target[e]] : 0;

  const indexOf = new Map(island.ids.map((id, i) => [id, i]));
  const known = ids => [...new Set(ids.map(id => indexOf.get(id)).filter(i => i !== undefined))];
  const given = new Map(Object.entries(island.view.labels).filter(([id]) => indexOf.has(id)).map(([id, text]) => [indexOf.get(id), text]));
  for (const [i, text] of given) label[i] = text;
  return {
    ...island, tokens: island.tokens.length ? island.tokens : [""], size, kind, label, given, source, target, weight, share, entering, indexOf,
    layer: integers(nodes.layer), position: integers(nodes.position), feature: integers(nodes.feature), set: integers(nodes.set),
    activation: floats(nodes.activation), influence: orZero(nodes.influence), effect: floats(nodes.effect),
    cumulative: orZero(nodes.cumulative), total: floats(nodes.total), bias: floats(nodes.bias), remainder: floats(nodes.remainder),
    promotes: lists(nodes.promotes), suppresses: lists(nodes.suppresses),
    into: adjacency(target), out: adjacency(source), edgeCount: edges.count,
    pinned: known(island.view.pinned),
    groups: island.view.groups.map(one => ({ label: one.label, members: known(one.members) })).filter(one => one.members.length),
    inner: i => kind[i] !== "token" && kind[i] !== "logit",
  };
})();
const byInfluence = Array.from({ length: graph.size }, (_, i) => i).sort((a, b) => graph.influence[b] - graph.influence[a] || a - b);
const innerNodes = byInfluence.filter(graph.inner);
const withEffect = byInfluence.filter(i => graph.inner(i) && Number.isFinite(graph.effect[i]));  // imported graphs have none
const strongestEffect = withEffect.toSorted((a, b) => Math.abs(graph.effect[b]) - Math.abs(graph.effect[a]));
const largestInfluence = Math.max(1e-12, graph.influence[byInfluence.find(graph.inner)] ?? 0);
