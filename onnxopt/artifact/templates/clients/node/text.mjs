// From text to what the graph gives: the row of tokens as io.json says, the graph in onnxruntime-node, the answer as
// io.json says. Pooling, and layers and normalization behind it, lie in the graph and are not done again here.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { AutoTokenizer } from "@huggingface/transformers";
import * as ort from "onnxruntime-node";

const ARRAYS = {
  int64: BigInt64Array, int32: Int32Array, float32: Float32Array, float16: Uint16Array, float64: Float64Array, bool: Uint8Array,
};

export async function readJson(...path) {
  return JSON.parse(await readFile(join(...path), "utf8"));
}

export class TextModel {
  static async open(artifact) {
    const model = new TextModel();
    model.io = await readJson(artifact, "io.json");
    if (!model.io.tokenizer) throw new Error("the artifact has no tokenizer, so it takes no text");
    model.tokenizer = await AutoTokenizer.from_pretrained(artifact);
    model.session = await ort.InferenceSession.create(join(artifact, "model.onnx"));
    return model;
  }

  /** What the answer is: one vector, a score per label, or a score per token and label; the output it comes from. */
  get answers() {
    const names = this.io.outputs.map((output) => output.name);
    if (names.includes("sentence_embedding")) return { kind: "embedding", output: "sentence_embedding" };
    if (this.io.task === "text-classification" && names.includes("logits")) return { kind: "scores", output: "logits" };
    if (this.io.task === "token-classification" && names.includes("logits")) return { kind: "token_scores", output: "logits" };
    return { kind: "ids", output: null };
  }

  /** Ids and segments of a text, or of two that are read together, cut to what the model takes. */
  row(text, pair = null) {
    const { marks, max_length: limit, lowercase } = this.io.tokenizer;
    const given = (this.io.prompts?.[this.io.default_prompt] ?? "") + text;
    const bare = (one) => this.bare(lowercase ? one.toLowerCase() : one);
    if (!marks) {
      const found = this.tokenizer(lowercase ? given.toLowerCase() : given, { text_pair: pair, return_tensor: false });
      const ids = found.input_ids.map(Number);
      if (limit && ids.length > limit) throw new Error(`${ids.length} tokens, the model takes ${limit}`);
      return { ids, types: found.token_type_ids?.map(Number) ?? ids.map(() => 0) };
    }
    const first = bare(given);
    if (pair === null) {
      const [before, after] = marks.single;
      const kept = limit ? first.slice(0, Math.max(0, limit - before.length - after.length)) : first;
      const ids = [...before, ...kept, ...after];
      return { ids, types: ids.map(() => 0) };
    }
    if (!marks.pair) throw new Error("the tokenizer reads no pairs");
    const [before, between, after] = marks.pair;
    const second = bare(pair);
    const room = limit ? limit - before.length - between.length - after.length : 0;
    const [one, two] = keptSizes(first.length, second.length, room);
    const head = [...before, ...first.slice(0, one), ...between];
    const tail = [...second.slice(0, two), ...after];
    return { ids: [...head, ...tail], types: [...head.map(() => 0), ...tail.map(() => marks.second_type)] };
  }

  /** Ids of a text without special tokens around it. */
  bare(text) {
    return this.tokenizer.encode(text, { add_special_tokens: false }).map(Number);
  }

  /** Numbers of the answer to one row. */
  async run({ ids, types }) {
    const { kind, output } = this.answers;
    const axes = this.io.inputs.find((spec) => spec.meaning === "ids").axes;
    const width = typeof axes[1] === "number" ? axes[1] : ids.length;
    const left = this.io.tokenizer.padding_side === "left";
    const start = left ? width - ids.length : 0;
    const results = await this.session.run(this.feeds(ids, types, axes[0], width, start), [output]);
    const { data, dims } = results[output];
    const values = Array.from(data.subarray(0, data.length / dims[0]), numberOf(results[output]));
    if (kind === "embedding") return values;
    if (kind === "scores") return scored(values, this.io.scores);
    const labels = dims.at(-1);
    return ids.flatMap((_, place) => scored(values.slice((start + place) * labels, (start + place + 1) * labels), "softmax"));
  }

  feeds(ids, types, rows, width, start) {
    const padded = (values, fill) => {
      const row = Array(width).fill(fill);
      values.forEach((value, place) => (row[start + place] = value));
      return row;
    };
    const mask = ids.map(() => 1);
    const made = {
      ids: padded(ids, this.io.tokenizer.pad_id),
      mask: padded(mask, 0),
      types: padded(types, 0),
      positions: padded(mask, 0).map((_, place) => Math.min(Math.max(place - start, 0), ids.length - 1)),
    };
    const count = typeof rows === "number" ? rows : 1;
    return Object.fromEntries(this.io.inputs.map((spec) => {
      if (!(spec.meaning in made)) throw new Error(`input ${spec.name} is not made from text`);
      const values = Array(count).fill(made[spec.meaning]).flat();
      const data = spec.dtype === "int64" ? BigInt64Array.from(values, BigInt) : ARRAYS[spec.dtype].from(values);
      return [spec.name, new ort.Tensor(spec.dtype, data, [count, width])];
    }));
  }

  label(index) {
    return this.io.labels?.[index] ?? `LABEL_${index}`;
  }

  /** Words side by side with the same label, each with the label of its first token; `B-` begins another thing. */
  entities(ids, scores) {
    const width = scores.length / ids.length;
    const marks = new Set(Object.values(this.io.tokenizer.marks ?? {}).flat(2));
    const entities = [];
    let last = "O";
    for (const [token, id] of ids.entries()) {
      if (marks.has(id)) continue;
      if (token > 0 && this.goesOn(id, ids[token - 1])) {
        if (last !== "O") entities.at(-1).ids.push(id);
        continue;
      }
      const row = scores.slice(token * width, (token + 1) * width);
      const score = row.reduce((one, other) => Math.max(one, other));
      const label = this.label(row.indexOf(score));
      const bare = label.replace(/^[BI]-/, "");
      if (bare !== "O" && (bare !== last || label.startsWith("B-"))) entities.push({ label: bare, ids: [id], scores: [score] });
      else if (bare !== "O") {
        entities.at(-1).ids.push(id);
        entities.at(-1).scores.push(score);
      }
      last = bare;
    }
    return entities.map((one) => ({
      label: one.label, text: this.tokenizer.decode(one.ids).trim(), score: one.scores.reduce((a, b) => a + b) / one.scores.length,
    }));
  }

  /** Whether a token goes on with the word of the one before it, by how the vocabulary marks its tokens. */
  goesOn(id, before) {
    this.spelled ??= new Map([...this.tokenizer.get_vocab()].map(([token, number]) => [number, token]));
    this.beginnings ??= [...this.spelled.values()].some((token) => /^[\u0120\u2581]\p{L}/u.test(token));
    const [token, last] = [this.spelled.get(id) ?? "", this.spelled.get(before) ?? ""];
    if (!this.beginnings) return token.startsWith("##");
    // Ġ and ▁ begin a word; without them a letter goes on with one, and punctuation is a word of its own
    return /^[\p{L}\p{N}]/u.test(token) && /[\p{L}\p{N}]$/u.test(last) && !/^[\u0120\u2581]/.test(token);
  }
}

/** How many tokens of two texts are kept where both may have so many: the longer one is cut first. */
export function keptSizes(first, second, room) {
  if (!room || first + second <= room) return [first, second];
  let short = Math.min(first, second), long = Math.max(first, second);
  long = short > room ? short : Math.max(short, room - short);
  if (short + long > room) [short, long] = [Math.floor(room / 2), Math.floor(room / 2) + (room % 2)];
  return first <= second ? [short, long] : [long, short];
}

/** What io.json says that logits are made into. */
export function scored(logits, how) {
  if (how === "none") return logits;
  if (how === "sigmoid") return logits.map((value) => 1 / (1 + Math.exp(-value)));
  const most = logits.reduce((one, other) => Math.max(one, other));
  const powers = logits.map((value) => Math.exp(value - most));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

export function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function numberOf(tensor) {
  // a Node with Float16Array gets that from the runtime, an older one the bits
  return tensor.type === "float16" && tensor.data instanceof Uint16Array ? fromHalf : Number;
}
