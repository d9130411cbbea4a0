// Thumbnails on the map where it is zoomed in: one for each cell of a grid that has a point.

import * as api from '../api.js';
import { labelColour } from './colours.js';
import { REST, density, plan, scene } from './scene.js';

export const NEAR_ENOUGH = 2.5; // times zoomed in, from which thumbnails are shown
export const MOST_SHOWN = 4000; // points in view with thumbnails among them
const [CELL, THUMB] = [92, 80]; // pixels between thumbnails, and of one
const KEPT = 600; // thumbnails in memory

const thumbnails = new Map();

/** Column, row and key of the cell at a place of the map, in pixels; cells move with the map. */
export function cellOf(x, y) {
  const cell = CELL * density();
  const [column, row] = [Math.floor(x / cell), Math.floor(y / cell)];
  return [column, row, column * 65536 + row];
}

/** One thumbnail for each cell that has a point. */
export function drawThumbnails(seen, side, left, top) {
  const { pen } = scene.parts;
  const [cell, thumb] = [CELL * density(), THUMB * density()];
  for (const i of seen) {
    const [cx, cy, key] = cellOf(scene.points.x[i] * side, scene.points.y[i] * side);
    if (scene.parts.cells.has(key)) continue;
    scene.parts.cells.set(key, i);
    const image = thumbnailOf(i);
    if (!image) continue;
    const scale = thumb / Math.max(image.naturalWidth, image.naturalHeight);
    const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
    const [x, y] = [(cx + 0.5) * cell + left - w / 2, (cy + 0.5) * cell + top - h / 2];
    pen.save();
    pen.beginPath();
    pen.roundRect(x, y, w, h, 8 * density());
    pen.lineWidth = 5 * density();
    pen.strokeStyle = `rgb(${labelColour(scene.points.labels[i] ?? -1)})`;
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
  if (performance.now() - scene.moved < REST) {
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

/** The collection is another by now. */
export const forgetThumbnails = () => thumbnails.clear();
