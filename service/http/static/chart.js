// A small line of numbers that grows, on a logarithmic scale.

import { h, svg } from "./dom.js";

const WIDTH = 240,
  HEIGHT = 56,
  MOST = 480; // points that are drawn; more are thinned

export class Chart {
  constructor(name) {
    this.name = name;
    this.line = svg("polyline", { fill: "none", "vector-effect": "non-scaling-stroke" });
    this.steps = svg("g", { class: "steps" });
    this.value = h("output", {});
    this.picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      this.steps,
      this.line,
    );
    this.root = h("figure", { class: "chart" }, h("figcaption", {}, h("span", { text: name }), this.value), this.picture);
    this.clear();
  }

  clear() {
    this.points = [];
    this.marks = [];
    this.#draw();
  }

  /** `fresh`: something changed here that the numbers jump at, a larger size say. */
  add(at, value, fresh = false) {
    if (fresh && this.points.length) this.marks.push(at);
    this.points.push([at, Math.max(value, 1e-12)]);
    if (this.points.length > MOST) this.points = this.points.filter((_, i) => i % 2 === 0 || i === this.points.length - 1);
    this.#draw();
  }

  #draw() {
    const logs = this.points.map(([, value]) => Math.log10(value));
    const least = Math.min(...logs),
      range = Math.max(...logs) - least || 1,
      last = this.points.at(-1)?.[0] || 1;
    const x = (at) => ((WIDTH * at) / last).toFixed(1);
    this.line.setAttribute(
      "points",
      this.points.map(([at], i) => `${x(at)},${(HEIGHT - 4 - ((HEIGHT - 8) * (logs[i] - least)) / range).toFixed(1)}`).join(" "),
    );
    this.steps.replaceChildren(
      ...this.marks.map((at) => svg("line", { x1: x(at), x2: x(at), y1: 0, y2: HEIGHT, "vector-effect": "non-scaling-stroke" })),
    );
    const now = this.points.at(-1)?.[1];
    this.value.textContent = now === undefined ? "" : now.toPrecision(3);
    this.picture.setAttribute(
      "aria-label",
      now === undefined
        ? `${this.name}: nothing yet`
        : `${this.name}: from ${this.points[0][1].toPrecision(3)} to ${now.toPrecision(3)}`,
    );
  }
}
