// Images that were chosen on the map, from there to the grid: their rows are kept under a key of the address.

import { counted, toast } from '../dom.js';
import * as api from '../api.js';
import { fresh, go } from '../state.js';

const MOST_CHOSEN = 200000; // what a browser keeps for a window

/** The rows chosen on the map, by a key of the address. */
export function chosen(key) {
  const { rows, version } = JSON.parse(sessionStorage.getItem(`mocoembed-rows-${key}`) ?? '{}');
  if (!rows || version !== api.version) {
    const why = rows ? 'The embeddings have been replaced since these images were chosen.'
      : 'The images of this link were chosen in another window.';
    throw new api.Refused(`${why} Choose them on the map again.`, 404, ['Open the map', fresh({ view: 'map' })]);
  }
  return rows;
}

/** Show rows in the grid. */
export function choose(some) {
  const rows = [...some].sort((a, b) => a - b);
  if (!rows.length) return;
  if (rows.length > MOST_CHOSEN) toast(`The first ${MOST_CHOSEN.toLocaleString('en')} of ${counted(rows.length, 'image')}.`);
  const key = String(Date.now());
  sessionStorage.setItem(`mocoembed-rows-${key}`, JSON.stringify({ version: api.version, rows: rows.slice(0, MOST_CHOSEN) }));
  go(fresh({ rows: key }), { from: {} });
}
