// All images as points, on a canvas of our own (map/drawing.js); map/scene.js holds what its modules share.

import { counted } from './dom.js';
import { hitsOf, whereOf, withFilters } from './query.js';
import { state, write } from './state.js';
import { paint } from './map/colours.js';
import { fit } from './map/drawing.js';
import { build, colour, setEmpty } from './map/panel.js';
import { lookAt } from './map/moving.js';
import * as points from './map/points.js';
import { plan, scene } from './map/scene.js';
import { forgetThumbnails } from './map/thumbnails.js';

export { seen } from './map/moving.js';

const LIT = 200; // hits of a search

let stale = false; // whether there is another map on the server
let litKey = '';

/** The collection is another by now. */
export function forget() {
  scene.points = null;
  stale = false;
  litKey = '';
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
    await points.load();
  } catch (error) {
    setEmpty(error);
    return false;
  }
  stale = false;
  if (before?.count === scene.points.count && before.version === scene.points.version) points.glide(before);
  return true;
}

/** Show the view; the hits of a query are lit up. */
export async function render(now) {
  if (!scene.parts) build();
  fit();
  if ((!scene.points || stale) && !(await load())) return;
  setEmpty(null);
  scene.parts.by.lastChild.hidden = !scene.points.agreement;
  fit();
  lookAt(now.at);
  colour(now);
  const { like, unlike, crop } = now;
  const key = write(withFilters(now, { like, unlike, crop }));
  if (key !== litKey) {
    litKey = key;
    scene.lit = new Set();
    if (like.length + unlike.length) {
      const hits = await hitsOf(now).then((asked) => asked(0, Math.min(LIT, now.k || LIT))).catch(() => []);
      if (key === litKey) scene.lit = new Set(hits.map((hit) => hit.row));
    }
    paint();
  }
  showStatus();
  plan();
}

/** Say how far the server is with a better map. */
export function tell(progress) {
  scene.progress = progress ? ` (${progress})` : '';
  if (scene.points) showStatus();
}

function showStatus() {
  const where = whereOf(state());
  scene.parts.status.textContent = `${counted(scene.points.count, 'image')}, arranged by ${scene.points.method}`
    + (scene.points.provisional ? `; a better arrangement is being computed${scene.progress} and will appear here` : '')
    + (scene.lit.size ? ` · the ${counted(scene.lit.size, 'image')} nearest to the query${where && `, ${where},`} ${scene.lit.size > 1 ? 'are' : 'is'} ringed` : '');
}

/** The records that the view shows, for the lightbox: none, as the map has no order. */
export const records = () => [];
