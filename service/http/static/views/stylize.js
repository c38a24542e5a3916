// Stylize: a photo in a built-in style, a blend of them, the style of any picture, or painted properly, step by step.

import { ask, curl, formOf } from "../api.js";
import { announce, debounce, download, h, icon, percent } from "../dom.js";
import { painting } from "../painting.js";
import { check, choice, field, slider } from "../controls.js";
import { Request, frame } from "../parts.js";
import { Receipt, serverTiming, timed } from "../receipt.js";
import { Slot, main } from "../photo.js";
import { Stage } from "../stage.js";
import { Styles } from "../styles.js";
import { Wipe } from "../wipe.js";

const LEAD = "Your photo, painted. Drag the divider to see it before and after.";
const EXTENSION = { jpeg: "jpg", png: "png", webp: "webp" };

export function make() {
  const stage = new Stage(main, { alt: "The photo to paint" }),
    wipe = new Wipe(stage);
  const request = new Request((on) => stage.busy(on)),
    saving = new Request();
  const receipt = new Receipt();
  const model_ = new Slot(),
    model = new Stage(model_, { ask: "A picture whose style it takes", alt: "The picture with the style", compact: true });
  let mode = "styles",
    painted = null,
    seen = null;

  const styles = new Styles(() => run());
  const strength = slider("Strength", { min: 0, max: 1, step: 0.01, value: 1, said: percent, heard: () => stronger() });
  const color = check("Keep the photo's colours", false, () => run());
  const format = field("Save as", {
    choices: [
      ["jpeg", "JPEG"],
      ["png", "PNG"],
      ["webp", "WebP"],
    ],
    value: "jpeg",
  });
  const save = h("button", { class: "button", type: "button", on: { click: () => keep() } }, icon("download"), "Save the painting");
  const finish = h("div", { class: "row finish", hidden: true }, format.root, save);
  const quick = h("div", { class: "controls" }, strength.root, color.root);
  const slow = painting({ stage, wipe, receipt, style: () => model_.photo?.file ?? null });
  const modes = choice(
    "How it is painted",
    [
      ["styles", "Styles"],
      ["picture", "Any picture"],
      ["slow", "Step by step"],
    ],
    mode,
    (now) => {
      mode = now;
      arrange();
    },
  );

  const laid = () => (mode === "styles" ? strength.value : 1); // how far the painting covers the photo here: of a picture's style the service mixes

  function stronger() {
    if (mode === "picture") again();
    else wipe.strength = laid();
    command();
  }

  function arrange() {
    styles.root.hidden = mode !== "styles";
    model.root.hidden = mode === "styles";
    quick.hidden = request.root.hidden = mode === "slow";
    slow.root.hidden = mode !== "slow";
    finish.hidden = true;
    wipe.strength = laid();
    if (mode === "slow") {
      request.stop();
      wipe.hide();
      slow.show();
      return;
    }
    slow.leave();
    run();
  }

  const style = () => (mode === "picture" ? { style_image: model_.photo?.file } : { style: styles.value });
  const options = () => ({ ...style(), preserve_color: color.value || null, strength: strength.value < 1 ? strength.value : null });

  function command() {
    const empty = mode === "picture" && !model_.photo ? { style_image: new File([], "painting.jpg") } : {};
    receipt.command(
      curl("stylize", {
        fields: { image: main.photo?.file ?? new File([], "photo.jpg"), ...options(), ...empty, format: format.value },
        save: `painted.${EXTENSION[format.value]}`,
      }),
    );
  }

  const run = debounce(() => {
    if (mode === "slow") return;
    if (seen !== main.photo) wipe.hide();
    seen = main.photo;
    painted = null;
    finish.hidden = true;
    command();
    if (!main.photo || !Object.values(style())[0]) {
      request.stop();
      wipe.hide();
      receipt.clear();
      return;
    }
    const fields = {
      image: main.photo.file,
      ...options(),
      ...(mode === "styles" ? { strength: null } : {}),
      format: "jpeg",
      quality: 92,
    };
    request.run(
      (signal) => timed(ask("stylize", { method: "POST", form: formOf(fields), signal, as: "blob" })),
      ({ data, headers, trip }) => {
        painted = data;
        wipe.strength = laid();
        wipe.show(data);
        finish.hidden = false;
        receipt.answered(
          [{ name: headers.get("X-Model"), precision: headers.get("X-Precision"), provider: headers.get("X-Provider") ?? "" }],
          serverTiming(headers),
          trip,
        );
        announce("Painted");
      },
    );
  }, 30);

  const again = debounce(() => run(), 250);

  function keep() {
    const name = `${main.photo.name.replace(/\.\w+$/, "")}-painted.${EXTENSION[format.value]}`;
    if (format.value === "jpeg" && laid() === 1) {
      download(painted, name);
      return;
    }
    saving.run(
      (signal) =>
        ask("stylize", {
          method: "POST",
          form: formOf({ image: main.photo.file, ...options(), format: format.value }),
          signal,
          as: "blob",
        }),
      ({ data }) => download(data, name),
    );
  }

  format.input.addEventListener("change", command);
  main.addEventListener("change", () => {
    if (!root.hidden) run();
  });
  model_.addEventListener("change", () => {
    slow.changed();
    if (mode === "picture") run();
  });
  addEventListener("key-changed", () => styles.fill());
  const root = frame("Stylize", LEAD, stage.root, [
    modes,
    styles.root,
    model.root,
    request.root,
    quick,
    finish,
    saving.root,
    slow.root,
    receipt.root,
  ]);
  arrange();
  return {
    root,
    show() {
      styles.fill();
      if (seen !== main.photo) run();
    },
    slot: () => (mode !== "styles" && main.photo && !model_.photo ? model_ : main),
  };
}
