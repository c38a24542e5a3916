// What a classifier sees through a window moved over the photo: a map of classes, one square a position.

import { announce, colour, h, percent, plural } from "./dom.js";
import { placed } from "./stage.js";

const NAMED = 6; // classes with a colour and a line of their own

export class Windows {
  constructor(stage) {
    this.stage = stage;
  }

  /** Draws on the stage; gives what stands beside it. */
  show(found) {
    this.found = found;
    this.at = [found.rows >> 1, found.columns >> 1];
    const counts = new Map();
    for (const id of found.class_ids.flat()) counts.set(id, (counts.get(id) ?? 0) + 1);
    this.ranked = [...counts].sort((a, b) => b[1] - a[1]);
    this.colours = new Map(this.ranked.slice(0, NAMED).map(([id], rank) => [id, colour(rank * 3)]));
    this.only = null;
    this.#draw();
    this.told = h("p", { class: "window-said" });
    this.list = h(
      "ol",
      { class: "bars" },
      this.ranked.slice(0, NAMED).map(([id, count]) => this.#row(id, count)),
    );
    this.#move(this.at, false);
    const rest = this.ranked.length - NAMED;
    const all = found.rows * found.columns;
    announce(`${plural(all, "position")}; most often ${found.labels[this.ranked[0][0]]}`);
    return h(
      "div",
      {},
      this.told,
      this.list,
      h("p", {
        class: "hint",
        text: `${plural(all, "position")} of a window of ${found.size} pixels${rest > 0 ? `; ${plural(rest, "more class", "more classes")}` : ""}. Point at the photo, or focus it and use the arrow keys.`,
      }),
    );
  }

  #row(id, count) {
    const share = count / (this.found.rows * this.found.columns);
    return h(
      "li",
      {},
      h(
        "button",
        {
          class: "row-button",
          type: "button",
          "aria-pressed": "false",
          style: { "--accent-bar": this.colours.get(id) },
          on: { click: (event) => this.#filter(id, event.currentTarget) },
        },
        h("span", { class: "label" }, h("i", { class: "dot" }), this.found.labels[id]),
        h("span", { class: "value", text: percent(share) }),
        h("i", { class: "bar", style: { "--share": share } }),
      ),
    );
  }

  #filter(id, button) {
    this.only = this.only === id ? null : id;
    for (const other of this.list.querySelectorAll("button"))
      other.setAttribute("aria-pressed", String(other === button && this.only !== null));
    this.#paint();
  }

  /** Photo pixels of a square in network pixels from the view's corner. */
  #square(left, top, width, height) {
    const { view, scale } = this.found;
    return {
      x_min: view.x_min + left / scale,
      y_min: view.y_min + top / scale,
      x_max: view.x_min + (left + width) / scale,
      y_max: view.y_min + (top + height) / scale,
    };
  }

  #draw() {
    const { rows, columns, stride, size } = this.found,
      edge = (size - stride) / 2;
    this.canvas = h("canvas", { class: "positions", width: columns, height: rows, "aria-hidden": "true" });
    this.frame = h("div", { class: "box window" });
    this.map = h(
      "div",
      {
        class: "position-map",
        tabindex: "0",
        role: "application",
        "aria-label": "Window over the photo; arrow keys move it",
        style: placed(this.#square(edge, edge, columns * stride, rows * stride), this.stage.size),
        on: {
          pointermove: (event) => this.#point(event),
          pointerdown: (event) => this.#point(event),
          keydown: (event) => this.#key(event),
        },
      },
      this.canvas,
    );
    this.stage.layer.replaceChildren(this.frame, this.map);
    this.#paint();
  }

  #paint() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.found.class_ids.forEach((row, r) =>
      row.forEach((id, c) => {
        if (this.only !== null && id !== this.only) return;
        context.globalAlpha = 0.15 + 0.7 * this.found.confidences[r][c];
        context.fillStyle = this.colours.get(id) ?? "#9a9a9a";
        context.fillRect(c, r, 1, 1);
      }),
    );
  }

  #point(event) {
    const area = this.map.getBoundingClientRect(),
      { rows, columns } = this.found;
    const within = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
    this.#move(
      [within((event.clientY - area.top) / area.height, rows), within((event.clientX - area.left) / area.width, columns)],
      false,
    );
  }

  #key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!steps) return;
    event.preventDefault();
    const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
    this.#move([clamp(this.at[0] + steps[0], this.found.rows), clamp(this.at[1] + steps[1], this.found.columns)], true);
  }

  #move([r, c], say) {
    this.at = [r, c];
    const { stride, size, labels, class_ids: ids, confidences } = this.found,
      id = ids[r][c];
    const at = placed(this.#square(c * stride, r * stride, size, size), this.stage.size);
    for (const [name, value] of Object.entries(at)) this.frame.style.setProperty(name, value);
    this.frame.style.setProperty("--colour", this.colours.get(id) ?? "#ddd");
    const text = `${labels[id]}, ${percent(confidences[r][c])}`;
    this.told.replaceChildren(h("strong", { text: labels[id] }), ` ${percent(confidences[r][c])} in this window`);
    if (say) announce(text);
  }
}
