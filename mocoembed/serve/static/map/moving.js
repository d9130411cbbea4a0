// Moving and zooming the map.

import { rewrite, state } from '../state.js';
import { WHOLE, frame, plan, scene } from './scene.js';

const RESTING = 250; // ms after which a view is put into the address
const [LEAST, MOST] = [0.6, 400]; // times zoomed in
let resting;
let taken = ''; // from the address, or put into it, last

const textOf = ({ x, y, zoom }) => [x.toFixed(5), y.toFixed(5), zoom.toPrecision(4)].map(Number).join('_');

/** What is seen of the map, as an address says it: `x_y_zoom`; the whole map is the empty text. */
export const seen = () => (textOf(scene.view) === textOf(WHOLE) ? '' : textOf(scene.view));

/** Put what is seen of the map into the address. */
function keep() {
  if (state().view !== 'map') return;
  taken = seen();
  if (taken !== state().at) rewrite({ at: taken });
}

/** See of the map what an address says, if that is another place than before. */
export function lookAt(at) {
  if (at === taken) return;
  taken = at;
  const [x, y, zoom] = at.split('_').map(Number);
  scene.view = [x, y].every(Number.isFinite) && zoom >= LEAST && zoom <= MOST ? { x, y, zoom } : { ...WHOLE };
}

function see(view) {
  scene.view = view;
  clearTimeout(resting);
  resting = setTimeout(keep, RESTING);
  plan();
}

/** Zoom around a place of the canvas, by default its middle. */
export function zoomBy(factor, u = scene.parts.canvas.width / 2, v = scene.parts.canvas.height / 2) {
  scene.moved = performance.now();
  const [side, left, top] = frame();
  const [x, y] = [(u - left) / side, (v - top) / side];
  const zoom = Math.min(MOST, Math.max(LEAST, scene.view.zoom * factor));
  const grown = side * zoom / scene.view.zoom;
  const { width, height } = scene.parts.canvas;
  see({ zoom, x: x + (width / 2 - u) / grown, y: y + (height / 2 - v) / grown });
}

/** Move by pixels of the canvas. */
export function moveBy(du, dv) {
  scene.moved = performance.now();
  const [side] = frame();
  see({ ...scene.view, x: scene.view.x - du / side, y: scene.view.y - dv / side });
}

/** Show the whole map. */
export function reset() {
  see({ ...WHOLE });
}
