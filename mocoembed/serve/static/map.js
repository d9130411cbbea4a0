// All images as points: a canvas of our own, drawn pixel by pixel, so that 50,000 move smoothly without WebGL or WebGPU.

import { $, counted, el, icon, toast } from './dom.js';
import * as api from './api.js';
import * as marks from './marks.js';
import { fresh, go } from './state.js';

const [CELL, THUMB] = [92, 80]; // pixels between thumbnails, and of one
const NEAR_ENOUGH = 2.5; // times zoomed in, from which thumbnails are shown
const MOST_SHOWN = 4000; // points in view with thumbnails among them
const REACH = 14; // pixels around a point that take the pointer
const MOST_CHOSEN = 5000;
const MOST_KEYS = 60; // labels in the legend
const LIT = 200; // hits of a search
const KEPT = 600; // thumbnails in memory
const MOST_MOVING = 120000; // points that are drawn while the map moves, of those there are
const GLIDE = 900; // ms in which the points move to their places on a better map
const REST = 150; // ms without a movement
const UNLABELLED = [140, 144, 152];
const FEW = 3000; // points in view that are drawn as smooth discs
const DIM = 70; // of 255, how visible what is no hit is

let parts = null;
let points = null; // {count, x, y, labels, agreement, names}
let view = { x: 0.5, y: 0.5, zoom: 1 };
let colours = null; // of each point, as a pixel of the canvas
let order = null; // points in the order they are drawn in
let stale = false; // whether there is another map on the server
let only = null; // number of the label that alone is shown in colour
let lit = new Set();
let litKey = '';
let lasso = null;
let planned = false;
let moving = 0;
const thumbnails = new Map();

// ----------------------------------------------------------------------------------------------------- data

/** Rows chosen on the map, by a key of the address -> their records. */
export async function chosen(key, signal) {
  const rows = JSON.parse(sessionStorage.getItem(`mocoembed-rows-${key}`) ?? 'null');
  if (!rows) throw new api.Refused('The images of this link were chosen in another window. Choose them on the map again.', 404);
  return api.records(rows, signal);
}

function choose(rows) {
  if (!rows.length) return;
  if (rows.length > MOST_CHOSEN) toast(`The first ${MOST_CHOSEN.toLocaleString('en')} of ${counted(rows.length, 'image')}.`);
  const key = String(Date.now());
  sessionStorage.setItem(`mocoembed-rows-${key}`, JSON.stringify(rows.slice(0, MOST_CHOSEN)));
  go(fresh({ rows: key }), { from: {} });
}

function read(answer) {
  const count = answer.points.length;
  const x = new Float32Array(count);
  const y = new Float32Array(count);
  let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [u, v] of answer.points) {
    left = Math.min(left, u); right = Math.max(right, u); top = Math.min(top, v); bottom = Math.max(bottom, v);
  }
  const size = Math.max(right - left, bottom - top) || 1;
  answer.points.forEach(([u, v], i) => {
    x[i] = 0.5 + (u - (left + right) / 2) / size;
    y[i] = 0.5 + (v - (top + bottom) / 2) / size;
  });
  order = Uint32Array.from({ length: count }, (_, i) => i);
  let seed = 1;
  for (let i = count - 1; i > 0; i--) { // no label lies on top of all others
    seed = (seed * 1103515245 + 12345) % 2147483648;
    const j = seed % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  const { version, method, provisional } = answer;
  return { count, x, y, version, method, provisional, labels: answer.labels ?? [], names: answer.label_names ?? [],
    agreement: answer.agreement ?? null };
}

// ----------------------------------------------------------------------------------------------------- colours

/** [red, green, blue] of a hue in degrees. */
function colourOf(hue, saturation = 0.68, light = dark() ? 0.66 : 0.52) {
  const chroma = saturation * Math.min(light, 1 - light);
  return [0, 8, 4].map((n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (light - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

const dark = () => matchMedia('(prefers-color-scheme: dark)').matches;
const labelColour = (number) => (number < 0 ? UNLABELLED : colourOf((number * 137.508 + 225) % 360,
  [0.7, 0.5, 0.85][Math.floor(number / 12) % 3]));
const pixel = ([red, green, blue], alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

function paint() {
  colours = new Uint32Array(points.count);
  const byAgreement = parts.by.value === 'agreement';
  const faint = pixel(dark() ? [58, 61, 68] : [216, 218, 224]);
  const palette = new Map();
  for (let i = 0; i < points.count; i++) {
    const label = points.labels[i] ?? -1;
    if (only !== null && label !== only) colours[i] = faint;
    else if (byAgreement) colours[i] = pixel(colourOf(1.3 * points.agreement[i], 0.75));
    else {
      if (!palette.has(label)) palette.set(label, pixel(labelColour(label)));
      colours[i] = palette.get(label);
    }
    if (lit.size && !lit.has(i)) colours[i] = ((colours[i] & 0xffffff) | (DIM << 24)) >>> 0;
  }
}

// ----------------------------------------------------------------------------------------------------- drawing

function plan() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => { planned = false; draw(); });
}

/** Pixels of the canvas: side of the unit square, and where its corner is. */
function frame() {
  const { canvas } = parts;
  const side = Math.min(canvas.width, canvas.height) * 0.92 * view.zoom;
  return [side, canvas.width / 2 - view.x * side, canvas.height / 2 - view.y * side];
}

const density = () => Math.min(2, devicePixelRatio || 1);

function fit() {
  const box = parts.canvas.parentElement.getBoundingClientRect();
  const [width, height] = [Math.round(box.width * density()), Math.round(box.height * density())];
  if (!width || (parts.canvas.width === width && parts.canvas.height === height)) return;
  parts.canvas.width = width;
  parts.canvas.height = height;
  parts.buffer = new ImageData(width, height);
  parts.pixels = new Uint32Array(parts.buffer.data.buffer);
  plan();
}

function draw() {
  if (!points || !parts.pixels || $('view-map').hidden) return;
  const { canvas, pen, pixels, buffer } = parts;
  const [width, height] = [canvas.width, canvas.height];
  const [side, left, top] = frame();
  pixels.fill(0);
  const radius = Math.max(1, Math.min(6, Math.round(density() * 1.5 * Math.min(3, view.zoom ** 0.5)
    * (points.count < 5000 ? 1.7 : 1))));
  const disc = discOf(radius, width);
  const seen = [];
  let most = points.count;
  if (most > MOST_MOVING && performance.now() - moving < REST) {
    most = MOST_MOVING; // the order is a random one, so the first are a sample
    setTimeout(plan, REST + 20);
  }
  for (let n = 0; n < most; n++) {
    const i = order[n];
    const px = (points.x[i] * side + left) | 0;
    const py = (points.y[i] * side + top) | 0;
    if (px < radius || py < radius || px >= width - radius || py >= height - radius) continue;
    seen.push(i);
    const colour = colours[i];
    const at = py * width + px;
    for (let k = 0; k < disc.length; k++) pixels[at + disc[k]] = colour;
  }
  if (seen.length > FEW) pen.putImageData(buffer, 0, 0);
  else drawSmooth(seen, side, left, top, radius + 0.5);
  parts.seen = seen;
  parts.cells = new Map();
  if (view.zoom >= NEAR_ENOUGH && seen.length <= MOST_SHOWN) drawThumbnails(seen, side, left, top);
  drawLit(side, left, top, radius);
  drawLasso();
  parts.inView.textContent = `Show ${counted(seen.length, 'image')} in view`;
  parts.inView.disabled = !seen.length;
}

/** Few points, with smooth edges. */
function drawSmooth(seen, side, left, top, radius) {
  const { canvas, pen } = parts;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const i of seen) {
    const colour = colours[i];
    pen.fillStyle = `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255} / ${(colour >>> 24) / 255})`;
    pen.beginPath();
    pen.arc(points.x[i] * side + left, points.y[i] * side + top, radius, 0, 7);
    pen.fill();
  }
}

const discs = new Map();

/** Offsets into the pixels of a disc's points. */
function discOf(radius, width) {
  const key = `${radius} ${width}`;
  if (!discs.has(key)) {
    const offsets = [];
    for (let y = -radius; y <= radius; y++) {
      for (let x = -radius; x <= radius; x++) if (x * x + y * y <= radius * (radius + 0.5)) offsets.push(y * width + x);
    }
    discs.set(key, offsets);
  }
  return discs.get(key);
}

/** Column, row and key of the cell at a place of the map, in pixels; cells move with the map. */
function cellOf(x, y) {
  const cell = CELL * density();
  const [column, row] = [Math.floor(x / cell), Math.floor(y / cell)];
  return [column, row, column * 65536 + row];
}

/** One thumbnail for each cell that has a point. */
function drawThumbnails(seen, side, left, top) {
  const { pen } = parts;
  const [cell, thumb] = [CELL * density(), THUMB * density()];
  for (const i of seen) {
    const [cx, cy, key] = cellOf(points.x[i] * side, points.y[i] * side);
    if (parts.cells.has(key)) continue;
    parts.cells.set(key, i);
    const image = thumbnailOf(i);
    if (!image) continue;
    const scale = thumb / Math.max(image.naturalWidth, image.naturalHeight);
    const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
    const [x, y] = [(cx + 0.5) * cell + left - w / 2, (cy + 0.5) * cell + top - h / 2];
    pen.save();
    pen.beginPath();
    pen.roundRect(x, y, w, h, 8 * density());
    pen.lineWidth = 5 * density();
    pen.strokeStyle = `rgb(${labelColour(points.labels[i] ?? -1)})`;
    pen.stroke();
    pen.clip();
    pen.drawImage(image, x, y, w, h);
    pen.restore();
  }
}

/** The thumbnail of a row if it is there; else it is asked for, once the map rests. */
function thumbnailOf(row) {
  const known = thumbnails.get(row);
  if (known) return known.complete && known.naturalWidth ? known : null;
  if (performance.now() - moving < REST) {
    setTimeout(plan, REST + 20);
    return null;
  }
  const image = new Image();
  image.src = api.thumbnail(row);
  image.onload = plan;
  thumbnails.set(row, image);
  if (thumbnails.size > KEPT) thumbnails.delete(thumbnails.keys().next().value);
  return null;
}

function drawLit(side, left, top, radius) {
  if (!lit.size) return;
  const { pen } = parts;
  pen.lineWidth = 1.5 * density();
  pen.strokeStyle = dark() ? '#fff' : '#111';
  for (const row of lit) {
    pen.fillStyle = `rgb(${labelColour(points.labels[row] ?? -1)})`;
    pen.beginPath();
    pen.arc(points.x[row] * side + left, points.y[row] * side + top, radius + 3 * density(), 0, 7);
    pen.fill();
    pen.stroke();
  }
}

function drawLasso() {
  if (!lasso || lasso.length < 2) return;
  const { pen } = parts;
  pen.beginPath();
  lasso.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.closePath();
  const accent = getComputedStyle(document.documentElement).getPropertyValue('accent-color');
  pen.fillStyle = 'rgb(110 120 240 / .15)';
  pen.strokeStyle = accent && accent !== 'auto' ? accent : '#6e78f0';
  pen.lineWidth = 2 * density();
  pen.fill();
  pen.stroke();
}

// ----------------------------------------------------------------------------------------------------- pointing

const place = (event) => {
  const box = parts.canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * density(), (event.clientY - box.top) * density()];
};

/** The row at a place of the canvas, or -1. */
function rowAt(u, v) {
  const [side, left, top] = frame();
  const shown = parts.cells?.get(cellOf(u - left, v - top)[2]);
  if (shown !== undefined) return shown;
  let [best, distance] = [-1, (REACH * density()) ** 2];
  for (const i of parts.seen ?? []) {
    const off = (points.x[i] * side + left - u) ** 2 + (points.y[i] * side + top - v) ** 2;
    if (off < distance) [best, distance] = [i, off];
  }
  return best;
}

/** The rows inside a polygon of the canvas. */
function rowsIn(polygon) {
  const [side, left, top] = frame();
  return (parts.seen ?? []).filter((i) => {
    const [u, v] = [points.x[i] * side + left, points.y[i] * side + top];
    let inside = false;
    for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
      const [[xa, ya], [xb, yb]] = [polygon[a], polygon[b]];
      if ((ya > v) !== (yb > v) && u < (xb - xa) * (v - ya) / (yb - ya) + xa) inside = !inside;
    }
    return inside;
  }).sort((a, b) => a - b);
}

function zoomBy(factor, u = parts.canvas.width / 2, v = parts.canvas.height / 2) {
  moving = performance.now();
  const [side, left, top] = frame();
  const [x, y] = [(u - left) / side, (v - top) / side];
  const zoom = Math.min(400, Math.max(0.6, view.zoom * factor));
  const grown = side * zoom / view.zoom;
  view = { zoom, x: x + (parts.canvas.width / 2 - u) / grown, y: y + (parts.canvas.height / 2 - v) / grown };
  plan();
}

function moveBy(du, dv) {
  moving = performance.now();
  const [side] = frame();
  view = { ...view, x: view.x - du / side, y: view.y - dv / side };
  plan();
}

function listen() {
  const { canvas, tip } = parts;
  const down = new Map();
  let moved = 0;
  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), ...place(event));
  }, { passive: false });
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, place(event));
    moved = 0;
    lasso = down.size === 1 && (event.shiftKey || parts.lasso.getAttribute('aria-pressed') === 'true')
      ? [place(event)] : null;
  };
  canvas.onpointermove = (event) => {
    const [u, v] = place(event);
    const before = down.get(event.pointerId);
    if (!before) return hover(event, u, v);
    tip.hidden = true;
    moved += Math.hypot(u - before[0], v - before[1]);
    if (lasso) {
      lasso.push([u, v]);
      plan();
    } else if (down.size === 2) {
      const [other] = [...down].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const spread = ([a, b]) => Math.hypot(a - other[0], b - other[1]) || 1;
      zoomBy(spread([u, v]) / spread(before), (u + other[0]) / 2, (v + other[1]) / 2);
    } else moveBy(u - before[0], v - before[1]);
    down.set(event.pointerId, [u, v]);
  };
  canvas.onpointerup = (event) => {
    down.delete(event.pointerId);
    const drawn = lasso;
    lasso = null;
    if (drawn?.length > 2) choose(rowsIn(drawn));
    else if (moved < 4 * density()) {
      const row = rowAt(...place(event));
      if (row >= 0) go({ open: String(row) });
    }
    plan();
  };
  canvas.onpointercancel = (event) => { down.delete(event.pointerId); lasso = null; plan(); };
  canvas.onpointerleave = () => { tip.hidden = true; };
  canvas.onkeydown = (event) => {
    const step = 80 * density();
    const does = { ArrowLeft: () => moveBy(step, 0), ArrowRight: () => moveBy(-step, 0), ArrowUp: () => moveBy(0, step),
      ArrowDown: () => moveBy(0, -step), '+': () => zoomBy(1.4), '=': () => zoomBy(1.4), '-': () => zoomBy(1 / 1.4),
      0: reset, Enter: () => choose([...parts.seen].sort((a, b) => a - b)), m: markView }[event.key];
    if (!does || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    does();
  };
}

function reset() {
  view = { x: 0.5, y: 0.5, zoom: 1 };
  plan();
}

async function markView() {
  if (parts.seen.length > 1000) return toast('Zoom in to mark the images in view: they are more than 1,000.');
  return marks.set(await api.records([...parts.seen]), true);
}

function hover(event, u, v) {
  const row = points ? rowAt(u, v) : -1;
  parts.canvas.classList.toggle('on-point', row >= 0);
  parts.tip.hidden = row < 0;
  if (row < 0) return;
  if (parts.tip.dataset.row !== String(row)) {
    parts.tip.dataset.row = row;
    parts.tip.firstChild.src = api.thumbnail(row);
    parts.tip.lastChild.textContent = points.names[points.labels[row]] ?? '';
  }
  const box = parts.canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  parts.tip.style.left = `${x > box.width - 190 ? x - 176 : x + 16}px`;
  parts.tip.style.top = `${Math.max(4, Math.min(y - 60, box.height - 170))}px`;
}

// ----------------------------------------------------------------------------------------------------- the view

function build() {
  const canvas = el('canvas', { className: 'map-canvas', tabIndex: 0, role: 'application',
    'aria-label': 'Map of all images. Arrows move, plus and minus zoom, Enter shows the images in view, m marks them.' });
  const by = el('select', {}, el('option', { value: 'label', textContent: 'label' }),
    el('option', { value: 'agreement', textContent: 'agreement of neighbours' }));
  const lassoButton = el('button', { type: 'button', 'aria-pressed': 'false' }, icon('lasso'), 'Lasso');
  const inView = el('button', { type: 'button' });
  const whole = el('button', { type: 'button', textContent: 'Whole map', onclick: reset });
  const tip = el('div', { className: 'map-tip', hidden: true }, el('img', { alt: '' }), el('span'));
  const status = el('p', { className: 'status', role: 'status' });
  const legend = el('ul', { className: 'legend', 'aria-label': 'Labels' });
  const bar = el('div', { className: 'panel-bar' }, el('span', { className: 'slide' },
    el('label', { className: 'slide' }, 'Colour by ', by), lassoButton, inView, whole), status);
  const stage = el('div', { className: 'map-stage' }, canvas, tip);
  const empty = el('div', { className: 'empty', hidden: true }, el('h2'), el('p'));
  parts = { canvas, pen: canvas.getContext('2d'), by, lasso: lassoButton, inView, tip, status, legend, bar, stage, empty };
  $('view-map').append(bar, stage, legend, empty);
  by.onchange = () => { paint(); plan(); };
  lassoButton.onclick = () => {
    const on = lassoButton.getAttribute('aria-pressed') !== 'true';
    lassoButton.setAttribute('aria-pressed', on);
    canvas.classList.toggle('lassoing', on);
  };
  inView.onclick = () => choose([...parts.seen].sort((a, b) => a - b));
  new ResizeObserver(fit).observe(canvas.parentElement);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { if (points) { paint(); keys(); plan(); } });
  listen();
}

/** The labels with their colours; one that is chosen is alone in colour. */
function keys() {
  const named = points.names.slice(0, MOST_KEYS).map((name, number) => [name, number]);
  if (named.length && points.labels.includes(-1)) named.push(['no label', -1]);
  parts.legend.replaceChildren(...named.map(([name, number]) => {
    const dot = el('span', { className: 'dot' });
    dot.style.background = `rgb(${labelColour(number)})`;
    const button = el('button', { type: 'button', className: 'chip', 'aria-pressed': String(only === number) }, dot, name);
    button.onclick = () => {
      only = only === number ? null : number;
      for (const [i, other] of [...parts.legend.querySelectorAll('button')].entries()) {
        other.setAttribute('aria-pressed', String(named[i][1] === only));
      }
      paint();
      plan();
    };
    return el('li', {}, button);
  }));
}

/** The collection is another by now. */
export function forget() {
  points = null;
  stale = false;
  thumbnails.clear();
}

/** There is a map by now, or a better one: the next `render` asks for it. */
export function renew() {
  stale = true;
}

/** Ask for the points; those of a better map are moved to from where they were. */
async function load() {
  if (!points) parts.status.textContent = 'Loading the map …';
  const before = points;
  try {
    points = read(await api.map());
  } catch (error) {
    setEmpty(error);
    return false;
  }
  stale = false;
  setEmpty(null);
  parts.by.lastChild.hidden = !points.agreement;
  if (!points.agreement) parts.by.value = 'label';
  paint();
  keys();
  if (before?.count === points.count && before.version === points.version) glide(before);
  return true;
}

/** Move each point from where it was to its place. */
function glide({ x, y }) {
  const [toX, toY] = [points.x, points.y];
  if (matchMedia('(prefers-reduced-motion: reduce)').matches || points.count > MOST_MOVING) return;
  const mine = points;
  const begun = performance.now();
  const step = () => {
    if (points !== mine) return;
    const share = Math.min(1, (performance.now() - begun) / GLIDE);
    const eased = share * share * (3 - 2 * share);
    points.x = share < 1 ? toX.map((one, i) => x[i] + (one - x[i]) * eased) : toX;
    points.y = share < 1 ? toY.map((one, i) => y[i] + (one - y[i]) * eased) : toY;
    draw();
    if (share < 1) requestAnimationFrame(step);
  };
  step();
}

/** Say why there is no map, or nothing. */
function setEmpty(error) {
  parts.empty.hidden = !error;
  parts.bar.hidden = parts.stage.hidden = parts.legend.hidden = Boolean(error);
  if (!error) return;
  parts.status.textContent = '';
  parts.empty.querySelector('h2').textContent = error.status === 404 ? 'There is no map yet' : 'No answer';
  parts.empty.querySelector('p').textContent = error.status === 404
    ? `${error.message}. It appears here by itself.` : error.message;
}

/** Show the view; the hits of a query are lit up. */
export async function render(now) {
  if (!parts) build();
  fit();
  if ((!points || stale) && !(await load())) return;
  fit();
  const key = JSON.stringify([now.like, now.unlike, now.crop]);
  if (key !== litKey) {
    litKey = key;
    lit = new Set();
    if (now.like.length + now.unlike.length) {
      const { bodyOf } = await import('./query.js');
      const hits = await bodyOf(now).then((body) => api.search(body, { k: LIT, crop: now.crop })).catch(() => []);
      if (key === litKey) lit = new Set(hits.map((hit) => hit.row));
    }
    paint();
  }
  parts.status.textContent = `${counted(points.count, 'image')} by ${points.method}`
    + (points.provisional ? '; a better arrangement is being computed and will appear here' : '')
    + `${lit.size ? ` · ${lit.size} nearest to the query are ringed` : ''}`;
  plan();
}

/** The records that the view shows, for the lightbox: none, as the map has no order. */
export const records = () => [];

