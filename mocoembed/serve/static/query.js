// The query: images of the collection and uploads, more like and less like -> cards on the page, and what is asked.

import { $, clone, el, nameOf, toast } from './dom.js';
import * as api from './api.js';
import * as uploads from './uploads.js';
import { cropOf } from './crop.js';
import { fresh, go, state } from './state.js';

const DRAWN = 400; // pixels of a card's longer side
const MOST_LETTERS = 1000; // of a filter that the server takes

/** The bytes of a query image of the address; throws `Refused` when they are not to be had. */
async function blobOf(value) {
  if (uploads.isUpload(value)) return (await uploads.get(value)).blob;
  const answer = await fetch(api.image((await api.recordOf(value)).row));
  if (!answer.ok) throw new api.Refused('The image is gone, or has changed since it was embedded.', answer.status);
  return answer.blob();
}

/** A query image of the address, decoded: where the browser cannot do it, from the server's JPEG of it. */
async function bitmapOf(value) {
  const blob = await blobOf(value);
  try {
    return await createImageBitmap(blob);
  } catch (error) {
    const kept = await uploads.get(value);
    if (!kept) throw error;
    kept.preview ??= await api.preview(blob);
    return createImageBitmap(kept.preview);
  }
}

/** Throw `Refused` for query images that are not there, with the way to search without them. */
export async function requireThere(now) {
  const { like, unlike } = now;
  const [sent, ids] = [true, false].map((kind) => [...like, ...unlike].filter((one) => uploads.isUpload(one) === kind));
  const found = await api.recordsOfIds(ids);
  const kept = await Promise.all(sent.map(uploads.get));
  const lost = [...ids.filter((id) => !found.has(id)), ...sent.filter((_, i) => !kept[i])];
  if (!lost.length) return;
  const rest = [like, unlike].map((list) => list.filter((one) => !lost.includes(one)));
  const why = uploads.isUpload(lost[0]) ? 'was uploaded in another browser, or too long ago. Drop or choose it here again.'
    : 'is not in this collection. It has been removed since, or the link belongs to another collection.';
  throw new api.Refused(`A query image of this link ${why}`, 404, [
    rest.flat().length ? 'Search without it' : 'Show all images', withFilters(now, { like: rest[0], unlike: rest[1] })]);
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

export const NO_LABEL = 'no label'; // what stands for the label ''

/** What stands in the filter field for a state. */
export const filterText = ({ path }) => (/^\*[^*?[]+\*$/.test(path) ? path.slice(1, -1) : path);

/** The filters in words: `labelled daisy of at least 256 pixels`, `without a label`. */
export function whereOf(now) {
  const isWithout = now.label.length === 1 && !now.label[0];
  const labels = isWithout ? '' : now.label.map((label) => label || NO_LABEL).join(' or ');
  return [isWithout && 'without a label', labels && `labelled ${labels}`, now.path && `with “${filterText(now)}” in the path`,
    now.side && `of at least ${now.side} pixels`].filter(Boolean).join(' ');
}

/** A state that keeps the filters of `now`, with another query. */
export const withFilters = ({ label, path, side, min, k, fold }, patch) => fresh(
  { label, path, side, min, k, fold, ...patch });

/** The body of the request that a state's query is. */
async function bodyOf({ like, unlike }, signal) {
  const given = [...like, ...unlike];
  if (given.length === 1 && like.length === 1) {
    return uploads.isUpload(like[0]) ? blobOf(like[0]) : { ids: like };
  }
  if (!like.length) { // only unlike: the opposite of their mean
    const vectors = await Promise.all(unlike.map((value) => vectorOf(value, signal)));
    return { vectors: [vectors[0].map((_, i) => -vectors.reduce((sum, vector) => sum + vector[i], 0) / vectors.length)] };
  }
  const one = async (value) => (uploads.isUpload(value) ? vectorOf(value, signal) : value);
  const body = { like: await Promise.all(like.map(one)) };
  return unlike.length ? { ...body, unlike: await Promise.all(unlike.map(one)) } : body;
}

/** A glob that takes capitals and small letters alike: `*[rR][oO][sS][eE]*`; a path in the folders stays as it is. */
function anyCase(path) {
  if (/[/[]/.test(path)) return path;
  const any = path.replace(/\p{L}/gu, (one) => {
    const both = [one.toLowerCase(), one.toUpperCase()];
    return both.some((other) => other.length !== one.length) ? one : `[${both.join('')}]`;
  });
  return any.length <= MOST_LETTERS ? any : path;
}

/** The filters of a state, as the API takes them. */
export const filtersOf = ({ label, path, side }) => ({ label, path: anyCase(path), min_side: side });

/** What asks for the hits of a state's query: (offset, k, signal) -> records. */
export async function hitsOf(now, signal) {
  const body = await bodyOf(now, signal);
  const given = { ...filtersOf(now), min_score: now.min, unique: now.fold ? 'true' : '', crop: now.crop,
    exclude_self: body.ids && !now.crop ? 'true' : '' };
  return (offset, k, its) => named(now.like[0], () => api.search(body, { ...given, offset, k }, its));
}

const vectorOf = async (value, signal) => (await named(value, async () => api.embed(
  uploads.isUpload(value) ? await blobOf(value) : { ids: [value] }, signal)))[0];

/** What `does` gives; where it refuses an upload, its name is said, with the way to search without it. */
async function named(value, does) {
  try {
    return await does();
  } catch (error) {
    if (!uploads.isUpload(value ?? '') || ![413, 415, 422].includes(error.status)) throw error;
    const now = state();
    const [like, unlike] = [now.like, now.unlike].map((list) => list.filter((one) => one !== value));
    const { name } = await uploads.get(value);
    const said = error.message.replace("'query'", () => name); // in a text, $ would stand for something
    throw new api.Refused(said === error.message ? `${name}: ${said}` : said, error.status,
      [like.length + unlike.length ? 'Search without it' : 'Show all images', withFilters(now, { like, unlike })]);
  }
}

/** Width and height of a query image, in its own pixels; what is shown of it may be smaller. */
const sizeOf = async (value, shown) => (uploads.isUpload(value) ? shown : api.recordOf(value));

/** How many pixels of what is shown of an image there are for one of its own, along a side. */
const scaleOf = async (value, source) => source.width / ((await sizeOf(value, source)).width || source.width);

/** A crop in the pixels of what is shown of an image: left, top, width, height. */
async function partOf(value, source, crop) {
  const scale = await scaleOf(value, source);
  return crop.split(',').map((number) => Number(number) * scale);
}

/** Keep a part of a query image as an upload of its own; its key. So it can stand beside other images. */
export async function cutOut(value, crop) {
  const source = await bitmapOf(value);
  const [left, top, width, height] = (await partOf(value, source, crop)).map(Math.round);
  const canvas = el('canvas', { width: Math.max(1, width), height: Math.max(1, height) });
  canvas.getContext('2d').drawImage(source, -left, -top);
  return uploads.add(await new Promise((resolve) => { canvas.toBlob(resolve); }), 'part.png');
}

/** Draw a query image into a canvas, from a thumbnail or the uploaded bytes; false when the browser cannot. */
async function draw(canvas, value, crop) {
  try {
    let source;
    if (uploads.isUpload(value) || crop) source = await bitmapOf(value);
    else {
      source = new Image();
      source.src = api.thumbnail((await api.recordOf(value)).row);
      await source.decode();
    }
    const part = crop ? await partOf(value, source, crop) : [0, 0, source.width, source.height];
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
  const remove = made.querySelector('.remove');
  const call = (name) => {
    const what = `${kind === 'like' ? 'More' : 'Less'} like ${name}`;
    canvas.ariaLabel = what;
    remove.ariaLabel = `Remove: ${what}`;
  };
  call('your image');
  if (uploads.isUpload(value)) uploads.get(value).then((kept) => { if (kept) call(canvas.title = kept.name); });
  else api.recordOf(value).then((record) => call(record ? nameOf(record.path) : 'an image'), () => {});
  made.querySelector('.sign').textContent = kind === 'like' ? '+' : '−';
  draw(canvas, value, cropped).then((drawn) => made.classList.toggle('undrawn', !drawn));
  remove.onclick = () => go({ crop: '', [kind]: state()[kind].filter((other) => other !== value) });
  const crop = made.querySelector('.crop-it');
  crop.onclick = () => cropQuery(value);
  return made;
}

/** Let a part of an image be chosen, and search by it. */
export async function cropQuery(value) {
  try {
    const bitmap = await bitmapOf(value);
    const part = await cropOf(bitmap, 1 / await scaleOf(value, bitmap));
    if (!part) return;
    const [now, crop] = [state(), part.join(',')];
    const among = [...now.like, ...now.unlike].includes(value) && now.like.length + now.unlike.length > 1;
    const isPreview = uploads.isUpload(value) && (await uploads.get(value)).preview; // which may be smaller than the image
    if (among || isPreview) {
      const key = await cutOut(value, crop);
      const [like, unlike] = [now.like, now.unlike].map((list) => list.map((one) => (one === value ? key : one)));
      go(withFilters(now, { like, unlike }), { from: {} });
    } else go(withFilters(now, { like: [value], crop }), { from: {} });
    $('cards').querySelector('.crop-it')?.focus();
  } catch (error) {
    toast(error instanceof api.Refused ? error.message : 'The image cannot be shown, so it cannot be cropped here.');
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
