// A painting over its photo, with a divider between before and after.

import { h, icon } from "./dom.js";

export class Wipe {
  constructor(stage) {
    this.stage = stage;
    this.image = h("img", { class: "after", alt: "The painting" });
    this.input = h("input", {
      class: "wipe",
      type: "range",
      min: 0,
      max: 100,
      step: 0.5,
      value: 0,
      "aria-label": "Before and after: how much of the photo is shown",
      on: { input: () => this.#place() },
    });
    this.root = h(
      "div",
      { class: "wiping" },
      this.image,
      h("i", { class: "divider", "aria-hidden": "true" }),
      h("span", { class: "knob", "aria-hidden": "true" }, icon("wipe")),
      this.input,
    );
    this.url = null;
    this.#place();
  }

  /** The painting: a Blob, or an address that needs no letting go. */
  show(picture) {
    const url = typeof picture === "string" ? picture : URL.createObjectURL(picture);
    this.#let();
    if (url !== picture) this.url = url;
    this.image.src = url;
    if (!this.root.isConnected) this.stage.layer.replaceChildren(this.root);
  }

  hide() {
    this.root.remove();
    this.#let();
  }

  set strength(value) {
    this.image.style.setProperty("opacity", value);
  }

  #place() {
    this.root.style.setProperty("--split", `${this.input.value}%`);
    this.input.setAttribute("aria-valuetext", `${Math.round(this.input.value)} % photo`);
  }

  #let() {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
  }
}
