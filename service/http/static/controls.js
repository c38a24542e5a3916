// Controls that views are put together of, each with its label and its `value`.

import { h, unique } from "./dom.js";

/** A labelled slider. `said(value)` is what stands beside it, `heard(value)` hears each move. */
export function slider(label, { min, max, step, value, said = String, heard = () => {} }) {
  const id = unique("slider");
  const output = h("output", { for: id, text: said(value) });
  const input = h("input", { id, type: "range", min, max, step, value, "aria-valuetext": said(value) });
  const fill = () => {
    const now = Number(input.value);
    output.textContent = said(now);
    input.setAttribute("aria-valuetext", said(now));
    input.style.setProperty("--filled", `${(100 * (now - min)) / (max - min)}%`);
  };
  fill();
  input.addEventListener("input", () => {
    fill();
    heard(Number(input.value));
  });
  const root = h("div", { class: "slider" }, h("label", { for: id, text: label }), output, input);
  return {
    root,
    input,
    get value() {
      return Number(input.value);
    },
    set value(now) {
      input.value = now;
      fill();
    },
  };
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
  return {
    root,
    input,
    get value() {
      return input.checked;
    },
  };
}

export function field(label, attributes = {}, help = null) {
  const id = unique("field");
  const choices = attributes.choices;
  const { choices: _, ...rest } = attributes;
  const input = choices
    ? h(
        "select",
        { id, ...rest },
        choices.map(([value, text]) => h("option", { value, text, selected: value === rest.value })),
      )
    : h("input", { id, type: "text", autocomplete: "off", ...rest });
  const told = help ? h("small", { id: `${id}-help`, text: help }) : null;
  if (told) input.setAttribute("aria-describedby", told.id);
  return {
    root: h("div", { class: "field" }, h("label", { for: id, text: label }), input, told),
    input,
    get value() {
      return input.value.trim();
    },
  };
}
