"use strict";
// All text of the data reaches the page through textContent alone; katex builds elements of MathML from what lies between dollars.
const data = JSON.parse(document.getElementById("data").textContent);
data.reason = data.reason.map((parts) => parts.map((part) => data.parts[part]).join("; "));
const byId = (name) => document.getElementById(name);
const on = (name, kind, act) => byId(name).addEventListener(kind, act);
const N = data.id.length, PAD = 24, REACH = 14, PAGE = 50;
const canvas = byId("map"), pen = canvas.getContext("2d"), mapTip = byId("tip"), panel = byId("panel"), body = byId("rows").tBodies[0];
const view = { zoom: 1, x: 0, y: 0 };
let width = canvas.clientWidth, height = canvas.clientHeight;
let chosenCluster = -1, pinned = -1, hovered = -1, page = 0, shown = [], queued = false;

// Text and formulas.
const DISPLAY = /\$\$([^$]+)\$\$|\\\[([^]+?)\\\]|(\\begin\{(align|gather|equation)(\*?)\}[^]+?\\end\{\4\5\})/;
const INLINE = /(?<!\\)\$(?!\s)((?:\\.|[^$\\])+?)(?<!\s)\$(?:(?!\d)|(?<=\\\$\$))|(?<!\\)\$(?=[^$]*[\\^_])((?:\\.|[^$\\])+)\$(?!\d)|\\\(([^]+?)\\\)|(?<!\\)\$\s+([A-Za-z])\s*\$(?!\d)/;
const MATH = new RegExp(DISPLAY.source + "|" + INLINE.source, "g");
function add(parent, name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  parent.appendChild(element);
  return element;
}
function typeset(element, text = element.textContent) {
  element.replaceChildren();
  let end = 0;
  for (const match of text.matchAll(MATH)) {
    const formula = document.createElement("span");
    try {
      const shown = match[1] || match[2] || match[3], tex = shown || match[6] || match[7] || match[8] || match[9];
      katex.render(tex, formula, { displayMode: Boolean(shown), output: "mathml", strict: "ignore", maxExpand: 100, maxSize: 20, macros: { "\\mbox": "\\text{#1}" } });
    } catch {
      continue; // what katex cannot read stays as it was written
    }
    element.append(text.slice(end, match.index), formula);
    formula.classList.toggle("long", formula.offsetWidth > element.clientWidth && element.clientWidth > 0);
    end = match.index + match[0].length;
  }
  element.append(text.slice(end));
}
function short(text, length) {
  if (text.length <= length) return text;
  let cut = length;
  for (const match of text.matchAll(MATH)) { // a formula is kept whole, or left out when it is long
    const end = match.index + match[0].length;
    if (match.index < cut && cut < end) cut = end <= 2 * length ? end : match.index;
  }
  return text.slice(0, cut) + (cut < text.length ? "…" : "");
}

// The map.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function graded(values) {
  const known = values.filter((v) => v !== null).sort((a, b) => a - b);
  const low = known[Math.floor(0.02 * known.length)], high = known[Math.floor(0.98 * (known.length - 1))];
  return values.map((value) => {
    if (value === null) return "#9aa0aa";
    const t = Math.min(1, Math.max(0, (value - low) / (high - low || 1))) * (STOPS.length - 1);
    const i = Math.min(STOPS.length - 2, Math.floor(t)), part = t - i;
    return "rgb(" + STOPS[i].map((a, j) => Math.round(a + part * (STOPS[i + 1][j] - a))).join(",") + ")";
  });
}
const colourings = {
  cluster: () => data.cluster.map((c) => data.tints[c]),
  rank: () => graded(data.rank),
  label: () => graded(data.label),
  quality: () => graded(data.quality),
  step: () => graded(data.step.map((s) => (s < 0 ? null : s))),
};
let colours = colourings.cluster();
function place(i) {
  const x = PAD + data.x[i] / 9999 * (width - 2 * PAD), y = PAD + (1 - data.y[i] / 9999) * (height - 2 * PAD);
  return [x * view.zoom + view.x, y * view.zoom + view.y];
}
function circle(x, y, size) {
  pen.beginPath();
  pen.arc(x, y, size, 0, 6.2832);
}
function draw() {
  queued = false;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  pen.scale(ratio, ratio);
  const size = Math.min(7, (N > 5000 ? 1.6 : N > 1000 ? 2.3 : 3.4) * Math.sqrt(view.zoom));
  for (let i = 0; i < N; i++) {
    pen.globalAlpha = chosenCluster >= 0 && data.cluster[i] !== chosenCluster ? 0.07 : data.status[i] === 0 ? 0.75 : 0.35;
    pen.fillStyle = colours[i];
    const [x, y] = place(i);
    if (size < 2) { pen.fillRect(x - size, y - size, 2 * size, 2 * size); continue; } // many points: squares are faster
    circle(x, y, size);
    pen.fill();
  }
  pen.globalAlpha = 1;
  pen.strokeStyle = getComputedStyle(document.body).color;
  pen.lineWidth = 2.5;
  for (const i of [pinned, hovered]) {
    if (i < 0) continue;
    circle(...place(i), size + 4);
    pen.stroke();
  }
}
function redraw() {
  if (!queued) { queued = true; requestAnimationFrame(draw); }
}
function move(dx, dy) {
  const within = (value, size) => Math.min(0, Math.max(size * (1 - view.zoom), value));
  view.x = within(view.x + dx, width);
  view.y = within(view.y + dy, height);
  canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y"; // one finger scrolls the page until the map is zoomed
  redraw();
}
function zoomAt(px, py, factor) {
  const zoom = Math.min(60, Math.max(1, view.zoom * factor)), real = zoom / view.zoom;
  view.zoom = zoom;
  move((px - view.x) * (1 - real), (py - view.y) * (1 - real));
}
const zoomCentre = (factor) => zoomAt(width / 2, height / 2, factor);
function nearest(px, py) {
  let best = -1, least = REACH * REACH;
  for (let i = 0; i < N; i++) {
    if (chosenCluster >= 0 && data.cluster[i] !== chosenCluster) continue;
    const [ax, ay] = place(i), d = (ax - px) ** 2 + (ay - py) ** 2;
    if (d < least) { least = d; best = i; }
  }
  return best;
}
const number = (value) => (value === null ? "" : String(value));
const rankOf = (i) => number(data.rank[i]) + (data.low[i] === null ? "" : " (" + data.low[i] + " to " + data.high[i] + ")");
const steps = new Map();
data.step.forEach((step, i) => { if (step >= 0) steps.set(step, [...(steps.get(step) || []), i]); });
const company = (i) => {
  const counts = new Map();
  for (const j of steps.get(data.step[i]) || []) counts.set(data.cluster[j], (counts.get(data.cluster[j]) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([cluster, n]) => n + " of cluster " + cluster).join(", ");
};
const stepOf = (i) => (data.step[i] < 0 ? data.statuses[data.status[i]] : String(data.step[i]));
function hover(i, px, py, tip = mapTip, width = canvas.clientWidth, height = canvas.clientHeight) {
  hovered = i;
  tip.hidden = i < 0;
  redraw();
  if (i < 0) return;
  tip.replaceChildren();
  add(tip, "b", data.id[i] + " · cluster " + data.cluster[i]);
  typeset(add(tip, "div", short(data.prompt[i], 120)));
  add(tip, "div", (rankOf(i) && data.rankName + " " + rankOf(i) + " · ") + (data.step[i] < 0 ? "" : "step ") + stepOf(i));
  tip.style.left = Math.max(4, Math.min(px + 14, width - tip.offsetWidth - 6)) + "px";
  tip.style.top = Math.max(4, py + 18 + tip.offsetHeight > height ? py - tip.offsetHeight - 12 : py + 18) + "px";
}
function pin(i) {
  pinned = i;
  redraw();
  panel.replaceChildren();
  if (i < 0) { add(panel, "p", "Choose a point or a row to read why it stands where it stands."); return; }
  add(panel, "b", data.id[i]);
  add(panel, "p", data.where[i] + " of the source; cluster " + data.cluster[i] + "; " + data.statuses[data.status[i]] + (data.step[i] < 0 ? "" : " for step " + data.step[i] + " (0 to " + (T - 1) + ")")).className = "soft";
  typeset(add(panel, "p", data.prompt[i]));
  if (data.cut.includes(i)) add(panel, "p", "The question is cut here; samples.parquet holds all of it.").className = "soft";
  if (data.answer[i]) {
    const answer = data.answer[i], bare = /[\\^_]/.test(answer) && !/(?<!\\)\$/.test(answer);
    typeset(add(panel, "p", ""), "Answer: " + (bare ? "$" + answer + "$" : answer));
  }
  const list = add(panel, "ul", "");
  for (const part of data.reason[i].split("; ")) add(list, "li", part);
  if (data.step[i] < 0) return;
  add(panel, "p", "In its step: " + company(i)).className = "soft";
  add(panel, "button", "show the rows of its step").addEventListener("click", () => {
    byId("find").value = "step " + data.step[i];
    chooseCluster(-1);
    byId("find").scrollIntoView({ block: "center" });
  });
}

// The carpet: a column a step, a row a slot.
const carpet = byId("carpet"), woven = byId("woven"), T = Math.max(...steps.keys()) + 1, B = steps.get(0).length;
const at = new Map();
data.step.forEach((step, i) => { if (step >= 0) at.set(step * B + data.slot[i], i); });
function threadAt(event) {
  const box = carpet.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  const i = at.get(Math.min(T - 1, Math.max(0, Math.floor(x / box.width * T))) * B + Math.min(B - 1, Math.max(0, Math.floor(y / box.height * B))));
  return [i === undefined ? -1 : i, x, y, box];
}
on("carpet", "pointermove", (event) => {
  const [i, x, y, box] = threadAt(event);
  hover(i, x, y, woven, box.width, box.height + 200);
});
on("carpet", "pointerleave", () => hover(-1, 0, 0, woven));
on("carpet", "click", (event) => show(threadAt(event)[0], carpet, "back to the plan"));

// Pointer, wheel and keys.
const pointers = new Map();
let moved = 0, gap = 0;
function spot(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}
on("map", "pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, spot(event));
  moved = pointers.size > 1 ? 99 : 0;
  gap = 0;
});
on("map", "pointermove", (event) => {
  const [px, py] = spot(event), before = pointers.get(event.pointerId);
  if (!before) { hover(nearest(px, py), px, py); return; }
  pointers.set(event.pointerId, [px, py]);
  moved += Math.abs(px - before[0]) + Math.abs(py - before[1]);
  if (pointers.size === 1) { move(px - before[0], py - before[1]); return; }
  const [a, b] = [...pointers.values()], now = Math.hypot(a[0] - b[0], a[1] - b[1]);
  if (gap) zoomAt((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, now / gap);
  gap = now;
});
function release(event) {
  const known = pointers.delete(event.pointerId), [px, py] = spot(event);
  gap = 0;
  if (!known || event.type !== "pointerup" || moved > 5 || pointers.size) return;
  const i = nearest(px, py);
  hover(i, px, py);
  if (i >= 0) pin(i);
}
on("map", "pointerup", release);
on("map", "pointercancel", release);
on("map", "pointerleave", () => hover(-1));
canvas.addEventListener("wheel", (event) => {
  const before = view.zoom;
  zoomAt(...spot(event), Math.exp(-event.deltaY * 0.0016));
  if (view.zoom !== before) event.preventDefault(); // else the page scrolls
}, { passive: false });
on("map", "keydown", (event) => {
  const arrow = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
  const factor = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 }[event.key];
  if (arrow) move(...arrow);
  else if (factor) zoomCentre(factor);
  else return;
  event.preventDefault();
});
on("nearer", "click", () => zoomCentre(1.6));
on("farther", "click", () => zoomCentre(1 / 1.6));
on("whole", "click", () => zoomCentre(0));
on("colour", "change", (event) => { colours = colourings[event.target.value](); redraw(); });

// Cards and rows.
function chooseCluster(cluster) {
  chosenCluster = cluster;
  for (const card of document.querySelectorAll(".card")) {
    const chosen = Number(card.dataset.cluster) === chosenCluster;
    card.classList.toggle("chosen", chosen);
    card.querySelector("button").setAttribute("aria-pressed", String(chosen));
  }
  byId("only").value = String(chosenCluster);
  redraw();
  refresh();
}
for (const card of document.querySelectorAll(".card"))
  card.querySelector("button").addEventListener("click", () => {
    const cluster = Number(card.dataset.cluster);
    byId("find").value = ""; // map, table and panel show the same rows
    pin(-1);
    chooseCluster(cluster === chosenCluster ? -1 : cluster);
    if (chosenCluster >= 0) canvas.scrollIntoView({ block: "center" });
  });
const late = (i) => (data.position[i] < 0 ? null : data.position[i]);
const KEYS = [(i) => data.id[i], (i) => data.prompt[i], (i) => data.cluster[i], (i) => data.rank[i], (i) => data.label[i], (i) => data.quality[i],
  late, (i) => company(i) || null, (i) => data.reason[i]];
const sorted = { by: 6, turned: false };
const heads = [...byId("rows").tHead.rows[0].cells];
heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    sorted.turned = sorted.by === column && !sorted.turned;
    sorted.by = column;
    refresh();
  });
  if (getComputedStyle(head).display === "none") return;
  for (const way of [" ↑", " ↓"]) add(byId("sort"), "option", "sort by " + button.textContent + way).value = column + way;
});
on("sort", "change", (event) => {
  sorted.by = parseInt(event.target.value, 10);
  sorted.turned = event.target.value.endsWith("↓");
  refresh();
});
function show(i, from, words) {
  if (i < 0) return;
  const [px, py] = place(i);
  move(width / 2 - px, height / 2 - py);
  pin(i);
  panel.scrollIntoView({ block: "center" });
  const back = add(panel, "button", words);
  panel.prepend(back);
  back.addEventListener("click", () => {
    (from.isConnected ? from : byId("rows")).scrollIntoView({ block: "center" });
    from.focus({ preventScroll: true });
  });
}
function refresh() {
  const wanted = byId("find").value.trim().toLowerCase(), status = Number(byId("status").value);
  const step = /^step (\d+)$/.exec(wanted), words = step ? [] : wanted.split(/\s+/).filter(Boolean);
  const text = (i) => [data.id[i], data.prompt[i], data.answer[i], data.reason[i]].join("\n").toLowerCase();
  const holds = (i) => { const all = words.length ? text(i) : ""; return words.every((word) => all.includes(word)); };
  shown = [...data.id.keys()].filter((i) =>
    (chosenCluster < 0 || data.cluster[i] === chosenCluster) && (status < 0 || data.status[i] === status) &&
    (!step || data.step[i] === Number(step[1])) && holds(i));
  const keys = new Map(shown.map((i) => [i, KEYS[sorted.by](i)]));
  const way = sorted.turned ? -1 : 1;
  shown.sort((a, b) => {
    const one = keys.get(a), other = keys.get(b); // the id itself comes first, what is not known stays last
    return (data.id[b].toLowerCase() === wanted) - (data.id[a].toLowerCase() === wanted) || (one === null) - (other === null) || (one < other ? -way : one > other ? way : a - b);
  });
  byId("sort").value = sorted.by + (sorted.turned ? " ↓" : " ↑");
  heads.forEach((head, column) => head.setAttribute("aria-sort", column !== sorted.by ? "none" : sorted.turned ? "descending" : "ascending"));
  turn(0);
}
function turn(to) {
  page = to;
  body.replaceChildren();
  for (const i of shown.slice(page * PAGE, (page + 1) * PAGE)) {
    const row = add(body, "tr", "");
    row.tabIndex = 0;
    const texts = [data.id[i], short(data.prompt[i], 140), data.cluster[i], rankOf(i), number(data.label[i]), number(data.quality[i]), stepOf(i), company(i), data.reason[i]];
    texts.forEach((text, column) => { add(row, "td", text).dataset.name = heads[column].textContent; });
    typeset(row.cells[1]);
    row.addEventListener("click", () => show(i, row, "back to the row"));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") show(i, row, "back to the row"); });
  }
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  byId("count").textContent = shown.length + " of " + N + " rows, page " + (page + 1) + " of " + pages;
  byId("back").disabled = page === 0;
  byId("next").disabled = page >= pages - 1;
}
on("find", "input", refresh);
on("status", "change", refresh);
on("only", "change", (event) => chooseCluster(Number(event.target.value)));
on("back", "click", () => turn(page - 1));
on("next", "click", () => turn(page + 1));
document.querySelectorAll(".math").forEach((element) => typeset(element, short(element.textContent, 110)));
new ResizeObserver(() => {
  width = canvas.clientWidth;
  height = canvas.clientHeight;
  move(0, 0);
}).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
pin(-1);
refresh();
