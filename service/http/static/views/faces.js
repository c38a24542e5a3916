// Faces: two photos compared, or people known again.

import { choice } from "../controls.js";
import { h } from "../dom.js";
import { compare } from "../compare.js";
import { gallery } from "../gallery.js";

export function make() {
  const views = { compare: null, gallery: null },
    makers = { compare, gallery };
  let mode = "compare";
  const modes = choice(
    "What faces are asked for",
    [
      ["compare", "Compare two photos"],
      ["gallery", "Know people again"],
    ],
    mode,
    (now) => {
      mode = now;
      open();
    },
  );
  const root = h("div", { class: "faces" });
  function open() {
    if (!views[mode]) root.append((views[mode] = makers[mode]()).root);
    for (const [name, view] of Object.entries(views)) if (view) view.root.hidden = name !== mode;
    const focused = modes.contains(document.activeElement);
    views[mode].root.querySelector(".right").prepend(modes); // each view has it in the same place
    if (focused) modes.querySelector(":checked").focus();
    views[mode].show();
  }
  return { root, show: open, slot: () => views[mode].slot?.(), dropped: (transfer) => views[mode].dropped?.(transfer) };
}
