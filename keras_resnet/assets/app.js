// npm install @mediapipe/tasks-vision
import { FilesetResolver, ImageClassifier } from "@mediapipe/tasks-vision";

const content = new Uint8Array(await (await fetch("MODEL_FILE")).arrayBuffer());
const tasks = await FilesetResolver.forVisionTasks("node_modules/@mediapipe/tasks-vision/wasm");
const classifier = await ImageClassifier.createFromOptions(tasks, {
  baseOptions: { modelAssetBuffer: content },
  maxResults: 5,
});

// The file's labels, manifest and test stand behind the model as a zip that is not compressed.
function inside(name) {
  const view = new DataView(content.buffer);
  let end = content.length - 22;
  while (view.getUint32(end, true) !== 0x06054b50) end--;
  const size = view.getUint32(end + 12, true);
  const shift = end - size - view.getUint32(end + 16, true); // of offsets, where something stands before the zip
  for (let at = end - size; at < end; ) {
    const [bytes, long, extra, note] = [24, 28, 30, 32].map((k, i) => (i ? view.getUint16(at + k, true) : view.getUint32(at + k, true)));
    if (new TextDecoder().decode(content.subarray(at + 46, at + 46 + long)) === name) {
      const local = shift + view.getUint32(at + 42, true);
      const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
      return new TextDecoder().decode(content.subarray(start, start + bytes));
    }
    at += 46 + long + extra + note;
  }
}

// A test picture as the file reads it, WIDTH x HEIGHT: each stored pixel is a square of factor x factor.
function drawn(picture, { width, height, factor }) {
  const pixels = Uint8Array.from(atob(picture.pixels), (c) => c.charCodeAt(0));
  const data = new ImageData(width * factor, height * factor);
  for (let y = 0; y < data.height; y++)
    for (let x = 0; x < data.width; x++) {
      const from = 3 * (Math.floor(y / factor) * width + Math.floor(x / factor));
      data.data.set([...pixels.subarray(from, from + 3), 255], 4 * (y * data.width + x));
    }
  const canvas = new OffscreenCanvas(data.width, data.height);
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

export function selfTest() {
  const test = JSON.parse(inside("golden.json"));
  const start = performance.now();
  const agreeing = test.pictures.filter((picture) => {
    const [best] = classifier.classify(drawn(picture, test)).classifications[0].categories;
    return best.index === picture.classes[0] && Math.abs(best.score - picture.scores[0]) <= test.tolerance;
  }).length;
  const each = (performance.now() - start) / test.pictures.length;
  return `this browser: ${agreeing} of ${test.pictures.length} agree, ${each.toFixed(1)} ms`;
}

console.log(selfTest());
