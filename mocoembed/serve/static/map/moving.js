// Moving and zooming the map.

import { frame, plan, scene } from './scene.js';

/** Zoom around a place of the canvas, by default its middle. */
export function zoomBy(factor, u = scene.parts.canvas.width / 2, v = scene.parts.canvas.height / 2) {
  scene.moved = performance.now();
  const [side, left, top] = frame();
  const [x, y] = [(u - left) / side, (v - top) / side];
  const zoom = Math.min(400, Math.max(0.6, scene.view.zoom * factor));
  const grown = side * zoom / scene.view.zoom;
  const { width, height } = scene.parts.canvas;
  scene.view = { zoom, x: x + (width / 2 - u) / grown, y: y + (height / 2 - v) / grown };
  plan();
}

/** Move by pixels of the canvas. */
export function moveBy(du, dv) {
  scene.moved = performance.now();
  const [side] = frame();
  scene.view = { ...scene.view, x: scene.view.x - du / side, y: scene.view.y - dv / side };
  plan();
}

/** Show the whole map. */
export function reset() {
  scene.view = { x: 0.5, y: 0.5, zoom: 1 };
  plan();
}
