// The page: which view is shown, the keyboard, and what happens when the collection behind it changes.

import { $, nextRow, onClick, toast } from './dom.js';
import * as api from './api.js';
import * as marks from './marks.js';
import * as lightbox from './lightbox.js';
import * as query from './query.js';
import * as search from './search.js';
import * as duplicates from './duplicates.js';
import * as health from './health.js';
import * as map from './map.js';
import { MOST_LIKE, fresh, go, rewrite, start, state } from './state.js';

const VIEWS = ['search', 'map', 'duplicates', 'health'];
const modules = { search, duplicates, health, map };
const [OFTEN, SELDOM] = [2000, 30000]; // ms between looks at whether the collection or its map has changed
let info = {};
let looked = 0; // when, last
let isLooking = false;
let opened = ''; // the image in the lightbox

const shown = () => modules[state().view] ?? search;
const records = () => shown().records();

function render(now, before, scroll) {
  const view = VIEWS.includes(now.view) ? now.view : 'search';
  for (const name of VIEWS) {
    $(`view-${name}`).hidden = name !== view;
    tab(name).ariaCurrent = name === view ? 'page' : null;
  }
  const title = view === 'search' ? search.titleOf(now) : tab(view).textContent;
  document.title = [title, 'mocoembed'].filter(Boolean).join(' – ');
  modules[view].render(now, scroll).then(() => {
    if (state() !== now) return; // one has gone on meanwhile
    if (view !== 'search') scrollTo(0, scroll); // the search does it by itself, before its images are there
    if (before === null ? now.open : opened !== now.open) lightbox.show(now.open);
    opened = now.open;
  });
}

const tab = (view) => document.querySelector(`.tabs [data-view="${view}"]`);

function listen() {
  for (const view of VIEWS) { // between search and map the query stays
    onClick(tab(view), () => {
      const { like, unlike, crop, of, by, only, at } = state();
      const isOther = view !== state().view && ['search', 'map'].includes(view);
      go(isOther ? query.withFilters(state(), { view, like, unlike, crop, of, by, only, at: at || map.seen() }) : fresh({ view }), { from: {} });
    });
  }
  onClick(document.querySelector('.brand'), () => go(fresh(), { from: {} }));
  $('help-button').onclick = help;
  $('help-close').onclick = () => $('help').close();
  $('tray').addEventListener('click', ({ target }) => {
    const what = target.dataset.do;
    if (what === 'clear') marks.clear();
    else if (what === 'show') go({ ...fresh(), marked: '1' }, { from: {} });
    else if (what === 'like') likeMarked();
    else if (what) marks.exportAs(what, marks.all());
  });
  document.addEventListener('keydown', pressed);
  addEventListener('focus', lookForChange);
  document.addEventListener('visibilitychange', () => { if (!document.hidden) lookForChange(); });
  api.whenReplaced(lookForChange);
  setInterval(() => {
    const isWaiting = state().view === 'map' && info.map?.provisional !== false; // for a map, or a better one
    if (!document.hidden && performance.now() - looked >= (isWaiting ? OFTEN : SELDOM)) lookForChange();
  }, OFTEN);
}

/** Search for more like the marked images: by as many as a query takes, evenly spread over them. */
function likeMarked() {
  const ids = marks.all().map(({ id }) => id);
  const length = Math.min(MOST_LIKE, ids.length);
  const like = Array.from({ length }, (_, i) => ids[Math.floor(i * ids.length / length)]);
  go(query.withFilters(state(), { like, of: length < ids.length ? String(ids.length) : '' }), { from: {} });
}

function help() {
  $('help').showModal();
  $('help').focus();
}

function pressed(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector('dialog[open]')) return;
  if (event.target.matches('input:not([type=range], [type=checkbox]), select, textarea')) return;
  const arrow = ['ArrowDown', 'ArrowRight'].includes(event.key) && !event.target.matches('input');
  const number = Number(event.key);
  if (event.key === '/') { $('filter').focus(); $('filter').select(); }
  else if (event.key === '?') help();
  else if (event.key === 'u') $('choose').click();
  else if (arrow && state().view === 'search') search.focusGrid();
  else if (number >= 1 && number <= VIEWS.length) tab(VIEWS[number - 1]).click();
  else if (event.target.matches('input') || !['duplicates', 'health'].includes(state().view) || !along(event.key)) return;
  event.preventDefault();
}

const IMAGES = '.member-image, .near a'; // outside the grid

/** Go through the images of the duplicates and of the health lists, mark them, decide about them; whether the key does so. */
function along(key) {
  const view = $(`view-${state().view}`);
  const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[key];
  const rows = { ArrowDown: 1, ArrowUp: -1 }[key];
  const now = document.activeElement;
  if (step || rows) {
    const links = [...view.querySelectorAll(IMAGES)];
    const place = links.indexOf(now);
    if (place < 0 && Math.abs(step) !== 1) return false; // the page is scrolled, until an image has the focus
    const to = rows ? nextRow(links, now, rows) : links[Math.max(0, Math.min(place + step, links.length - 1))];
    to?.focus({ preventScroll: true });
    to?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    return Boolean(to);
  }
  const record = now.dataset.row && records().find(({ row }) => String(row) === now.dataset.row);
  if (!record) return false;
  if (key === 'm') marks.toggle(record);
  else if (key === 'k') now.closest('.member')?.querySelector('.keep').click();
  else if (key === ' ') now.click();
  else return false;
  return true;
}

async function lookForChange() {
  if (isLooking) return;
  isLooking = true;
  looked = performance.now();
  try {
    const now = await api.info();
    if (now.version === info.version) {
      lookAtMap(now);
      return;
    }
    const found = await api.recordsOfIds(marks.all().map(({ id }) => id), now.version);
    Object.assign(info, now);
    api.setVersion(info.version);
    marks.renew(found, info.version);
    for (const module of Object.values(modules)) module.forget();
    search.showLabels();
    render(state(), null, scrollY);
    toast('The collection has changed; this is its new state.');
  } catch { /* the next request says so, and the next look tries again */ } finally {
    isLooking = false;
  }
}

/** Take up a map that has been made, or a better one. */
function lookAtMap({ map: made, map_progress }) {
  map.tell(map_progress);
  if (made?.version === info.map?.version) return;
  info.map = made;
  map.renew();
  if (state().view === 'map') map.render(state());
}

/** Links from before they named ids have rows, which are short numbers: name these images' ids. */
async function nameIds() {
  const isRow = (one) => /^\d{1,9}$/.test(one);
  const { like, unlike, open } = state();
  const rows = [...like, ...unlike, open].filter(isRow);
  if (!rows.length) return;
  const found = new Map((await api.records(rows)).map(({ row, id }) => [String(row), id]));
  const id = (one) => found.get(one) ?? one;
  rewrite({ like: like.map(id), unlike: unlike.map(id), open: id(open) });
}

async function main() {
  try {
    info = await api.info();
  } catch (error) {
    $('view-search').hidden = false;
    search.setEmpty(fresh(), ['No answer', error.message], true);
    $('empty-again').onclick = () => location.reload();
    return;
  }
  api.setVersion(info.version);
  $('choose').hidden = info.searches_images === false;
  search.listen(info);
  map.tell(info.map_progress);
  lightbox.listen(records, async () => shown().more?.(), () => info, (id) => { if (state().view === 'search') search.focusImage(id); });
  query.listen();
  listen();
  await marks.load(info.root ?? '', info.version).catch(() => {}); // they stay where they are kept
  await nameIds().catch(() => {}); // of rows that are not there, the view tells
  start(render);
  search.showLabels();
}

main();
