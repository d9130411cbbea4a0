// All images as points, on a canvas of our own (map/drawing.js); map/scene.js holds what its modules share.

import { counted } from './dom.js';
import * as api from './api.js';
import { bodyOf } from './query.js';
import { paint } from './map/colours.js';
import { fit } from './map/drawing.js';
import { build, keys, setEmpty } from './map/panel.js';
import { glide, read } from './map/points.js';
import { plan, scene } from './map/scene.js';
import { forgetThumbnails } from './map/thumbnails.js';

export { chosen } from './map/chosen.js';

const LIT = 200; // hits of a search

let stale = false; // whether there is another map on the server
let litKey = '';

/** The collection is another by now. */
export function forget() {
  scene.points = null;
  stale = false;
  litKey = '';
  scene.only = null;
  forgetThumbnails();
}

/** There is a map by now, or a better one: the next `render` asks for it. */
export function renew() {
  stale = true;
}

/** Ask for the points; those of a better map are moved to from where they were. */
async function load() {
  if (!scene.points) scene.parts.status.textContent = 'Loading the map …';
  const before = scene.points;
  try {
    scene.points = read(await api.map());
  } catch (error) {
    setEmpty(error);
    return false;
  }
  stale = false;
  setEmpty(null);
  scene.parts.by.lastChild.hidden = !scene.points.agreement;
  if (!scene.points.agreement) scene.parts.by.value = 'label';
  paint();
  keys();
  if (before?.count === scene.points.count && before.version === scene.points.version) glide(before);
  return true;
}

/** Show the view; the hits of a query are lit up. */
export async function render(now) {
  if (!scene.parts) build();
  fit();
  if ((!scene.points || stale) && !(await load())) return;
  fit();
  const key = JSON.stringify([now.like, now.unlike, now.crop]);
  if (key !== litKey) {
    litKey = key;
    scene.lit = new Set();
    if (now.like.length + now.unlike.length) {
      const hits = await bodyOf(now).then((body) => api.search(body, { k: LIT, crop: now.crop })).catch(() => []);
      if (key === litKey) scene.lit = new Set(hits.map((hit) => hit.row));
    }
    paint();
  }
  scene.parts.status.textContent = `${counted(scene.points.count, 'image')} by ${scene.points.method}`
    + (scene.points.provisional ? '; a better arrangement is being computed and will appear here' : '')
    + `${scene.lit.size ? ` · ${scene.lit.size} nearest to the query are ringed` : ''}`;
  plan();
}

/** The records that the view shows, for the lightbox: none, as the map has no order. */
export const records = () => [];
