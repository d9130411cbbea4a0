// Groups of near-duplicates side by side, for a threshold that a slider moves; keep and remove marks, as a list to take away.

import { $, bytesOf, counted, el, icon, nameOf, observeAgain, toast } from './dom.js';
import * as api from './api.js';
import { exportAs, placeOf, tick } from './marks.js';
import { imageLink, ratio } from './grid.js';
import { go, state } from './state.js';

const AT_ONCE = 30;
const PAGE = 50; // groups asked for at a time
const MOST_KEPT = 10000;
const kept = new Map(); // id -> true: keep, false: remove, as a person decided; this browser remembers it
let asking = null;
let shown = null;
let groups = [];
let found = null;
let coming = null; // the next groups
let parts = null;

const isAlike = (record) => record.score >= found.threshold - 1e-6; // the ends of a chain may not be
const stays = (group, record) => kept.get(record.id) ?? (record === group.rows[0] || !isAlike(record));

function recall() {
  try {
    kept.clear();
    for (const [id, stay] of JSON.parse(localStorage.getItem(placeOf('kept')) ?? '[]')) kept.set(id, stay);
  } catch { /* storage may be off; decisions then last as long as the page */ }
}

function decide(record, stay) {
  kept.delete(record.id); // so that it becomes the latest one
  kept.set(record.id, stay);
  try {
    localStorage.setItem(placeOf('kept'), JSON.stringify([...kept].slice(-MOST_KEPT)));
  } catch { /* as above */ }
}

/** A similarity with so many digits that the slider's places can be told apart. */
function shownAs(value) {
  const digits = Math.ceil(2.3 - Math.log10(1 - (found?.least ?? 0) || 1));
  return value.toFixed(Math.max(3, Math.min(6, digits)));
}

const leavingOf = (group) => group.rows.filter((record) => !stays(group, record));

/** Export what a person would remove, of all groups: those that were not shown yet too. */
async function take(form) {
  try {
    while (groups.length < found.total) await more();
  } catch (error) {
    toast(error.message);
    return;
  }
  exportAs(form, groups.flatMap(leavingOf), 'to-remove');
}

/** Get the next groups, once at a time. */
export function more() {
  coming ??= ask().finally(() => { coming = null; });
  return coming;
}

async function ask() {
  if (groups.length >= found.total) return;
  const answer = await api.duplicates({ threshold: state().threshold, offset: groups.length, limit: PAGE }, asking.signal);
  if (!answer.groups.length) found.total = groups.length;
  groups.push(...answer.groups.map(groupOf));
}

const groupOf = ({ members }) => ({ rows: members.map(({ similarity, ...record }) => ({ ...record, score: similarity })) });

function build() {
  recall();
  addEventListener('storage', ({ key }) => { // decided in another tab
    if (key !== placeOf('kept')) return;
    recall();
    parts.list.replaceChildren(...groups.slice(0, parts.list.children.length).map(card));
    tell();
  });
  const slider = el('input', { type: 'range', id: 'threshold', min: 0, max: 1, step: 'any' });
  const value = el('output', { id: 'threshold-shown', for: 'threshold' });
  const status = el('p', { className: 'status', role: 'status', 'aria-live': 'polite' });
  const list = el('div', { className: 'groups' });
  const foot = el('div', { className: 'foot' });
  const button = (text, form) => el('button', { textContent: text,
    onclick: () => take(form) });
  const leaving = el('span');
  const exports = el('div', { className: 'exports', hidden: true }, leaving,
    button('Copy paths', 'paths'), button('Text', 'text'), button('CSV', 'csv'), button('JSON', 'json'));
  let waiting;
  slider.oninput = () => {
    value.textContent = shownAs(Number(slider.value));
    clearTimeout(waiting);
    waiting = setTimeout(() => go({ threshold: String(Math.max(Number(value.textContent), slider.min)) }, { replace: true }), 60);
  };
  $('view-duplicates').append(
    el('div', { className: 'panel-bar' },
      el('label', { className: 'slide' }, 'Minimum similarity ', slider, value), exports),
    status, el('p', { className: 'hint', textContent: 'By default, the largest image of each group is kept, and the '
      + 'images similar to it are marked for removal: click to change that. Nothing is deleted here: export the list, and remove the files yourself.' }), list, foot);
  parts = { slider, value, status, list, foot, exports, leaving };
  parts.watcher = new IntersectionObserver((seen) => { if (seen.at(-1).isIntersecting) extend(); }, { rootMargin: '1500px' });
  parts.watcher.observe(foot);
}

/** Show the view of a state. */
export async function render(now) {
  if (!parts) build();
  if (shown === now.threshold) return;
  shown = now.threshold;
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  parts.list.classList.add('waiting');
  try {
    const answer = await api.duplicates({ threshold: now.threshold, limit: PAGE }, signal, (done, total) => {
      parts.status.textContent = `Comparing … ${total ? `${Math.floor(100 * done / total)} %` : ''}`;
    });
    if (signal.aborted) return;
    found = answer;
    groups = answer.groups.map(groupOf);
    parts.slider.min = answer.least;
    if (document.activeElement !== parts.slider || !now.threshold) parts.slider.value = answer.threshold;
    parts.value.textContent = shownAs(answer.threshold);
    parts.list.replaceChildren();
    extend();
    tell();
  } catch (error) {
    if (error.name === 'AbortError') return;
    shown = null;
    if (error.status === 400 && now.threshold) { // below the least, in a link
      toast(error.message);
      go({ threshold: '' }, { replace: true });
      return;
    }
    parts.list.replaceChildren();
    parts.exports.hidden = true;
    parts.status.textContent = error.message;
  } finally {
    if (!signal.aborted) parts.list.classList.remove('waiting');
  }
}

/** The collection is another by now. */
export function forget() {
  shown = null;
}

function tell() {
  const leaving = groups.reduce((sum, group) => sum + leavingOf(group).length, 0);
  const areAll = groups.length >= found.total;
  parts.exports.hidden = areAll && !leaving;
  parts.leaving.textContent = areAll ? `${counted(leaving, 'image')} to remove:` : 'Images to remove:';
  const why = `${!state().threshold && found.reason ? ` · ${shownAs(found.threshold)} is automatic: ${found.reason}` : ''}`
    + `${found.compared === 'all pairs' ? '' : ` · found by approximate search: ${found.compared}`}`;
  parts.status.textContent = found.total
    ? `${counted(found.total, 'group')} with ${counted(found.total + found.extra, 'image')}${why}` : `No near-duplicates${why}`;
}

async function extend() {
  const first = parts.list.children.length;
  const turn = found;
  if (!found || first >= found.total) return;
  if (first >= groups.length) await more().catch(() => {});
  if (turn !== found || parts.list.children.length !== first) return;
  parts.list.append(...groups.slice(first, first + AT_ONCE).map(card));
  tell();
  observeAgain(parts.watcher, parts.foot);
}

function card(group) {
  const list = el('ul', { className: 'members' });
  const none = el('p', { className: 'hint', role: 'status' });
  const warn = () => { none.textContent = group.rows.some((one) => stays(group, one)) ? '' : 'No image of this group is kept.'; };
  list.append(...group.rows.map((record) => member(group, record, warn)));
  warn();
  return el('section', { className: 'group', 'aria-label': `Group of ${group.rows.length}` }, none, list);
}

function member(group, record, warn) {
  const link = imageLink(record);
  link.className = 'member-image';
  link.style.setProperty('--ratio', ratio(record));
  tick(link, record);
  const button = el('button', { className: 'keep' });
  const size = record.width ? `${record.width} × ${record.height}` : '';
  const alike = `similarity ${shownAs(record.score)}${isAlike(record) ? '' : ', linked through other images'}`;
  const same = record.identical === null ? '' : `same bytes ${String.fromCharCode(97 + (record.identical - 1) % 26)}`;
  const made = el('li', { className: 'member' }, link,
    el('p', { className: 'member-name', textContent: nameOf(record.path), title: record.path }),
    el('p', { className: 'member-facts', textContent: [size, record.size ? bytesOf(record.size) : '',
      record.label, same].filter(Boolean).join(' · ') }),
    el('p', { className: 'member-facts', textContent: record === group.rows[0] ? 'suggested to keep' : alike }), button);
  const show = () => {
    const stay = stays(group, record);
    button.replaceChildren(icon(stay ? 'check' : 'close'), stay ? 'Kept' : 'To remove');
    button.title = stay ? 'Put it on the list to remove' : 'Keep it';
    button.ariaLabel = `${stay ? 'Kept' : 'To remove'}: ${nameOf(record.path)}`;
    made.classList.toggle('leaves', !stay);
  };
  button.onclick = () => { decide(record, !stays(group, record)); show(); warn(); tell(); };
  show();
  return made;
}

/** The records that the view shows, for the lightbox. */
export const records = () => (state().view === 'duplicates' ? groups.flatMap((group) => group.rows) : []);
