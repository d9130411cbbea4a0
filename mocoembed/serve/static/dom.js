// Small helpers for the document. Text is set as text: no HTML is ever made from strings.

export const $ = (id) => document.getElementById(id);

/** A new element: properties by name, `data-`, `aria-`, `role` and `for` as attributes, then children (nodes, texts). */
export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
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
  svg.setAttribute('aria-hidden', 'true');
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

let toastTimer;

/** A short message at the foot of the page, also for screen readers; `action` is [text, function]. */
export function toast(text, action) {
  const place = $('toast');
  place.replaceChildren(text);
  if (action) place.append(el('button', { type: 'button', textContent: action[0], onclick: () => { place.hidden = true; action[1](); } }));
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

/** Copy text, also where the page is not served over a secure connection. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el('textarea', { value: text, className: 'hidden' });
    (document.querySelector('dialog[open]') ?? document.body).append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}

/** Offer `content` (a string or Blob) as a file. */
export function download(name, content, type = 'text/plain') {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  el('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
