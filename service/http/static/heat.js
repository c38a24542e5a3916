// A grid of activations as a picture that lies over the photo: bicubic in between, see-through where there is little.

const STOPS = [
  [34, 22, 88],
  [115, 32, 130],
  [205, 62, 110],
  [252, 150, 92],
  [252, 244, 178],
];

/** A canvas of about `side` pixels. Values are stretched from the grid's least to its greatest. */
export function heat(grid, side = 160) {
  const rows = grid.length,
    columns = grid[0].length;
  const scale = Math.max(1, Math.round(side / Math.max(rows, columns)));
  const width = columns * scale,
    height = rows * scale;
  const flat = grid.flat(),
    least = Math.min(...flat),
    range = Math.max(...flat) - least || 1;
  const across = Array.from({ length: width }, (_, x) => taps((x + 0.5) / scale - 0.5, columns));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"),
    picture = context.createImageData(width, height);
  for (let y = 0; y < height; y += 1) {
    const down = taps((y + 0.5) / scale - 0.5, rows);
    for (let x = 0; x < width; x += 1) {
      let value = 0;
      for (const [row, a] of down) for (const [column, b] of across[x]) value += a * b * grid[row][column];
      paint(picture.data, 4 * (y * width + x), Math.min(1, Math.max(0, (value - least) / range)));
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Catmull-Rom: the four neighbours of a position with their weights; at the edges the last one stands for those beyond. */
function taps(at, count) {
  const first = Math.floor(at),
    t = at - first;
  const weights = [
    (((-t + 2) * t - 1) * t) / 2,
    ((3 * t - 5) * t * t + 2) / 2,
    (((-3 * t + 4) * t + 1) * t) / 2,
    ((t - 1) * t * t) / 2,
  ];
  return weights.map((weight, i) => [Math.min(count - 1, Math.max(0, first - 1 + i)), weight]);
}

function paint(data, at, value) {
  const place = value * (STOPS.length - 1),
    i = Math.min(STOPS.length - 2, Math.floor(place)),
    t = place - i;
  for (let c = 0; c < 3; c += 1) data[at + c] = STOPS[i][c] + t * (STOPS[i + 1][c] - STOPS[i][c]);
  data[at + 3] = 255 * Math.min(1, 1.4 * value ** 1.5);
}
