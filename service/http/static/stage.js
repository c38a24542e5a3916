// Where a photo is shown: chosen, dropped or taken, with a layer over it that is measured in percent of the photo.

import { bytes, h, icon } from "./dom.js";
import { pictureIn } from "./photo.js";

/** Percent of the photo for left, top, width and height of a box in its pixels. */
export function placed(box, { width, height }) {
  const share = (value, whole) => `${((100 * value) / whole).toFixed(4)}%`;
  return {
    left: share(box.x_min, width),
    top: share(box.y_min, height),
    width: share(box.x_max - box.x_min, width),
    height: share(box.y_max - box.y_min, height),
  };
}

export class Stage {
  /** `ask`: what the empty stage says; `alt`: what the photo is called for those who do not see it. */
  constructor(slot, { ask = "Drop a photo here", alt = "Your photo", compact = false } = {}) {
    this.slot = slot;
    this.size = null; // of the photo in pixels, once known
    this.image = h("img", { alt });
    this.layer = h("div", { class: "layer" });
    this.picture = h("div", { class: "picture", hidden: true }, this.image, this.layer);
    this.unseen = h("p", {
      class: "unseen",
      hidden: true,
      text: "This browser cannot show the format; the server may well read it.",
    });
    this.bar = h("div", { class: "busy", hidden: true });
    this.empty = this.#chooser(ask, compact);
    this.frame = h("div", { class: "frame" }, this.empty, this.picture, this.unseen, this.bar);
    this.name = h("span", { class: "name" });
    this.facts = h("span", { class: "facts" });
    this.change = h("button", { class: "link", type: "button", text: "Change", on: { click: () => this.input.click() } });
    const remove = h("button", {
      class: "link",
      type: "button",
      text: "Remove",
      on: {
        click: () => {
          this.slot.set(null);
          this.choose.focus();
        },
      },
    });
    this.caption = h(
      "div",
      { class: "caption", hidden: true },
      this.name,
      this.facts,
      h("span", { class: "grow" }),
      this.change,
      remove,
    );
    this.root = h("section", { class: compact ? "stage compact" : "stage", "aria-label": alt }, this.frame, this.caption);
    this.image.addEventListener("load", () => this.fit(this.image.naturalWidth, this.image.naturalHeight));
    this.image.addEventListener("error", () => {
      if (this.slot.photo) this.#cannotShow();
    });
    this.#listenToDrops();
    slot.addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    const { photo } = this.slot;
    this.layer.replaceChildren();
    this.size = null;
    this.unseen.hidden = true;
    this.empty.hidden = Boolean(photo);
    this.picture.hidden = this.caption.hidden = !photo;
    if (!photo) {
      this.image.removeAttribute("src");
      return;
    }
    this.image.src = photo.url;
    this.#describe();
  }

  /** Say how large the photo is: the browser does, or the service where the browser cannot read it. */
  fit(width, height) {
    if (!width || !height) return;
    this.size = { width, height };
    this.picture.style.setProperty("--ratio", (width / height).toFixed(5));
    this.#describe();
  }

  busy(on) {
    this.bar.hidden = !on;
  }

  #describe() {
    const { photo } = this.slot;
    if (!photo) return;
    this.name.textContent = this.name.title = photo.name;
    this.facts.textContent = [this.size && `${this.size.width} × ${this.size.height}`, bytes(photo.size)]
      .filter(Boolean)
      .join(" · ");
  }

  #cannotShow() {
    this.unseen.hidden = false;
    this.picture.hidden = true;
  }

  #chooser(ask, compact) {
    this.input = h("input", {
      type: "file",
      accept: "image/*,.heic,.heif,.tif,.tiff,.avif",
      hidden: true,
      tabindex: "-1",
      "aria-label": "A photo from this machine",
      on: { change: () => this.#picked(this.input) },
    });
    this.capture = h("input", {
      type: "file",
      accept: "image/*",
      capture: "environment",
      hidden: true,
      tabindex: "-1",
      "aria-label": "A photo from the camera",
      on: { change: () => this.#picked(this.capture) },
    });
    this.choose = h(
      "button",
      { class: "button", type: "button", on: { click: () => this.input.click() } },
      icon("photo"),
      "Choose a photo",
    );
    const take = h(
      "button",
      { class: "button quiet", type: "button", on: { click: () => this.#take() } },
      icon("camera"),
      "Take one",
    );
    return h(
      "div",
      { class: "empty" },
      compact ? null : h("div", { class: "drawn", "aria-hidden": "true" }, h("i"), h("i"), h("i")),
      h("p", { class: "ask", text: ask }),
      h("div", { class: "row centre" }, this.choose, take),
      h("p", { class: "hint" }, h("span", { class: "with-keys", text: "or paste one with Ctrl+V" })),
      this.input,
      this.capture,
    );
  }

  #picked(input) {
    if (input.files[0]) this.slot.set(input.files[0]);
    input.value = "";
    this.change.focus();
  }

  async #take() {
    if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices?.getUserMedia) {
      this.capture.click();
      return;
    }
    const { photograph } = await import("./camera.js");
    const taken = await photograph();
    if (taken) this.slot.set(taken, "camera.jpg");
  }

  #listenToDrops() {
    const over = (on) => this.frame.classList.toggle("over", on);
    this.root.addEventListener("dragover", (event) => {
      event.preventDefault();
      over(true);
    });
    this.root.addEventListener("dragleave", (event) => {
      if (!this.root.contains(event.relatedTarget)) over(false);
    });
    this.root.addEventListener("drop", (event) => {
      over(false);
      const file = pictureIn(event.dataTransfer);
      if (!file) return;
      event.preventDefault();
      event.stopPropagation();
      this.slot.set(file);
    });
  }
}

/** Boxes with labels on a layer. Items: {box, label, colour, key, landmarks?}. `hovered(key or null)` hears the pointer. */
export function outline(layer, size, items, hovered = () => {}) {
  layer.querySelectorAll(".box, .mark").forEach((old) => old.remove());
  for (const item of [...items].reverse()) {
    // the most confident ones come first, and lie on top
    const box = h(
      "div",
      { class: "box", dataset: { key: item.key }, style: { ...placed(item.box, size), "--colour": item.colour } },
      item.label
        ? h("span", {
            class: `tag${item.box.y_min < 0.06 * size.height ? " in" : ""}${item.box.x_min > 0.7 * size.width ? " end" : ""}`,
            text: item.label,
          })
        : null,
    );
    box.addEventListener("pointerenter", () => hovered(item.key));
    box.addEventListener("pointerleave", () => hovered(null));
    layer.append(box);
    for (const point of Object.values(item.landmarks ?? {})) {
      layer.append(
        h("i", {
          class: "mark",
          style: { left: `${(100 * point.x) / size.width}%`, top: `${(100 * point.y) / size.height}%`, "--colour": item.colour },
        }),
      );
    }
  }
}

/** Let one box, and what lists it, stand out; null: none. */
export function emphasise(root, key) {
  for (const one of root.querySelectorAll("[data-key]"))
    one.classList.toggle("lit", key !== null && one.dataset.key === String(key));
  root.querySelector(".layer")?.classList.toggle("dimmed", key !== null);
}
