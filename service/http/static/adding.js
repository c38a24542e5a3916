// Adding a model: the file is looked at first (dry_run), what was found is shown, what is missing is asked for, then it is added.

import { ask, curl, formOf } from "./api.js";
import { announce, bytes, h, icon } from "./dom.js";
import { Request, notice, sentence } from "./parts.js";
import { control, optionsOf, saidBy } from "./schema.js";

const HANDLED = new Set(["file", "dry_run", "replace"]);

/** `added()` is called when there is a new model. */
export function adding(receipt, added) {
  const request = new Request();
  const input = h("input", {
    type: "file",
    accept: ".onnx",
    hidden: true,
    tabindex: "-1",
    "aria-label": "An ONNX file",
    on: {
      change: () => {
        if (input.files[0]) look(input.files[0]);
        input.value = "";
      },
    },
  });
  const choose = h(
    "button",
    { class: "button", type: "button", on: { click: () => input.click() } },
    icon("plus"),
    "Choose an ONNX file",
  );
  const drop = h("div", { class: "frame drop" }, h("p", { class: "ask", text: "Drop an .onnx file here" }), choose, input);
  const found = h("div", { class: "finding" });
  const root = h(
    "section",
    { class: "adding", "aria-label": "Add a model" },
    h("h2", { text: "Add your own" }),
    drop,
    request.root,
    found,
  );
  let file = null,
    controls = new Map();

  async function look(given, told = {}) {
    file = given;
    found.replaceChildren();
    const fields = { file, ...told };
    receipt.command(curl("models", { fields }));
    request.run(async (signal) => {
      try {
        return { told, ...(await ask("models", { method: "POST", signal, form: formOf({ ...fields, dry_run: true }) })).data };
      } catch (error) {
        if (error.code !== "model_unclear" && error.code !== "option_invalid") throw error;
        return { told, error };
      }
    }, show);
  }

  async function show({ told, error, ...finding }) {
    const options = await optionsOf("/models");
    const wanted = error?.missing ?? (error?.option ? [error.option] : []);
    controls = new Map();
    const asked = wanted.map((name) => make(name, options[name] ?? {}, told[name], "choose one"));
    const more = h("div", { class: "options" });
    const details = h("details", {}, h("summary", { text: "Say more about it" }), more);
    details.addEventListener("toggle", () => {
      if (!details.open || more.childElementCount) return;
      for (const [name, schema] of Object.entries(options))
        if (!HANDLED.has(name) && !controls.has(name)) more.append(make(name, schema, told[name]));
    });
    const said = () => ({ ...told, ...saidBy(controls) });
    const again = h("button", { class: `button ${error ? "" : "quiet"}`, type: "submit", text: "Look again" });
    const go = error
      ? null
      : h("button", { class: "button", type: "button", text: `Add ${finding.name}`, on: { click: () => add(said()) } });
    const form = h(
      "form",
      {
        class: "slow",
        on: {
          submit: (event) => {
            event.preventDefault();
            look(file, said());
          },
        },
      },
      asked,
      details,
      h(
        "div",
        { class: "row" },
        go,
        again,
        h("button", {
          class: "button quiet",
          type: "button",
          text: "Discard",
          on: {
            click: () => {
              found.replaceChildren();
              choose.focus();
            },
          },
        }),
      ),
    );
    found.replaceChildren(
      h("p", { class: "file-name" }, h("strong", { text: file.name }), ` ${bytes(file.size)}`),
      error
        ? notice(error, null, error.code === "model_unclear" ? "calm" : "bad")
        : h("p", {
            class: "summary",
            text: `${finding.task}, ${finding.classes ? `${finding.classes} classes, ` : ""}${finding.input.size ? `${finding.input.size[1]} × ${finding.input.size[0]} pixels` : "any size"}`,
          }),
      points("Found in the file", finding.facts),
      points("Taken to be so", finding.assumptions),
      form,
    );
    announce(error ? error.title : `${finding.name} can be added`);
    (asked[0]?.querySelector("input, select") ?? go ?? again).focus();
  }

  function make(name, schema, value, open) {
    const one = control(name, schema, open);
    if (value !== undefined) one.input.value = value;
    controls.set(name, one);
    return one.root;
  }

  function add(told, replace = false) {
    const fields = { file, ...told, ...(replace ? { replace: true } : {}) };
    receipt.command(curl("models", { fields }));
    request.run(
      async (signal) => {
        try {
          return (await ask("models", { method: "POST", signal, form: formOf(fields) })).data;
        } catch (error) {
          if (error.code !== "model_exists" || replace) throw error;
          return { error };
        }
      },
      ({ error, model }) => {
        if (error) {
          request.root.replaceChildren(
            notice(error),
            h("button", {
              class: "button small quiet",
              type: "button",
              text: "Put it in its place",
              on: { click: () => add(told, true) },
            }),
          );
          return;
        }
        found.replaceChildren(
          h(
            "div",
            { class: "notice good", role: "status" },
            h("p", { text: `The model ${model.name} was added and answers now.` }),
          ),
        );
        announce(`${model.name} was added`);
        added();
      },
    );
  }

  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", () => drop.classList.remove("over"));
  return {
    root,
    dropped(transfer) {
      const onnx = [...transfer.files].find((one) => one.name.endsWith(".onnx"));
      if (onnx) look(onnx);
      return Boolean(onnx);
    },
  };
}

const points = (title, lines) =>
  lines?.length
    ? h(
        "div",
        { class: "points" },
        h("h3", { text: title }),
        h(
          "ul",
          {},
          lines.map((line) => h("li", { text: sentence(line) })),
        ),
      )
    : "";
