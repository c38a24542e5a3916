// People known again: who is on the photo, enrolling somebody, and the list of those who are known.

import { ask, curl, formOf } from "./api.js";
import { announce, h, icon, plural } from "./dom.js";
import { field } from "./controls.js";
import { Request, frame, sentence } from "./parts.js";
import { Receipt, timed } from "./receipt.js";
import { crop, main } from "./photo.js";
import { Stage, emphasise, outline } from "./stage.js";

const LEAD = "Enrol somebody with a few photos, and every later photo says who is on it. Only numbers are kept, never a photo.";
const KNOWN = "oklch(0.85 0.13 175)",
  STRANGER = "oklch(0.87 0.1 75)";
const AROUND = 0.6; // of a face's side, cut out with it: the detector wants to see a head

export function gallery() {
  const stage = new Stage(main, { ask: "Drop a photo of people here", alt: "The photo of people" });
  const request = new Request((on) => stage.busy(on)),
    changes = new Request();
  const receipt = new Receipt();
  const faces = h("ol", { class: "found people" }),
    summary = h("p", { class: "summary" }),
    list = h("ul", { class: "subjects" });
  const name = field("Name", { maxlength: 200, required: true, spellcheck: "false" });
  const collection = field("Gallery", { value: "default", maxlength: 200, spellcheck: "false" }, "separate collections of people");
  const photos = h("input", { type: "file", accept: "image/*", multiple: true, id: "enrol-photos" });
  const form = h(
    "form",
    { class: "enrol" },
    h("h2", { text: "Enrol somebody" }),
    name.root,
    h(
      "div",
      { class: "field" },
      h("label", { for: "enrol-photos", text: "Photos" }),
      photos,
      h("small", { text: "one will do, several are better; one person on each" }),
    ),
    h("button", { class: "button", type: "submit" }, icon("plus"), "Enrol"),
  );
  let seen = null,
    version = 0,
    shown = -1;

  const where = () => (collection.value && collection.value !== "default" ? { gallery: collection.value } : {});
  const query = () => (where().gallery ? `?${new URLSearchParams(where())}` : "");
  const subject = (text) => `subjects/${encodeURIComponent(text)}`;
  const command = (text) =>
    receipt.command(text ?? curl("identify", { fields: { image: main.photo?.file ?? new File([], "party.jpg"), ...where() } }));

  function run() {
    seen = main.photo;
    command();
    if (!main.photo) {
      request.stop();
      faces.replaceChildren();
      summary.textContent = "";
      receipt.clear();
      return;
    }
    request.run(
      (signal) => timed(ask("identify", { method: "POST", signal, form: formOf({ image: main.photo.file, ...where() }) })),
      ({ data, trip }) => {
        stage.fit(data.image.width, data.image.height);
        outline(
          stage.layer,
          stage.size,
          data.faces.map((face, key) => ({
            box: face.box,
            landmarks: face.landmarks,
            key,
            label: face.unknown ? "unknown" : face.candidates[0].subject,
            colour: face.unknown ? STRANGER : KNOWN,
          })),
          (key) => emphasise(root, key),
        );
        faces.replaceChildren(...data.faces.map(line));
        const known = data.faces.filter((face) => !face.unknown).map((face) => face.candidates[0].subject);
        summary.textContent = data.faces.length
          ? `${plural(data.faces.length, "face")}, ${known.length ? `${known.length} known` : "none known"} among ${plural(data.subjects, "person", "people")}`
          : "No face here.";
        receipt.answered([data.model, data.detector], data.timing_ms, trip);
        announce(`${summary.textContent} ${known.join(", ")}`);
      },
    );
  }

  function line(face, key) {
    const best = face.candidates[0];
    const lit = (on) => () => emphasise(root, on ? key : null);
    const heard = { pointerenter: lit(true), pointerleave: lit(false), focusin: lit(true), focusout: lit(false) };
    if (!face.unknown) {
      return h(
        "li",
        {},
        h(
          "div",
          { class: "row-button", dataset: { key }, style: { "--accent-bar": KNOWN }, on: heard },
          h("span", { class: "label" }, h("i", { class: "dot" }), best.subject),
          h("span", { class: "value", text: best.similarity.toFixed(2) }),
          h("i", { class: "bar", style: { "--share": Math.max(0, best.similarity) } }),
        ),
      );
    }
    const input = h("input", {
      type: "text",
      "aria-label": "Name of this unknown face",
      placeholder: "Unknown: give a name",
      maxlength: 200,
      autocomplete: "off",
    });
    return h(
      "li",
      {},
      h(
        "form",
        {
          class: "unknown-face",
          dataset: { key },
          on: {
            ...heard,
            submit: (event) => {
              event.preventDefault();
              nameFace(face, input.value.trim());
            },
          },
        },
        h("i", { class: "dot", style: { "--accent-bar": STRANGER } }),
        input,
        h("button", { class: "button small quiet", type: "submit", text: "Enrol" }),
      ),
    );
  }

  async function nameFace(face, text) {
    if (text) enrol(text, [new File([await crop(main.photo, face.box, AROUND)], "face.jpg", { type: "image/jpeg" })], "prominent");
  }

  function enrol(text, files, pick) {
    const fields = { image: files, ...where(), ...(pick ? { face: pick } : {}) };
    command(curl(`${subject(text)}/faces`, { fields }));
    changes.run(
      (signal) => ask(`${subject(text)}/faces`, { method: "POST", signal, form: formOf(fields) }),
      ({ data }) => {
        const told = [`${data.subject}: ${plural(data.faces.length, "face")} enrolled.`, ...data.warnings.map(sentence)];
        changes.root.replaceChildren(
          h(
            "div",
            { class: "notice good", role: "status" },
            told.map((part) => h("p", { text: part })),
          ),
        );
        announce(told.join(" "));
        form.reset();
        changed();
      },
    );
  }

  function changed() {
    version += 1;
    refresh();
    if (main.photo) run();
  }

  async function refresh(after = null) {
    shown = version;
    const more = new URLSearchParams({ ...where(), ...(after ? { after } : {}) });
    try {
      const { data } = await ask(`subjects?${more}`);
      const rows = data.subjects.map(person);
      if (data.after)
        rows.push(
          h(
            "li",
            {},
            h("button", {
              class: "link",
              type: "button",
              text: "More…",
              on: {
                click: (event) => {
                  event.currentTarget.parentElement.remove();
                  refresh(data.after);
                },
              },
            }),
          ),
        );
      if (after) list.append(...rows);
      else list.replaceChildren(...(rows.length ? rows : [h("li", { class: "hint", text: "Nobody is enrolled yet." })]));
    } catch (error) {
      list.replaceChildren(h("li", { class: "hint", text: sentence(error.message) }));
    }
  }

  function person({ subject: text, faces: count }) {
    const row = h("li", {});
    const calm = () =>
      row.replaceChildren(
        h("span", { class: "label", text }),
        h("span", { class: "value", text: plural(count, "face") }),
        h("button", { class: "link", type: "button", text: "Forget", "aria-label": `Forget ${text}`, on: { click: sure } }),
      );
    const sure = () => {
      const yes = h("button", { class: "link danger", type: "button", text: "Forget for good", on: { click: () => forget(text) } });
      row.replaceChildren(
        h("span", { class: "label", text }),
        h("button", {
          class: "link",
          type: "button",
          text: "Keep",
          on: {
            click: () => {
              calm();
              row.querySelector("button").focus();
            },
          },
        }),
        yes,
      );
      yes.focus();
    };
    calm();
    return row;
  }

  function forget(text) {
    command(curl(`${subject(text)}${query()}`, { method: "DELETE" }));
    changes.run(
      (signal) => ask(`${subject(text)}${query()}`, { method: "DELETE", signal }),
      () => {
        announce(`${text} is forgotten`);
        changed();
        name.input.focus();
      },
    );
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!name.value) {
      name.input.focus();
      return;
    }
    if (!photos.files.length) {
      photos.focus();
      return;
    }
    enrol(name.value, [...photos.files]);
  });
  collection.input.addEventListener("change", changed);
  addEventListener("key-changed", () => refresh());
  main.addEventListener("change", () => {
    if (root.isConnected && !root.closest("[hidden]")) run();
  });
  const root = frame("Who is this?", LEAD, stage.root, [
    request.root,
    summary,
    faces,
    changes.root,
    form,
    h(
      "section",
      { class: "known" },
      h("h2", { text: "Known people" }),
      list,
      h("details", {}, h("summary", { text: "Another gallery" }), collection.root),
    ),
    receipt.root,
  ]);
  command();
  return {
    root,
    show() {
      if (shown !== version) refresh();
      if (seen !== main.photo) run();
    },
  };
}
