// The receipt of an answer: what was asked as a curl command, who answered, and where the time went.

import { announce, h, icon, milliseconds } from "./dom.js";

const STAGES = {
  decode: "decode",
  preprocess: "prepare",
  queue: "wait",
  inference: "model",
  postprocess: "read out",
  encode: "encode",
};

/** What was asked, who answered, and where the time went. */
export class Receipt {
  constructor() {
    this.who = h("p", { class: "who" });
    this.bar = h("div", { class: "times", role: "img", hidden: true });
    this.legend = h("ul", { class: "legend", hidden: true });
    this.code = h("code");
    this.copy = h(
      "button",
      {
        class: "icon-button copy",
        type: "button",
        "aria-label": "Copy the command",
        title: "Copy",
        on: { click: () => this.#copy() },
      },
      icon("copy"),
    );
    this.root = h(
      "section",
      { class: "receipt", "aria-label": "About this answer" },
      this.who,
      this.bar,
      this.legend,
      h("div", { class: "shell" }, h("pre", { tabindex: "0", "aria-label": "The same with curl" }, this.code), this.copy),
    );
  }

  command(text) {
    this.code.textContent = text;
  }

  /** models: ModelInfo objects; timing: stages in ms with "total"; trip: ms seen from here. */
  answered(models, timing, trip) {
    this.who.replaceChildren(
      ...models.filter(Boolean).map((model) =>
        h("span", {
          class: "chip",
          title: model.digest ? `SHA-256 ${model.digest}` : null,
          text: `${model.name} · ${model.precision} · ${provider(model.provider)}`,
        }),
      ),
    );
    const known = Object.entries(STAGES)
      .filter(([stage]) => timing?.[stage] > 0)
      .map(([stage, name]) => [stage, name, timing[stage]]);
    this.bar.hidden = this.legend.hidden = !known.length;
    if (!known.length) return;
    const told = known.map(([, name, ms]) => `${name} ${milliseconds(ms)}`).join(", ");
    this.bar.setAttribute("aria-label", `${milliseconds(timing.total)} on the server: ${told}`);
    this.bar.replaceChildren(...known.map(([stage, , ms]) => h("i", { class: `stage-${stage}`, style: { "flex-grow": ms } })));
    const most = known.filter(([, , ms]) => ms >= 0.02 * timing.total);
    this.legend.replaceChildren(
      h("li", { class: "total", text: `${milliseconds(timing.total)} on the server` }),
      ...most.map(([stage, name, ms]) => h("li", {}, h("i", { class: `stage-${stage}` }), `${name} ${milliseconds(ms)}`)),
      trip ? h("li", { class: "trip", text: `${milliseconds(trip)} with the way there and back` }) : "",
    );
  }

  clear() {
    this.who.replaceChildren();
    this.bar.hidden = this.legend.hidden = true;
  }

  async #copy() {
    await copied(this.code.textContent, this.code);
    this.copy.replaceChildren(icon("done"));
    announce("Copied");
    setTimeout(() => this.copy.replaceChildren(icon("copy")), 1600);
  }
}

async function copied(text, element) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // no secure context: over plain HTTP from another machine
    getSelection().selectAllChildren(element);
    document.execCommand("copy");
    getSelection().removeAllRanges();
  }
}

/** CPUExecutionProvider -> CPU */
export const provider = (name) => name.replace(/ExecutionProvider$/, "").replace(/^Tensorrt$/, "TensorRT");

/** Server-Timing as {stage: ms}. */
export function serverTiming(headers) {
  const found = {};
  for (const part of (headers.get("Server-Timing") ?? "").split(",")) {
    const [name, duration] = part.split(";dur=");
    if (duration) found[name.trim()] = Number.parseFloat(duration);
  }
  return found;
}

/** An answer with how long it took as seen from here. */
export async function timed(asked) {
  const start = performance.now();
  const answer = await asked;
  return { ...answer, trip: performance.now() - start };
}
