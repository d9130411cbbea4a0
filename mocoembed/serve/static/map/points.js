// The points of the map: the server's answer -> coordinates from 0 to 1, and their way to the places of a better map.

import * as api from '../api.js';
import { draw } from './drawing.js';
import { MOST_MOVING, scene } from './scene.js';

const GLIDE = 900; // ms in which the points move to their places on a better map

/** Ask for the points. */
export async function load() {
  scene.points = read(await api.map());
}

/** {count, x, y, labels, names, kinds, agreement, ...} of an answer of the server; also the order to draw them in. */
function read(answer) {
  const count = answer.points.length;
  const x = new Float32Array(count);
  const y = new Float32Array(count);
  let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [u, v] of answer.points) {
    left = Math.min(left, u); right = Math.max(right, u); top = Math.min(top, v); bottom = Math.max(bottom, v);
  }
  const size = Math.max(right - left, bottom - top) || 1;
  const middle = [(left + right) / 2, (top + bottom) / 2];
  answer.points.forEach(([u, v], i) => {
    x[i] = 0.5 + (u - middle[0]) / size;
    y[i] = 0.5 + (v - middle[1]) / size;
  });
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  let seed = 1;
  for (let i = count - 1; i > 0; i--) { // no label lies on top of all others
    seed = (seed * 1103515245 + 12345) % 2147483648;
    const j = seed % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  scene.order = order;
  const { version, map, method, provisional, labels = [] } = answer;
  return { count, x, y, places: { x, y }, size, middle, version, map, method, provisional, labels, names: answer.label_names ?? [],
    kinds: labels.reduce((most, label) => Math.max(most, label + 1), 0), agreement: answer.agreement ?? null };
}

/** Move each point from where it was to its place. */
export function glide({ x, y }) {
  if (matchMedia('(prefers-reduced-motion: reduce)').matches || scene.points.count > MOST_MOVING) return;
  const mine = scene.points;
  const { x: toX, y: toY } = mine;
  const begun = performance.now();
  const step = () => {
    if (scene.points !== mine) return;
    const share = Math.min(1, (performance.now() - begun) / GLIDE);
    const eased = share * share * (3 - 2 * share);
    mine.x = share < 1 ? toX.map((one, i) => x[i] + (one - x[i]) * eased) : toX;
    mine.y = share < 1 ? toY.map((one, i) => y[i] + (one - y[i]) * eased) : toY;
    draw();
    if (share < 1) requestAnimationFrame(step);
  };
  step();
}
