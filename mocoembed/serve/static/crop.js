// A rectangle drawn on an image, by mouse, finger or keyboard -> its place in the image's own pixels.

import { $ } from './dom.js';

const LEAST = 8; // pixels of the image
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Let a part of `bitmap` be chosen: [left, top, width, height], each times `scale`; or null. */
export function cropOf(bitmap, scale) {
  const [dialog, stage, canvas, box] = [$('crop'), $('crop-stage'), $('crop-canvas'), $('crop-box')];
  const { width, height } = bitmap;
  canvas.width = width;
  canvas.height = height;
  canvas.style.setProperty('--ratio', width / height);
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
  let region = { x: width / 4, y: height / 4, w: width / 2, h: height / 2 };
  const show = () => {
    box.style.left = `${100 * region.x / width}%`;
    box.style.top = `${100 * region.y / height}%`;
    box.style.width = `${100 * region.w / width}%`;
    box.style.height = `${100 * region.h / height}%`;
  };
  const at = (event) => {
    const place = canvas.getBoundingClientRect();
    return [clamp((event.clientX - place.left) / place.width, 0, 1) * width,
      clamp((event.clientY - place.top) / place.height, 0, 1) * height];
  };
  stage.onpointerdown = (event) => {
    event.preventDefault();
    stage.focus();
    stage.setPointerCapture(event.pointerId);
    const [x, y] = at(event);
    stage.onpointermove = (moved) => {
      const [u, v] = at(moved);
      if (Math.abs(u - x) < LEAST && Math.abs(v - y) < LEAST) return; // a click leaves the rectangle as it is
      region = { x: Math.min(x, u), y: Math.min(y, v), w: Math.abs(u - x), h: Math.abs(v - y) };
      show();
    };
  };
  stage.onpointerup = stage.onpointercancel = () => { stage.onpointermove = null; };
  stage.onkeydown = (event) => {
    const step = Math.max(1, Math.round(Math.max(width, height) / 40));
    const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[
      event.key] ?? [0, 0];
    if (event.key === 'Enter') $('crop-go').click();
    else if (dx || dy) {
      if (event.shiftKey) {
        region.w = clamp(region.w + dx, LEAST, width - region.x);
        region.h = clamp(region.h + dy, LEAST, height - region.y);
      } else {
        region.x = clamp(region.x + dx, 0, width - region.w);
        region.y = clamp(region.y + dy, 0, height - region.h);
      }
      show();
    } else return;
    event.preventDefault();
  };
  show();
  dialog.showModal();
  stage.focus();
  return new Promise((resolve) => {
    const end = (part) => {
      dialog.onclose = null;
      if (dialog.open) dialog.close();
      bitmap.close?.();
      resolve(part);
    };
    dialog.onclose = $('crop-cancel').onclick = () => end(null);
    $('crop-go').onclick = () => {
      const w = Math.max(LEAST, region.w);
      const h = Math.max(LEAST, region.h);
      const x = Math.max(0, Math.min(region.x, width - w));
      const y = Math.max(0, Math.min(region.y, height - h));
      end([x, y, Math.min(w, width), Math.min(h, height)].map((number) => Math.floor(number * scale)));
    };
  });
}
