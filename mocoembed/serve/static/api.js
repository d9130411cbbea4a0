// The public API under /api, as functions.

export class Refused extends Error {
  /** `way`: [what a button says, the state it leads to], a way out. */
  constructor(message, status, way) {
    super(message);
    Object.assign(this, { status, way });
  }
}

async function ask(path, options = {}, read = (given) => given.json()) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refused('The server does not answer. Is mocoembed serve still running?', 0);
  }
  if (answer.status === 409) replaced();
  if (answer.status === 401) location.assign(`/login${location.search}`); // the server knows its cookie no more
  if (!answer.ok) throw new Refused(await reason(answer), answer.status);
  return answer.status === 202 ? { waiting: await answer.json() } : read(answer);
}

/** What the server says of a refusal; a proxy before it says so in other words. */
async function reason(answer) {
  const said = await answer.json().catch(() => ({}));
  return said.error ?? (answer.status === 413 ? 'The image is too large for this server.' : `The server answered ${answer.status}.`);
}

export let version = '';
let replaced = () => {};

/** What to do when the server says that the collection is another by now. */
export const whenReplaced = (does) => { replaced = does; };
const known = new Map(); // id -> record

/** Ask from now on for this version of the collection: rows of another are refused with 409. */
export function setVersion(given) {
  version = given ?? '';
  known.clear();
}

/** Remember what is known of images. */
function keep(records) {
  for (const { score, rank, folded, folded_rows, ...record } of records) known.set(record.id, record);
  return records;
}

const json = (body, signal) => ({ method: 'POST', signal, headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify(body) });
const raw = (blob, signal) => ({ method: 'POST', signal, body: blob,
  headers: { 'Content-Type': /^image\//.test(blob.type) ? blob.type : 'application/octet-stream' } });

/** `k=10&label=a&label=b` of {k: 10, label: ['a', 'b']}; what is empty is left out. */
function parameters(given) {
  const made = new URLSearchParams();
  for (const [name, values] of Object.entries({ version, ...given })) {
    const isList = Array.isArray(values); // of which '' is a member: the label of images without one
    for (const value of [values].flat()) {
      if ((isList || value !== '') && value !== null && value !== undefined) made.append(name, value);
    }
  }
  return made;
}

/** The status of an address of an image, after it could not be shown; 0 without an answer. */
export async function statusOf(address) {
  const status = await fetch(address).then((answer) => answer.status, () => 0);
  if (status === 409) replaced();
  return status;
}

/** Whether that says that there is no such image any more. */
export const isGone = (status) => [404, 410, 422].includes(status);

export const thumbnail = (row) => `/api/thumbnails/${row}?${parameters({})}`;
export const image = (row) => `/api/images/${row}?${parameters({})}`;
export const info = () => ask('/api/info');
/** {labels, total}: the most frequent ones, or those that contain a text. */
export const labels = (given) => ask(`/api/labels?${parameters(given)}`);
export const rows = (given, signal) => ask(`/api/rows?${parameters(given)}`, { signal }).then((answer) => {
  keep(answer.rows);
  return answer;
});
const [CHUNK, IDS] = [100, 45]; // rows and ids asked for at a time

/** What is known of many rows. */
export async function records(wanted, signal) {
  const found = [];
  for (let first = 0; first < wanted.length; first += CHUNK) {
    found.push(...(await rows({ rows: wanted.slice(first, first + CHUNK).join(',') }, signal)).rows);
  }
  return found;
}
export const map = () => ask(`/api/map?${parameters({})}`);

/** Ask for what takes the server some time: until it is there, `tell(done, total)` says how far it is. */
async function patiently(path, signal, tell) {
  for (;;) {
    const answer = await ask(path, { signal });
    if (!answer.waiting) return answer;
    tell(answer.waiting.done, answer.waiting.total);
    await new Promise((resolve) => { setTimeout(resolve, 500); });
  }
}

export const duplicates = (given, signal, tell) => patiently(`/api/duplicates?${parameters(given)}`, signal, tell);
export const health = (tell) => patiently(`/api/health-report?${parameters({})}`, undefined, tell);
/** Hits of one query; `body` is a Blob (an image), or {ids}, {like, unlike}, {vectors}. */
export const search = (body, given, signal) => ask(`/api/search?${parameters(given)}`,
  body instanceof Blob ? raw(body, signal) : json(body, signal)).then((answer) => keep(answer.queries[0].hits));
/** An image (a Blob) as JPEG, for one that the browser cannot decode. */
export const preview = (blob) => ask(`/api/preview?${parameters({})}`, raw(blob), (answer) => answer.blob());
/** The vectors of an image (a Blob), or of {ids}. */
export const embed = (body, signal) => ask(`/api/embed?${parameters({})}`,
  body instanceof Blob ? raw(body, signal) : json(body, signal)).then((answer) => answer.vectors);

/**
 * What is known of images by their ids: {id: record}; those that are not there are left out. In another version of the
 * collection, their rows may be others.
 */
export async function recordsOfIds(ids, ofVersion = version) {
  const found = new Map(ofVersion === version ? ids.filter((id) => known.has(id)).map((id) => [id, known.get(id)]) : []);
  const rest = ids.filter((id) => !found.has(id) && /^\d{1,19}$/.test(id));
  for (let first = 0; first < rest.length; first += IDS) {
    const given = { ids: rest.slice(first, first + IDS).join(','), version: ofVersion };
    for (const record of (await ask(`/api/rows?${parameters(given)}`)).rows) found.set(record.id, record);
  }
  if (ofVersion === version) keep(found.values());
  return found;
}

/** What is known of an image by its id; undefined if it is not there. */
export const recordOf = async (id) => (await recordsOfIds([id])).get(id);
