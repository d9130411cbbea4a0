// What is around the map: buttons, the labels with their colours, and why there is no map.

import { $, counted, el, icon } from '../dom.js';
import { NO_LABEL } from '../query.js';
import { go } from '../state.js';
import { choose, inView } from './chosen.js';
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
  const by = el('select', {}, new Option('label'), new Option('agreement of neighbours', 'agreement'));
  const lassoButton = el('button', { 'aria-pressed': 'false' }, icon('lasso'), 'Lasso');
  const showView = el('button', { textContent: 'Show images in view', onclick: () => choose(inView()) });
  const whole = el('button', { textContent: 'Whole map', onclick: reset });
  const tip = el('div', { className: 'map-tip', hidden: true }, el('img', { alt: '' }), el('span'));
  const status = el('p', { className: 'status', role: 'status' });
  const legend = el('ul', { className: 'legend', 'aria-label': 'Labels' });
  const bar = el('div', { className: 'panel-bar' }, el('span', { className: 'slide' },
    el('label', { className: 'slide' }, 'Colour by ', by), lassoButton, showView, whole), status);
  const stage = el('div', { className: 'map-stage' }, canvas, tip);
  const empty = el('div', { className: 'empty', hidden: true }, el('h2'), el('p'));
  scene.parts = {
    canvas, pen: canvas.getContext('2d'), by, lasso: lassoButton, showView, tip, status, legend, bar, stage, empty,
  };
  $('view-map').append(bar, stage, legend, empty);
  by.onchange = () => go({ by: by.value, only: [] }, { replace: true });
  lassoButton.onclick = () => {
    const on = lassoButton.getAttribute('aria-pressed') !== 'true';
    lassoButton.ariaPressed = on;
    canvas.classList.toggle('lassoing', on);
  };
  new ResizeObserver(fit).observe(canvas.parentElement);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    if (scene.points) { paint(); keys(); plan(); }
  });
  listen();
}

/** Colour as a state says: by label or agreement, and perhaps one label alone. */
export function colour({ by, only: [name] }) {
  scene.parts.by.value = by === 'agreement' && scene.points.agreement ? by : 'label';
  const number = scene.points.names.indexOf(name);
  scene.only = number >= 0 || name === '' ? number : null; // -1 stands for images without a label
  keys();
  paint();
}

/** The labels with their colours; one that is chosen is alone in colour. */
function keys() {
  const { parts: { legend, by }, points: { names, kinds, labels } } = scene;
  if (by.value === 'agreement') {
    const scale = el('span', { className: 'scale', role: 'img', 'aria-label': 'red to yellow to blue' });
    scale.style.background = `linear-gradient(90deg, ${[0, 50, 100].map((one) => `rgb(${agreementColour(one)})`).join(', ')})`;
    legend.replaceChildren(el('li', { className: 'hint' }, '0 %', scale, '100 % of the neighbours share the label'));
    return;
  }
  const named = names.slice(0, MOST_KEYS).map((name, number) => [name, number]);
  const more = kinds - named.length;
  if (named.length && labels.includes(-1)) named.push([NO_LABEL, -1]);
  legend.replaceChildren(...named.map(([name, number], i) => {
    const dot = el('span', { className: 'dot' });
    dot.style.background = `rgb(${labelColour(number)})`;
    const isOnly = scene.only === number;
    const button = el('button', { className: 'chip', 'aria-pressed': isOnly }, dot, name);
    button.onclick = () => {
      go({ only: isOnly ? [] : [number < 0 ? '' : name] }, { replace: true });
      legend.querySelectorAll('button')[i].focus();
    };
    return el('li', {}, button);
  }), more ? el('li', { className: 'hint' }, `and ${counted(more, 'more label')}`) : '');
}

/** Say why there is no map, or nothing. */
export function setEmpty(error) {
  const { empty, bar, stage, legend, status } = scene.parts;
  empty.hidden = !error;
  bar.hidden = stage.hidden = legend.hidden = Boolean(error);
  if (!error) return;
  status.textContent = '';
  const isNone = error.status === 404;
  empty.querySelector('h2').textContent = isNone ? 'No map' : 'No answer';
  empty.querySelector('p').textContent = error.message;
}
