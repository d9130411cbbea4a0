// Images that are chosen on the map: a polygon, which stands in the address, -> the rows inside it.

import { toast } from '../dom.js';
import * as api from '../api.js';
import { fresh, go } from '../state.js';
import { load } from './points.js';
import { frame, scene } from './scene.js';

const MOST_CORNERS = 48;
const FINE = 10; // steps of a corner's place for one of the map's own

/** The rows inside a polygon of the address: the map's version, x, y, x, y, ... in the map's own places. */
export async function chosen(lasso) {
  if (!scene.points) await load();
  const { map, size, middle } = scene.points;
  const [version, ...places] = lasso.split('_');
  if (places.length % 2 || places.length > 2 * MOST_CORNERS || places.some((place) => !/^-?\d+(\.\d)?$/.test(place))) {
    throw new api.Refused('This link to images on the map is not whole.', 404, ['Open the map', fresh({ view: 'map' })]);
  }
  if (version !== map) {
    throw new api.Refused('The map has been arranged anew since these images were chosen. Choose them on the map again.', 404,
      ['Open the map', fresh({ view: 'map' })]);
  }
  const corners = places.map((place, i) => 0.5 + (Number(place) - middle[i % 2]) / size);
  return rowsIn(corners.filter((_, i) => i % 2 === 0).map((x, i) => [x, corners[2 * i + 1]]));
}

/** Show the images inside a polygon of the canvas, [[u, v], ...] in its pixels. */
export async function choose(polygon) {
  if (!scene.points) return;
  const [side, left, top] = frame();
  const { map, size, middle } = scene.points;
  const place = (part, i) => Math.round(FINE * ((part - 0.5) * size + middle[i])) / FINE;
  const corners = simplified(polygon).map(([u, v]) => [(u - left) / side, (v - top) / side].map(place));
  const lasso = [map, ...corners.flat()].join('_');
  if ((await chosen(lasso)).length) go(fresh({ lasso }), { from: {} });
  else toast('There are no images inside.');
}

/** What is in view, as a polygon. */
export function inView() {
  const { canvas: { width, height }, radius } = scene.parts;
  const [right, bottom] = [width - radius, height - radius];
  return [[radius, radius], [right, radius], [right, bottom], [radius, bottom]];
}

/** A polygon of few corners: those that say least are left out. */
function simplified(polygon) {
  const kept = [...polygon];
  const area = (i) => {
    const [[xa, ya], [xb, yb], [xc, yc]] = [kept.at(i - 1), kept[i], kept[(i + 1) % kept.length]];
    return Math.abs((xb - xa) * (yc - ya) - (xc - xa) * (yb - ya));
  };
  while (kept.length > MOST_CORNERS) {
    const areas = kept.map((_, i) => area(i));
    kept.splice(areas.indexOf(Math.min(...areas)), 1);
  }
  return kept;
}

/** The rows inside a polygon of the unit square. */
function rowsIn(polygon) {
  const { places: { x, y }, count } = scene.points;
  const rows = [];
  for (let i = 0; i < count; i++) {
    let inside = false;
    for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
      const [[xa, ya], [xb, yb]] = [polygon[a], polygon[b]];
      if ((ya > y[i]) !== (yb > y[i]) && x[i] < (xb - xa) * (y[i] - ya) / (yb - ya) + xa) inside = !inside;
    }
    if (inside) rows.push(i);
  }
  return rows;
}
