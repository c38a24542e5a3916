// Models: what is loaded and how it runs, and adding one of one's own.

import { ask, curl } from "../api.js";
import { adding } from "../adding.js";
import { h, plural } from "../dom.js";
import { Request, frame } from "../parts.js";
import { Receipt, provider } from "../receipt.js";

const LEAD = "Everything that is loaded here, where it runs and why, and under which terms. Drop an ONNX file to add your own.";
const TASKS = {
  classify: "Classify",
  detect: "Detect",
  "detect-faces": "Find faces",
  "embed-face": "Know faces",
  "face-liveness": "Tell living faces",
  stylize: "Stylize",
  paint: "Paint step by step",
};

export function make() {
  const list = h("div", { class: "models" }),
    request = new Request(),
    changes = new Request(),
    receipt = new Receipt();
  receipt.command(curl("models", { method: "GET" }));
  const add = adding(receipt, () => fill());
  let filled = false;

  function fill() {
    dispatchEvent(new Event("models-changed"));
    request.run(
      (signal) => ask("models", { signal }),
      ({ data }) => {
        filled = true;
        const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.dataset.name));
        const tasks = Object.keys(TASKS).filter((task) => data.models.some((model) => model.task === task));
        list.replaceChildren(
          ...tasks.map((task) =>
            h(
              "section",
              {},
              h("h2", { text: TASKS[task] }),
              data.models.filter((model) => model.task === task).map((model) => card(model, open.has(model.name))),
            ),
          ),
        );
      },
    );
  }

  function card(model, open) {
    const { licence, tuning } = model;
    const best = tuning.measured.find((one) => one.chosen);
    const facts = [
      ["Runs on", provider(model.provider) + (model.provider_note ? `: ${model.provider_note}` : "")],
      ["Arithmetic", model.precision + (tuning.note ? `: ${tuning.note}` : "")],
      [
        "How",
        `${plural(tuning.plan.threads, "thread")}, ${plural(tuning.plan.parallel, "run")} at a time, batch ${tuning.plan.batch}${best ? `; ${best.throughput.toFixed(0)} a second, ${best.latency_ms.toFixed(0)} ms each` : ""}`,
      ],
      [
        "Input",
        [model.input.size ? `${model.input.size[1]} × ${model.input.size[0]} pixels` : "any size", model.input.resize]
          .filter(Boolean)
          .join(", "),
      ],
      model.classes ? ["Classes", String(model.classes)] : null,
      [
        "Licence",
        /^https?:/.test(licence.url)
          ? h("a", { href: licence.url, rel: "noreferrer noopener", target: "_blank", text: licence.spdx })
          : licence.spdx,
      ],
      ["Commercial use", licence.commercial_use ? "allowed" : "not allowed, or not known"],
      ...model.accuracy.map((one) => [one.metric, `${one.value} on ${one.dataset} (${one.kind})`]),
      ["From", model.sources.join(", ") || "a file of your own"],
      ["Digest", h("code", { text: model.digest.slice(0, 16), title: `SHA-256 ${model.digest}` })],
      model.aliases.length ? ["Also called", model.aliases.join(", ")] : null,
      model.chosen ? ["Chosen", model.chosen] : null,
    ].filter(Boolean);
    return h(
      "details",
      { class: "model", open, dataset: { name: model.name } },
      h(
        "summary",
        {},
        h("span", { class: "name", text: model.name }),
        model.default ? h("span", { class: "chip soft", text: "default" }) : null,
        h("span", { class: "grow" }),
        h("span", { class: "chip", text: provider(model.provider) }),
        h("span", { class: "chip", text: model.precision }),
        h("span", { class: `chip ${licence.commercial_use ? "" : "warn"}`, text: licence.spdx.replace("LicenseRef-", "") }),
        h("span", { class: "about", text: model.summary }),
      ),
      h(
        "dl",
        {},
        facts.flatMap(([name, value]) => [h("dt", { text: name }), h("dd", {}, value)]),
      ),
      model.sources.length ? null : own(model),
    );
  }

  function own(model) {
    const path = `models/${encodeURIComponent(model.name)}`;
    const run = (method, json) => {
      receipt.command(curl(path, { method, json }));
      changes.run(
        (signal) => ask(path, { method, json, signal }),
        () => fill(),
      );
    };
    const row = h("div", { class: "row" });
    const calm = () =>
      row.replaceChildren(
        ...(model.default
          ? []
          : [
              h("button", {
                class: "button small quiet",
                type: "button",
                text: "Make it the default",
                on: { click: () => run("PATCH", { default: true }) },
              }),
            ]),
        h("button", { class: "button small quiet", type: "button", text: "Remove", on: { click: sure } }),
      );
    const sure = () => {
      const yes = h("button", {
        class: "button small danger",
        type: "button",
        text: "Remove for good",
        on: { click: () => run("DELETE") },
      });
      row.replaceChildren(h("button", { class: "button small quiet", type: "button", text: "Keep", on: { click: calm } }), yes);
      yes.focus();
    };
    calm();
    return row;
  }

  addEventListener("key-changed", () => {
    filled = false;
    if (!root.hidden && root.isConnected) fill();
  });
  const root = frame("Models", LEAD, [request.root, list], [changes.root, add.root, receipt.root]);
  return {
    root,
    show() {
      if (!filled) fill();
    },
    dropped: (transfer) => add.dropped(transfer),
  };
}
