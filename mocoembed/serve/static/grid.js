// Images in rows of equal height. The rows are CSS: each tile grows by its aspect ratio; what is off screen is not drawn.

import { clone, counted, el, nameOf, nextRow, observeAgain, onClick } from './dom.js';
import { isGone, statusOf, thumbnail } from './api.js';
import * as marks from './marks.js';
import { go, state, write } from './state.js';

const AT_ONCE = 60;
const FIRST = 16; // tiles whose thumbnails are asked for before the rows are laid out
const AGAIN = 3000; // ms until a thumbnail that a busy server refused is asked for again
const [NARROWEST, WIDEST] = [0.5, 2.6];

/** Width to height of a record's tile; extremes are cut. 1 where the size is unknown. */
export const ratio = ({ width, height }) => (width && height
  ? Math.min(WIDEST, Math.max(NARROWEST, width / height)) : 1);

/** Show an image of the collection in `img`; `gone` is called when it is no more. */
export function showThumbnail(img, record, gone = () => {}) {
  const address = thumbnail(record.row);
  img.alt = [record.label, nameOf(record.path)].filter(Boolean).join(', ');
  img.onerror = async () => {
    const status = await statusOf(address);
    if (isGone(status)) gone();
    else if (status !== 409) setTimeout(() => { if (img.isConnected && img.getAttribute('src') === address) img.src = address; }, AGAIN);
  };
  img.src = address;
}

/** A link to an image outside the grid, which shows its thumbnail and opens it; `replace` as in `go`. */
export function imageLink(record, replace = false) {
  const link = el('a', { href: write({ ...state(), open: record.id }) });
  const img = el('img', { loading: 'lazy', decoding: 'async' });
  showThumbnail(img, record, () => link.classList.add('gone'));
  link.append(img);
  onClick(link, () => go({ open: record.id }, { replace }));
  return link;
}

export class Grid {
  /**
   * `list`: the <ul>. `actions`: linkOf(record); search, view, more, less, fold (record); folded(record), which gives
   * the near-duplicates that are folded into it.
   */
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    this.records = [];
    this.pending = [];
    this.unfolded = [];
    this.foot = document.createElement('div');
    this.foot.className = 'foot';
    list.after(this.foot);
    this.watcher = new IntersectionObserver((seen) => {
      if (seen.some((one) => one.isIntersecting)) this.extend();
    }, { rootMargin: '1500px' });
    list.addEventListener('click', (event) => this.#clicked(event));
    list.addEventListener('keydown', (event) => this.#pressed(event));
    list.addEventListener('focusin', (event) => this.#focused(event.target.closest('.tile')));
    marks.onChange(() => this.refreshMarks());
  }

  /**
   * Show `records`; `next(count)` gives those after the first `count`, or none. Whoever uses the keyboard goes on from the
   * image at `place`.
   */
  show(records, { next = async () => [], kept = 0, place = 0 } = {}) {
    const isByKeyboard = this.list.querySelector(':focus-visible') !== null;
    this.watcher.unobserve(this.foot);
    this.list.replaceChildren();
    this.current = this.last = undefined;
    this.records = [];
    this.next = next;
    this.pending = [...records];
    this.turn = (this.turn ?? 0) + 1;
    this.coming = null;
    this.#render(Math.max(AT_ONCE, kept));
    if (records.length) this.watcher.observe(this.foot);
    if (isByKeyboard) this.list.children[place]?.querySelector('a').focus({ preventScroll: true });
  }

  /** Scroll to a place that was reached before, rendering as much as it takes. */
  async reach(scroll) {
    const { turn } = this;
    scrollTo(0, scroll);
    while (turn === this.turn && scrollY < scroll - 1 && await this.extend()) scrollTo(0, scroll);
  }

  /** The place of the image that has, or had, the focus. */
  get place() {
    return Number(this.current?.dataset.place ?? 0);
  }

  /** Focus the image with an id, if it is among the records. */
  focusImage(id) {
    const place = this.all().findIndex((record) => record.id === id);
    if (place >= 0) this.focus(place);
  }

  /** The records that are there, also those that are not rendered yet. */
  all() {
    return [...this.records, ...this.pending];
  }

  /** The same without those that are unfolded: what `show` and `next` gave. */
  given() {
    return this.all().filter((record) => record.under === undefined);
  }

  #render(count) {
    const some = this.pending.splice(0, count);
    const made = document.createDocumentFragment();
    for (const record of some) made.append(this.#tile(record, this.records.push(record) - 1));
    this.list.append(made);
    this.unfold(this.unfolded);
  }

  /** Show behind the hits with `ids` the near-duplicates that are folded into them, and no others. */
  async unfold(ids) {
    this.unfolded = ids;
    for (const tile of [...this.list.children]) {
      const record = this.records[tile.dataset.place];
      const wanted = ids.includes(record.id) && record.folded > 0 && record.under === undefined;
      if (wanted === tile.classList.contains('unfolded')) continue;
      tile.classList.toggle('unfolded', wanted);
      tile.querySelector('.fold')?.setAttribute('aria-expanded', wanted);
      if (!wanted) this.#takeAway(record);
      else {
        const { turn } = this;
        const under = await this.actions.folded(record).catch(() => []);
        if (turn === this.turn && tile.classList.contains('unfolded')) this.#insert(tile, record, under);
      }
    }
  }

  #insert(tile, record, under) {
    const place = Number(tile.dataset.place) + 1;
    this.records.splice(place, 0, ...under.map((one) => ({ ...one, under: record.row })));
    tile.after(...under.map((_, i) => {
      const made = this.#tile(this.records[place + i], place + i);
      made.classList.add('under');
      return made;
    }));
    this.#number();
  }

  #takeAway(record) {
    for (const tile of [...this.list.children]) if (this.records[tile.dataset.place].under === record.row) tile.remove();
    this.records = this.records.filter((one) => one.under !== record.row);
    this.#number();
  }

  #number() {
    for (const [place, tile] of [...this.list.children].entries()) tile.dataset.place = place;
  }

  /** Ask for more records, once at a time. */
  more() {
    const { turn } = this;
    this.coming ??= this.next(this.given().length).then((more) => {
      if (turn !== this.turn) return;
      this.pending.push(...more);
      this.coming = more.length ? null : this.coming;
      this.grown?.();
    }, (error) => {
      if (turn === this.turn) this.coming = null;
      throw error;
    });
    return this.coming;
  }

  /** Render more, and whether there were more; ask for more when all are there. */
  async extend() {
    const { turn } = this;
    try {
      if (!this.pending.length) await this.more();
    } catch {
      setTimeout(() => turn === this.turn && observeAgain(this.watcher, this.foot), 2000); // what there is stays, and more is asked for again
      return false;
    }
    if (turn !== this.turn || !this.pending.length) return false;
    this.#render(AT_ONCE);
    observeAgain(this.watcher, this.foot);
    return true;
  }

  #tile(record, place) {
    const tile = clone('tile');
    const [link, img] = [tile.querySelector('a'), tile.querySelector('img')];
    tile.dataset.place = place;
    tile.style.setProperty('--ratio', ratio(record).toFixed(4));
    link.href = this.actions.linkOf(record);
    link.tabIndex = place === 0 ? 0 : -1;
    if (place < FIRST) img.loading = 'eager';
    showThumbnail(img, record, () => tile.classList.add('gone'));
    if (!record.width) img.onload = () => tile.style.setProperty('--ratio', ratio(
      { width: img.naturalWidth, height: img.naturalHeight }).toFixed(4));
    const name = nameOf(record.path);
    tile.querySelector('.caption').textContent = record.label ?? name;
    const score = tile.querySelector('.score');
    if (record.score === undefined) score.remove();
    else score.textContent = record.score.toFixed(3);
    const fold = tile.querySelector('.fold');
    if (record.folded) fold.textContent = `+${record.folded}`;
    else fold.remove();
    const what = { mark: 'Mark', view: 'Open', more: 'More like', less: 'Less like',
      fold: `${counted(record.folded ?? 0, 'near-duplicate')} of` };
    for (const [kind, text] of Object.entries(what)) {
      const button = tile.querySelector(`.${kind}`);
      if (!button) continue;
      button.tabIndex = -1;
      button.ariaLabel = `${text} ${name}`;
    }
    this.#showMark(tile, record);
    return tile;
  }

  #showMark(tile, record) {
    const on = marks.has(record);
    tile.classList.toggle('marked', on);
    tile.querySelector('.mark').ariaPressed = on;
  }

  refreshMarks() {
    for (const tile of this.list.children) this.#showMark(tile, this.records[tile.dataset.place]);
  }

  #clicked(event) {
    const tile = event.target.closest('.tile');
    if (!tile) return;
    const record = this.records[tile.dataset.place];
    const button = event.target.closest('button');
    if (button) {
      const kind = ['mark', 'view', 'more', 'less', 'fold'].find((name) => button.classList.contains(name));
      if (kind === 'mark' && event.shiftKey && this.last !== undefined) this.#markTo(Number(tile.dataset.place));
      else if (kind === 'mark') marks.toggle(record);
      else this.actions[kind](record);
      this.last = Number(tile.dataset.place);
    } else if (!event.ctrlKey && !event.metaKey && !event.shiftKey && event.target.closest('a')) {
      event.preventDefault();
      this.actions.search(record);
    }
  }

  /** Shift and click marks all from the last one on. */
  #markTo(place) {
    const [from, to] = [Math.min(place, this.last), Math.max(place, this.last)];
    marks.set(this.records.slice(from, to + 1), true);
  }

  /** One tile at a time can be reached by Tab, with its buttons. */
  #focused(tile) {
    if (!tile || tile === this.current) return;
    for (const control of this.current?.querySelectorAll('a, button') ?? []) control.tabIndex = -1;
    const first = this.list.firstElementChild?.querySelector('a');
    if (first) first.tabIndex = -1;
    for (const control of tile.querySelectorAll('a, button')) control.tabIndex = 0;
    this.current = tile;
  }

  /** Focus the tile at a place, rendering up to it. */
  focus(place = 0) {
    const missing = place + 1 - this.list.children.length;
    if (missing > 0 && this.pending.length) this.#render(Math.max(AT_ONCE, missing));
    const tile = this.list.children[Math.max(0, Math.min(place, this.list.children.length - 1))];
    tile?.querySelector('a').focus({ preventScroll: true });
    tile?.scrollIntoView({ block: 'nearest' });
  }

  #pressed(event) {
    const tile = event.target.closest('.tile');
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = Number(tile.dataset.place);
    const record = this.records[place];
    const onLink = event.target.matches('a');
    const does = {
      ArrowRight: () => this.focus(place + 1),
      ArrowLeft: () => this.focus(place - 1),
      ArrowDown: () => this.#focusRow(tile, 1),
      ArrowUp: () => this.#focusRow(tile, -1),
      Home: () => this.focus(0),
      End: () => this.focus(this.list.children.length - 1),
      m: () => marks.toggle(record),
      '+': () => this.actions.more(record),
      '-': () => this.actions.less(record),
      f: () => this.actions.fold(record),
      ...(onLink ? { ' ': () => this.actions.view(record) } : {}),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    event.stopPropagation();
    does();
  }

  #focusRow(tile, step) {
    if (step > 0 && this.pending.length) this.#render(AT_ONCE);
    this.focus(Number(nextRow(this.list.children, tile, step).dataset.place));
  }
}
