"use strict";
// What all parts of the page use: its data, small builders of elements, and the theme.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const NONE = 65535, FULL = 65000, VOID = 255, DASH = "–";

function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function option(text, value) {
  return make("option", { value: String(value) }, text);
}

function swatch(index) {
  const made = make("span", { className: "swatch" });
  made.style.background = `rgb(${DATA.palette[index].join(",")})`;
  return made;
}

const unpacked = new Map();

// The bytes of a blob: gzip in base64, unpacked when first asked for.
function bytes(number) {
  if (!unpacked.has(number)) {
    const text = atob($(`blob-${number}`).textContent);
    const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked.set(number, new Response(stream).arrayBuffer());
  }
  return unpacked.get(number);
}

const percent = (share, digits = 2) => (Number.isFinite(share) ? (100 * share).toFixed(digits) : DASH);
const signed = (share, digits = 2) => {
  if (!Number.isFinite(share)) return "";
  const text = (100 * share).toFixed(digits);
  if (Number(text) === 0) return (0).toFixed(digits);
  return text.startsWith("-") ? text.replace("-", "−") : `+${text}`;
};
const counted = (value) => value.toLocaleString("en");

function chosen(name) {
  return document.querySelector(`input[name="${name}"]:checked`).value;
}

function onChoice(name, act) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) input.addEventListener("change", act);
}

// The theme: the reader's system decides unless they do. Canvases are drawn again when it changes.
const redraws = [], THEME = "segmentation-report-theme"; // pages from the disk share one storage
function applyTheme(value) {
  if (value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
  for (const redraw of redraws) redraw();
}
function remembered(value) {
  try {
    if (value) localStorage.setItem(THEME, value);
    return localStorage.getItem(THEME) || "auto";
  } catch {
    return value || "auto"; // a page from the disk may have no storage
  }
}
onChoice("theme", () => applyTheme(remembered(chosen("theme"))));
const themes = [...document.querySelectorAll('input[name="theme"]')], firstTheme = remembered();
for (const input of themes) if (input.value === firstTheme) input.checked = true;
applyTheme(chosen("theme"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((redraw) => redraw()));
const closed = [];
addEventListener("beforeprint", () => {
  applyTheme("light");
  for (const part of document.querySelectorAll("details:not([open])")) {
    closed.push(part);
    part.open = true;
  }
});
addEventListener("afterprint", () => {
  applyTheme(chosen("theme"));
  for (const part of closed.splice(0)) part.open = false;
});

// The chapter in view is marked in the navigation.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-15% 0px -75% 0px" });
document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
