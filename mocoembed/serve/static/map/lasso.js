// The lasso: a polygon that is drawn on the map, and the images inside it.

import { density, frame, scene } from './scene.js';

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

/** The rows inside a polygon of the canvas. */
export function rowsIn(polygon) {
  const [side, left, top] = frame();
  return (scene.parts.seen ?? []).filter((i) => {
    const [u, v] = [scene.points.x[i] * side + left, scene.points.y[i] * side + top];
    let inside = false;
    for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
      const [[xa, ya], [xb, yb]] = [polygon[a], polygon[b]];
      if ((ya > v) !== (yb > v) && u < (xb - xa) * (v - ya) / (yb - ya) + xa) inside = !inside;
    }
    return inside;
  });
}
