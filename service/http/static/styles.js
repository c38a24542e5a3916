// The built-in styles: a grid of thumbnails to choose one of, or several with weights.

import { address, ask, key } from "./api.js";
import { h } from "./dom.js";
import { check, slider } from "./controls.js";
import { notice } from "./parts.js";

export class Styles {
  /** `heard()` when the choice has changed. */
  constructor(heard) {
    this.heard = heard;
    this.chosen = new Map(); // name -> weight
    this.titles = new Map();
    this.grid = h("div", { class: "styles", role: "group", "aria-label": "Styles" });
    this.weights = h("div", { class: "controls" });
    this.blend = check("Blend several", false, (on) => {
      if (!on) this.#keepFirst();
      this.#weigh();
    });
    this.root = h("div", {}, this.grid, this.blend.root, this.weights);
  }

  /** As the service takes it: a name, or names with weights. */
  get value() {
    const all = [...this.chosen].filter(([, weight]) => weight > 0);
    return all.length < 2 ? (all[0]?.[0] ?? "") : all.map(([name, weight]) => `${name}:${weight}`).join(",");
  }

  async fill() {
    if (this.titles.size) return;
    try {
      const { data } = await ask("styles");
      this.grid.replaceChildren(...data.styles.map((style) => this.#tile(style)));
    } catch (error) {
      this.grid.replaceChildren(notice(error, () => this.fill()));
    }
  }

  #tile({ name, title, description }) {
    this.titles.set(name, title);
    const image = h("img", { alt: "", loading: "lazy", width: 96, height: 96 });
    thumbnail(image, `styles/${encodeURIComponent(name)}/thumbnail.jpg`);
    return h(
      "button",
      {
        class: "style",
        type: "button",
        "aria-pressed": "false",
        title: description,
        dataset: { name },
        on: { click: () => this.#pick(name) },
      },
      image,
      h("span", { text: title }),
    );
  }

  #pick(name) {
    if (!this.blend.value) {
      this.chosen.clear();
      this.chosen.set(name, 0.5);
    } else if (!this.chosen.delete(name)) this.chosen.set(name, 0.5);
    this.#mark();
    this.#weigh();
    this.heard();
  }

  #keepFirst() {
    if (this.chosen.size < 2) return;
    const [[name, weight]] = this.chosen;
    this.chosen = new Map([[name, weight]]);
    this.#mark();
    this.heard();
  }

  #mark() {
    for (const tile of this.grid.children) tile.setAttribute("aria-pressed", String(this.chosen.has(tile.dataset.name)));
  }

  #weigh() {
    this.weights.replaceChildren(
      ...(this.chosen.size < 2
        ? []
        : [...this.chosen].map(([name, weight]) => {
            const one = slider(this.titles.get(name), {
              min: 0,
              max: 1,
              step: 0.05,
              value: weight,
              said: (value) => value.toFixed(2),
              heard: (value) => this.chosen.set(name, value),
            });
            one.input.addEventListener("change", () => this.heard()); // when it is let go: each value is a painting
            return one.root;
          })),
    );
  }
}

/** Lazily: by the browser itself, or with the key, which an <img> cannot send. */
function thumbnail(image, path) {
  if (!key.get()) {
    image.src = address(path);
    return;
  }
  const watch = new IntersectionObserver(async ([entry]) => {
    if (!entry.isIntersecting) return;
    watch.disconnect();
    try {
      image.src = URL.createObjectURL((await ask(path, { as: "blob" })).data);
    } catch {
      /* the title says it, too */
    }
  });
  watch.observe(image);
}
