/* What a reader can do with the report: point at a figure, walk along compute, sort and filter the trials, save numbers.
   All it shows is in #data, which embed.py writes; it loads nothing, and the page says the same without it. */
(() => {
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
document.documentElement.classList.add("live");

const SHAPES = new Set(["svg", "g", "path", "line", "text", "rect", "circle", "polyline", "image"]);

function make(name, attributes = {}, parent = null, text = "") {
  const element = SHAPES.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(text);
  if (parent) parent.append(element);
  return element;
}

/* As formatting.py write them: 1,024, 3.2e11; a true minus sign. */
function number(value) {
  if (value < 1e6) return Math.round(value).toLocaleString("en");
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return `${+mantissa}e${+exponent}`;
}
function decimal(value, digits = 2) {
  const text = value.toFixed(digits);
  return (Number(text) ? text : (0).toFixed(digits)).replace("-", "−");
}
const counted = (text, word) => `${text} ${word}${text === "1" ? "" : "s"}`;

// The words of what is pointed at ------------------------------------------------------------------------------------

const tip = document.getElementById("tip");

/* A point is [x, y, words] or [x, y, series, run, value, flops, step, stroke]; an area [x, y, width, height, words]. */
function wordsOf(told, target) {
  if (typeof target.at(-1) === "string") return target.at(-1).split("\n");
  const [, , which, run, value, flops, step] = target;
  const [before, after] = told.series[which];
  const [name, tasks, replicate, budget, status] = data.runs[run];
  const head = `${before} ${decimal(value, 3)}${after}`;
  const compute = budget || (flops === null ? told.compute : number(flops));
  const where = `${counted(tasks, "task")}, ${compute} FLOPs, replicate ${replicate}`;
  const along = budget ? status : `along the trunk${status ? `, which ${status}` : ""}`;
  return [head, where + (step === null ? "" : `, step ${number(step)}`), `${name}: ${along}`];
}

function showTip(lines, x, y) {
  tip.replaceChildren();
  lines.forEach((line, i) => {
    const element = make(i ? "span" : "b", {}, tip);
    for (const [k, part] of line.split(/K_([AM])/).entries()) {  // K_A has its letter below the line
      if (k % 2) element.append("K", make("sub", {}, null, part));
      else element.append(part);
    }
  });
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth - 8 ? x - 14 - width : x + 14;
  const top = y - 12 - height < 8 ? y + 18 : y - 12 - height;
  tip.style.left = `${Math.max(8, Math.min(left, innerWidth - 8 - width))}px`;
  tip.style.top = `${Math.max(8, Math.min(top, innerHeight - 8 - height))}px`;
}

// Pointing -----------------------------------------------------------------------------------------------------------

const panels = new Map();  // element -> what is on it: box, series, points, areas, strokes
let pointed = null;  // the panel whose tip is shown
let keyed = false;  // whether the arrow keys chose what is shown, rather than a pointer
const NEAR = 14, ON = 6;  // pixels

function hide() {
  tip.hidden = true;
  if (pointed) pointed.querySelector(".over")?.replaceChildren();
  pointed = null;
}

/* What lies at (x, y) of a panel's own pixels: a mark right there, else the area around, else the nearest mark. */
function targetAt(told, x, y, scale) {
  let nearest = null, distance = NEAR / scale;
  for (const point of told.points) {
    const away = Math.hypot(point[0] - x, point[1] - y);
    if (away < distance) [nearest, distance] = [point, away];
  }
  if (nearest && distance * scale <= ON) return nearest;
  const inside = ([left, top, width, height]) => x >= left && x <= left + width && y >= top && y <= top + height;
  return told.areas.findLast(inside) || nearest;
}

const isArea = (target) => target.length === 5;  // points have 3 or 8
const centre = (target) => (isArea(target) ? [target[0] + target[2] / 2, target[1] + target[3] / 2] : target.slice(0, 2));

/* Show a target of a panel: outlined, its replicate's line drawn bold, its words beside it. */
function show(element, target) {
  if (pointed !== element) hide();
  pointed = element;
  const told = panels.get(element), [width, height] = told.box;
  let over = element.querySelector(".over");
  if (!over) over = make("svg", { class: "over", "aria-hidden": "true" }, element);
  over.setAttribute("viewBox", `0 0 ${width} ${height}`);
  over.replaceChildren();
  const [x, y] = target;
  const lines = wordsOf(told, target);
  if (isArea(target)) {
    make("rect", { class: "mark", x, y, width: target[2], height: target[3] }, over);
  } else {
    const strokes = target.length > 3 && target[7] !== null ? told.strokes[target[7]] || [] : [];
    for (const kind of ["halo", "line"]) {
      for (const line of strokes) {
        const points = line.map((i) => told.points[i].slice(0, 2).join()).join(" ");
        make("polyline", { class: kind, points, ...(kind === "line" && { stroke: told.series[target[2]][2] }) }, over);
      }
    }
    make("circle", { class: "mark", cx: x, cy: y, r: 5 }, over);
    const here = told.points.filter((p) => Math.hypot(p[0] - x, p[1] - y) < 1.5).length - 1;
    if (here) lines.push(`and ${here} more at the same place`);
  }
  const box = element.getBoundingClientRect(), [cx, cy] = centre(target), scale = box.width / width;
  showTip(lines, box.left + cx * scale, box.top + cy * scale);
}

function pointAt(element, event) {
  const box = element.getBoundingClientRect(), told = panels.get(element), scale = box.width / told.box[0];
  const target = targetAt(told, (event.clientX - box.left) / scale, (event.clientY - box.top) / scale, scale);
  keyed = false;
  if (target) show(element, target);
  else hide();
  told.current = target;
}

/* The nearest target in the direction of an arrow key. */
function neighbour(told, from, [right, down]) {
  const [x, y] = centre(from);
  let best = null, least = Infinity;
  for (const target of [...told.areas, ...told.points]) {
    const [dx, dy] = [centre(target)[0] - x, centre(target)[1] - y];
    const ahead = dx * right + dy * down, aside = Math.abs(dx * down) + Math.abs(dy * right);
    if (ahead > 0.5 && ahead + 3 * aside < least) [best, least] = [target, ahead + 3 * aside];
  }
  return best;
}

const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

function listen(element, told) {
  panels.set(element, told);
  element.tabIndex = 0;
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", "Figure: the arrow keys go through its values");
  element.addEventListener("pointermove", (event) => event.pointerType !== "touch" && pointAt(element, event));
  element.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && hide());
  element.addEventListener("click", (event) => pointAt(element, event));
  element.addEventListener("blur", hide);
  element.addEventListener("keydown", (event) => {
    const at = panels.get(element);
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    const next = at.current ? neighbour(at, at.current, ARROWS[event.key]) : at.areas[0] || at.points[0];
    keyed = true;
    if (next) show(element, (at.current = next));
  });
}

for (const element of document.querySelectorAll("[data-panel]")) listen(element, data.panels[element.dataset.panel]);
document.addEventListener("pointerdown", (event) => pointed && !pointed.contains(event.target) && hide());
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
/* Scrolled away from under a pointer, a tip would be about something else; what the keys chose is still chosen, wherever it
   now stands (a panel that is given the focus scrolls into view a moment later). */
const scrolled = () => (keyed && pointed ? show(pointed, panels.get(pointed).current) : hide());
document.addEventListener("scroll", scrolled, { capture: true, passive: true });

// The walk along compute ---------------------------------------------------------------------------------------------

const MARKS = {
  round: "M-3.4,0a3.4,3.4 0 1 0 6.8,0a3.4,3.4 0 1 0 -6.8,0z",
  square: "M-3,-3h6v6h-6z",
  below: "M-3.6,-2h7.2l-3.6,5.6z",
  above: "M-3.6,2h7.2l-3.6,-5.6z",
};
const HEIGHT = 270, NARROWEST = 270, MARGIN = { left: 30, right: 8, top: 12, bottom: 42 };

class Walk {
  constructor(root, told) {
    Object.assign(this, { root, told, timer: null });
    this.stage = root.querySelector(".stage");
    this.ride = root.querySelector(".ride");
    this.slider = root.querySelector("input");
    this.play = root.querySelector("button");
    this.slider.max = told.stops.length - 1;
    this.slider.value = told.stops.length - 1;
    this.slider.addEventListener("input", () => this.update());
    this.play.addEventListener("click", () => this.toggle());
    listen(this.stage, { box: [1, 1], series: told.series, points: [], areas: [], strokes: [] });
    this.drawTicks();
    new ResizeObserver(() => this.draw()).observe(root);
    this.draw();
  }

  x(level) { return MARGIN.left + (level + 0.5) * this.pitch; }
  y(value) { return MARGIN.top + ((this.told.high - value) / (this.told.high - this.told.low)) * (HEIGHT - MARGIN.top - MARGIN.bottom); }

  /* The frame, for the width there is. */
  draw() {
    const { levels, series, values } = this.told, available = this.stage.parentElement.clientWidth;
    const width = Math.min(available, Math.max(NARROWEST, MARGIN.left + MARGIN.right + 116 * levels.length));
    if (!width || width === this.width) return;
    this.width = width;
    this.pitch = (width - MARGIN.left - MARGIN.right) / levels.length;
    this.stage.style.width = this.ride.style.maxWidth = `${width}px`;
    this.stage.replaceChildren();
    const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": "Ability and memory by number of tasks" }, this.stage);
    const right = width - MARGIN.right, bottom = HEIGHT - MARGIN.bottom;
    for (const [value, name] of [[-0.5, "−½"], [0, "0"], [0.5, "½"], [1, "1"]]) {
      if (value < this.told.low) continue;
      make("line", { x1: MARGIN.left, x2: right, y1: this.y(value), y2: this.y(value), stroke: value === 0.5 ? "#8a8a8a" : "#e4e4e4" }, svg);
      make("text", { x: MARGIN.left - 6, y: this.y(value) + 4, "text-anchor": "end" }, svg, name);
    }
    make("line", { x1: MARGIN.left, x2: right, y1: bottom, y2: bottom, stroke: "#9a9a9a" }, svg);
    const stride = Math.ceil((7.4 * Math.max(...levels.map((name) => name.length)) + 6) / this.pitch);
    levels.forEach((name, i) => {
      if ((levels.length - 1 - i) % stride) return;  // names that would touch are left out
      make("text", { x: this.x(i), y: bottom + 16, "text-anchor": "middle" }, svg, name);
    });
    make("text", { class: "title", x: (MARGIN.left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, svg, this.told.axis);
    const [w, h] = [right - MARGIN.left, bottom - MARGIN.top];
    const inside = make("svg", { x: MARGIN.left, y: MARGIN.top, width: w, height: h, viewBox: `${MARGIN.left} ${MARGIN.top} ${w} ${h}` }, svg);
    this.marks = series.map(([, , colour, measure], s) => {
      const means = make("path", { fill: "none", stroke: colour, "stroke-opacity": 0.35, "stroke-width": 1.5 }, inside);
      return { means, colour, one: levels.map((_, i) => ({
        bar: make("line", { stroke: colour, "stroke-width": 1.6 }, svg),
        each: values[s][0][i].map(() => make("path", { class: "mark", stroke: colour, "data-series": measure, "data-level": i }, svg)),
      })) };
    });
    this.update();
  }

  update() {
    const k = Number(this.slider.value), stop = this.told.stops[k];
    const kind = stop.budget ? this.root.dataset.budget : this.root.dataset.trunk;
    this.root.querySelector(".now b").textContent = stop.flops;
    this.root.querySelector(".at").textContent = `${stop.step} optimizer steps: ${kind}`;
    this.slider.setAttribute("aria-valuetext", `${stop.flops} FLOPs, ${stop.step} steps, ${kind}`);
    const points = [];
    this.marks.forEach((drawn, s) => {
      let path = "", pen = "M";
      drawn.one.forEach(({ bar, each }, i) => {
        const cell = this.told.values[s][k][i], known = cell.filter((v) => v !== null);
        const middle = this.x(i) + (s ? 0.2 : -0.2) * this.pitch;
        const mean = known.length ? known.reduce((sum, v) => sum + v, 0) / known.length : null;
        const shown = mean !== null && mean >= this.told.low && mean <= this.told.high;
        if (this.told.jumps.includes(i)) pen = "M";
        if (mean !== null) path += `${pen}${middle.toFixed(1)},${this.y(mean).toFixed(1)}`;
        pen = mean === null ? "M" : "L";
        bar.toggleAttribute("hidden", !shown || known.length < 2);
        if (shown) {
          const y = this.y(mean), half = 0.17 * this.pitch;
          for (const [key, value] of Object.entries({ x1: middle - half, x2: middle + half, y1: y, y2: y })) bar.setAttribute(key, value);
        }
        each.forEach((mark, r) => this.place(mark, points, { s, i, r, value: cell[r], n: cell.length, middle, run: stop.runs[i][r], colour: drawn.colour }));
      });
      drawn.means.setAttribute("d", path);
    });
    Object.assign(panels.get(this.stage), { box: [this.width, HEIGHT], points, compute: stop.flops, current: null });
    if (pointed === this.stage) hide();
  }

  place(mark, points, { s, i, r, value, n, middle, run, colour }) {
    mark.toggleAttribute("hidden", value === null);
    if (value === null) return mark.removeAttribute("data-value");
    const { low, high } = this.told, beyond = value < low ? "below" : value > high ? "above" : "";
    const x = middle + (r - (n - 1) / 2) * Math.min(0.09, 0.3 / n) * this.pitch, y = this.y(Math.max(low, Math.min(value, high)));
    mark.setAttribute("d", MARKS[beyond || (s ? "square" : "round")]);
    mark.setAttribute("fill", s || beyond ? "#fff" : colour);
    mark.setAttribute("data-value", value);
    mark.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px) scale(${n < 8 ? 1 : 0.7})`;
    points.push([x, y, s, run, value, null, null, null]);
  }

  /* A tick at every stop, a tall one with its name at the end of a budget; names that would touch are left out. */
  drawTicks() {
    const ticks = this.root.querySelector(".ticks"), last = Math.max(this.told.stops.length - 1, 1);
    this.told.stops.forEach((stop, k) => {
      const left = `left: ${(100 * k) / last}%`;
      make("i", { style: left, class: stop.budget ? "budget" : "" }, ticks);
      if (stop.budget) make("span", { style: left }, ticks, stop.flops);
    });
    new ResizeObserver(() => {
      let free = ticks.getBoundingClientRect().right + 9;
      for (const name of [...ticks.querySelectorAll("span")].reverse()) {
        name.hidden = false;
        name.style.marginLeft = 0;
        const box = name.getBoundingClientRect(), excess = Math.max(0, box.right - free);
        name.hidden = excess > 12 && name.nextSibling !== null;
        name.style.marginLeft = `${-excess}px`;
        if (!name.hidden) free = box.left - excess - 6;
      }
    }).observe(ticks);
  }

  toggle() {
    if (this.timer) return this.pause();
    if (this.slider.value === this.slider.max) this.slider.value = 0;
    else this.slider.stepUp();
    this.update();
    this.play.textContent = "Pause";
    this.timer = setInterval(() => {
      if (this.slider.value === this.slider.max) return this.pause();
      this.slider.stepUp();
      this.update();
    }, 700);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "Play";
  }
}

for (const root of document.querySelectorAll("[data-walk]")) new Walk(root, data.walks[root.dataset.walk]);

// The table of trials ------------------------------------------------------------------------------------------------

const textOf = (row, column) => row.cells[column].textContent.trim();

/* Numbers as numbers, words as words, what is missing last whichever way. */
function compare(a, b, sign) {
  const missing = (a === "—") - (b === "—");
  if (missing) return missing;
  const [x, y] = [a, b].map((text) => Number(text.replaceAll(",", "").replace("−", "-")));
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en") : x - y);
}

function sortable(table) {
  const body = table.tBodies[0], headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    if ("unsorted" in header.dataset) return;
    const button = make("button", { type: "button" });
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of headers) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      body.append(...[...body.rows].sort((a, b) => compare(textOf(a, column), textOf(b, column), sign)));
    });
  });
}

function filterable(table, form) {
  const rows = [...table.tBodies[0].rows], wanted = [];
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const values = "filter" in header.dataset ? [...new Set(rows.map((row) => textOf(row, column)))] : [];
    if (values.length < 2) return;
    const label = make("label", {}, form, header.dataset.filter || header.textContent.trim());
    const select = make("select", {}, label);
    make("option", { value: "" }, select, "all");
    for (const value of values.sort((a, b) => compare(a, b, 1))) make("option", { value }, select, value);
    wanted.push((row) => !select.value || textOf(row, column) === select.value);
  });
  const search = make("input", { type: "search", placeholder: "part of a trial’s id" }, make("label", {}, form, "Find"));
  wanted.push((row) => row.dataset.trial.includes(search.value.trim()));
  const count = make("output", {}, form);
  const apply = () => {
    for (const row of rows) row.hidden = !wanted.every((test) => test(row));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

const trials = document.querySelector("table.trials");
sortable(trials);
filterable(trials, document.querySelector("form.filter"));

// Saving, folding, printing ------------------------------------------------------------------------------------------

/* The files beside a figure from this page itself: it may have been mailed alone. */
async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const picturesOf = (name) => document.querySelectorAll(`[data-plate="${name}"] .panel > :is(svg:not(.over), img)`);

/* The frame of a plate with the panels that are on the page, each in its empty place. */
function framed(frame, pictures) {
  const root = new DOMParser().parseFromString(frame, "image/svg+xml").documentElement;
  root.querySelectorAll("svg").forEach((place, i) => {
    if (pictures[i].localName === "svg") return place.append(...pictures[i].cloneNode(true).childNodes);
    const [, , width, height] = place.getAttribute("viewBox").split(" ");
    make("image", { href: pictures[i].src, width, height }, place);
  });
  return root;
}

async function painted(root) {
  const [, , width, height] = root.getAttribute("viewBox").split(" ").map(Number), finer = 2;
  const canvas = make("canvas", { width: Math.round(width * finer), height: Math.round(height * finer) });
  const image = new Image();
  image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(root))}`;
  await image.decode();
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

const FILES = {
  csv: async (name) => new Blob([await unpacked(data.csv[name])], { type: "text/csv" }),
  svg: async (name) => new Blob([framed(await unpacked(data.frames[name]), picturesOf(name)).outerHTML], { type: "image/svg+xml" }),
  png: async (name) => painted(framed(await unpacked(data.frames[name]), picturesOf(name))),
};

for (const link of document.querySelectorAll("a[data-file]")) {
  const { file, kind } = link.dataset;
  const known = kind === "csv" ? data.csv[file] : data.frames[file] && picturesOf(file).length;
  if (!known || !window.DecompressionStream) continue;
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    const address = URL.createObjectURL(await FILES[kind](file));
    make("a", { href: address, download: `${file}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}

const unfold = () => document.querySelector(`${location.hash || "#answer"} details`)?.setAttribute("open", "");
addEventListener("hashchange", unfold);
unfold();

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details.on-paper:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));
})();
