"use strict";
// All text of the data reaches the page through textContent alone.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (name) => document.getElementById(name);
const N = data.id.length;
const canvas = byId("map"), pen = canvas.getContext("2d"), tip = byId("tip");
const PAD = 24, REACH = 14, PAGE = 50;
const view = { zoom: 1, x: 0, y: 0 };
let chosenCluster = -1, pinned = -1, hovered = -1, page = 0, shown = [], queued = false;

function colourOf(values, low, high) {
  const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  return values.map((value) => {
    if (value === null) return "#9aa0aa";
    const t = Math.min(1, Math.max(0, (value - low) / (high - low || 1))) * (stops.length - 1);
    const i = Math.min(stops.length - 2, Math.floor(t)), part = t - i;
    return "rgb(" + stops[i].map((a, j) => Math.round(a + part * (stops[i + 1][j] - a))).join(",") + ")";
  });
}
function graded(values) {
  const known = values.filter((v) => v !== null).sort((a, b) => a - b);
  return colourOf(values, known[Math.floor(0.02 * known.length)], known[Math.floor(0.98 * (known.length - 1))]);
}
const colourings = {
  cluster: () => data.cluster.map((c) => data.tints[c]),
  rank: () => graded(data.rank),
  label: () => graded(data.label),
  step: () => graded(data.step.map((s) => (s < 0 ? null : s))),
};
let colours = colourings.cluster();

function scale() {
  const width = canvas.clientWidth, height = canvas.clientHeight;
  return { sx: (width - 2 * PAD) / 9999, sy: (height - 2 * PAD) / 9999, width, height };
}
function place(i, s) {
  return [(PAD + data.x[i] * s.sx) * view.zoom + view.x, (PAD + (9999 - data.y[i]) * s.sy) * view.zoom + view.y];
}
function draw() {
  queued = false;
  const ratio = window.devicePixelRatio || 1, s = scale();
  if (canvas.width !== Math.round(s.width * ratio) || canvas.height !== Math.round(s.height * ratio)) {
    canvas.width = Math.round(s.width * ratio);
    canvas.height = Math.round(s.height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, s.width, s.height);
  const size = Math.min(7, (N > 5000 ? 1.6 : N > 1000 ? 2.3 : 3.4) * Math.sqrt(view.zoom));
  for (let i = 0; i < N; i++) {
    const [px, py] = place(i, s);
    if (px < -9 || py < -9 || px > s.width + 9 || py > s.height + 9) continue;
    const faded = chosenCluster >= 0 && data.cluster[i] !== chosenCluster;
    pen.globalAlpha = faded ? 0.07 : data.status[i] === 0 ? 0.75 : 0.35;
    pen.fillStyle = colours[i];
    pen.beginPath();
    pen.arc(px, py, size, 0, 6.2832);
    pen.fill();
  }
  pen.globalAlpha = 1;
  for (const i of [pinned, hovered]) {
    if (i < 0) continue;
    const [px, py] = place(i, s);
    pen.strokeStyle = getComputedStyle(document.body).color;
    pen.lineWidth = 2.5;
    pen.beginPath();
    pen.arc(px, py, size + 4, 0, 6.2832);
    pen.stroke();
  }
}
function redraw() {
  if (!queued) { queued = true; requestAnimationFrame(draw); }
}
function nearest(px, py) {
  const s = scale();
  let best = -1, least = REACH * REACH;
  for (let i = 0; i < N; i++) {
    if (chosenCluster >= 0 && data.cluster[i] !== chosenCluster) continue;
    const [ax, ay] = place(i, s), d = (ax - px) ** 2 + (ay - py) ** 2;
    if (d < least) { least = d; best = i; }
  }
  return best;
}
function zoomAt(px, py, factor) {
  const zoom = Math.min(60, Math.max(1, view.zoom * factor)), real = zoom / view.zoom;
  view.x = px - (px - view.x) * real;
  view.y = py - (py - view.y) * real;
  view.zoom = zoom;
  clamp();
}
function clamp() {
  const s = scale();
  view.x = Math.min(0, Math.max(s.width * (1 - view.zoom), view.x));
  view.y = Math.min(0, Math.max(s.height * (1 - view.zoom), view.y));
  redraw();
}
function line(parent, name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  parent.appendChild(element);
  return element;
}
function hover(i, px, py) {
  hovered = i;
  tip.hidden = i < 0;
  redraw();
  if (i < 0) return;
  tip.replaceChildren();
  line(tip, "b", data.id[i] + " · cluster " + data.cluster[i]);
  line(tip, "div", data.prompt[i].slice(0, 120));
  line(tip, "div", (data.rank[i] === null ? "" : data.rankName + " " + data.rank[i] + " · ") +
    (data.step[i] < 0 ? data.statuses[data.status[i]] : "step " + data.step[i]));
  const s = scale();
  tip.style.left = Math.max(4, Math.min(px + 14, s.width - tip.offsetWidth - 6)) + "px";
  tip.style.top = Math.max(4, py + 18 + tip.offsetHeight > s.height ? py - tip.offsetHeight - 12 : py + 18) + "px";
}
function centre(i) {
  const s = scale(), [px, py] = place(i, s);
  view.x += s.width / 2 - px;
  view.y += s.height / 2 - py;
  clamp();
}
function pin(i) {
  pinned = i;
  redraw();
  const panel = byId("panel");
  panel.replaceChildren();
  if (i < 0) { line(panel, "p", "Choose a point or a row to read why it stands where it stands."); return; }
  line(panel, "b", data.id[i]);
  line(panel, "p", data.where[i] + " of the source; cluster " + data.cluster[i] + "; " + data.statuses[data.status[i]]).className = "soft";
  line(panel, "p", data.prompt[i]);
  const list = line(panel, "ul", "");
  for (const part of data.reason[i].split("; ")) line(list, "li", part);
}
function chooseCluster(cluster) {
  chosenCluster = cluster === chosenCluster ? -1 : cluster;
  for (const card of document.querySelectorAll(".card")) {
    const on = Number(card.dataset.cluster) === chosenCluster;
    card.classList.toggle("chosen", on);
    card.querySelector("button").setAttribute("aria-pressed", String(on));
  }
  byId("only").value = String(chosenCluster);
  redraw();
  refresh();
}

const pointers = new Map();
let moved = 0, last = null;
function spot(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, spot(event));
  moved = pointers.size > 1 ? 99 : 0;
  last = null;
});
canvas.addEventListener("pointermove", (event) => {
  const [px, py] = spot(event), before = pointers.get(event.pointerId);
  if (!before) { hover(nearest(px, py), px, py); return; }
  pointers.set(event.pointerId, [px, py]);
  moved += Math.abs(px - before[0]) + Math.abs(py - before[1]);
  if (pointers.size === 1) {
    view.x += px - before[0];
    view.y += py - before[1];
    clamp();
    return;
  }
  const [a, b] = [...pointers.values()], gap = Math.hypot(a[0] - b[0], a[1] - b[1]);
  if (last) zoomAt((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, gap / (last || 1));
  last = gap;
});
function release(event) {
  const known = pointers.delete(event.pointerId);
  last = null;
  if (known && event.type === "pointerup" && moved < 6 && pointers.size === 0) {
    const [px, py] = spot(event), i = nearest(px, py);
    hover(i, px, py);
    if (i >= 0) pin(i);
  }
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => hover(-1));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomAt(...spot(event), Math.exp(-event.deltaY * 0.0016));
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
  if (steps) { view.x += steps[0]; view.y += steps[1]; clamp(); }
  else if (event.key === "+" || event.key === "=") zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 1.4);
  else if (event.key === "-") zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 1 / 1.4);
  else return;
  event.preventDefault();
});
byId("nearer").addEventListener("click", () => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 1.6));
byId("farther").addEventListener("click", () => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 1 / 1.6));
byId("whole").addEventListener("click", () => { view.zoom = 1; view.x = view.y = 0; redraw(); });
byId("colour").addEventListener("change", (event) => { colours = colourings[event.target.value](); redraw(); });
for (const card of document.querySelectorAll(".card"))
  card.querySelector("button").addEventListener("click", () => {
    chooseCluster(Number(card.dataset.cluster));
    if (chosenCluster >= 0) canvas.scrollIntoView({ block: "center" });
  });

function cell(row, name, text, number) {
  const element = line(row, "td", text);
  element.dataset.name = name;
  if (number) element.className = "number";
}
function refresh() {
  const wanted = byId("find").value.trim().toLowerCase(), status = Number(byId("status").value), order = byId("order").value;
  shown = [];
  for (let i = 0; i < N; i++) {
    if (chosenCluster >= 0 && data.cluster[i] !== chosenCluster) continue;
    if (status >= 0 && data.status[i] !== status) continue;
    if (wanted && !data.id[i].toLowerCase().includes(wanted) && !data.prompt[i].toLowerCase().includes(wanted)) continue;
    shown.push(i);
  }
  const late = (position) => (position < 0 ? N : position);
  if (order === "plan") shown.sort((a, b) => late(data.position[a]) - late(data.position[b]) || a - b);
  if (order === "rank") shown.sort((a, b) => data.rank[a] - data.rank[b] || a - b);
  if (order === "odd") shown.sort((a, b) => data.distance[b] - data.distance[a] || a - b);
  page = 0;
  table();
}
function table() {
  const body = byId("rows").tBodies[0];
  body.replaceChildren();
  for (const i of shown.slice(page * PAGE, (page + 1) * PAGE)) {
    const row = document.createElement("tr");
    row.tabIndex = 0;
    cell(row, "id", data.id[i]);
    cell(row, "cluster", String(data.cluster[i]), true);
    cell(row, data.rankName, data.rank[i] === null ? "" : String(data.rank[i]), true);
    cell(row, "step", data.step[i] < 0 ? data.statuses[data.status[i]] : String(data.step[i]), true);
    cell(row, "prompt", data.prompt[i].slice(0, 140));
    cell(row, "why", data.reason[i]);
    const show = () => { centre(i); pin(i); byId("panel").scrollIntoView({ block: "nearest" }); };
    row.addEventListener("click", show);
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") show(); });
    body.appendChild(row);
  }
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  byId("count").textContent = shown.length + " of " + N + " rows, page " + (page + 1) + " of " + pages;
  byId("back").disabled = page === 0;
  byId("next").disabled = page >= pages - 1;
}
byId("find").addEventListener("input", refresh);
byId("status").addEventListener("change", refresh);
byId("order").addEventListener("change", refresh);
byId("only").addEventListener("change", (event) => { chosenCluster = -1; chooseCluster(Number(event.target.value)); });
byId("back").addEventListener("click", () => { page -= 1; table(); });
byId("next").addEventListener("click", () => { page += 1; table(); });
new ResizeObserver(clamp).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
pin(-1);
refresh();
