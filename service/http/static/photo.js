// Photos that were chosen: a slot holds one, and tells who listens when it changes. The page's own slot is kept across views.

const TAKEN = /^image\/|\.(jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf])$/i;

export class Slot extends EventTarget {
  #photo = null;

  get photo() {
    return this.#photo;
  }

  /** Takes a File or Blob, or null for none. */
  set(file, name = file?.name || "photo.jpg") {
    const old = this.#photo;
    if (file && !(file instanceof File)) file = new File([file], name, { type: file.type });
    this.#photo = file ? { file, name, url: URL.createObjectURL(file), size: file.size } : null;
    this.dispatchEvent(new Event("change"));
    if (old) setTimeout(() => URL.revokeObjectURL(old.url), 1000); // what still shows it lets go first
  }
}

export const main = new Slot();

/** The first picture among dropped or pasted things; null where there is none. */
export const pictureIn = (transfer) => picturesIn(transfer)[0] ?? null;

export function picturesIn(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => TAKEN.test(file.type) || TAKEN.test(file.name));
}

/** Part of a photo as a JPEG, in its upright pixels, with `margin` (of the longer side) around; clipped to the photo. */
export async function crop(photo, box, margin) {
  const bitmap = await createImageBitmap(photo.file, { imageOrientation: "from-image" });
  const reach = margin * Math.max(box.x_max - box.x_min, box.y_max - box.y_min);
  const left = Math.max(0, Math.floor(box.x_min - reach)),
    top = Math.max(0, Math.floor(box.y_min - reach));
  const width = Math.min(bitmap.width, Math.ceil(box.x_max + reach)) - left;
  const height = Math.min(bitmap.height, Math.ceil(box.y_max + reach)) - top;
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(bitmap, left, top, width, height, 0, 0, width, height);
  bitmap.close();
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}
