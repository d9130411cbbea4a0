// Colours of the points: by label, or by how many neighbours share it; hits of a search and a chosen label stand out.

import { scene } from './scene.js';

const UNLABELLED = [140, 144, 152];
const DIM = 70; // of 255, how visible what is no hit is

export const dark = () => matchMedia('(prefers-color-scheme: dark)').matches;

/** [red, green, blue] of a hue in degrees. */
function colourOf(hue, saturation = 0.68, light = dark() ? 0.66 : 0.52) {
  const chroma = saturation * Math.min(light, 1 - light);
  return [0, 8, 4].map((n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (light - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

export const labelColour = (number) => (number < 0 ? UNLABELLED : colourOf((number * 137.508 + 225) % 360,
  [0.7, 0.5, 0.85][Math.floor(number / 12) % 3]));

const SCALE = [[194, 62, 36], [214, 168, 62], [52, 112, 214]]; // none of the neighbours, half, all of them; also for the colour-blind

/** [red, green, blue] of a percentage. */
export function agreementColour(percent) {
  const [from, to] = percent < 50 ? [SCALE[0], SCALE[1]] : [SCALE[1], SCALE[2]];
  const share = (percent % 50) / 50 + (percent === 100 ? 1 : 0);
  return from.map((one, i) => Math.round(one + (to[i] - one) * share));
}

const pixel = ([red, green, blue], alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

/** The colour of every point. */
export function paint() {
  const { points: { count, labels, agreement }, only, lit } = scene;
  const colours = new Uint32Array(count);
  const byAgreement = scene.parts.by.value === 'agreement';
  const faint = pixel(dark() ? [58, 61, 68] : [216, 218, 224]);
  const palette = new Map();
  for (let i = 0; i < count; i++) {
    const label = labels[i] ?? -1;
    if (only !== null && label !== only) colours[i] = faint;
    else if (byAgreement) colours[i] = pixel(agreementColour(agreement[i]));
    else {
      if (!palette.has(label)) palette.set(label, pixel(labelColour(label)));
      colours[i] = palette.get(label);
    }
    if (lit.size && !lit.has(i)) colours[i] = ((colours[i] & 0xffffff) | (DIM << 24)) >>> 0;
  }
  scene.colours = colours;
}
