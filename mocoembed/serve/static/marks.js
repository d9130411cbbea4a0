// Marked images: kept by stable id for this collection, and exported as paths, CSV, JSON or a contact sheet.

import { $, RAW, copyText, counted, download, nameOf, toast } from './dom.js';
import { recordsOfIds, thumbnail } from './api.js';

const marked = new Map(); // id -> {row, id, path, label, width, height}
const listeners = [];
let [name, place, version] = ['', null, null];

/** Where this browser keeps something of this collection. */
export const placeOf = (what) => `mocoembed-${what}-${name}`;

const kept = () => JSON.parse(localStorage.getItem(place) ?? '{}');

/** Take up the marks of a collection; `root` tells it from others. In another version, their rows are looked up anew. */
export async function load(root, now) {
  let before = {};
  name = root;
  place = placeOf('marks');
  try {
    before = kept();
  } catch { /* storage may be off; marks then last as long as the page */ }
  const some = before.marked ?? [];
  version = now;
  addEventListener('storage', ({ key }) => { // another tab has marked
    const theirs = key === place ? kept() : {};
    if (theirs.version === version) show(theirs.marked);
  });
  const found = before.version === now ? null : await recordsOfIds(some.map(({ id }) => id), now);
  set(found ? some.map(({ id }) => found.get(id)).filter(Boolean) : some, true);
}

/** Call `listener()` after each change. */
export const onChange = (listener) => listeners.push(listener);
export const has = (record) => marked.has(record.id);
export const all = () => [...marked.values()];

/** Have these records marked, and no others. */
function show(records) {
  marked.clear();
  for (const { row, id, path, label, width, height } of records) marked.set(id, { row, id, path, label, width, height });
  $('tray').hidden = marked.size === 0;
  document.body.classList.toggle('has-tray', marked.size > 0);
  $('tray-count').textContent = `${counted(marked.size, 'image')} marked`;
  const rows = new Set(all().map(({ row }) => String(row)));
  for (const link of document.querySelectorAll('[data-row]')) link.classList.toggle('ticked', rows.has(link.dataset.row));
  for (const listener of listeners) listener();
}

/** Let a link to an image outside the grid show whether it is marked. */
export function tick(link, record) {
  link.dataset.row = record.row;
  link.classList.toggle('ticked', has(record));
}

/** Take all marks away; it can be undone for a while. */
export function clear() {
  const some = all();
  set(some, false);
  toast(`${counted(some.length, 'mark')} cleared`, ['Undo', () => set(some, true)]);
}

/** Mark records, or take their marks away. */
export function set(records, on) {
  const ids = new Set(records.map(({ id }) => id));
  show([...all().filter(({ id }) => on || !ids.has(id)), ...(on ? records : [])]);
  try {
    localStorage.setItem(place, JSON.stringify({ version, marked: all() }));
  } catch { /* as above */ }
}

/** Let `button` mark `records()`, or take their marks away once all have one; gives what shows which of both. */
export function markAll(button, records) {
  const areAll = () => records().every(has);
  const tell = () => { button.textContent = `${areAll() ? 'Unmark' : 'Mark'} ${counted(records().length, 'image')}`; };
  button.onclick = () => set(records(), !areAll());
  onChange(() => { if (button.isConnected) tell(); });
  return tell;
}

/** The collection is another by now, where images may have other rows: those that are not `found` ({id: record}) lose their mark. */
export function renew(found, now) {
  const some = all().map(({ id }) => found.get(id)).filter(Boolean);
  version = now;
  marked.clear();
  set(some, true);
}

export const toggle = (record) => set([record], !has(record));

const field = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

function csv(records) {
  const columns = ['row', 'id', 'path', 'label'];
  const lines = [columns, ...records.map((record) => columns.map((name) => String(record[name] ?? '')))];
  return lines.map((line) => `${line.map(field).join(',')}\r\n`).join('');
}

/** A PNG of the thumbnails with names and labels, drawn here. */
async function sheet(records, title) {
  const [tile, gap, margin, caption, head] = [200, 16, 32, 40, 64];
  const columns = Math.min(6, Math.max(1, records.length));
  const lines = Math.ceil(records.length / columns);
  const canvas = document.createElement('canvas');
  canvas.width = 2 * margin + columns * (tile + gap) - gap;
  canvas.height = margin + head + lines * (tile + caption + gap);
  const pen = canvas.getContext('2d');
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = '#1d2129';
  pen.font = '600 22px system-ui, sans-serif';
  pen.fillText(title, margin, margin + 22, canvas.width - 2 * margin);
  await Promise.all(records.map(async (record, i) => {
    const x = margin + (i % columns) * (tile + gap);
    const y = margin + head + Math.floor(i / columns) * (tile + caption + gap) - gap;
    const image = new Image();
    image.src = thumbnail(record.row);
    try {
      await image.decode();
      const scale = Math.min(tile / image.naturalWidth, tile / image.naturalHeight);
      const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
      pen.drawImage(image, x + (tile - w) / 2, y + (tile - h) / 2, w, h);
    } catch {
      pen.fillStyle = '#e6e7ea';
      pen.fillRect(x, y, tile, tile);
    }
    pen.fillStyle = '#1d2129';
    pen.font = '13px system-ui, sans-serif';
    pen.fillText(record.label ?? '', x, y + tile + 17, tile);
    pen.fillStyle = '#6a7180';
    pen.fillText(nameOf(record.path), x, y + tile + 34, tile);
  }));
  return new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
}

const MOST_ON_SHEET = 300;

/** Export records in a form: paths, csv, json, sheet. */
export async function exportAs(form, records, name = 'marked') {
  if (form === 'paths') {
    const text = records.map(({ path }) => path).join('\n');
    await copyText(text);
    toast(`${records.length === 1 ? 'Path' : counted(records.length, 'path')} copied${RAW.test(text)
      ? ', but the clipboard cannot hold names that are not UTF-8: CSV and JSON can' : ''}`);
  } else if (form === 'text') download(`${name}.txt`, records.map((record) => `${record.path}\n`).join(''));
  else if (form === 'csv') download(`${name}.csv`, csv(records), 'text/csv');
  else if (form === 'json') download(`${name}.json`, `${JSON.stringify(records, null, 2)}\n`, 'application/json');
  else {
    const some = records.slice(0, MOST_ON_SHEET);
    if (some.length < records.length) toast(`The sheet holds the first ${MOST_ON_SHEET}.`);
    download(`${name}.png`, await sheet(some, `${counted(some.length, 'image')}`));
  }
}
