// Small helpers for the document. Text is set as text: no HTML is ever made from strings.

export const $ = (id) => document.getElementById(id);

/** A new element: properties by name, `data-`, `aria-`, `role` and `for` as attributes, then children (nodes, texts). */
export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  if (name === 'button') made.type = 'button'; // and sends no form
  for (const [key, value] of Object.entries(properties)) {
    if (/^(data-|aria-|role$|for$)/.test(key)) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An icon of the sprite in index.html. */
export function icon(name) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  const use = document.createElementNS(space, 'use');
  use.setAttribute('href', `#i-${name}`);
  svg.setAttribute('class', 'icon');
  svg.ariaHidden = 'true';
  svg.append(use);
  return svg;
}

/** The first element of a <template>. */
export const clone = (id) => $(id).content.firstElementChild.cloneNode(true);

/** Do something on a click on a link; with a key held, the browser opens it elsewhere. */
export function onClick(link, does) {
  link.onclick = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    does();
  };
}

/** Of elements in rows, the one of the next row (`step` 1) or the one before (-1) that is nearest to `from`; or `from`. */
export function nextRow(all, from, step) {
  const { top, left, width } = from.getBoundingClientRect();
  let [best, least] = [from, Infinity];
  for (const one of all) {
    const box = one.getBoundingClientRect();
    const rows = step * Math.round(box.top - top);
    const off = 1e5 * rows + Math.abs(box.left + box.width / 2 - left - width / 2);
    if (rows > 0 && off < least) [best, least] = [one, off];
  }
  return best;
}

/** Observed anew, an element tells again whether it is near. */
export function observeAgain(watcher, element) {
  watcher.unobserve(element);
  watcher.observe(element);
}

/** Where an element is not behind a dialog. */
const inFront = () => document.querySelector('dialog[open]') ?? document.body;

let toastTimer;

/** A short message at the foot of the page, also for screen readers; `action` is [text, function]. */
export function toast(text, action) {
  const place = $('toast');
  const front = inFront();
  if (place.parentElement !== front) front.append(place);
  place.replaceChildren(text);
  if (action) place.append(el('button', { textContent: action[0], onclick: () => { place.hidden = true; action[1](); } }));
  place.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { place.hidden = true; }, action ? 20000 : 3500);
}

/** `1 image`, `1,234 images`. */
export const counted = (count, noun) => `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`;

/** `1.2 MB` */
export function bytesOf(count) {
  const power = Math.min(3, Math.max(1, Math.floor(Math.log10(count) / 3)));
  const value = count / 1000 ** power;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${['', 'kB', 'MB', 'GB'][power]}`;
}

/** The last part of a path. */
export const nameOf = (path) => path.slice(path.lastIndexOf('/') + 1);

/** A path without the collection's root before it. */
export function relativeTo(path, root) {
  const base = root && !root.endsWith('/') ? `${root}/` : root;
  return base && path.startsWith(base) ? path.slice(base.length) : path;
}

/** Splits a text at the bytes of names that are not UTF-8, which the API writes as half pairs of UTF-16. */
export const RAW = /([\udc80-\udcff]+)/u;

/** Copy text, also where the page is not served over a secure connection. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el('textarea', { value: text, className: 'hidden' });
    inFront().append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}

/** The bytes of a text; of names that are not UTF-8, their own. */
const partsOf = (text) => text.split(RAW).map((part, i) => (i % 2
  ? Uint8Array.from(part, (one) => one.charCodeAt() - 0xdc00) : part));

/** Offer `content` (a string or Blob) as a file. */
export function download(name, content, type = 'text/plain') {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob(partsOf(content), { type }));
  el('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
