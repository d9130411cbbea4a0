// What the collection holds: counts, failed images, suspected wrong labels, outliers, encoder and index.

import { $, counted, el, nameOf } from './dom.js';
import * as api from './api.js';
import * as marks from './marks.js';
import { showThumbnail } from './grid.js';
import { fresh, go, write } from './state.js';

let shown = false;
let some = [];

const TITLES = { neighbours_agree: 'Neighbours that share the label', suspected_total: 'Suspected labels',
  recall_at_10: 'Recall@10', latency_ms: 'Milliseconds a query', measured_on: 'Queries measured', checkpoint_sha256: 'Checkpoint (SHA-256)' };
const HINTS = {
  suspected_labels: 'At least 7 of the 10 nearest images share another label; the clearest cases first. Look before you change a label.',
  outliers: 'The images that are least like their neighbours, the loneliest first.',
  failed: 'Files that could not be embedded, and why.',
};
const [MOST_BARS, MOST_LINES] = [100, 500];
const SHARES = ['neighbours_agree', 'recall_at_10'];
const titleOf = (name) => {
  const text = (TITLES[name] ?? name).replaceAll('_', ' ');
  return text[0].toUpperCase() + text.slice(1);
};
const isRecord = (value) => value && typeof value === 'object' && Number.isInteger(value.row);
const isPlain = (value) => value === null || typeof value !== 'object';
const percent = (share) => `${(100 * share).toLocaleString('en', { maximumFractionDigits: 1 })} %`;
const textOf = (value) => (typeof value === 'boolean' ? { true: 'yes', false: 'no' }[value] : /^[0-9a-f]{64}$/.test(value) ? `${value.slice(0, 16)}…` : typeof value === 'number'
  ? value.toLocaleString('en', { maximumFractionDigits: 4, useGrouping: Math.abs(value) >= 10000 }) : String(value ?? '–'));

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
    const about = await api.info();
    const report = await api.health((done, total) => {
      if (total) place.firstChild.textContent = `Looking through the collection … ${Math.floor(100 * done / total)} %`;
    });
    delete report.version;
    some = [];
    const plain = Object.entries(report).filter(([, value]) => isPlain(value));
    const rest = Object.entries(report).filter(([, value]) => !isPlain(value));
    place.replaceChildren(...[plain.length ? panel('Collection', facts(plain)) : null,
      ...['encoder', 'index'].filter((name) => about[name]).map((name) => panel(titleOf(name), facts(flat(about[name])))),
      ...rest.map(([name, value]) => panel(titleOf(name), part(name, value, totalOf(report, name)), value.length ? HINTS[name] : null))].filter(Boolean));
  } catch (error) {
    shown = false;
    place.replaceChildren(el('p', { className: 'status error', role: 'alert', textContent: error.message }));
  }
}

/** Facts in facts, one after the other. */
const flat = (value) => Object.entries(value).flatMap(([name, one]) => (isPlain(one) || Array.isArray(one)
  ? [[name, one]] : flat(one))).filter(([, one]) => one !== null && one !== undefined);

/** How many there are of what a list shows the first of. */
const totalOf = (report, name) => ({ failed: report.failed_images, suspected_labels: report.suspected_total })[name]
  ?? report[name].length;

const panel = (title, content, hint) => el('section', { className: 'card-panel' }, el('h2', { textContent: title }),
  hint ? el('p', { className: 'hint', textContent: hint }) : null, content);

/** A list, and how many it leaves out. */
const cut = (list, shown, total) => (total > shown ? el('div', {}, list, el('p', { className: 'hint',
  textContent: `and ${(total - shown).toLocaleString('en')} more` })) : list);

const facts = (entries) => el('dl', {}, ...entries.map(([name, value]) => el('div', {},
  el('dt', { textContent: titleOf(name) }), el('dd', { textContent: isPlain(value)
    ? (SHARES.includes(name) && typeof value === 'number' ? percent(value) : textOf(value)) : JSON.stringify(value) }))));

function part(name, value, total) {
  if (!Array.isArray(value)) {
    const entries = Object.entries(value);
    const isCounts = entries.length > 1 && entries.every(([, one]) => Number.isInteger(one));
    return isCounts && /label|suffix|count|format/.test(name) ? bars(entries) : facts(entries);
  }
  if (!value.length) return el('p', { className: 'hint', textContent: 'None.' });
  if (value.every(isRecord)) return images(value, total);
  if (value.every((one) => one && 'count' in one)) {
    return bars(value.map((one) => [Object.values(one).find((text) => typeof text === 'string') ?? '–', one.count]), name);
  }
  return cut(table(value), Math.min(value.length, MOST_LINES), total);
}

/** Counts as bars; those of labels are links to their images. */
function bars(entries, name = '') {
  const most = Math.max(...entries.map(([, count]) => count), 1);
  const list = el('ul', { className: 'bars' }, ...entries.slice(0, MOST_BARS).map(([text, count]) => {
    const bar = el('span', { className: 'bar' });
    bar.style.setProperty('--share', `${100 * count / most}%`);
    const label = /label/.test(name) ? el('a', { href: write(fresh({ label: [text === '–' ? '' : text] })), textContent: text === '–' ? 'no label' : text })
      : el('span', { textContent: text || '(none)' });
    return el('li', {}, label, bar, el('span', { className: 'count', textContent: count.toLocaleString('en') }));
  }));
  return cut(list, Math.min(entries.length, MOST_BARS), entries.length);
}

/** Images, which can be marked all at once, to look through or to export. */
function images(list, total) {
  some.push(...list);
  const mark = el('button', { type: 'button', className: 'small', textContent: `Mark ${counted(list.length, 'image')}`,
    onclick: () => marks.set(list, !list.every(marks.has)) });
  const shown = el('ul', { className: 'near wide' }, ...list.map((record) => {
    const link = el('a', { href: `?open=${record.id}` });
    const img = el('img', { loading: 'lazy', decoding: 'async' });
    showThumbnail(img, { path: '', ...record }, () => link.classList.add('gone'));
    marks.tick(link, record);
    link.onclick = (event) => { event.preventDefault(); go({ open: record.id }); };
    const suggested = record.suggested ?? record.neighbours_label ?? record.suggestion;
    const text = suggested ? `${record.label} → ${suggested}` : record.label ?? nameOf(record.path ?? '');
    link.append(img);
    return el('li', {}, link, el('p', { className: 'member-facts', textContent: text }));
  }));
  return el('div', {}, mark, cut(shown, list.length, total));
}

function table(list) {
  const columns = [...new Set(list.flatMap((one) => (isPlain(one) ? ['value'] : Object.keys(one))))];
  return el('div', { className: 'scroll', tabIndex: 0, role: 'region', 'aria-label': 'Table' }, el('table', {},
    el('thead', {}, el('tr', {}, ...columns.map((name) => el('th', { scope: 'col', textContent: titleOf(name) })))),
    el('tbody', {}, ...list.slice(0, MOST_LINES).map((one) => el('tr', {}, ...columns.map((name) => el('td', {
      textContent: isPlain(one) ? textOf(one) : isPlain(one[name]) ? textOf(one[name]) : JSON.stringify(one[name]) })))))));
}
