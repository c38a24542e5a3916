// The page: which view is shown, the key, the colours, and what is dropped or pasted anywhere.

import { address, key } from "./api.js";
import { h, icon } from "./dom.js";
import { main as slot, pictureIn } from "./photo.js";
import { provider } from "./receipt.js";

const VIEWS = ["classify", "detect", "faces", "stylize", "models"];
const open = new Map();
const main = document.getElementById("main");
let current = null;

async function show() {
  const name = location.hash.slice(1);
  const wanted = VIEWS.includes(name) ? name : (current ?? VIEWS[0]);
  if (wanted === current) return;
  const before = current;
  current = wanted;
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  open.get(before)?.hide?.();
  for (const [other, view] of open) view.root.hidden = other !== wanted;
  if (!open.has(wanted)) {
    const module = await import(`./views/${wanted}.js`).catch(() => null);
    if (current !== wanted) return; // somebody was faster
    if (!module) {
      main.append(
        h("p", { class: "plain", text: "This part of the page did not arrive. Reload it when the server can be reached." }),
      );
      current = null;
      return;
    }
    if (!open.has(wanted)) {
      const view = module.make();
      view.root.dataset.view = wanted;
      open.set(wanted, view);
      main.append(view.root);
    }
  }
  document.title = `${wanted[0].toUpperCase()}${wanted.slice(1)} · vision-service`;
  open.get(wanted).show?.();
  if (before) scrollTo({ top: 0 });
}

function themes() {
  const button = document.getElementById("theme"),
    root = document.documentElement;
  const looks = { auto: "as the system has them", light: "light", dark: "dark" };
  const paint = () => {
    const now = root.dataset.theme ?? "auto";
    button.replaceChildren(icon({ auto: "auto", light: "sun", dark: "moon" }[now]));
    button.setAttribute("aria-label", `Colours: ${looks[now]}`);
    button.title = `Colours: ${looks[now]}`;
  };
  button.addEventListener("click", () => {
    const names = Object.keys(looks),
      next = names[(names.indexOf(root.dataset.theme ?? "auto") + 1) % names.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("vision-theme", next);
    } catch {
      /* for this visit only, then */
    }
    paint();
  });
  paint();
}

function keys() {
  const dialog = document.getElementById("key-dialog"),
    input = document.getElementById("key-field"),
    why = document.getElementById("key-why");
  const usual = why.textContent,
    button = document.getElementById("key");
  let waiting = [];
  const ask = (text) => {
    why.textContent = text;
    input.value = key.get();
    if (!dialog.open) dialog.showModal();
    input.select();
  };
  button.addEventListener("click", () => ask(usual));
  document.getElementById("key-cancel").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    waiting = [];
  });
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault(); // the policy lets no form be sent anywhere
    const again = waiting;
    key.set(input.value.trim());
    dialog.close();
    for (const f of again) f();
  });
  addEventListener("key-wanted", ({ detail }) => {
    waiting.push(detail.again);
    ask(`${detail.problem.message[0].toUpperCase()}${detail.problem.message.slice(1)}. ${detail.problem.remedy}`);
  });
  const mark = () => button.classList.toggle("on", Boolean(key.get()));
  addEventListener("key-changed", mark);
  mark();
}

/** Says whether the service is ready, and asks again while it is not. */
async function health() {
  const status = document.getElementById("status");
  const say = (kind, text, title) => {
    status.className = `status ${kind}`;
    status.replaceChildren(h("i"), h("span", { text }));
    status.title = title;
  };
  let wait = 2000;
  try {
    const response = await fetch(address("health/ready"), { cache: "no-store" });
    const told = await response.json();
    if (response.ok) {
      const where = [...new Set(told.models.map((model) => provider(model.provider)))].join(", ");
      say("good", `Ready · ${where}`, told.models.map((model) => `${model.name}: ${provider(model.provider)}`).join("\n"));
      wait = 60_000;
    } else say("wait", "Starting…", told.detail ?? "");
  } catch {
    say("bad", "No answer", "The server cannot be reached");
    wait = 5000;
  }
  setTimeout(health, document.hidden ? 4 * wait : wait);
}

addEventListener("hashchange", show);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.querySelector(".brand").addEventListener("click", () => scrollTo({ top: 0 }));
addEventListener("paste", (event) => {
  const file = pictureIn(event.clipboardData);
  if (file && !event.target.closest?.("dialog")) (open.get(current)?.slot?.() ?? slot).set(file, file.name || "pasted.png");
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault(); // else the browser would leave the page for the file
  const view = open.get(current);
  if (view?.dropped?.(event.dataTransfer)) return;
  const file = pictureIn(event.dataTransfer);
  if (file) (view?.slot?.() ?? slot).set(file);
});
themes();
keys();
show();
health();
