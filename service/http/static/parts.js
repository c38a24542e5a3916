// What views are put together of: a frame, a request with its states, and problems in words.

import { Problem, aborted } from "./api.js";
import { announce, h } from "./dom.js";

const PATIENCE = 400; // milliseconds until a request that still runs can be cancelled: before that, a button would only flicker
const AGAIN = 3; // times that a busy service is asked anew without being told to

/** A view's frame: what is seen on the left, what is said on the right. */
export function frame(title, lead, left, right) {
  return h(
    "div",
    { class: "view" },
    h("header", { class: "lead" }, h("h1", { text: title }), h("p", { text: lead })),
    h("div", { class: "left" }, left),
    h("div", { class: "right" }, right),
  );
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
    const controller = (this.#controller = new AbortController());
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
      if (error.code.startsWith("key_") || error.code === "scope_missing")
        dispatchEvent(new CustomEvent("key-wanted", { detail: { problem: error, again: () => this.run(work, done) } }));
      this.#failed(error, () => this.run(work, done, tries + 1), tries);
    }
  }

  /** Nothing runs any more, and nothing is said. */
  stop() {
    this.#end();
  }

  say(problem, again = null) {
    this.root.replaceChildren(notice(problem, again));
  }

  #end() {
    this.#controller?.abort();
    this.#controller = null;
    this.#timers.forEach(clearTimeout);
    this.#timers = [];
    this.root.replaceChildren();
    this.busy(false);
  }

  #later(f, wait) {
    this.#timers.push(setTimeout(f, wait));
  }

  #waiting(cancel) {
    return h(
      "p",
      { class: "working" },
      h("span", { text: "Working…" }),
      h("button", { class: "link", type: "button", text: "Cancel", on: { click: cancel } }),
    );
  }

  #cancelled(work, done) {
    this.#end();
    this.root.replaceChildren(
      h(
        "p",
        { class: "working" },
        h("span", { text: "Cancelled." }),
        h("button", { class: "link", type: "button", text: "Run it again", on: { click: () => this.run(work, done) } }),
      ),
    );
    announce("Cancelled");
  }

  #failed(problem, again, tries) {
    const box = notice(problem, again);
    this.root.replaceChildren(box); // its role has it read out
    if (problem.code === "network")
      addEventListener(
        "online",
        () => {
          if (box.isConnected) again();
        },
        { once: true },
      );
    if (problem.retryAfter === null || problem.status !== 503 || tries >= AGAIN) return;
    const until = performance.now() + 1000 * problem.retryAfter;
    const count = h("p", { class: "count" });
    box.append(count);
    const tick = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      if (left <= 0) {
        again();
        return;
      }
      count.textContent = `Trying again in ${left} s.`;
      this.#later(tick, 250);
    };
    tick();
  }
}

/** A problem in the API's words: title, detail, remedy. A busy service is no fault, and is not shown as one. */
export function notice(problem, again = null, kind = problem.status === 503 ? "calm" : "bad") {
  return h(
    "div",
    { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" },
    h("h2", { text: problem.title }),
    problem.message && problem.message !== problem.title ? h("p", { text: sentence(problem.message) }) : null,
    problem.remedy ? h("p", { class: "remedy", text: problem.remedy }) : null,
    (problem.refused ?? []).length
      ? h(
          "ul",
          {},
          problem.refused.map((one) => h("li", { text: `${one.photo}: ${one.detail}` })),
        )
      : null,
    again ? h("button", { class: "button small quiet", type: "button", text: "Try again", on: { click: again } }) : null,
  );
}

/** A text of the API as a sentence: its first word with a capital, unless it is a name like best.onnx or image1. */
export function sentence(text) {
  const first = /^[a-z]+(?![\w.-]*[\d._-])/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return /[.!?…)]$/.test(first) ? first : `${first}.`;
}
