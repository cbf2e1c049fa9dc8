// Repeat the golden cases of an artifact in a default onnxruntime-node session.
//
//     node check_golden.mjs [DIR]    the artifact; two folders up when not given
//
// Prints one line. Exit code 0: every case is reproduced; 1: an output differs; 2: the artifact cannot be read or run.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-node";

// How each dtype of golden.json lies in its .bin file, and what the runtime calls it.
const TYPES = {
  float32: [Float32Array, "float32"],
  float64: [Float64Array, "float64"],
  float16: [Uint16Array, "float16"],
  int8: [Int8Array, "int8"],
  uint8: [Uint8Array, "uint8"],
  int16: [Int16Array, "int16"],
  uint16: [Uint16Array, "uint16"],
  int32: [Int32Array, "int32"],
  uint32: [Uint32Array, "uint32"],
  int64: [BigInt64Array, "int64"],
  uint64: [BigUint64Array, "uint64"],
  bool: [Uint8Array, "bool"],
};

class Unusable extends Error {}

async function readTensor(folder, entry) {
  if (!(entry.dtype in TYPES)) throw new Unusable(`${entry.name}: JavaScript has no array of ${entry.dtype}`);
  const [Values, type] = TYPES[entry.dtype];
  const bytes = await readFile(join(folder, entry.file));
  const count = entry.shape.reduce((product, size) => product * size, 1);
  if (bytes.byteLength !== count * Values.BYTES_PER_ELEMENT) {
    throw new Unusable(`${entry.file}: ${bytes.byteLength} bytes, expected ${count * Values.BYTES_PER_ELEMENT}`);
  }
  // a copy starts at offset 0 of its own buffer, where every element type may lie
  const values = new Values(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  return { type, values, shape: entry.shape };
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function difference(expected, got, limit) {
  if (got === undefined) return "is missing";
  if (got.type !== expected.type) return `is ${got.type}, expected ${expected.type}`;
  if (got.dims.join() !== expected.shape.join()) return `has shape [${got.dims}], expected [${expected.shape}]`;
  // a Node with Float16Array gets that from the runtime, an older one the bits
  const bits = expected.type === "float16" && got.data instanceof Uint16Array;
  let worst = 0;
  for (let index = 0; index < expected.values.length; index += 1) {
    const wanted = expected.type === "float16" ? fromHalf(expected.values[index]) : expected.values[index];
    const found = bits ? fromHalf(got.data[index]) : got.data[index];
    if (Object.is(found, wanted) || found == wanted) continue;
    const error = typeof wanted === "bigint" ? (found === wanted ? 0 : Infinity) : Math.abs(Number(found) - wanted);
    if (!(error <= limit)) return `at ${index} is ${found}, expected ${wanted} within ${limit}`;
    worst = Math.max(worst, error);
  }
  return worst;
}

async function main(directory) {
  const folder = join(directory, "golden");
  const golden = JSON.parse(await readFile(join(folder, "golden.json"), "utf8"));
  if (golden.format !== 1 || golden.byte_order !== "little") throw new Unusable("golden.json has another format");
  if (golden.cases.length === 0) throw new Unusable("golden.json holds no cases");
  const session = await ort.InferenceSession.create(join(directory, "model.onnx"));
  let worst = 0;
  let compared = 0;
  for (const [number, golden_case] of golden.cases.entries()) {
    const feeds = {};
    for (const entry of golden_case.inputs) {
      const tensor = await readTensor(folder, entry);
      feeds[entry.name] = new ort.Tensor(tensor.type, tensor.values, tensor.shape);
    }
    const results = await session.run(feeds);
    for (const entry of golden_case.outputs) {
      const found = difference(await readTensor(folder, entry), results[entry.name], entry.max_absolute_error);
      if (typeof found === "string") {
        console.log(`differs: case ${number}, output ${entry.name} ${found}`);
        return 1;
      }
      worst = Math.max(worst, found);
      compared += 1;
    }
  }
  const version = ort.env.versions.node ?? ort.env.versions.common;
  console.log(
    `equal: ${golden.cases.length} cases, ${compared} outputs, worst absolute error ${worst.toExponential(2)}, onnxruntime-node ${version}`,
  );
  return 0;
}

try {
  process.exitCode = await main(process.argv[2] ?? join(import.meta.dirname, "..", ".."));
} catch (error) {
  console.log(`unusable: ${String(error.message).split("\n")[0]}`);
  process.exitCode = 2;
}
