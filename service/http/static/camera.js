// A photo from the machine's camera, in a dialog.

import { h, icon } from "./dom.js";

/** A JPEG, or null where nobody took one. */
export async function photograph() {
  const video = h("video", { autoplay: true, playsinline: true, "aria-label": "What the camera sees" });
  const said = h("p", { text: "Waiting for the camera…" });
  const shoot = h("button", { class: "button", type: "button", disabled: true }, icon("camera"), "Take the photo");
  const cancel = h("button", { class: "button quiet", type: "button", text: "Cancel" });
  const dialog = h(
    "dialog",
    { class: "dialog camera", "aria-label": "Camera" },
    said,
    video,
    h("div", { class: "row end" }, cancel, shoot),
  );
  document.body.append(dialog);
  dialog.showModal();
  let stream = null;
  const taken = new Promise((give) => {
    dialog.addEventListener("close", () => give(null));
    cancel.addEventListener("click", () => dialog.close());
    shoot.addEventListener("click", async () => {
      const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
      canvas.getContext("2d").drawImage(video, 0, 0);
      give(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 }));
    });
  });
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
    video.srcObject = stream;
    said.hidden = true;
    shoot.disabled = false;
    shoot.focus();
  } catch {
    said.textContent = "No camera can be used: there is none, or this page may not use it.";
  }
  const photo = await taken;
  stream?.getTracks().forEach((track) => track.stop());
  dialog.remove();
  return photo;
}
