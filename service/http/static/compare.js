// Two photos side by side: is it the same person, how similar are the faces, and where does the threshold lie?

import { ask, curl, formOf } from "./api.js";
import { announce, h, percent, plural } from "./dom.js";
import { Request, frame, sentence } from "./parts.js";
import { Receipt, timed } from "./receipt.js";
import { Slot, main, picturesIn } from "./photo.js";
import { Stage, outline } from "./stage.js";

const LEAD = "Do two photos show the same person? The most prominent face of each is compared.";
const COLOUR = "oklch(0.85 0.13 175)";
const LEFT = -0.2; // of the scale: less similar than that no two photos are

export function compare() {
  const other = new Slot();
  const stages = [
    new Stage(main, { ask: "One photo", alt: "The first photo", compact: true }),
    new Stage(other, { ask: "Another photo", alt: "The second photo", compact: true }),
  ];
  const request = new Request((on) => stages.forEach((stage) => stage.busy(on && stage.slot.photo)));
  const receipt = new Receipt();
  const result = h("div", { class: "results" });
  let seen = [];

  const command = () =>
    receipt.command(
      curl("verify-face", {
        fields: { image1: main.photo?.file ?? new File([], "a.jpg"), image2: other.photo?.file ?? new File([], "b.jpg") },
      }),
    );

  function run() {
    seen = [main.photo, other.photo];
    stages.forEach((stage) => outline(stage.layer, stage.size ?? { width: 1, height: 1 }, []));
    command();
    result.replaceChildren();
    receipt.clear();
    const [given] = seen.filter(Boolean);
    if (!given) {
      request.stop();
      return;
    }
    if (main.photo && other.photo) {
      request.run(
        (signal) =>
          timed(
            ask("verify-face", { method: "POST", signal, form: formOf({ image1: main.photo.file, image2: other.photo.file }) }),
          ),
        show,
      );
      return;
    }
    const stage = stages[main.photo ? 0 : 1];
    request.run(
      (signal) => timed(ask("detect-faces", { method: "POST", signal, form: formOf({ image: given.file }) })),
      ({ data, trip }) => {
        stage.fit(data.image.width, data.image.height);
        outline(
          stage.layer,
          stage.size,
          data.faces.map((face, key) => ({
            box: face.box,
            landmarks: face.landmarks,
            label: percent(face.confidence),
            colour: COLOUR,
            key,
          })),
        );
        result.replaceChildren(
          h("p", {
            class: "summary",
            text: data.faces.length ? `${plural(data.faces.length, "face")} here. Now the other photo.` : "No face here.",
          }),
        );
        receipt.answered([data.model], data.timing_ms, trip);
        announce(result.textContent);
      },
    );
  }

  function show({ data, trip }) {
    [data.image1, data.image2].forEach((photo, i) => {
      stages[i].fit(photo.image.width, photo.image.height);
      outline(stages[i].layer, stages[i].size, [
        { box: photo.face.box, landmarks: photo.face.landmarks, label: percent(photo.face.confidence), colour: COLOUR, key: i },
      ]);
    });
    const verdict = data.verified ? "The same person" : "Different people";
    result.replaceChildren(
      h("p", { class: `verdict ${data.verified ? "yes" : "no"}`, text: verdict }),
      scale(data),
      h("p", { class: "hint", text: rate(data) }),
      ...[data.image1, data.image2].flatMap((photo, i) =>
        photo.quality.warnings.map((warning) =>
          h("p", { class: "hint", text: sentence(`${i ? "second" : "first"} photo: ${warning}`) }),
        ),
      ),
    );
    receipt.answered([data.model, data.detector], data.timing_ms, trip);
    announce(`${verdict}. Similarity ${data.similarity.toFixed(2)}, threshold ${data.threshold.toFixed(2)}.`);
  }

  function scale({ similarity, threshold }) {
    const share = (value) => `${100 * Math.min(1, Math.max(0, (value - LEFT) / (1 - LEFT)))}%`;
    return h(
      "div",
      {
        class: "scale",
        role: "img",
        "aria-label": `Similarity ${similarity.toFixed(3)} on a scale to 1; from ${threshold.toFixed(3)} on it counts as the same person`,
        style: { "--at": share(similarity), "--threshold": share(threshold) },
      },
      h("div", { class: "track" }, h("i", { class: "mark-threshold" }), h("i", { class: "mark-at" })),
      h(
        "div",
        { class: "ends" },
        h("span", { class: "at", text: similarity.toFixed(3) }),
        h("span", { class: "threshold", text: `threshold ${threshold.toFixed(3)}` }),
      ),
    );
  }

  const rate = ({ false_match_rate: share, false_match_pairs: pairs }) =>
    share === null
      ? "How often this threshold takes strangers for one person was not measured."
      : `This threshold took ${(100 * share).toFixed(2)} % of ${pairs?.toLocaleString("en") ?? "the"} pairs of strangers for one person.`;

  for (const slot of [main, other])
    slot.addEventListener("change", () => {
      if (root.isConnected && !root.closest("[hidden]")) run();
    });
  const root = frame(
    "Compare faces",
    LEAD,
    h(
      "div",
      { class: "pair" },
      stages.map((stage) => stage.root),
    ),
    [request.root, result, receipt.root],
  );
  command();
  return {
    root,
    show() {
      if (seen[0] !== main.photo || seen[1] !== other.photo) run();
    },
    slot: () => (main.photo && !other.photo ? other : main),
    dropped(transfer) {
      const [first, second] = picturesIn(transfer);
      if (!second) return false;
      main.set(first);
      other.set(second);
      return true;
    },
  };
}
