// From text to what the graph gives: the row of tokens as io.json says, the graph in onnxruntime-node, the answer as
// io.json says. Pooling, and layers and normalization behind it, lie in the graph and are not done again here.

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { AutoTokenizer } from "@huggingface/transformers";
import * as ort from "onnxruntime-node";
import { answerNumbers, answerOf, inputOf, rowOf } from "./rows.mjs";

const ARRAYS = {
  int64: BigInt64Array, int32: Int32Array, float32: Float32Array, float16: Uint16Array, float64: Float64Array, bool: Uint8Array,
};

export async function readJson(...path) {
  return JSON.parse(await readFile(join(...path), "utf8"));
}

export async function openTokenizer(artifact) {
  // without its settings transformers.js fails with an error of JavaScript
  const missing = ["tokenizer.json", "tokenizer_config.json"].filter((name) => !existsSync(join(artifact, name)));
  if (missing.length > 0) throw new Error(`transformers.js needs ${missing.join(" and ")}: copy from the checkpoint`);
  return AutoTokenizer.from_pretrained(artifact);
}

export class TextModel {
  static async open(artifact) {
    const model = new TextModel();
    model.io = await readJson(artifact, "io.json");
    if (!model.io.tokenizer) throw new Error("the artifact has no tokenizer, so it takes no text");
    model.tokenizer = await openTokenizer(artifact);
    model.session = await ort.InferenceSession.create(join(artifact, "model.onnx"));
    return model;
  }

  /** Ids and segments of a text, or of two that are read together, cut to what the model takes. */
  row(text, pair = null) {
    const { marks, max_length: limit } = this.io.tokenizer;
    if (marks) return rowOf(this.io, (one) => this.bare(one), text, pair);
    // a tokenizer that does more than put tokens around a text does it itself, and a text that is too long is not cut
    const lowered = (one) => (this.io.tokenizer.lowercase ? one?.toLowerCase() : one);
    const given = lowered((this.io.prompts?.[this.io.default_prompt] ?? "") + text);
    const found = this.tokenizer(given, { text_pair: lowered(pair), return_tensor: false, return_token_type_ids: true });
    const ids = found.input_ids.map(Number);
    if (limit && ids.length > limit) throw new Error(`${ids.length} tokens, the model takes ${limit}`);
    return { ids, types: found.token_type_ids?.map(Number) ?? ids.map(() => 0) };
  }

  /** Ids of a text without special tokens around it. */
  bare(text) {
    return this.tokenizer.encode(text, { add_special_tokens: false }).map(Number);
  }

  /** Numbers of the answer to one row. */
  async run(row) {
    const { output } = answerOf(this.io);
    const feeds = this.io.inputs.map((spec) => {
      const { values, shape } = inputOf(this.io, spec, row);
      const data = spec.dtype === "int64" ? BigInt64Array.from(values, BigInt) : ARRAYS[spec.dtype].from(values);
      return [spec.name, new ort.Tensor(spec.dtype, data, shape)];
    });
    const found = (await this.session.run(Object.fromEntries(feeds), [output]))[output];
    return answerNumbers(this.io, row, Array.from(found.data, numberOf(found)), found.dims);
  }

  label(index) {
    return this.io.labels?.[index] ?? `LABEL_${index}`;
  }

  /** Words side by side with the same label, each with the label of its first token; `B-` begins another thing. */
  entities(ids, scores) {
    const width = scores.length / ids.length;
    const { single = [], pair = [] } = this.io.tokenizer.marks ?? {};
    const marks = new Set([...single, ...pair].flat());
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
