// Classify: what is on the photo, where the network saw it, and what it sees through a window that is moved over the photo.

import { ask, curl, formOf } from "../api.js";
import { chooser } from "../chooser.js";
import { announce, colour, h, percent } from "../dom.js";
import { heat } from "../heat.js";
import { check, choice, slider } from "../controls.js";
import { Request, frame, sentence } from "../parts.js";
import { Receipt, timed } from "../receipt.js";
import { main } from "../photo.js";
import { Stage, placed } from "../stage.js";
import { Windows } from "../windows.js";

const LEAD = "The most probable of the model's classes, and the part of the photo that speaks for each.";

export function make() {
  const stage = new Stage(main, { alt: "The photo to classify" });
  const request = new Request((on) => stage.busy(on));
  const receipt = new Receipt();
  const results = h("div", { class: "results" });
  const windows = new Windows(stage);
  let mode = "whole",
    answer = null,
    chosen = 0,
    explains = true,
    seen = null;

  const model = chooser("classify", () => {
    explains = true;
    run();
  });
  const modes = choice(
    "What is looked at",
    [
      ["whole", "The whole photo"],
      ["windows", "Window by window"],
    ],
    mode,
    (now) => {
      mode = now;
      run();
    },
  );
  const opacity = slider("Heat map", {
    min: 0,
    max: 1,
    step: 0.01,
    value: 0.65,
    said: percent,
    heard: (value) => stage.layer.style.setProperty("--heat", value),
  });
  const boxed = check("Box around the strongest region", true, () => paint());
  const heatControls = h("div", { class: "controls", hidden: true }, opacity.root, boxed.root);
  stage.layer.style.setProperty("--heat", 0.65);

  const options = () => ({
    ...(mode === "windows" ? { sliding_window: true } : explains ? { explain: true } : {}),
    model: model.value,
  });
  const command = () =>
    receipt.command(curl("classify", { fields: { image: main.photo?.file ?? new File([], "cat.jpg"), ...options() } }));

  function run() {
    seen = main.photo;
    answer = null;
    stage.layer.replaceChildren();
    command();
    if (!main.photo) {
      request.stop();
      results.replaceChildren();
      receipt.clear();
      heatControls.hidden = true;
      return;
    }
    results.classList.add("stale");
    request.run(ask_, show);
  }

  async function ask_(signal) {
    const form = () => ({ method: "POST", form: formOf({ image: main.photo.file, ...options() }), signal });
    try {
      return await timed(ask("classify", form()));
    } catch (error) {
      if (error.code !== "option_invalid" || error.option !== "explain") throw error;
      explains = false; // this model cannot say where it looked: the classes alone, then, and the API's words for why
      return { ...(await timed(ask("classify", form()))), why: error.message };
    }
  }

  function show({ data, trip, why }) {
    answer = data;
    chosen = 0;
    stage.fit(data.image.width, data.image.height);
    results.classList.remove("stale");
    receipt.answered([data.model], data.timing_ms, trip);
    command();
    if (data.windows) {
      heatControls.hidden = true;
      results.replaceChildren(windows.show(data.windows));
      return;
    }
    heatControls.hidden = !data.predictions[0]?.activation;
    results.replaceChildren(
      h("ol", { class: "bars" }, data.predictions.map(row)),
      why ? h("p", { class: "hint", text: sentence(why) }) : "",
    );
    const best = data.predictions[0];
    announce(`${best.label}, ${percent(best.confidence)}`);
    paint();
  }

  function row(prediction, index) {
    const parts = [
      h("span", { class: "label", text: prediction.label }),
      h("span", { class: "value", text: percent(prediction.confidence) }),
      h("i", { class: "bar", style: { "--share": prediction.confidence } }),
    ];
    if (!prediction.activation) return h("li", {}, h("div", { class: "row-button" }, parts));
    return h(
      "li",
      {},
      h(
        "button",
        {
          class: "row-button",
          type: "button",
          "aria-pressed": String(index === chosen),
          title: "Show where",
          on: { click: () => pick(index) },
        },
        parts,
      ),
    );
  }

  function pick(index) {
    chosen = index;
    results.querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
    announce(`Heat map of ${answer.predictions[index].label}`);
    paint();
  }

  function paint() {
    const prediction = answer?.predictions?.[chosen];
    stage.layer.replaceChildren();
    if (!prediction?.activation) return;
    const view = h("div", { class: "seen", style: placed(answer.view, stage.size) });
    const map = heat(prediction.activation.grid);
    map.className = "heat";
    map.setAttribute("aria-hidden", "true");
    view.append(map);
    stage.layer.append(view);
    const { localization } = answer;
    if (boxed.value && localization && localization.class_id === prediction.class_id) {
      stage.layer.append(
        h(
          "div",
          { class: "box", style: { ...placed(localization.box, stage.size), "--colour": colour(0) } },
          h("span", { class: "tag in", text: localization.label }),
        ),
      );
    }
  }

  main.addEventListener("change", () => {
    if (!root.hidden) run();
  });
  addEventListener("key-changed", () => model.fill());
  const root = frame("Classify", LEAD, stage.root, [modes, model.root, request.root, results, heatControls, receipt.root]);
  command();
  return {
    root,
    show() {
      model.fill();
      if (seen !== main.photo) run();
    },
  };
}
