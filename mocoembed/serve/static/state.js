// What the page shows is in the address: state <-> query string. A shared link, back, forward and reload give the same.

const LISTS = ['like', 'unlike', 'label', 'unfold', 'only'];
const TEXTS = ['view', 'path', 'side', 'min', 'k', 'crop', 'fold', 'seed', 'threshold', 'open', 'marked', 'lasso', 'of', 'by', 'at'];
export const MOST_LIKE = 256; // images that a query takes
const DEFAULTS = { view: 'search', by: 'label' };

/** The state of a query string. `like` and `unlike` hold ids and keys of uploads (`u4f0c...`). */
export function read(search = location.search) {
  const given = new URLSearchParams(search);
  const state = {};
  for (const name of LISTS) state[name] = [...new Set(given.getAll(name))];
  for (const name of TEXTS) state[name] = given.get(name) ?? DEFAULTS[name] ?? '';
  if (state.like.length + state.unlike.length !== 1) state.crop = ''; // of one image alone
  if (!/^\d+(,\d+){3}$/.test(state.crop)) state.crop = '';
  state.like = state.like.slice(0, MOST_LIKE);
  state.unlike = state.unlike.slice(0, MOST_LIKE);
  if (!/^\d{1,15}$/.test(state.seed)) state.seed = '';
  for (const name of ['k', 'side']) if (!/^[1-9]\d{0,5}$/.test(state[name])) state[name] = '';
  return state;
}

/** The link to a state: `?like=8134350171641988145&k=50`. */
export function write(state) {
  const made = new URLSearchParams();
  for (const name of LISTS) for (const value of state[name] ?? []) made.append(name, value);
  for (const name of TEXTS) if (state[name] && state[name] !== DEFAULTS[name]) made.set(name, state[name]);
  return `?${made}`;
}

/** A state with nothing chosen, and `patch`. */
export const fresh = (patch = {}) => ({ ...read(''), ...patch });

let current = read();
let listener = () => {};

export const state = () => current;

/** Call `render(state, before)` now and after each change. */
export function start(render) {
  listener = render;
  history.scrollRestoration = 'manual';
  let resting;
  addEventListener('scroll', () => { // for a reload
    clearTimeout(resting);
    resting = setTimeout(keepScroll, 200);
  });
  addEventListener('popstate', (event) => {
    const before = current;
    current = read();
    listener(current, before, event.state?.scroll ?? 0);
  });
  listener(current, null, history.state?.scroll ?? 0);
}

/** Keep the place on the page for coming back. */
export const keepScroll = () => history.replaceState({ scroll: scrollY }, '');

/** Put `state() + patch` into the address, and show nothing. */
export function rewrite(patch) {
  Object.assign(current, patch); // it is the same state, for those who are about to show it
  history.replaceState(history.state, '', write(current));
}

/** Go to `state() + patch`; `replace` for what back should not stop at, such as each move of a slider. */
export function go(patch, { replace = false, from = current } = {}) {
  const before = current;
  keepScroll();
  current = { ...from, ...patch };
  const link = write(current);
  const staysThere = write({ ...current, open: '' }) === write({ ...before, open: '' }); // only an image opens or closes
  const scroll = staysThere ? scrollY : 0;
  if (replace) history.replaceState({ scroll: scrollY }, '', link);
  else if (link !== write(before)) history.pushState({ scroll }, '', link);
  listener(current, before, scroll);
}
