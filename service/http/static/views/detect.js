// Detect: objects with their boxes. The service is asked once for all that it can find; the sliders choose among that here.

import { ask, curl, formOf } from "../api.js";
import { suppress } from "../boxes.js";
import { chooser } from "../chooser.js";
import { announce, colour, debounce, h, percent, plural } from "../dom.js";
import { slider } from "../controls.js";
import { Request, frame } from "../parts.js";
import { Receipt, timed } from "../receipt.js";
import { main } from "../photo.js";
import { Stage, emphasise, outline } from "../stage.js";

const LEAD = "Objects and where they are. Point at one in the list or on the photo; the sliders answer at once.";
const LEAST = 0.05,
  MOST = 1000; // what is asked for first: everything from this confidence on, overlapping as it may
const USUAL = { confidence: 0.25, iou: 0.45 };

export function make() {
  const stage = new Stage(main, { alt: "The photo to look for objects on" });
  const request = new Request((on) => stage.busy(on));
  const receipt = new Receipt();
  const list = h("ol", { class: "found" }),
    classes = h("div", { class: "chips", role: "group", "aria-label": "Classes", hidden: true });
  const summary = h("p", { class: "summary" });
  let found = null,
    floor = LEAST,
    hidden = new Set(),
    seen = null;

  const model = chooser("detect", () => run());
  const confidence = slider("Confidence", {
    min: 0.01,
    max: 0.95,
    step: 0.01,
    value: USUAL.confidence,
    said: percent,
    heard: () => adjust(),
  });
  const overlap = slider("Overlap (IoU)", {
    min: 0.05,
    max: 0.95,
    step: 0.05,
    value: USUAL.iou,
    said: (value) => value.toFixed(2),
    heard: () => adjust(),
  });
  const controls = h("div", { class: "controls", hidden: true }, confidence.root, overlap.root);

  function command() {
    const shown = labels().filter((label) => !hidden.has(label));
    receipt.command(
      curl("detect", {
        fields: {
          image: main.photo?.file ?? new File([], "street.jpg"),
          confidence: confidence.value === USUAL.confidence ? null : confidence.value,
          iou: overlap.value === USUAL.iou ? null : overlap.value,
          classes: hidden.size && shown.length ? shown.join(",") : null,
          model: model.value,
        },
      }),
    );
  }

  const labels = () => [...new Set((found ?? []).map((one) => one.label))];

  function run(from = LEAST) {
    if (seen !== main.photo) {
      hidden = new Set();
      found = null;
    }
    seen = main.photo;
    command();
    if (!main.photo) {
      request.stop();
      found = null;
      draw();
      receipt.clear();
      return;
    }
    list.classList.add("stale");
    request.run(
      (signal) =>
        timed(
          ask("detect", {
            method: "POST",
            signal,
            form: formOf({ image: main.photo.file, confidence: from, iou: 1, max_detections: MOST, model: model.value }),
          }),
        ),
      ({ data, trip }) => {
        found = data.predictions;
        floor = found.length === MOST ? found.at(-1).confidence : from; // below it there is more than was answered
        stage.fit(data.image.width, data.image.height);
        receipt.answered([data.model], data.timing_ms, trip);
        draw();
        announce(summary.textContent);
      },
    );
  }

  const lower = debounce(() => {
    if (confidence.value < floor && floor > 0.01) run(0.01);
  }, 250);

  function adjust() {
    if (!found) return;
    draw();
    lower();
  }

  function draw() {
    list.classList.remove("stale");
    controls.hidden = !found;
    if (!found) {
      list.replaceChildren();
      classes.hidden = true;
      summary.textContent = "";
      return;
    }
    const kept = suppress(found, confidence.value, overlap.value),
      shown = kept.filter((one) => !hidden.has(one.label));
    const items = shown.map((one, key) => ({
      box: one.box,
      key,
      colour: colour(one.class_id),
      label: `${one.label} ${percent(one.confidence)}`,
    }));
    outline(stage.layer, stage.size, items, (key) => emphasise(root, key));
    list.replaceChildren(...shown.map((one, key) => line(one, key)));
    summary.textContent = shown.length
      ? plural(shown.length, "object")
      : kept.length
        ? "All classes are switched off."
        : "Nothing from this confidence on.";
    filter(kept);
    command();
  }

  function line(one, key) {
    const lit = (on) => () => emphasise(root, on ? key : null);
    return h(
      "li",
      {},
      h(
        "button",
        {
          class: "row-button",
          type: "button",
          dataset: { key },
          style: { "--accent-bar": colour(one.class_id) },
          on: { pointerenter: lit(true), pointerleave: lit(false), focus: lit(true), blur: lit(false) },
        },
        h("span", { class: "label" }, h("i", { class: "dot" }), one.label),
        h("span", { class: "value", text: percent(one.confidence) }),
        h("i", { class: "bar", style: { "--share": one.confidence } }),
      ),
    );
  }

  function filter(kept) {
    const counts = new Map();
    for (const one of kept) counts.set(one.label, [(counts.get(one.label)?.[0] ?? 0) + 1, one.class_id]);
    classes.hidden = counts.size < 2;
    const focused = document.activeElement?.dataset?.label;
    classes.replaceChildren(
      ...[...counts].map(([label, [count, id]]) =>
        h(
          "button",
          {
            class: "chip toggle",
            type: "button",
            "aria-pressed": String(!hidden.has(label)),
            dataset: { label },
            style: { "--accent-bar": colour(id) },
            on: {
              click: () => {
                if (!hidden.delete(label)) hidden.add(label);
                draw();
              },
            },
          },
          h("i", { class: "dot" }),
          `${label} ${count}`,
        ),
      ),
    );
    if (focused) classes.querySelector(`[data-label="${CSS.escape(focused)}"]`)?.focus();
  }

  main.addEventListener("change", () => {
    if (!root.hidden) run();
  });
  const root = frame("Detect", LEAD, stage.root, [model.root, request.root, controls, classes, summary, list, receipt.root]);
  command();
  return {
    root,
    show() {
      model.fill();
      if (seen !== main.photo) run();
    },
  };
}
