// What the modules of the map share: its points, what is seen of them, and the request to draw it again.

export const MOST_MOVING = 120000; // points that are drawn while the map moves, of those there are
export const REST = 150; // ms without a movement

export const WHOLE = { x: 0.5, y: 0.5, zoom: 1 };

export const scene = {
  parts: null, // elements of the page; what is in view
  points: null, // {count, x, y (where they are drawn), places (where they belong), size and middle (in the map's own places), map (its version), labels, kinds (how many labels), names (of the most frequent), agreement}
  order: null, // points in the order they are drawn in
  colours: null, // of each point, as a pixel of the canvas
  view: { ...WHOLE },
  only: null, // number of the label that alone is shown in colour
  progress: '', // how far the server is with a better map
  lit: new Set(), // rows of a search's hits
  lasso: null, // places of the canvas, while it is drawn
  moved: 0, // when it moved last
};

let [draw, planned] = [null, false];

/** Say who draws. */
export const drawWith = (one) => { draw = one; };

/** Draw in the next frame. */
export function plan() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => { planned = false; draw(); });
}

/** Pixels of the canvas: side of the unit square, and where its corner is. */
export function frame() {
  const { canvas } = scene.parts;
  const side = Math.min(canvas.width, canvas.height) * 0.92 * scene.view.zoom;
  return [side, canvas.width / 2 - scene.view.x * side, canvas.height / 2 - scene.view.y * side];
}

export const density = () => Math.min(2, devicePixelRatio || 1);
