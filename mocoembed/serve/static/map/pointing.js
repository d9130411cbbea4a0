// Mouse, fingers and keys on the map: drag, zoom, lasso, open, and what is under the pointer.

import * as api from '../api.js';
import { toast } from '../dom.js';
import * as marks from '../marks.js';
import { go } from '../state.js';
import { choose, inView } from './chosen.js';
import { moveBy, reset, zoomBy } from './moving.js';
import { density, frame, plan, scene } from './scene.js';
import { cellOf } from './thumbnails.js';

const REACH = 14; // pixels around a point that take the pointer

const place = (event) => {
  const box = scene.parts.canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * density(), (event.clientY - box.top) * density()];
};

/** The row at a place of the canvas, or -1. */
function rowAt(u, v) {
  const [side, left, top] = frame();
  const shown = scene.parts.cells?.get(cellOf(u - left, v - top)[2]);
  if (shown !== undefined) return shown;
  let [best, distance] = [-1, (REACH * density()) ** 2];
  for (const i of scene.parts.seen ?? []) {
    const off = (scene.points.x[i] * side + left - u) ** 2 + (scene.points.y[i] * side + top - v) ** 2;
    if (off < distance) [best, distance] = [i, off];
  }
  return best;
}

/** Listen to the canvas. */
export function listen() {
  const { canvas, tip } = scene.parts;
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
    scene.lasso = down.size === 1 && (event.shiftKey || scene.parts.lasso.getAttribute('aria-pressed') === 'true')
      ? [place(event)] : null;
  };
  canvas.onpointermove = (event) => {
    const [u, v] = place(event);
    const before = down.get(event.pointerId);
    if (!before) return hover(event, u, v);
    tip.hidden = true;
    moved += Math.hypot(u - before[0], v - before[1]);
    if (scene.lasso) {
      scene.lasso.push([u, v]);
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
    const drawn = scene.lasso;
    scene.lasso = null;
    if (drawn?.length > 2) choose(drawn);
    else if (moved < 4 * density()) {
      const row = rowAt(...place(event));
      if (row >= 0) api.records([row]).then(([{ id }]) => go({ open: id }), (error) => toast(error.message));
    }
    plan();
  };
  canvas.onpointercancel = (event) => { down.delete(event.pointerId); scene.lasso = null; plan(); };
  canvas.onpointerleave = () => { tip.hidden = true; };
  canvas.onkeydown = (event) => {
    const step = 80 * density();
    const does = { ArrowLeft: () => moveBy(step, 0), ArrowRight: () => moveBy(-step, 0), ArrowUp: () => moveBy(0, step),
      ArrowDown: () => moveBy(0, -step), '+': () => zoomBy(1.4), '=': () => zoomBy(1.4), '-': () => zoomBy(1 / 1.4),
      0: reset, Enter: () => scene.points && choose(inView()), m: markView,
      ...(scene.lasso ? { Escape: () => { down.clear(); scene.lasso = null; plan(); } } : {}) }[event.key];
    if (!does || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    does();
  };
}

async function markView() {
  if (scene.parts.seen.length > 1000) return toast('More than 1,000 images are in view; zoom in to mark them.');
  return marks.set(await api.records([...scene.parts.seen]), true);
}

/** Write a label beside the pointer; with a row, if that is still under it. */
function showLabel(label, row = scene.parts.tip.dataset.row) {
  if (scene.parts.tip.dataset.row === String(row)) scene.parts.tip.lastChild.textContent = label ?? '';
}

function hover(event, u, v) {
  const { canvas, tip } = scene.parts;
  const row = scene.points ? rowAt(u, v) : -1;
  canvas.classList.toggle('on-point', row >= 0);
  tip.hidden = row < 0;
  if (row < 0) return;
  if (tip.dataset.row !== String(row)) {
    tip.dataset.row = row;
    tip.firstChild.src = api.thumbnail(row);
    const { names, labels } = scene.points;
    showLabel(names[labels[row]]);
    if (labels[row] >= names.length) api.records([row]).then(([{ label }]) => showLabel(label, row), () => {});
  }
  const box = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  tip.style.left = `${x > box.width - 190 ? x - 176 : x + 16}px`;
  tip.style.top = `${Math.max(4, Math.min(y - 60, box.height - 170))}px`;
}
