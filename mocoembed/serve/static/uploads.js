// Images that were dropped, pasted, chosen or cut out, kept in this browser so that back and reload find them again.

const known = new Map();
const MOST = 60;

const database = new Promise((resolve) => {
  try {
    const opening = indexedDB.open('mocoembed-uploads', 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore('images');
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => resolve(null);
  } catch {
    resolve(null); // a private window may have none; uploads then last as long as the page
  }
});

const done = (request) => new Promise((resolve) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => resolve(undefined);
});

export const isUpload = (value) => value.startsWith('u');

/** Keep an image; its key. Beyond 60, those of earlier visits are forgotten. */
export async function add(blob, name = blob.name ?? 'image') {
  const random = crypto.getRandomValues(new Uint8Array(6));
  const key = `u${Date.now().toString(36)}${Array.from(random, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
  const kept = { name, blob };
  known.set(key, kept);
  const store = (await database)?.transaction('images', 'readwrite').objectStore('images');
  if (store) {
    await done(store.put(kept, key));
    const keys = (await done(store.getAllKeys())) ?? [];
    for (const old of keys.slice(0, Math.max(0, keys.length - MOST))) if (!known.has(old)) store.delete(old);
  }
  return key;
}

/** {name, blob} of a key, or undefined if another browser made it. */
export async function get(key) {
  if (!known.has(key)) {
    const store = (await database)?.transaction('images').objectStore('images');
    const kept = store && (await done(store.get(key)));
    if (kept) known.set(key, kept);
  }
  return known.get(key);
}
