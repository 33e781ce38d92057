// A step's tree as a picture: depth to the right, the likeliest chain straight along the top.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 28;
const HEIGHT = 19;
const GAP = 20;
const PADDING = 6;
const SMALLEST = 0.8;
const LONGEST = 12;
const INVISIBLE = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍" };

/** A node's text in the picture: spaces made visible, long ones cut. */
export function label(text) {
  const shown = [...text].map((char) => INVISIBLE[char] ?? char);
  if (!shown.length) return "∅";
  return shown.length > LONGEST ? shown.slice(0, LONGEST - 1).join("") + "…" : shown.join("");
}

/**
 * The step's nodes with their place: `{text, parent, depth, row, kind}`. The kind of an accepted node
 * is its token's source, or "pending" where the step did not give that token yet. What the model
 * picked itself hangs below the last accepted node.
 */
export function nodesOf(step) {
  const { tokens, parents, path } = step.tree;
  const kinds = new Map(path.map((node, at) => [node, step.tokens[at]?.source ?? "pending"]));
  const nodes = tokens.map((text, index) => ({
    text,
    parent: parents[index],
    kind: parents[index] < 0 ? "root" : (kinds.get(index) ?? "refused"),
  }));
  if (step.tokens.length > path.length) {
    nodes.push({ text: step.tokens.at(-1).text, parent: path.at(-1) ?? 0, kind: "bonus" });
  }
  place(nodes);
  return nodes;
}

/** A first child stays in its parent's row; every other opens a new one below. */
function place(nodes) {
  const children = nodes.map(() => []);
  nodes.forEach((node, index) => children[node.parent]?.push(index));
  let last = 0;
  const descend = (index, depth, row) => {
    Object.assign(nodes[index], { depth, row });
    children[index].forEach((child, rank) => descend(child, depth + 1, rank ? ++last : row));
  };
  if (nodes.length) descend(0, 0, 0);
}

/** Draw the step into `frame`, described by `words`; `unfolds` lets it appear level by level. */
export function drawTree(frame, step, words, unfolds) {
  const nodes = nodesOf(step);
  const svg = element("svg", { role: "img", "aria-label": words });
  if (unfolds) svg.classList.add("unfolding");
  frame.replaceChildren(svg);
  const columns = measure(nodes, getComputedStyle(svg));
  const height = ROW * (1 + Math.max(...nodes.map((node) => node.row)));
  const width = columns.at(-1).x + columns.at(-1).width + 1;
  fit(svg, width, height, frame.clientWidth - 2 * parseFloat(getComputedStyle(frame).paddingLeft));
  for (const node of nodes) node.x = columns[node.depth].x;
  const edges = nodes.filter((node) => node.parent >= 0).map((node) => edge(node, nodes));
  svg.append(...edges.sort(brightLast), ...nodes.map(pill));
}

/** A wide tree is made smaller to fit, as far as it can still be read; then the frame scrolls. */
function fit(svg, width, height, available) {
  const scale = Math.min(1, Math.max(SMALLEST, available / width));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width * scale);
  svg.setAttribute("height", height * scale);
}

/** Widths of the labels, and where each depth's column begins. */
function measure(nodes, style) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = `600 ${style.fontSize} ${style.fontFamily}`;
  const widths = [];
  for (const node of nodes) {
    node.label = label(node.text);
    node.width = Math.max(HEIGHT, Math.ceil(context.measureText(node.label).width) + 2 * PADDING);
    widths[node.depth] = Math.max(widths[node.depth] ?? 0, node.width);
  }
  let x = 1;
  return widths.map((width) => {
    const column = { x, width };
    x += width + GAP;
    return column;
  });
}

function edge(node, nodes) {
  const parent = nodes[node.parent];
  const [x0, y0] = [parent.x + parent.width, middle(parent)];
  const [x1, y1] = [node.x, middle(node)];
  const bend = Math.min(GAP, x1 - x0) / 2;
  const path = element("path", {
    class: `edge ${node.kind}`,
    d: `M${x0} ${y0}H${x1 - 2 * bend}C${x1 - bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`,
  });
  path.style.setProperty("--depth", node.depth);
  return path;
}

function pill(node) {
  const group = element("g", { class: `node ${node.kind}` });
  group.style.setProperty("--depth", node.depth);
  const box = { x: node.x, y: middle(node) - HEIGHT / 2, width: node.width, height: HEIGHT, rx: 6 };
  const text = element("text", { x: node.x + node.width / 2, y: middle(node) + 0.5 });
  text.append(node.label);
  group.append(element("rect", box), text);
  return group;
}

function middle(node) {
  return node.row * ROW + ROW / 2;
}

function brightLast(one, other) {
  const isBright = (path) => Number(!path.classList.contains("refused"));
  return isBright(one) - isBright(other);
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
