// What views are put together of: a request with its states, problems in words, controls, and the receipt of an answer.

import { Problem, aborted } from "./api.js";
import { announce, h, icon, milliseconds, unique } from "./dom.js";

const PATIENCE = 400; // milliseconds until a request that still runs can be cancelled: before that, a button would only flicker
const AGAIN = 3; // times that a busy service is asked anew without being told to

/** A view's frame: what is seen on the left, what is said on the right. */
export function frame(title, lead, left, right) {
  return h("div", { class: "view" },
    h("header", { class: "lead" }, h("h1", { text: title }), h("p", { text: lead })),
    h("div", { class: "left" }, left),
    h("div", { class: "right" }, right));
}

/** One request at a time: a newer one aborts the older, a problem is said in `root`, a busy service is asked again. */
export class Request {
  #controller = null;
  #timers = [];

  /** `busy(on)` hears when something runs. */
  constructor(busy = () => {}) {
    this.busy = busy;
    this.root = h("div", { class: "request" });
  }

  /** `work(signal)` and then `done(its answer)`; a newer run or stop() makes both void. */
  async run(work, done, tries = 0) {
    this.#end();
    const controller = this.#controller = new AbortController();
    this.busy(true);
    this.#later(() => this.root.replaceChildren(this.#waiting(() => this.#cancelled(work, done))), PATIENCE);
    try {
      const answer = await work(controller.signal);
      if (controller !== this.#controller) return;
      this.#controller = null; // there is nothing to abort any more
      this.#end();
      done(answer);
    } catch (error) {
      if (controller !== this.#controller || aborted(error)) return;
      this.#end();
      if (!(error instanceof Problem)) throw error;
      if (error.code.startsWith("key_") || error.code === "scope_missing") dispatchEvent(new CustomEvent("key-wanted", { detail: { problem: error, again: () => this.run(work, done) } }));
      this.#failed(error, () => this.run(work, done, tries + 1), tries);
    }
  }

  /** Nothing runs any more, and nothing is said. */
  stop() { this.#end(); }

  say(problem, again = null) { this.root.replaceChildren(notice(problem, again)); }

  #end() {
    this.#controller?.abort();
    this.#controller = null;
    this.#timers.forEach(clearTimeout);
    this.#timers = [];
    this.root.replaceChildren();
    this.busy(false);
  }

  #later(f, wait) { this.#timers.push(setTimeout(f, wait)); }

  #waiting(cancel) {
    return h("p", { class: "working" }, h("span", { text: "Working…" }), h("button", { class: "link", type: "button", text: "Cancel", on: { click: cancel } }));
  }

  #cancelled(work, done) {
    this.#end();
    this.root.replaceChildren(h("p", { class: "working" }, h("span", { text: "Cancelled." }), h("button", { class: "link", type: "button", text: "Run it again", on: { click: () => this.run(work, done) } })));
    announce("Cancelled");
  }

  #failed(problem, again, tries) {
    const box = notice(problem, again);
    this.root.replaceChildren(box); // its role has it read out
    if (problem.code === "network") addEventListener("online", () => { if (box.isConnected) again(); }, { once: true });
    if (problem.retryAfter === null || problem.status !== 503 || tries >= AGAIN) return;
    const until = performance.now() + 1000 * problem.retryAfter;
    const count = h("p", { class: "count" });
    box.append(count);
    const tick = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      if (left <= 0) { again(); return; }
      count.textContent = `Trying again in ${left} s.`;
      this.#later(tick, 250);
    };
    tick();
  }
}

/** A problem in the API's words: title, detail, remedy. A busy service is no fault, and is not shown as one. */
export function notice(problem, again = null, kind = problem.status === 503 ? "calm" : "bad") {
  return h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" },
    h("h2", { text: problem.title }),
    problem.message && problem.message !== problem.title ? h("p", { text: sentence(problem.message) }) : null,
    problem.remedy ? h("p", { class: "remedy", text: problem.remedy }) : null,
    (problem.refused ?? []).length ? h("ul", {}, problem.refused.map((one) => h("li", { text: `${one.photo}: ${one.detail}` }))) : null,
    again ? h("button", { class: "button small quiet", type: "button", text: "Try again", on: { click: again } }) : null);
}

/** A text of the API as a sentence: its first word with a capital, unless it is a name like best.onnx or image1. */
export function sentence(text) {
  const first = /^[a-z]+(?![\w.-]*[\d._-])/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return /[.!?…)]$/.test(first) ? first : `${first}.`;
}

/** A labelled slider. `said(value)` is what stands beside it, `heard(value)` hears each move. */
export function slider(label, { min, max, step, value, said = String, heard = () => {} }) {
  const id = unique("slider");
  const output = h("output", { for: id, text: said(value) });
  const input = h("input", { id, type: "range", min, max, step, value, "aria-valuetext": said(value) });
  const fill = () => {
    const now = Number(input.value);
    output.textContent = said(now);
    input.setAttribute("aria-valuetext", said(now));
    input.style.setProperty("--filled", `${100 * (now - min) / (max - min)}%`);
  };
  fill();
  input.addEventListener("input", () => { fill(); heard(Number(input.value)); });
  const root = h("div", { class: "slider" }, h("label", { for: id, text: label }), output, input);
  return { root, input, get value() { return Number(input.value); }, set value(now) { input.value = now; fill(); } };
}

/** A switch with two or more choices: [[value, text], ...]. */
export function choice(label, choices, chosen, heard) {
  const name = unique("choice");
  const inputs = choices.map(([value, text]) => {
    const input = h("input", { type: "radio", name, value, checked: value === chosen, on: { change: () => heard(value) } });
    return h("label", {}, input, h("span", { text }));
  });
  return h("fieldset", { class: "choice" }, h("legend", { class: "hidden-text", text: label }), inputs);
}

export function check(label, checked, heard) {
  const input = h("input", { type: "checkbox", checked, on: { change: () => heard(input.checked) } });
  const root = h("label", { class: "check" }, input, h("span", { text: label }));
  return { root, input, get value() { return input.checked; } };
}

export function field(label, attributes = {}, help = null) {
  const id = unique("field");
  const choices = attributes.choices;
  const { choices: _, ...rest } = attributes;
  const input = choices
    ? h("select", { id, ...rest }, choices.map(([value, text]) => h("option", { value, text, selected: value === rest.value })))
    : h("input", { id, type: "text", autocomplete: "off", ...rest });
  const told = help ? h("small", { id: `${id}-help`, text: help }) : null;
  if (told) input.setAttribute("aria-describedby", told.id);
  return { root: h("div", { class: "field" }, h("label", { for: id, text: label }), input, told), input, get value() { return input.value.trim(); } };
}

const STAGES = { decode: "decode", preprocess: "prepare", queue: "wait", inference: "model", postprocess: "read out", encode: "encode" };

/** What was asked, who answered, and where the time went. */
export class Receipt {
  constructor() {
    this.who = h("p", { class: "who" });
    this.bar = h("div", { class: "times", role: "img", hidden: true });
    this.legend = h("ul", { class: "legend", hidden: true });
    this.code = h("code");
    this.copy = h("button", { class: "icon-button copy", type: "button", "aria-label": "Copy the command", title: "Copy", on: { click: () => this.#copy() } }, icon("copy"));
    this.root = h("section", { class: "receipt", "aria-label": "About this answer" }, this.who, this.bar, this.legend,
      h("div", { class: "shell" }, h("pre", { tabindex: "0", "aria-label": "The same with curl" }, this.code), this.copy));
  }

  command(text) { this.code.textContent = text; }

  /** models: ModelInfo objects; timing: stages in ms with "total"; trip: ms seen from here. */
  answered(models, timing, trip) {
    this.who.replaceChildren(...models.filter(Boolean).map((model) => h("span", { class: "chip", title: model.digest ? `SHA-256 ${model.digest}` : null, text: `${model.name} · ${model.precision} · ${provider(model.provider)}` })));
    const known = Object.entries(STAGES).filter(([stage]) => timing?.[stage] > 0).map(([stage, name]) => [stage, name, timing[stage]]);
    this.bar.hidden = this.legend.hidden = !known.length;
    if (!known.length) return;
    const told = known.map(([, name, ms]) => `${name} ${milliseconds(ms)}`).join(", ");
    this.bar.setAttribute("aria-label", `${milliseconds(timing.total)} on the server: ${told}`);
    this.bar.replaceChildren(...known.map(([stage, , ms]) => h("i", { class: `stage-${stage}`, style: { "flex-grow": ms } })));
    const most = known.filter(([, , ms]) => ms >= 0.02 * timing.total);
    this.legend.replaceChildren(
      h("li", { class: "total", text: `${milliseconds(timing.total)} on the server` }),
      ...most.map(([stage, name, ms]) => h("li", {}, h("i", { class: `stage-${stage}` }), `${name} ${milliseconds(ms)}`)),
      trip ? h("li", { class: "trip", text: `${milliseconds(trip)} with the way there and back` }) : "");
  }

  clear() { this.who.replaceChildren(); this.bar.hidden = this.legend.hidden = true; }

  async #copy() {
    await copied(this.code.textContent, this.code);
    this.copy.replaceChildren(icon("done"));
    announce("Copied");
    setTimeout(() => this.copy.replaceChildren(icon("copy")), 1600);
  }
}

async function copied(text, element) {
  try { await navigator.clipboard.writeText(text); } catch { // no secure context: over plain HTTP from another machine
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
