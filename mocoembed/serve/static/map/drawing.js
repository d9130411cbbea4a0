// Draws the map, pixel by pixel, so that 50,000 points move smoothly without WebGL or WebGPU.

import { $, counted } from '../dom.js';
import { dark, labelColour } from './colours.js';
import { drawLasso } from './lasso.js';
import { MOST_MOVING, REST, density, drawWith, frame, plan, scene } from './scene.js';
import { MOST_SHOWN, NEAR_ENOUGH, drawThumbnails } from './thumbnails.js';

const FEW = 3000; // points in view that are drawn as smooth discs

/** Make the canvas as large as the place for it. */
export function fit() {
  const { parts, parts: { canvas } } = scene;
  const box = canvas.parentElement.getBoundingClientRect();
  const [width, height] = [Math.round(box.width * density()), Math.round(box.height * density())];
  if (!width || (canvas.width === width && canvas.height === height)) return;
  canvas.width = width;
  canvas.height = height;
  parts.buffer = new ImageData(width, height);
  parts.pixels = new Uint32Array(parts.buffer.data.buffer);
  plan();
}

/** Draw all of it. */
export function draw() {
  if (!scene.points || !scene.parts.pixels || $('view-map').hidden) return;
  const { points: { x, y }, order, colours } = scene;
  const { canvas, pen, pixels, buffer } = scene.parts;
  const [width, height] = [canvas.width, canvas.height];
  const [side, left, top] = frame();
  pixels.fill(0);
  const radius = Math.max(1, Math.min(6, Math.round(density() * 1.5 * Math.min(3, scene.view.zoom ** 0.5)
    * (scene.points.count < 5000 ? 1.7 : 1))));
  const disc = discOf(radius, width);
  const seen = [];
  let most = scene.points.count;
  if (most > MOST_MOVING && performance.now() - scene.moved < REST) {
    most = MOST_MOVING; // the order is a random one, so the first are a sample
    setTimeout(plan, REST + 20);
  }
  for (let n = 0; n < most; n++) {
    const i = order[n];
    const px = (x[i] * side + left) | 0;
    const py = (y[i] * side + top) | 0;
    if (px < radius || py < radius || px >= width - radius || py >= height - radius) continue;
    seen.push(i);
    const colour = colours[i];
    const at = py * width + px;
    for (let k = 0; k < disc.length; k++) pixels[at + disc[k]] = colour;
  }
  if (seen.length > FEW) pen.putImageData(buffer, 0, 0);
  else drawSmooth(seen, side, left, top, radius + 0.5);
  scene.parts.seen = seen;
  scene.parts.cells = new Map();
  if (scene.view.zoom >= NEAR_ENOUGH && seen.length <= MOST_SHOWN) drawThumbnails(seen, side, left, top);
  drawLit(side, left, top, radius);
  drawLasso();
  scene.parts.radius = radius;
  scene.parts.showView.textContent = `Show ${counted(seen.length, 'image')} in view`;
  scene.parts.showView.disabled = !seen.length;
}

/** Few points, with smooth edges. */
function drawSmooth(seen, side, left, top, radius) {
  const { canvas, pen } = scene.parts;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const i of seen) {
    const colour = scene.colours[i];
    pen.fillStyle = `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255} / ${(colour >>> 24) / 255})`;
    pen.beginPath();
    pen.arc(scene.points.x[i] * side + left, scene.points.y[i] * side + top, radius, 0, 7);
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

/** Rings around the hits of a search. */
function drawLit(side, left, top, radius) {
  if (!scene.lit.size) return;
  const { pen } = scene.parts;
  pen.lineWidth = 1.5 * density();
  pen.strokeStyle = dark() ? '#fff' : '#111';
  for (const row of scene.lit) {
    pen.fillStyle = `rgb(${labelColour(scene.points.labels[row] ?? -1)})`;
    pen.beginPath();
    pen.arc(scene.points.x[row] * side + left, scene.points.y[row] * side + top, radius + 3 * density(), 0, 7);
    pen.fill();
    pen.stroke();
  }
}

drawWith(draw);
