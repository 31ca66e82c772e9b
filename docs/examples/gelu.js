// GELU by tanh, with and without a bias, in JavaScript: a program that the laws can be put to (docs/any-language.md).
// python -m minigrad.testing --exec "node gelu.js" --op gelu
const fs = require("fs");

// ── the kernel ──
const C = Math.sqrt(2 / Math.PI);

function gelu(x) {
  return 0.5 * x * (1 + Math.tanh(C * (x + 0.044715 * x ** 3)));
}

function slope(x) {
  const t = Math.tanh(C * (x + 0.044715 * x ** 3));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * C * (1 + 3 * 0.044715 * x * x);
}

function answer(call, settings, { x, bias, cotangent }) {
  if (settings.approximate !== "tanh") return "skip there is no erf in JavaScript";
  const d = bias ? bias.numbers.length : 1;
  const at = (v, i) => v + (bias ? bias.numbers[i % d] : 0);
  if (call === "value") return { value: { ...x, numbers: x.numbers.map((v, i) => gelu(at(v, i))) } };
  const dx = x.numbers.map((v, i) => cotangent.numbers[i] * slope(at(v, i)));
  if (!bias) return { x: { ...x, numbers: dx } };
  const sum = new Float64Array(d);
  dx.forEach((v, i) => (sum[i % d] += v));
  return { x: { ...x, numbers: dx }, bias: { ...bias, numbers: bias.numbers.constructor.from(sum) } };
}

// ── the protocol ──
const ARRAYS = { float32: Float32Array, float64: Float64Array };

function read(size) {                                   // exactly so many bytes, or null at the end of the input
  const bytes = Buffer.alloc(size);
  for (let n = 0, more; n < size; n += more) if ((more = fs.readSync(0, bytes, n, size - n)) === 0) return null;
  return bytes;
}

function readLine() {
  let line = "";
  for (let byte; (byte = read(1)) !== null; line += byte.toString("latin1")) if (byte[0] === 10) return line;
  return null;
}

function write(bytes) {
  for (let n = 0; n < bytes.length; ) n += fs.writeSync(1, bytes, n);
}

for (let call; (call = readLine()) !== null; ) {        // "value" or "vjp"
  const settings = {}, arrays = {};
  for (let line; (line = readLine()) !== "end"; ) {
    const [word, name, ...rest] = line.split(" ");
    if (word === "setting") settings[name] = JSON.parse(rest.join(" "));
    if (word !== "array") continue;
    const shape = rest.slice(2).map(Number), kind = ARRAYS[rest[0]];
    const bytes = read(shape.reduce((a, b) => a * b, kind.BYTES_PER_ELEMENT));
    arrays[name] = { dtype: rest[0], shape, numbers: new kind(bytes.buffer, bytes.byteOffset, bytes.length / kind.BYTES_PER_ELEMENT) };
  }
  const found = answer(call, settings, arrays);
  if (typeof found === "string") {
    write(Buffer.from(found + "\n"));
    continue;
  }
  for (const [name, { dtype, shape, numbers }] of Object.entries(found)) {
    write(Buffer.from(["array", name, dtype, shape.length, ...shape].join(" ") + "\n"));
    write(Buffer.from(numbers.buffer, numbers.byteOffset, numbers.byteLength));
  }
  write(Buffer.from("end\n"));
}
