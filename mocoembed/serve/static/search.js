// The search view: a random sample, a folder or label to look through, or the hits of a query.

import { $, counted, el, onClick, relativeTo, toast } from './dom.js';
import * as api from './api.js';
import * as marks from './marks.js';
import { Grid } from './grid.js';
import { chosen } from './map/chosen.js';
import { NO_LABEL, cutOut, filterText, filtersOf, hitsOf, requireThere, showCards, whereOf, withFilters } from './query.js';
import { fresh, go, state, write } from './state.js';

const MOST_SAMPLED = 1000; // images of a random sample
const PAGE = 200; // hits or rows asked for at a time
const MOST = 10000; // hits that can be scrolled through
const MOST_LABELS = 60;
const SUGGESTED = 20; // labels, while one types
const NONE = { labels: [] };
const REMEMBERED = 30; // answers, for going back without asking again
const PATIENCE = 300; // ms until the page says that it is searching
const ANY = -0.01; // the slider's left end
const OF_HITS = ['k', 'min', 'fold']; // options that say nothing where there is no query

const answers = new Map();
let grid;
let facts = {};
let asking = null;
let shownKey = null;
let showMarkAll; // only images that are there can be marked: more come by scrolling

const hasQuery = (now) => now.like.length + now.unlike.length > 0;
const isBrowsing = (now) => now.label.length > 0 || now.path !== '' || now.side !== '';
const isFiltered = (now) => isBrowsing(now) || (hasQuery(now) && now.min + now.k !== '');
const keyOf = (now) => write({ ...now, open: '', unfold: [], view: 'search', by: '', only: [], at: '' });
const toggled = (list, one) => (list.includes(one) ? list.filter((other) => other !== one) : [...list, one]);

/** The records that the view shows. */
export const records = () => grid.all();
/** Get more of them. */
export const more = () => grid.more();
export const focusGrid = () => grid.focus(grid.place);
/** Focus the image with an id: the one that was looked at last. */
export const focusImage = (id) => grid.focusImage(id);

/** Wire the view up; `info`: the collection's facts. */
export function listen(info) {
  facts = info;
  grid = new Grid($('grid'), {
    linkOf: (record) => write(withFilters(state(), { like: [record.id] })),
    search: (record) => go(withFilters(state(), { like: [record.id] }), { from: {} }),
    view: (record) => go({ open: record.id }),
    more: (record) => sign(record, 'like', 'unlike'),
    less: (record) => sign(record, 'unlike', 'like'),
    fold: (record) => {
      if (record.folded) go({ unfold: toggled(state().unfold, record.id) }, { replace: true });
    },
    folded: (record) => api.records(record.folded_rows),
  });
  $('omnibox').addEventListener('submit', (event) => { event.preventDefault(); filterBy($('filter').value); });
  $('filter').addEventListener('input', (event) => {
    // A label chosen from the list arrives as a replacement, the field's own cross as an empty value.
    const chosen = event.inputType === 'insertReplacementText' || !event.inputType;
    const text = $('filter').value;
    if (chosen && (!text || [...$('label-list').children].some(({ value }) => value === text))) filterBy(text);
    else suggest(text);
  });
  $('filter').addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown' && !$('filter').value) { event.preventDefault(); focusGrid(); }
    if (event.key === 'Escape') { event.preventDefault(); $('filter').value = filterText(state()); $('filter').blur(); }
  });
  $('options-button').onclick = () => {
    const open = $('options').hidden;
    if (state().view !== 'search') go({ view: 'search' });
    $('options').hidden = !open;
    $('options-button').ariaExpanded = open;
    if (open) scrollTo(0, 0);
  };
  $('options').addEventListener('submit', (event) => event.preventDefault());
  $('options').addEventListener('keydown', ({ key }) => {
    if (key === 'Escape') { $('options-button').click(); $('options-button').focus(); }
  });
  $('k').onchange = () => go({ k: $('k').value });
  $('side').onchange = () => go({ side: $('side').value });
  $('fold').onchange = () => go({ fold: $('fold').checked ? '1' : '' });
  let waiting;
  $('min').oninput = () => {
    showMin();
    clearTimeout(waiting);
    waiting = setTimeout(() => go({ min: Number($('min').value) > ANY ? $('min').value : '' }, { replace: true }), 120);
  };
  $('min').closest('label').hidden = facts.normalized === false;
  $('empty-clear').onclick = () => go({ label: [], path: '', side: '', min: '', k: '' });
  $('empty-again').onclick = refresh;
  $('another').onclick = () => go({ ...fresh(), seed: String(1 + Math.floor(Math.random() * 1e6)) }, { from: {} });
  grid.grown = showMarkAll = marks.markAll($('mark-all'), () => grid.all());
  marks.onChange(() => { if (state().marked && state().view === 'search') refresh(); });
}

const showMin = () => {
  const value = Number($('min').value);
  $('min-shown').textContent = value > ANY ? value.toFixed(2) : 'any';
};

/** What the window's title says of a state. */
export const titleOf = (now) => [hasQuery(now) ? 'Similar images' : now.marked ? 'Marked images' : whereOf(now) && 'Images',
  whereOf(now)].filter(Boolean).join(' ');

/** A label's name, a glob, or a piece of a path. */
async function filterBy(text) {
  const given = relativeTo(text.trim(), facts.root);
  const { labels: [first] } = given ? await labelsOf(given, 1) : NONE;
  if (first?.label.toLowerCase() === given.toLowerCase()) {
    go({ view: 'search', label: [first.label], path: '', marked: '', lasso: '' });
    $('filter').value = '';
  } else go({ view: 'search', path: !given || /[*?[]/.test(given) ? given : `*${given}*`, marked: '', lasso: '' });
}

/** Add a record to the images that hits are to be like, or unlike; take it away if it is there. */
async function sign({ id }, kind, other) {
  let now = state();
  if (now.crop) { // a part beside other images is one of its own
    try {
      const [one] = [...now.like, ...now.unlike];
      const key = await cutOut(one, now.crop);
      if (now !== state()) return;
      now = { ...now, like: now.like.map(() => key), unlike: now.unlike.map(() => key) };
    } catch (error) {
      toast(error.message);
      return;
    }
  }
  go(withFilters(now, {
    [kind]: toggled(now[kind], id),
    [other]: now[other].filter((one) => one !== id),
  }), { from: {} });
}

/** Labels that contain a text, the one that is equal first; none where the server does not answer. */
const labelsOf = (text, limit) => api.labels({ text, limit }).catch(() => NONE);

/** Offer labels that contain a text. */
async function suggest(text) {
  const labels = text ? (await labelsOf(text, SUGGESTED)).labels : named();
  if ($('filter').value === text) offer(labels);
}

const offer = (labels) => $('label-list').replaceChildren(...labels.map(({ label }) => el('option', { value: label })));

/** The most frequent labels with their counts, after those of images without one (`null`): the facts hold them. */
const frequent = () => facts.labels.slice(0, MOST_LABELS);
const named = () => frequent().filter(({ label }) => label !== null);

/** Show and offer the most frequent labels. */
export function showLabels() {
  offer(named());
  chips(state());
}

/** The most frequent labels as links that filter. */
function chips(now) {
  const rest = frequent().filter(({ label }) => label === null).map(({ count }) => ({ label: '', count }));
  const some = named().length ? [...named(), ...rest] : [];
  const more = facts.labels_total - frequent().length;
  for (const label of now.label) if (!some.some((one) => one.label === label)) some.unshift({ label });
  $('labels').hidden = !some.length;
  $('labels').replaceChildren(...some.map(({ label, count }) => {
    const on = now.label.includes(label);
    const patch = { ...now, view: 'search', marked: '', lasso: '', seed: '', open: '', unfold: [],
      label: toggled(now.label, label) };
    const link = el('a', { href: write(patch), className: `chip${label ? '' : ' none'}`, 'data-label': label,
      ...(on ? { 'aria-current': 'true' } : {}) }, label || NO_LABEL,
      count === undefined ? null : el('span', { className: 'count', textContent: count.toLocaleString('en') }));
    onClick(link, () => {
      go(patch);
      [...$('labels').querySelectorAll('a')].find((one) => one.dataset.label === label)?.focus();
    });
    return el('li', {}, link);
  }), more ? el('li', { className: 'hint', textContent: `and ${counted(more, 'more label')}` }) : '');
  const current = $('labels').querySelector('[aria-current]');
  if (current) $('labels').scrollLeft = current.offsetLeft - $('labels').offsetLeft - 60;
}

function remember() {
  if (shownKey === null) return;
  const kept = answers.get(shownKey);
  if (kept) Object.assign(kept, { records: grid.given(), rendered: grid.records.length, place: grid.place });
}

/** Forget every answer: the collection is another by now. */
export function forget() {
  answers.clear();
  shownKey = null;
}

/** Ask and show again what the address says. */
export function refresh() {
  answers.delete(keyOf(state()));
  shownKey = null;
  render(state(), 0);
}

/** Show a state, at a place on the page. */
export async function render(now, scroll) {
  showCards(now);
  chips(now);
  if (document.activeElement !== $('filter')) $('filter').value = filterText(now);
  for (const name of ['k', 'side']) {
    if (![...$(name).options].some((option) => option.value === now[name])) $(name).add(new Option(now[name]));
    $(name).value = now[name];
  }
  $('fold').checked = now.fold !== '';
  $('min').value = now.min === '' ? ANY : now.min;
  showMin();
  for (const name of OF_HITS) $(name).disabled = !hasQuery(now);
  const set = ['side', ...OF_HITS].filter((name) => now[name] !== '' && !$(name).disabled).length;
  $('options-button').classList.toggle('set', set > 0);
  $('options-button').title = set ? `Options (${set} set)` : 'Options';
  const key = keyOf(now);
  if (key === shownKey) {
    grid.unfold(now.unfold);
    return;
  }
  remember();
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  shownKey = key;
  const kept = answers.get(key);
  if (kept) {
    show(now, kept, scroll);
    return;
  }
  $('grid').classList.add('waiting');
  const slow = setTimeout(() => { $('status').textContent = 'Searching …'; }, PATIENCE);
  const begun = performance.now();
  try {
    const answer = await ask(now, signal);
    if (signal.aborted) return;
    answer.seconds = (performance.now() - begun) / 1000;
    answers.set(key, answer);
    if (answers.size > REMEMBERED) answers.delete(answers.keys().next().value);
    show(now, answer, scroll);
  } catch (error) {
    if (error.name === 'AbortError' || signal.aborted) return;
    refuse(now, error);
  } finally {
    clearTimeout(slow);
  }
}

/** {records, total, next} of a state; `signal` ends the first question, as the answer may be shown again later. */
async function ask(now, signal) {
  if (hasQuery(now)) {
    await requireThere(now);
    const asked = await hitsOf(now, signal);
    const most = Number(now.k || MOST);
    const page = (offset, its) => asked(offset, Math.min(PAGE, most - offset), its);
    const hits = await page(0, signal);
    return { records: hits, more: hits.length === PAGE && PAGE < most, async next(count) {
      return count % PAGE || count >= most ? [] : page(count); // fewer than a page: there were no more
    } };
  }
  if (now.marked) {
    const all = marks.all();
    return { records: all, total: all.length };
  }
  if (now.lasso) {
    const rows = await chosen(now.lasso);
    const page = (offset, its) => api.records(rows.slice(offset, offset + PAGE), its);
    return { records: await page(0, signal), total: rows.length, next: page };
  }
  if (!isBrowsing(now)) {
    const sample = async (count, its) => api.rows({ sample: count, seed: now.seed || 0 }, its);
    const { rows, total } = await sample(PAGE, signal);
    return { records: rows, total, next: async (count) => (count < Math.min(total, MOST_SAMPLED)
      ? (await sample(Math.min(count + PAGE, MOST_SAMPLED))).rows.slice(count) : []) };
  }
  const page = (offset, its) => api.rows({ ...filtersOf(now), offset, limit: PAGE }, its);
  const first = await page(0, signal);
  return { records: first.rows, total: first.total,
    next: async (count) => (count < first.total ? (await page(count)).rows : []) };
}

function show(now, answer, scroll) {
  $('grid').classList.remove('waiting');
  grid.unfolded = now.unfold;
  grid.show(answer.records, { next: answer.next, kept: answer.rendered, place: answer.place });
  grid.reach(scroll);
  const { records: some, total } = answer;
  const noImages = total === 0 || facts.count === 0;
  setEmpty(now, some.length ? null : noImages && !isBrowsing(now) && !hasQuery(now) && !now.marked && !now.lasso
    ? ['There are no images here', 'Embed some: mocoembed embed FOLDER. This page takes them up by itself.']
    : nothingOf(now));
  $('another').hidden = hasQuery(now) || isBrowsing(now) || now.marked !== '' || now.lasso !== '' || !some.length || total < 2;
  $('mark-all').hidden = !some.length || now.marked !== '';
  showMarkAll();
  $('status').classList.remove('error');
  $('status').textContent = some.length ? statusOf(now, answer) : '';
}

function statusOf(now, { records: some, total, seconds, more }) {
  const where = whereOf(now);
  const time = seconds === undefined ? '' : ` · ${seconds.toFixed(2)} s`;
  if (hasQuery(now)) {
    const marked = now.of && ` to ${now.like.length} of the ${counted(Number(now.of), 'marked image')}`;
    return `${more ? 'The most similar images' : counted(some.length, 'similar image')}${marked}${where && ` ${where}`}${time}`;
  }
  if (now.marked) return `${counted(total, 'marked image')}`;
  if (now.lasso) return `${counted(total, 'image')} chosen on the map`;
  if (isBrowsing(now)) return `${counted(total, 'image')} ${where}`;
  return `${counted(total, 'image')}, in random order`;
}

/** What is said when there is nothing to show. */
function nothingOf(now) {
  if (now.marked) return ['No image is marked', 'Click an image’s tick, or press m.'];
  const score = hasQuery(now) && now.min ? `with a score of at least ${now.min}` : '';
  return ['Nothing found', `There is no image ${[whereOf(now), score].filter(Boolean).join(' ') || 'like this'}.`];
}

/** Say why nothing is shown, and offer what may help: `canRetry` where asking again may; `way` as in `Refused`. */
export function setEmpty(now, texts, canRetry = false, way = undefined) {
  $('empty').hidden = !texts;
  if (!texts) return;
  $('empty-way').hidden = !way;
  if (way) [$('empty-way').textContent, $('empty-way').onclick] = [way[0], () => go(way[1], { from: {} })];
  $('empty-clear').hidden = !isFiltered(now);
  $('empty-again').hidden = !canRetry;
  $('empty').querySelector('h2').textContent = texts[0];
  $('empty').querySelector('p').textContent = texts[1];
}

function refuse(now, error) {
  shownKey = null;
  $('grid').classList.remove('waiting');
  grid.show([]);
  $('another').hidden = $('mark-all').hidden = true;
  $('status').textContent = '';
  const isNothing = error.status === 404 && /\b0 of \d+ images/.test(error.message);
  const title = { 0: 'No answer', 404: 'Not found' }[error.status] ?? 'The search failed';
  setEmpty(now, isNothing ? nothingOf(now) : [title, error.message], error.status === 0 || error.status === 429
    || error.status >= 500, error.way);
}
