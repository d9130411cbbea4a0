// What the collection holds: counts, failed images, suspected wrong labels, outliers, encoder and index.

import { $, el, nameOf } from './dom.js';
import * as api from './api.js';
import * as marks from './marks.js';
import { imageLink } from './grid.js';
import { fresh, write } from './state.js';

const TITLES = { neighbours_agree: 'Neighbours that share the label', suspected_total: 'Suspected labels', labels_total: 'Labels',
  recall_at_10: 'Recall@10', latency_ms: 'Milliseconds a query', measured_on: 'Queries measured', checkpoint_sha256: 'Checkpoint (SHA-256)', mocoembed: 'mocoembed version', torch: 'PyTorch version' };
const FACTS = ['images', 'failed_images', 'labels_total', 'neighbours_agree', 'suspected_total'];
const SHARES = ['neighbours_agree', 'recall_at_10'];
const MOST_LINES = 500;

let shown = false;
let some = [];

/** The records that the view shows, for the lightbox. */
export const records = () => some;

/** The collection is another by now. */
export function forget() {
  shown = false;
}

/** Show the view. */
export async function render() {
  if (shown) return;
  shown = true;
  const place = $('view-health');
  place.replaceChildren(el('p', { className: 'status', role: 'status', textContent: 'Looking through the collection …' }));
  try {
    const { encoder, index } = await api.info();
    const report = await api.health((done, total) => {
      if (total) place.firstChild.textContent = `Looking through the collection … ${Math.floor(100 * done / total)} %`;
    });
    const { labels, labels_total, suffixes, failed, failed_images, suspected_labels, suspected_total, outliers } = report;
    some = [...suspected_labels, ...outliers];
    place.replaceChildren(
      panel('Collection', facts(FACTS.map((name) => [name, report[name]]))),
      panel('Encoder', facts(flat(encoder))),
      panel('Index', index.type === 'none' ? null : facts(flat(index))),
      panel('Labels', bars(labels.map(({ label, count }) => [el('a', { href: write(fresh({ label: [label ?? ''] })),
        textContent: label ?? 'no label' }), count])), labels.length, labels_total),
      panel('Suffixes', bars(suffixes.map(({ suffix, count }) => [el('span', { textContent: suffix }), count]))),
      panel('Failed images', failed.length && table(failed.slice(0, MOST_LINES)), Math.min(failed.length, MOST_LINES),
        failed_images, 'Files that could not be embedded, and why.'),
      panel('Suspected labels', images(suspected_labels), suspected_labels.length, suspected_total,
        'At least 7 of the 10 nearest images share another label (the percentage says how many). The clearest cases come first. Look before you change a label.'),
      panel('Outliers', images(outliers), 0, 0, 'The images that are least like their 10 nearest, with their mean similarity; the least similar first.'));
  } catch (error) {
    shown = false;
    place.replaceChildren(el('p', { className: 'status error', role: 'alert', textContent: error.message }));
  }
}

const hint = (text) => el('p', { className: 'hint', textContent: text });

/** A titled part of the view; `content` is nothing, or the first `length` of `total`. */
const panel = (title, content, length = 0, total = length, about = '') => el('section', { className: 'card-panel' },
  el('h2', { textContent: title }), content && about ? hint(about) : null, content || hint('None.'),
  total > length ? hint(`and ${(total - length).toLocaleString('en')} more`) : null);

const titleOf = (name) => TITLES[name] ?? (name[0].toUpperCase() + name.slice(1)).replaceAll('_', ' ');

function textOf(name, value) {
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (typeof value === 'number') {
    return SHARES.includes(name) ? `${(100 * value).toLocaleString('en', { maximumFractionDigits: 1 })} %`
      : value.toLocaleString('en', { maximumFractionDigits: 4, useGrouping: Math.abs(value) >= 10000 });
  }
  if (typeof value === 'object' && value) return JSON.stringify(value);
  return /^[0-9a-f]{64}$/.test(value) ? `${value.slice(0, 16)}…` : String(value ?? '–');
}

/** Facts in facts, one after the other. */
const flat = (value) => Object.entries(value).flatMap(([name, one]) => (one && typeof one === 'object' && !Array.isArray(one)
  ? flat(one) : [[name, one]])).filter(([, one]) => one !== null);

const facts = (entries) => el('dl', {}, ...entries.map(([name, value]) => el('div', {},
  el('dt', { textContent: titleOf(name) }), el('dd', { textContent: textOf(name, value) }))));

/** Counts as bars: [element, count], the largest first. */
function bars(entries) {
  const most = Math.max(...entries.map(([, count]) => count), 1);
  return el('ul', { className: 'bars' }, ...entries.map(([name, count]) => {
    const bar = el('span', { className: 'bar' });
    bar.style.setProperty('--share', `${100 * count / most}%`);
    return el('li', {}, name, bar, el('span', { className: 'count', textContent: count.toLocaleString('en') }));
  }));
}

/** Images, which can be marked all at once, to look through or to export; nothing for none. */
function images(list) {
  if (!list.length) return null;
  const mark = el('button', { className: 'small' });
  marks.markAll(mark, () => list)();
  return el('div', {}, mark, el('ul', { className: 'near wide' }, ...list.map((record) => {
    const link = imageLink(record);
    marks.tick(link, record);
    const text = record.suggested ? `${record.label} → ${record.suggested} (${Math.round(100 * record.agreement)} %)`
      : `${record.label ?? nameOf(record.path)} (${record.similarity.toFixed(2)})`;
    return el('li', {}, link, el('p', { className: 'member-facts', textContent: text }));
  })));
}

/** The failed images, with their reasons. */
function table(list) {
  const columns = Object.keys(list[0]);
  return el('div', { className: 'scroll', tabIndex: 0, role: 'region', 'aria-label': 'Failed images' }, el('table', {},
    el('thead', {}, el('tr', {}, ...columns.map((name) => el('th', { scope: 'col', textContent: titleOf(name) })))),
    el('tbody', {}, ...list.map((one) => el('tr', {}, ...columns.map((name) => el('td', { textContent: one[name] })))))));
}
