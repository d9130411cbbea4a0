// The lasso: a polygon that is drawn on the map.

import { density, scene } from './scene.js';

/** Draw the polygon so far. */
export function drawLasso() {
  if (!scene.lasso || scene.lasso.length < 2) return;
  const { pen } = scene.parts;
  pen.beginPath();
  scene.lasso.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.closePath();
  const accent = getComputedStyle(document.documentElement).getPropertyValue('accent-color');
  pen.fillStyle = 'rgb(110 120 240 / .15)';
  pen.strokeStyle = accent && accent !== 'auto' ? accent : '#6e78f0';
  pen.lineWidth = 2 * density();
  pen.fill();
  pen.stroke();
}
