/* What a reader can do besides reading: point at a value, open the fold by a link, sort a table. The page says the same without it. */
(() => {
"use strict";

const tip = document.getElementById("tip");

/* Titles become tips that a finger can show too; a browser would show them late, and to a mouse alone. */
for (const title of document.querySelectorAll("svg title")) {
  title.parentElement.dataset.tip = title.textContent;
  title.remove();
}
function show(event) {
  const words = event.target.closest?.("[data-tip]")?.dataset.tip;
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - 8 - width))}px`;
  tip.style.top = `${event.clientY - 12 - height < 8 ? event.clientY + 18 : event.clientY - 12 - height}px`;
}
document.addEventListener("pointermove", (event) => event.pointerType !== "touch" && show(event));
document.addEventListener("click", show);
document.addEventListener("scroll", () => (tip.hidden = true), { capture: true, passive: true });

/* A link into the fold opens it, and so does printing. */
function open() {
  const place = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = place && place.closest("#sure");
  if (!fold) return;
  fold.open = true;
  place.scrollIntoView();
}
addEventListener("hashchange", open);
open();
const fold = document.getElementById("sure");
let printed = false;
addEventListener("beforeprint", () => { if (fold && !fold.open) fold.open = printed = true; });
addEventListener("afterprint", () => { if (printed) fold.open = printed = false; });

/* What a reader opened or chose stays so when the page of an unfinished study reloads. */
const key = (what) => `${what} ${document.title}`;
try {
  if (fold && sessionStorage.getItem(key("open"))) fold.open = true;
  fold?.addEventListener("toggle", () => sessionStorage.setItem(key("open"), fold.open ? "yes" : ""));
  const chosen = document.getElementById(sessionStorage.getItem(key("measure")));
  if (chosen) chosen.checked = true;
  document.addEventListener("change", (event) => sessionStorage.setItem(key("measure"), event.target.id));
} catch { /* a browser that keeps nothing */ }

/* Tables sort by a click on a header: numbers as numbers, what is missing last. */
const value = (row, at) => {
  const words = row.cells[at].textContent.trim();
  const number = parseFloat(words.replace(/,/g, "").replace("−", "-"));
  return { words, number, missing: !words || words === "—" };
};
for (const head of document.querySelectorAll("thead th")) {
  head.dataset.sort = "";
  head.tabIndex = 0;
  const sort = () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [value(row, at), row]);
    const numeric = rows.every(([v]) => v.missing || !Number.isNaN(v.number));
    rows.sort(([a], [b]) => a.missing - b.missing || down * (numeric ? a.number - b.number : a.words.localeCompare(b.words)));
    body.append(...rows.map(([, row]) => row));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
})();
