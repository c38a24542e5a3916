// Controls for options as the service itself describes them, in its OpenAPI document: names, ranges, defaults and words are never said twice.

import { ask } from "./api.js";
import { check, field } from "./controls.js";

let document_ = null;

/** The form fields of a POST: {name: schema}. Empty where the document cannot be had. */
export async function optionsOf(path) {
  document_ ??= ask("openapi.json").then(
    ({ data }) => data,
    () => {
      document_ = null;
      return null;
    },
  );
  const document = await document_;
  const form = document?.paths?.[path]?.post?.requestBody?.content?.["multipart/form-data"]?.schema;
  return form?.properties ?? {};
}

/** A form's schema, whose empty text stands for the default that its description names: {kind, choices, usual, help, minimum, maximum}. */
function plain({ type, enum: listed, description = "", minimum = null, maximum = null }) {
  const usual = /\(default: ([^)]*)\)/.exec(description)?.[1] ?? "";
  const help = description.replace(/ \(default: [^)]*\)/, "");
  const choices = listed?.filter((one) => one !== "" && one !== null).map(String);
  const kinds = [type].flat();
  const kind =
    choices?.join() === "true,false" || kinds.includes("boolean")
      ? "boolean"
      : choices
        ? "choice"
        : (kinds.find((one) => one === "integer" || one === "number") ?? "text");
  return { kind, choices, usual, help, minimum, maximum };
}

/** A control for one option. `value` is "" where it says nothing: the service's default stands. `open`: what a choice without one says. */
export function control(name, schema, open = "as it is found") {
  const { kind, choices, usual, help, minimum, maximum } = plain(schema);
  const label = name.replaceAll("_", " ");
  if (kind === "boolean") {
    const box = check(help ? help[0].toUpperCase() + help.slice(1) : label, usual === "true", () => {});
    return {
      root: box.root,
      input: box.input,
      get value() {
        return String(box.value) === (usual || "false") ? "" : String(box.value);
      },
    };
  }
  if (kind === "choice") {
    const named = choices.map((one) => [one, one]);
    const select = field(label, { choices: usual ? named : [["", open], ...named], value: usual }, help);
    return {
      root: select.root,
      input: select.input,
      get value() {
        return select.value === usual ? "" : select.value;
      },
    };
  }
  const number = kind !== "text";
  const given = field(
    label,
    {
      type: number ? "number" : "text",
      min: minimum,
      max: maximum,
      step: number ? (kind === "integer" ? 1 : "any") : null,
      placeholder: usual,
      spellcheck: "false",
    },
    help,
  );
  return {
    root: given.root,
    input: given.input,
    get value() {
      return given.value;
    },
  };
}

/** What controls say, without those that say nothing: {name: text}. */
export function saidBy(controls) {
  return Object.fromEntries([...controls].map(([name, one]) => [name, one.value]).filter(([, value]) => value !== ""));
}
