// Boxes as the service's service/imaging/boxes.py has them: IoU, and non-maximum suppression inside each class.

const area = (box) => Math.max(0, box.x_max - box.x_min) * Math.max(0, box.y_max - box.y_min);

export function iou(a, b) {
  const width = Math.min(a.x_max, b.x_max) - Math.max(a.x_min, b.x_min);
  const height = Math.min(a.y_max, b.y_max) - Math.max(a.y_min, b.y_min);
  if (width <= 0 || height <= 0) return 0;
  const shared = width * height;
  return shared / (area(a) + area(b) - shared);
}

/** Those of `found` (the most confident first) from `confidence` on, without what a better one of its class covers by more than `overlap`. */
export function suppress(found, confidence, overlap, most = 300) {
  const kept = [];
  for (const one of found) {
    if (one.confidence < confidence || kept.length >= most) break;
    if (!kept.some((other) => other.class_id === one.class_id && iou(other.box, one.box) > overlap)) kept.push(one);
  }
  return kept;
}
