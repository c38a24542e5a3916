// Painted properly: the picture itself is optimised, step by step, and grows before one's eyes. It runs on when the view is left.

import { Problem, aborted, ask, curl, events, formOf } from "./api.js";
import { Chart } from "./chart.js";
import { announce, download, h, icon, seconds } from "./dom.js";
import { Request, notice } from "./parts.js";
import { main } from "./photo.js";
import { control, optionsOf, saidBy } from "./schema.js";

const PATH = "/stylize/optimize";
const SHOWN = ["iterations", "max_side", "preserve_color"]; // what most want to set; the rest is folded away
const LEFT_OUT = new Set(["image", "style_image", "format", "quality"]);
const REJOIN = 2000; // milliseconds until a stream that broke is taken up again

const pause = (wait) =>
  new Promise((go) => {
    setTimeout(go, wait);
  });

export function painting({ stage, wipe, receipt, style }) {
  const request = new Request((on) => stage.busy(on));
  const charts = { content: new Chart("Content loss"), style: new Chart("Style loss") };
  const controls = new Map();
  const first = h("div", { class: "options" }),
    rest = h("div", { class: "options" });
  const start = h("button", { class: "button", type: "submit" }, "Start painting");
  const form = h(
    "form",
    { class: "slow" },
    first,
    h("details", {}, h("summary", { text: "All options" }), rest),
    start,
    h("p", { class: "hint" }),
  );
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" }),
    told = h("p", { class: "progress-said" });
  const cancel = h("button", { class: "button quiet", type: "button", text: "Cancel", on: { click: () => stop() } });
  const save = h(
    "button",
    {
      class: "button",
      type: "button",
      hidden: true,
      on: { click: () => download(result, `${photo.name.replace(/\.\w+$/, "")}-painted.png`) },
    },
    icon("download"),
    "Save the painting",
  );
  const again = h("button", {
    class: "button quiet",
    type: "button",
    text: "Paint another",
    hidden: true,
    on: {
      click: () => {
        job = null;
        wipe.hide();
        shownNow();
      },
    },
  });
  const progress = h(
    "div",
    { class: "painting", hidden: true },
    bar,
    told,
    h("div", { class: "charts" }, charts.content.root, charts.style.root),
    h("div", { class: "row" }, save, cancel, again),
  );
  const root = h("div", {}, form, request.root, progress);
  let job = null,
    result = null,
    picture = null,
    photo = null,
    asked = "",
    following = null,
    visible = false;

  const running = () => job && (job.state === "queued" || job.state === "running");
  const fields = () => saidBy(controls);
  const asking = () =>
    curl(PATH, {
      fields: {
        image: main.photo?.file ?? new File([], "photo.jpg"),
        style_image: style() ?? new File([], "painting.jpg"),
        ...fields(),
      },
    });
  const command = () =>
    receipt.command(
      job
        ? `${asked}\n${curl(job.links.events, { method: "GET" }).replace("curl", "curl -N")}\n${curl(job.links.result, { method: "GET", save: "painted.png" })}`
        : asking(),
    );

  function changed() {
    const lacks = [main.photo ? null : "a photo", style() ? null : "a picture whose style it takes"].filter(Boolean);
    start.disabled = lacks.length > 0;
    form.querySelector(".hint").textContent = lacks.length ? `Choose ${lacks.join(" and ")} first.` : "";
    if (visible) command();
  }

  async function fill() {
    if (controls.size) return;
    const options = await optionsOf(PATH);
    for (const [option, schema] of Object.entries(options)) {
      if (LEFT_OUT.has(option) || controls.has(option)) continue;
      const one = control(option, schema);
      controls.set(option, one);
      one.input.addEventListener("change", changed);
      (SHOWN.includes(option) ? first : rest).append(one.root);
    }
  }

  function begin() {
    charts.content.clear();
    charts.style.clear();
    [result, picture] = [null, null];
    photo = main.photo;
    asked = asking();
    request.run(
      (signal) =>
        ask(PATH, { method: "POST", signal, form: formOf({ image: main.photo.file, style_image: style(), ...fields() }) }),
      ({ data }) => {
        job = data;
        announce("Painting has begun");
        shownNow();
        follow(data);
      },
    );
  }

  async function follow(mine) {
    following?.abort();
    const { signal } = (following = new AbortController());
    for (let tries = 0; job?.id === mine.id && running(); tries += 1) {
      try {
        for await (const { event, data } of events(mine.links.events, signal)) {
          if (signal.aborted) return;
          if (event === "preview") {
            picture = data.image;
            hang();
          } else if (event === "progress" || event === "end") update(data);
          tries = 0;
        }
        if (!running()) break;
        await pause(REJOIN); // the stream ended before the painting did: a proxy may have cut it
        const { data } = await ask(mine.links.self, { signal });
        update(data);
      } catch (error) {
        if (aborted(error)) return;
        const busy = error.status === 503;
        if (!(busy || error.code === "network") || tries > 5) {
          request.say(error);
          job = { ...job, state: "failed" };
          break;
        }
        told.textContent = busy
          ? "The server is busy; it paints on, and is asked again…"
          : "The connection broke; taking it up again…";
        await pause(busy ? 1000 * (error.retryAfter ?? 2) : REJOIN);
      }
    }
    if (job?.id === mine.id && !signal.aborted) await ended();
  }

  function update(data) {
    const grown = job.size && data.size && data.size.width !== job.size.width;
    job = data;
    if (data.losses) for (const [kind, chart] of Object.entries(charts)) chart.add(data.iteration, data.losses[kind], grown);
    bar.value = data.iterations ? data.iteration / data.iterations : 0;
    const parts = [
      `Step ${data.iteration} of ${data.iterations}`,
      data.size && `${data.size.width} × ${data.size.height}`,
      data.seconds_left !== null && data.state === "running" && `${seconds(data.seconds_left)} left`,
    ];
    told.textContent = data.state === "queued" ? "Waiting for its turn…" : parts.filter(Boolean).join(" · ");
    if (data.model) receipt.answered([data.model], null);
  }

  async function ended() {
    if (job.state === "done") {
      try {
        result = (await ask(job.links.result, { as: "blob", accept: "image/png" })).data;
      } catch (error) {
        request.say(error);
      }
      hang();
      told.textContent = `Done: ${job.iteration} steps in ${seconds(job.seconds)}.`;
      bar.value = 1;
      announce("The painting is done");
    } else if (job.state === "cancelled") {
      told.textContent = "Cancelled.";
      announce("Cancelled");
    } else if (job.problem) {
      request.root.replaceChildren(notice(new Problem(job.problem, { status: job.problem.status })));
    }
    shownNow();
  }

  async function stop() {
    cancel.disabled = true;
    try {
      const { data } = await ask(job.links.self, { method: "DELETE" });
      if (running()) {
        following?.abort();
        job = data;
        ended();
      }
    } catch (error) {
      request.say(error);
    }
    cancel.disabled = false;
  }

  /** The painting over its photo, where that is what is shown. */
  function hang() {
    if (visible && job && main.photo === photo && (result ?? picture)) wipe.show(result ?? picture);
  }

  function shownNow() {
    form.hidden = Boolean(job);
    progress.hidden = !job;
    cancel.hidden = !running();
    save.hidden = !result;
    again.hidden = !job || running();
    if (visible) command();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!start.disabled) begin();
  });
  main.addEventListener("change", changed);
  changed();
  return {
    root,
    changed,
    show() {
      visible = true;
      fill().then(changed);
      shownNow();
      hang();
    },
    leave() {
      visible = false;
    },
  };
}
