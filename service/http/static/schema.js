// Controls for options as the service itself describes them, in its OpenAPI document: names, ranges, defaults and words are never said twice.

import { ask } from "./api.js";
import { check, field } from "./parts.js";

let document_ = null;

/** The form fields of a POST: {name: schema}. Empty where the document cannot be had. */
export async function optionsOf(path) {
  document_ ??= ask("openapi.json").then(({ data }) => data, () => { document_ = null; return null; });
  const document = await document_;
  const form = document?.paths?.[path]?.post?.requestBody?.content?.["multipart/form-data"]?.schema;
  return form?.properties ?? {};
}

/** A control for one option. `value` is "" where it says nothing: the service's default stands. */
export function control(name, schema) {
  const help = schema.description ?? null, usual = schema.default;
  if (schema.type === "boolean") {
    const box = check(help ?? name, usual === true, () => {});
    return { root: box.root, input: box.input, get value() { return box.value === (usual === true) ? "" : String(box.value); } };
  }
  const label = name.replaceAll("_", " ");
  if (schema.enum) {
    const named = schema.enum.filter((one) => one !== null).map((one) => [String(one), String(one)]);
    const select = field(label, { choices: usual === undefined || usual === null ? [["", "as it is found"], ...named] : named, value: String(usual ?? "") }, help);
    return { root: select.root, input: select.input, get value() { return select.value === String(usual ?? "") ? "" : select.value; } };
  }
  const number = schema.type === "number" || schema.type === "integer";
  const given = field(label, {
    type: number ? "number" : "text", min: schema.minimum ?? null, max: schema.maximum ?? null, step: number ? (schema.type === "integer" ? 1 : "any") : null,
    placeholder: usual === undefined || usual === null ? "" : String(usual), spellcheck: "false",
  }, help);
  return { root: given.root, input: given.input, get value() { return given.value; } };
}

/** What controls say, without those that say nothing: {name: text}. */
export function saidBy(controls) {
  return Object.fromEntries([...controls].map(([name, one]) => [name, one.value]).filter(([, value]) => value !== ""));
}
