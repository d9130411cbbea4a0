// What is around the map: buttons, the labels with their colours, and why there is no map.

import { $, counted, el, icon } from '../dom.js';
import { choose } from './chosen.js';
import { agreementColour, labelColour, paint } from './colours.js';
import { fit } from './drawing.js';
import { reset } from './moving.js';
import { listen } from './pointing.js';
import { plan, scene } from './scene.js';

const MOST_KEYS = 60; // labels in the legend

/** Make the elements, once. */
export function build() {
  const canvas = el('canvas', { className: 'map-canvas', tabIndex: 0, role: 'application',
    'aria-label': 'Map of all images. Arrows move, plus and minus zoom, Enter shows the images in view, m marks them.' });
  const by = el('select', {}, el('option', { value: 'label', textContent: 'label' }),
    el('option', { value: 'agreement', textContent: 'agreement of neighbours' }));
  const lassoButton = el('button', { type: 'button', 'aria-pressed': 'false' }, icon('lasso'), 'Lasso');
  const inView = el('button', { type: 'button' });
  const whole = el('button', { type: 'button', textContent: 'Whole map', onclick: reset });
  const tip = el('div', { className: 'map-tip', hidden: true }, el('img', { alt: '' }), el('span'));
  const status = el('p', { className: 'status', role: 'status' });
  const legend = el('ul', { className: 'legend', 'aria-label': 'Labels' });
  const bar = el('div', { className: 'panel-bar' }, el('span', { className: 'slide' },
    el('label', { className: 'slide' }, 'Colour by ', by), lassoButton, inView, whole), status);
  const stage = el('div', { className: 'map-stage' }, canvas, tip);
  const empty = el('div', { className: 'empty', hidden: true }, el('h2'), el('p'));
  scene.parts = {
    canvas, pen: canvas.getContext('2d'), by, lasso: lassoButton, inView, tip, status, legend, bar, stage, empty,
  };
  $('view-map').append(bar, stage, legend, empty);
  by.onchange = () => { scene.only = null; keys(); paint(); plan(); };
  lassoButton.onclick = () => {
    const on = lassoButton.getAttribute('aria-pressed') !== 'true';
    lassoButton.setAttribute('aria-pressed', on);
    canvas.classList.toggle('lassoing', on);
  };
  inView.onclick = () => choose([...scene.parts.seen].sort((a, b) => a - b));
  new ResizeObserver(fit).observe(canvas.parentElement);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    if (scene.points) { paint(); keys(); plan(); }
  });
  listen();
}

/** The labels with their colours; one that is chosen is alone in colour. */
export function keys() {
  if (scene.parts.by.value === 'agreement') {
    const scale = el('span', { className: 'scale', role: 'img', 'aria-label': 'red to yellow to blue' });
    scale.style.background = `linear-gradient(90deg, ${[0, 50, 100].map((one) => `rgb(${agreementColour(one)})`).join(', ')})`;
    scene.parts.legend.replaceChildren(el('li', { className: 'hint' }, '0 %', scale, '100 % of the neighbours share the label'));
    return;
  }
  const named = scene.points.names.slice(0, MOST_KEYS).map((name, number) => [name, number]);
  const more = scene.points.kinds - named.length;
  if (named.length && scene.points.labels.includes(-1)) named.push(['no label', -1]);
  scene.parts.legend.replaceChildren(...named.map(([name, number]) => {
    const dot = el('span', { className: 'dot' });
    dot.style.background = `rgb(${labelColour(number)})`;
    const isOnly = String(scene.only === number);
    const button = el('button', { type: 'button', className: 'chip', 'aria-pressed': isOnly }, dot, name);
    button.onclick = () => {
      scene.only = scene.only === number ? null : number;
      for (const [i, other] of [...scene.parts.legend.querySelectorAll('button')].entries()) {
        other.setAttribute('aria-pressed', String(named[i][1] === scene.only));
      }
      paint();
      plan();
    };
    return el('li', {}, button);
  }), more ? el('li', { className: 'hint' }, `and ${counted(more, 'more label')}`) : '');
}

/** Say why there is no map, or nothing. */
export function setEmpty(error) {
  scene.parts.empty.hidden = !error;
  scene.parts.bar.hidden = scene.parts.stage.hidden = scene.parts.legend.hidden = Boolean(error);
  if (!error) return;
  scene.parts.status.textContent = '';
  scene.parts.empty.querySelector('h2').textContent = error.status === 404 ? 'There is no map yet' : 'No answer';
  scene.parts.empty.querySelector('p').textContent = error.status === 404
    ? `${error.message}. It appears here by itself.` : error.message;
}
