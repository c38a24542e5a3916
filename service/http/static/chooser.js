// Which model answers: a choice among those that are loaded, where there is one and they may be seen.

import { ask } from "./api.js";
import { field } from "./controls.js";
import { h } from "./dom.js";

let known = null;
const fresh = () =>
  (known ??= ask("models").then(
    ({ data }) => data.models,
    () => {
      known = null;
      return [];
    },
  ));
addEventListener("key-changed", () => {
  known = null;
});
addEventListener("models-changed", () => {
  known = null;
});

/** A select of the models of `task`, hidden while there are fewer than two. `value` is "" for the default one. */
export function chooser(task, heard) {
  const root = h("div", { hidden: true });
  let chosen = "";
  const fill = async () => {
    const models = (await fresh()).filter((model) => model.task === task);
    if (!models.some((model) => model.name === chosen)) chosen = "";
    const usual = models.find((model) => model.default)?.name;
    const select = field("Model", { value: chosen || usual, choices: models.map(({ name }) => [name, name]) });
    select.input.addEventListener("change", () => {
      chosen = select.value === usual ? "" : select.value;
      heard();
    });
    root.replaceChildren(select.root);
    root.hidden = models.length < 2;
  };
  return {
    root,
    fill,
    get value() {
      return chosen;
    },
  };
}
