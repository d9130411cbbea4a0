// Groups of near-duplicates side by side, for a threshold that a slider moves; keep and remove marks, as a list to take away.

import { $, counted, el, nameOf } from './dom.js';
import * as api from './api.js';
import { exportAs } from './marks.js';
import { ratio, showThumbnail } from './grid.js';
import { go, state } from './state.js';

const LEAST = 0.5;
const AT_ONCE = 30;
const kept = new Map(); // row -> true: keep, false: remove, as a person decided
let asking = null;
let shown = null;
let groups = [];
let parts = null;

const stays = (group, record) => kept.get(record.row) ?? record === group.rows[0];
const leaving = () => groups.flatMap((group) => group.rows.filter((record) => !stays(group, record)));

function build() {
  const slider = el('input', { type: 'range', id: 'threshold', min: LEAST, max: 1, step: 0.005 });
  const value = el('output', { id: 'threshold-shown', for: 'threshold' });
  const status = el('p', { className: 'status', role: 'status', 'aria-live': 'polite' });
  const list = el('div', { className: 'groups' });
  const foot = el('div', { className: 'foot' });
  const button = (text, form) => el('button', { type: 'button', textContent: text,
    onclick: () => exportAs(form, leaving(), 'to-remove') });
  const exports = el('div', { className: 'exports' }, el('span', { textContent: 'List of those to remove:' }),
    button('Copy paths', 'paths'), button('Text', 'text'), button('CSV', 'csv'), button('JSON', 'json'));
  let waiting;
  slider.oninput = () => {
    value.textContent = Number(slider.value).toFixed(3);
    clearTimeout(waiting);
    waiting = setTimeout(() => go({ threshold: slider.value }, { replace: true }), 60);
  };
  $('view-duplicates').append(
    el('div', { className: 'panel-bar' },
      el('label', { className: 'slide' }, 'Alike from ', el('span', { className: 'ends', textContent: 'loose' }), slider,
        el('span', { className: 'ends', textContent: 'exact' }), value), exports),
    status, el('p', { className: 'hint', textContent: 'Choose what to keep; the largest image of each group is '
      + 'suggested. Nothing is ever deleted here: take the list away and remove the files yourself.' }), list, foot);
  parts = { slider, value, status, list, foot, exports };
  new IntersectionObserver((seen) => { if (seen[0].isIntersecting) extend(); }, { rootMargin: '1500px' }).observe(foot);
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
  if (!parts.list.children.length) parts.status.textContent = 'Comparing …';
  try {
    const answer = await api.duplicates(now.threshold, signal);
    if (signal.aborted) return;
    groups = answer.groups.filter((group) => group.rows.length > 1);
    const threshold = Number(now.threshold || answer.threshold || 0.95);
    if (document.activeElement !== parts.slider || !now.threshold) parts.slider.value = threshold;
    parts.value.textContent = threshold.toFixed(3);
    parts.list.replaceChildren();
    extend();
    tell(answer.threshold_reason && !now.threshold ? ` · ${answer.threshold_reason}` : '');
  } catch (error) {
    if (error.name === 'AbortError') return;
    shown = null;
    parts.list.replaceChildren();
    parts.status.textContent = error.message;
  } finally {
    if (!signal.aborted) parts.list.classList.remove('waiting');
  }
}

/** The collection is another by now. */
export function forget() {
  shown = null;
  kept.clear();
}

function tell(more = '') {
  const extra = leaving().length;
  parts.exports.hidden = !extra;
  parts.status.textContent = groups.length
    ? `${counted(groups.length, 'group')}, ${counted(extra, 'image')} to remove${more}` : `No near-duplicates${more}`;
}

function extend() {
  const first = parts.list.children.length;
  parts.list.append(...groups.slice(first, first + AT_ONCE).map(card));
}

function card(group, place) {
  const list = el('ul', { className: 'members' });
  list.append(...group.rows.map((record) => member(group, record)));
  return el('section', { className: 'group', 'aria-label': `Group of ${group.rows.length}` }, list);
}

function member(group, record) {
  const img = el('img', { loading: 'lazy', decoding: 'async' });
  const link = el('a', { href: `?open=${record.row}`, className: 'member-image' }, img);
  link.style.setProperty('--ratio', ratio(record));
  showThumbnail(img, record, () => link.classList.add('gone'));
  link.onclick = (event) => { event.preventDefault(); go({ open: String(record.row) }); };
  const button = el('button', { type: 'button', className: 'keep' });
  const size = record.width ? `${record.width} × ${record.height}` : '';
  const made = el('li', { className: 'member' }, link,
    el('p', { className: 'member-name', textContent: nameOf(record.path), title: record.path }),
    el('p', { className: 'member-facts', textContent: [size, record.score === undefined ? '' : record.score.toFixed(3),
      record.label].filter(Boolean).join(' · ') }), button);
  const show = () => {
    const stay = stays(group, record);
    button.textContent = stay ? 'Keep' : 'Remove';
    button.setAttribute('aria-label', `${stay ? 'Keep' : 'Remove'}: ${nameOf(record.path)}`);
    made.classList.toggle('leaves', !stay);
  };
  button.onclick = () => { kept.set(record.row, !stays(group, record)); show(); tell(); };
  show();
  return made;
}

/** The records that the view shows, for the lightbox. */
export const records = () => (state().view === 'duplicates' ? groups.flatMap((group) => group.rows) : []);
