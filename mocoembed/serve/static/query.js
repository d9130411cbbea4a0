// The query: rows of the collection and uploads, more like and less like -> cards on the page, and what is asked.

import { $, clone, toast } from './dom.js';
import * as api from './api.js';
import * as uploads from './uploads.js';
import { cropOf } from './crop.js';
import { fresh, go, state } from './state.js';

const DRAWN = 400; // pixels of a card's longer side

/** A query image of the address -> {name, blob}; throws `Refused` when it is not to be had. */
export async function blobOf(value) {
  if (uploads.isUpload(value)) {
    const kept = await uploads.get(value);
    if (!kept) {
      throw new api.Refused('The query image of this link is in another browser. Drop or choose it here again.', 404);
    }
    return kept;
  }
  const answer = await fetch(api.image(value));
  if (!answer.ok) throw new api.Refused('The image is gone, or has changed since it was embedded.', answer.status);
  return { name: `image ${value}`, blob: await answer.blob() };
}

/** Search by these images: files or blobs. */
export async function searchBy(files, patch = {}) {
  const some = [...files];
  if (!some.length) return;
  const before = state();
  const keys = [];
  for (const file of some) keys.push(await uploads.add(file, file.name));
  go(withFilters(before, { like: keys, ...patch }), { from: {} });
}

/** A state that keeps the filters of `now`, with another query. */
export const withFilters = ({ label, path, side, min, k, fold }, patch) => fresh(
  { label, path, side, min, k, fold, ...patch });

/** The body of the request that a state's query is. */
export async function bodyOf({ like, unlike }, signal) {
  const given = [...like, ...unlike];
  if (given.length === 1 && like.length === 1) {
    return uploads.isUpload(like[0]) ? (await blobOf(like[0])).blob : { rows: [Number(like[0])] };
  }
  if (!like.length) { // only unlike: the opposite of their mean
    const vectors = (await Promise.all(unlike.map((value) => vectorOf(value, signal))));
    return { vectors: [vectors[0].map((_, i) => -vectors.reduce((sum, vector) => sum + vector[i], 0) / vectors.length)] };
  }
  const one = async (value) => (uploads.isUpload(value) ? vectorOf(value, signal) : Number(value));
  const body = { like: await Promise.all(like.map(one)) };
  return unlike.length ? { ...body, unlike: await Promise.all(unlike.map(one)) } : body;
}

const vectorOf = async (value, signal) => (await api.embed(
  uploads.isUpload(value) ? (await blobOf(value)).blob : { rows: [Number(value)] }, signal))[0];

/** Width and height of a query image, in its own pixels; what is shown of it may be smaller. */
const sizeOf = async (value, shown) => (uploads.isUpload(value) ? shown : api.recordOf(Number(value)));

/** Draw a query image into a canvas, from a thumbnail or the uploaded bytes; false when the browser cannot. */
async function draw(canvas, value, crop) {
  try {
    let source;
    if (uploads.isUpload(value) || crop) source = await createImageBitmap((await blobOf(value)).blob);
    else {
      source = new Image();
      source.src = api.thumbnail(value);
      await source.decode();
    }
    let part = [0, 0, source.width, source.height];
    if (crop) {
      const scale = source.width / ((await sizeOf(value, source)).width || source.width);
      part = crop.split(',').map((number) => Number(number) * scale);
    }
    const scale = Math.min(1, DRAWN / Math.max(part[2], part[3]));
    canvas.width = Math.max(1, Math.round(part[2] * scale));
    canvas.height = Math.max(1, Math.round(part[3] * scale));
    canvas.getContext('2d').drawImage(source, ...part, 0, 0, canvas.width, canvas.height);
    return true;
  } catch {
    return false;
  }
}

/** Show the cards of a state's query. */
export function showCards(now) {
  const cards = $('cards');
  const wanted = [...now.like.map((value) => [value, 'like']), ...now.unlike.map((value) => [value, 'unlike'])];
  $('query').hidden = !wanted.length;
  const there = new Map([...cards.children].map((card) => [`${card.dataset.kind} ${card.dataset.value} ${card.dataset.crop}`, card]));
  cards.replaceChildren(...wanted.map(([value, kind]) => there.get(`${kind} ${value} ${now.crop}`)
    ?? card(value, kind, now.crop)));
  cards.classList.toggle('several', wanted.length > 1);
}

function card(value, kind, cropped) {
  const made = clone('card');
  Object.assign(made.dataset, { value, kind, crop: cropped });
  const canvas = made.querySelector('canvas');
  const what = `${kind === 'like' ? 'More' : 'Less'} like ${uploads.isUpload(value) ? 'your image' : `image ${value}`}`;
  canvas.setAttribute('aria-label', what);
  made.querySelector('.sign').textContent = kind === 'like' ? '+' : '−';
  draw(canvas, value, cropped).then((drawn) => made.classList.toggle('undrawn', !drawn));
  const remove = made.querySelector('.remove');
  remove.setAttribute('aria-label', `Remove: ${what}`);
  remove.onclick = () => go({ crop: '', [kind]: state()[kind].filter((other) => other !== value) });
  const crop = made.querySelector('.crop-it');
  crop.setAttribute('aria-label', 'Search by a part of this image');
  crop.onclick = () => cropQuery(value);
  return made;
}

/** Let a part of an image be chosen, and search by it. */
export async function cropQuery(value) {
  try {
    const bitmap = await createImageBitmap((await blobOf(value)).blob);
    const size = await sizeOf(value, { width: bitmap.width, height: bitmap.height });
    const { width } = size.width ? size : bitmap;
    const part = await cropOf(bitmap, width / bitmap.width);
    if (part) go(withFilters(state(), { like: [value], crop: part.join(',') }), { from: {} });
  } catch (error) {
    toast(error instanceof api.Refused ? error.message : 'This browser cannot show the image; it cannot be cropped here.');
  }
}

/** Make choosing, dropping and pasting search. */
export function listen() {
  $('choose').onclick = () => $('files').click();
  $('files').onchange = () => searchBy($('files').files).then(() => { $('files').value = ''; });
  addEventListener('paste', (event) => {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith('image/'));
    if (!files.length) return;
    event.preventDefault();
    searchBy(files);
  });
  let depth = 0;
  const isFiles = (event) => event.dataTransfer?.types.includes('Files');
  addEventListener('dragenter', (event) => { if (isFiles(event)) $('drop').hidden = ++depth === 0; });
  addEventListener('dragleave', (event) => { if (isFiles(event)) $('drop').hidden = --depth <= 0; });
  addEventListener('dragover', (event) => { if (isFiles(event)) event.preventDefault(); });
  addEventListener('drop', (event) => {
    depth = 0;
    $('drop').hidden = true;
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    searchBy(event.dataTransfer.files);
  });
}
