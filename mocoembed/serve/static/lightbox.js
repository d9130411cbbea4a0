// One image, large: facts, neighbours, and what can be done with it. Arrows go through the images behind it.

import { $, counted, el, nameOf, onClick, relativeTo } from './dom.js';
import * as api from './api.js';
import * as marks from './marks.js';
import { imageLink, ratio, showThumbnail } from './grid.js';
import { cropQuery, withFilters } from './query.js';
import { fresh, go, state, write } from './state.js';

const NEAR = 12;
const AHEAD = 10; // images before the last one from which on more are asked for
const [SWIPE, AFTER] = [50, 500]; // pixels from which on a finger's way is a swipe; ms in which its end is no click
let asking = null;
let shown = null;
let around = () => []; // the records behind the lightbox
let more = async () => {}; // gets more of them
let swiped = -Infinity; // when a finger did last
let opened = null; // id that it was opened with
let left = () => {}; // told the id that was looked at last

/** The folder of a record's image, as a path filter: relative to the collection's root, with `/*`. */
export function folderOf(record, root) {
  const path = relativeTo(record.path, root);
  const end = path.lastIndexOf('/');
  return end < 0 ? '' // a name's own stars are no wildcards; a byte that is not UTF-8 has no letter in an address
    : `${path.slice(0, end).replace(/[*?[]/g, '[$&]').replace(/[\udc80-\udcff]/gu, '?')}/*`;
}

/**
 * Wire the lightbox up; `records()` are those to go through, `grow()` gets more, `info` the collection's facts. `closed(id)` is called when
 * another image was looked at last than it was opened with.
 */
export function listen(records, grow, info, closed) {
  around = records;
  more = grow;
  left = closed;
  const dialog = $('lightbox');
  dialog.addEventListener('close', () => { if (state().open) go({ open: '' }); });
  dialog.addEventListener('cancel', (event) => { event.preventDefault(); close(); });
  $('lb-close').onclick = close;
  $('lb-left').onclick = () => step(-1);
  $('lb-right').onclick = () => step(1);
  $('lb-mark').onclick = () => marks.toggle(shown);
  $('lb-crop').onclick = () => cropQuery(shown.id);
  $('lb-copy').onclick = () => marks.exportAs('paths', [shown]);
  onClick($('lb-search'), () => go(searchFrom(shown), { from: {} }));
  onClick($('lb-folder'), () => go(folderState(shown, info()), { from: {} }));
  dialog.addEventListener('click', (event) => { if (event.target.classList.contains('stage') && performance.now() - swiped > AFTER) close(); });
  dialog.addEventListener('keydown', (event) => {
    if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
    const does = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), m: () => marks.toggle(shown),
      c: () => $('lb-copy').click() }[event.key];
    const plain = event.key === 'Enter' && (event.target === dialog || event.target.closest('.stage') === null
      && !event.target.closest('a, button'));
    if (!does && !plain) return;
    event.preventDefault();
    if (does) does();
    else $('lb-search').click();
  });
  swipes(dialog.querySelector('.stage'));
  marks.onChange(() => { if (shown) showMark(); });
  listen.info = info;
}

const searchFrom = (record) => withFilters(state(), { like: [record.id] });
const folderState = (record, info) => fresh({ path: folderOf(record, info.root) });

function close() {
  go({ open: '' });
}

function step(by) {
  const records = around();
  const place = records.findIndex((record) => record.id === shown?.id);
  const next = records[place + by];
  if (place >= 0 && next) go({ open: next.id }, { replace: true });
}

/** A finger that moves sideways goes to the next image or the one before. */
function swipes(stage) {
  let from = null;
  stage.addEventListener('touchstart', ({ touches }) => { from = touches.length === 1 ? touches[0] : null; }, { passive: true });
  stage.addEventListener('touchend', ({ changedTouches: [to] }) => {
    const [dx, dy] = from ? [to.clientX - from.clientX, to.clientY - from.clientY] : [0, 0];
    from = null;
    if (Math.abs(dx) > SWIPE && Math.abs(dx) > 2 * Math.abs(dy)) {
      swiped = performance.now();
      step(dx < 0 ? 1 : -1);
    }
  });
}

function showMark() {
  const on = marks.has(shown);
  $('lb-mark').ariaPressed = on;
  $('lb-mark').lastChild.textContent = on ? 'Marked' : 'Mark';
}

/** Show the image with an id, or close (without one). */
export async function show(open) {
  const dialog = $('lightbox');
  asking?.abort();
  if (!open) {
    const last = shown?.id;
    shown = null;
    if (dialog.open) dialog.close();
    if (last && last !== opened) left(last);
    $('lb-image').removeAttribute('src');
    return;
  }
  asking = new AbortController();
  const { signal } = asking;
  let why = 'There is no such image in this collection. It has been removed since, or the link belongs to another collection.';
  const found = around().find(({ id }) => id === open)
    ?? await api.recordOf(open).catch(({ message }) => { why = message; });
  if (signal.aborted) return;
  shown = found;
  dialog.classList.toggle('missing', !shown);
  if (shown) fill(shown);
  else {
    setGone(why);
    $('lb-name').textContent = 'Image not found';
    $('lb-path').textContent = '';
  }
  if (!dialog.open) {
    opened = open;
    dialog.showModal();
    dialog.focus();
  }
  $('lb-near').replaceChildren();
  if (!shown) return;
  try {
    const hits = await api.search({ ids: [open] }, { k: NEAR + 1 }, signal);
    if (signal.aborted) return;
    $('lb-near').replaceChildren(...hits.filter((hit) => hit.id !== open).slice(0, NEAR).map(near));
  } catch { /* the neighbours are left out */ }
}

/** Say why there is no image to see, or nothing. */
function setGone(why) {
  $('lb-image').parentElement.classList.toggle('gone', Boolean(why));
  $('lb-gone').hidden = !why;
  $('lb-gone').lastChild.textContent = why;
}

function fill(record) {
  const image = $('lb-image');
  const full = api.image(record.row);
  setGone('');
  showThumbnail(image, record);
  image.style.setProperty('--ratio', ratio(record));
  const sharp = new Image();
  sharp.src = full;
  sharp.decode().then(() => { if (shown?.id === record.id) image.src = full; }, async () => {
    const isLost = api.isGone(await api.statusOf(full)); // else the thumbnail stays
    if (isLost && shown?.id === record.id) setGone('The image is gone, or its bytes have changed since it was embedded.');
  });
  $('lb-name').textContent = nameOf(record.path);
  $('lb-path').textContent = record.path;
  const facts = [['Label', record.label], ['Score', record.score?.toFixed(4)],
    ['Size', record.width ? `${record.width} × ${record.height} pixels` : null],
    ['Folded', record.folded ? counted(record.folded, 'near-duplicate') : null], ['Row', record.row], ['Id', record.id]];
  $('lb-facts').replaceChildren(...facts.filter(([, value]) => value !== null && value !== undefined && value !== '')
    .map(([name, value]) => el('div', {}, el('dt', { textContent: name }), el('dd', { textContent: value }))));
  $('lb-search').href = write(searchFrom(record));
  const folder = folderOf(record, listen.info().root);
  $('lb-folder').hidden = !folder;
  $('lb-folder').href = write(folderState(record, listen.info()));
  if (showWays() < AHEAD) more().then(showWays, () => {});
  showMark();
}

/** Show whether there are images before and after; how many are after. */
function showWays() {
  const records = around();
  const place = records.findIndex(({ id }) => id === shown?.id);
  const after = place < 0 ? Infinity : records.length - 1 - place;
  $('lb-left').hidden = place <= 0;
  $('lb-right').hidden = place < 0 || !after;
  return after;
}

function near(hit) {
  const link = imageLink(hit, true);
  link.append(el('span', { className: 'score', textContent: hit.score.toFixed(3) }));
  return el('li', {}, link);
}
