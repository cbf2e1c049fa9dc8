// Open an artifact folder in onnxruntime-web, give it texts, compare it with its golden outputs.

import * as ort from "onnxruntime-web";
import { Tokenizer } from "@huggingface/tokenizers";
import { answerNumbers, answerOf, inputOf, rowOf } from "./rows.mjs";

const TYPES = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array,
  uint64: BigUint64Array, bool: Uint8Array,
};
const NEW_TOKENS = 24;
const element = (id) => document.getElementById(id);
let model = null;

function say(id, text, state = "") {
  element(id).textContent = text;
  element(id).dataset.state = state;
}

async function guarded(id, work) {
  for (const button of ["run", "check"]) element(button).disabled = true;
  say(id, "working ...");
  try {
    await work();
  } catch (error) {
    say(id, `${error.message ?? error}`, "error");
  }
  for (const button of ["run", "check"]) element(button).disabled = model === null;
}

/** Return the files of the picked folder by their path below it. */
function picked() {
  const files = [...element("folder").files];
  return new Map(files.map((file) => [file.webkitRelativePath.split("/").slice(1).join("/") || file.name, file]));
}

async function json(files, name) {
  return files.has(name) ? JSON.parse(await files.get(name).text()) : null;
}

async function open() {
  model = null;
  const files = picked();
  if (!files.has("model.onnx")) throw new Error("there is no model.onnx in this folder");
  const graph = new Uint8Array(await files.get("model.onnx").arrayBuffer());
  const weights = [];
  for (const [path, file] of files) {
    if (/^model\.onnx_data/.test(path)) weights.push({ path, data: new Uint8Array(await file.arrayBuffer()) });
  }
  const provider = element("provider").value;
  const started = performance.now();
  const session = await ort.InferenceSession.create(graph, { executionProviders: [provider], externalData: weights });
  const io = (await json(files, "io.json")) ?? { inputs: [], outputs: [] };
  const tokenizer = await json(files, "tokenizer.json");
  const settings = (await json(files, "tokenizer_config.json")) ?? {};
  model = { files, session, io, tokenizer: tokenizer && new Tokenizer(tokenizer, settings) };
  const size = (graph.byteLength + weights.reduce((sum, one) => sum + one.data.byteLength, 0)) / 2 ** 20;
  const seconds = (performance.now() - started) / 1000;
  say("model", `${io.name ?? "model"}: ${size.toFixed(1)} MiB, ready in ${seconds.toFixed(1)} s (${provider})`, "done");
}

/** Return the inputs of one row of tokens; a decoder also gets its past. */
function feedsFor(ids, past = null, seen = 0) {
  const wide = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const made = {
    input_ids: () => wide(ids),
    attention_mask: () => wide(Array(seen + ids.length).fill(1)),
    token_type_ids: () => wide(Array(ids.length).fill(0)),
    position_ids: () => wide(ids.map((_, place) => seen + place)),
  };
  const feeds = {};
  for (const spec of model.io.inputs) {
    if (spec.name in made) feeds[spec.name] = made[spec.name]();
    else if (past && spec.name in past) feeds[spec.name] = past[spec.name];
    else if (spec.meaning === "past") {
      const shape = spec.axes.map((axis, place) => (typeof axis === "number" ? axis : place === 0 ? 1 : 0));
      feeds[spec.name] = new ort.Tensor(spec.dtype, new TYPES[spec.dtype](0), shape);
    } else throw new Error(`input ${spec.name} is not made from text`);
  }
  return feeds;
}

/** Ids of a text without special tokens around it. */
function bare(text) {
  if (!model.tokenizer) throw new Error("there is no tokenizer.json in this folder");
  return model.tokenizer.encode(text, { add_special_tokens: false }).ids.map(Number);
}

function tokens(text) {
  const limit = model.io.tokenizer?.max_length || Infinity;
  const { ids } = rowOf({ ...model.io, tokenizer: { ...model.io.tokenizer, max_length: 0 } }, bare, text);
  if (ids.length > limit) throw new Error(`${ids.length} tokens, the model takes ${limit}`);
  return ids;
}

/** Numbers of the answer to a row, which is run alone. */
async function answer(row) {
  const { output } = answerOf(model.io);
  const feeds = model.io.inputs.map((spec) => {
    const { values, shape } = inputOf(model.io, spec, row);
    const data = spec.dtype === "int64" ? BigInt64Array.from(values, BigInt) : TYPES[spec.dtype].from(values);
    return [spec.name, new ort.Tensor(spec.dtype, data, shape)];
  });
  const found = (await model.session.run(Object.fromEntries(feeds), [output]))[output];
  const isHalf = found.type === "float16" && found.data instanceof Uint16Array;
  return answerNumbers(model.io, row, Array.from(found.data, isHalf ? half : Number), found.dims);
}

/** Labels with their scores, of texts or of pairs with a tab between. */
async function classify(texts) {
  const lines = [];
  for (const text of texts) {
    const [first, second = null] = text.split("\t");
    const scores = await answer(rowOf(model.io, bare, first, second));
    const named = scores.map((score, index) => [score, model.io.labels?.[index] ?? `LABEL_${index}`]);
    named.sort((one, other) => other[0] - one[0]);
    lines.push(`${text}: ${named.slice(0, 5).map(([score, label]) => `${label} ${score.toFixed(4)}`).join(", ")}`);
  }
  return lines.join("\n");
}

/** The likeliest label of each token. */
async function tag(texts) {
  const lines = [];
  for (const text of texts) {
    const row = rowOf(model.io, bare, text);
    const scores = await answer(row);
    const width = scores.length / row.ids.length;
    for (const [place, id] of row.ids.entries()) {
      const own = scores.slice(place * width, (place + 1) * width);
      const best = own.indexOf(Math.max(...own));
      const label = model.io.labels?.[best] ?? `LABEL_${best}`;
      if (label !== "O") lines.push(`${model.tokenizer.decode([id])}: ${label} ${own[best].toFixed(4)}`);
    }
  }
  return lines.join("\n");
}

async function embed(texts, output) {
  const pooled = answerOf(model.io).kind === "embedding";
  const vectors = [];
  for (const text of texts) {
    if (pooled) vectors.push(await answer(rowOf(model.io, bare, text)));
    else vectors.push((await model.session.run(feedsFor(tokens(text)), [output]))[output].data);
  }
  const lines = vectors.map((vector, index) => {
    const first = [...vector.slice(0, 5)].map((value) => value.toFixed(5)).join(", ");
    return `${texts[index]}: ${vector.length} numbers [${first}, ...]`;
  });
  for (let i = 0; i < texts.length; i += 1) {
    for (let j = i + 1; j < texts.length; j += 1) {
      let dot = 0, a = 0, b = 0;
      vectors[i].forEach((value, k) => { dot += value * vectors[j][k]; a += value ** 2; b += vectors[j][k] ** 2; });
      lines.push(`cosine ${(dot / Math.sqrt(a * b)).toFixed(4)}  ${texts[i]} | ${texts[j]}`);
    }
  }
  return lines.join("\n");
}

/** Ids that the model writes after others, greedily, until one ends the text. */
async function written(given, count) {
  let ids = given, past = null, seen = 0;
  const whole = [...ids], made = [];
  const limit = model.io.decoding.context_length || Infinity;
  // where the tables of positions change with the length, a text that grows across is read anew
  const crossings = model.io.decoding.crossing === "reread" ? model.io.decoding.crossings ?? [] : [];
  if (whole.length > limit) throw new Error(`${whole.length} tokens, the model takes ${limit}`);
  while (made.length < count && whole.length <= limit) {
    if (past && crossings.includes(seen)) [ids, past, seen] = [whole, null, 0];
    const found = await model.session.run(feedsFor(ids, past, seen));
    seen += ids.length;
    const width = found.logits.dims.at(-1);
    const row = found.logits.data.slice(-width);
    let best = 0;
    for (let place = 1; place < width; place += 1) if (row[place] > row[best]) best = place;
    if ((model.io.decoding.eos_token_id ?? []).includes(best)) break;
    made.push(best);
    whole.push(best);
    past = Object.fromEntries(Object.entries(found).filter(([name]) => name !== "logits")
      .map(([name, value]) => [name.replace("present", "past_key_values"), value]));
    ids = [best];
  }
  return made;
}

async function write(text) {
  return text + model.tokenizer.decode(await written(tokens(text), NEW_TOKENS));
}

async function run() {
  const texts = element("text").value.split("\n").map((text) => text.trim()).filter(Boolean);
  const { kind } = answerOf(model.io);
  if (texts.length === 0) throw new Error("write at least one line");
  const started = performance.now();
  let shown;
  if (model.io.decoding) {
    const lines = [];
    for (const text of texts) lines.push(await write(text));
    shown = lines.join("\n\n");
  } else if (kind === "scores") {
    shown = await classify(texts);
  } else if (kind === "token_scores") {
    shown = await tag(texts);
  } else {
    const output = model.io.outputs.find((spec) => spec.axes.length === 2) ?? model.io.outputs[0];
    shown = await embed(texts, output.name);
  }
  say("result", `${shown}\n\n${(performance.now() - started).toFixed(0)} ms for ${texts.length} texts`, "done");
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 0x1f, fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

async function tensor(entry) {
  const file = model.files.get(`golden/${entry.file}`);
  if (!file) throw new Error(`golden/${entry.file} is missing`);
  return new TYPES[entry.dtype](await file.arrayBuffer());
}

async function check() {
  const golden = await json(model.files, "golden/golden.json");
  if (!golden || golden.cases.length === 0) throw new Error("there are no golden cases in this folder");
  let worst = 0, outputs = 0;
  for (const [number, one] of golden.cases.entries()) {
    const feeds = {};
    for (const entry of one.inputs) feeds[entry.name] = new ort.Tensor(entry.dtype, await tensor(entry), entry.shape);
    const found = await model.session.run(feeds);
    for (const entry of one.outputs) {
      const wanted = await tensor(entry), got = found[entry.name].data, isHalf = entry.dtype === "float16";
      if (found[entry.name].dims.join() !== entry.shape.join()) throw new Error(`case ${number}: ${entry.name} has another shape`);
      for (let place = 0; place < wanted.length; place += 1) {
        const a = Number(isHalf ? half(wanted[place]) : wanted[place]);
        const b = Number(isHalf && got instanceof Uint16Array ? half(got[place]) : got[place]);
        if (Object.is(a, b) || a === b) continue;
        const error = Math.abs(a - b);
        if (!(error <= entry.max_absolute_error)) {
          say("golden", `differs: case ${number}, output ${entry.name} at ${place} is ${b}, expected ${a}`, "error");
          return;
        }
        worst = Math.max(worst, error);
      }
      outputs += 1;
    }
  }
  const texts = await json(model.files, "golden/texts.json");
  // a page puts the special tokens around a text itself, which not every tokenizer allows
  const marked = Boolean(model.io.tokenizer?.marks);
  const said = texts && marked && (await textsDiffer(texts));
  const repeated = !texts ? "" : marked ? `, ${texts.cases.length} texts` : ", no texts (the tokenizer does more than put tokens around one)";
  if (said) say("golden", `differs: ${said}`, "error");
  else say("golden", `equal: ${golden.cases.length} cases, ${outputs} outputs${repeated}, worst absolute error ${worst.toExponential(2)}`, "equal");
}

/** Repeat golden texts: the ids, so that another tokenizer is told apart from another graph, then the answer. */
async function textsDiffer(golden) {
  for (const [number, one] of golden.cases.entries()) {
    // what the chat template made of the text is tokenized as it is: a page has no template
    const ids = one.chat ? bare(one.written) : rowOf(model.io, bare, one.text, one.pair ?? null).ids;
    if (ids.join() !== one.ids.join()) return `text ${number}: the tokenizer gives [${ids}], expected [${one.ids}]`;
    const found = golden.answer === "ids" ? [] : golden.answer === "tokens"
      ? await written(ids, one.expected.length) : await answer({ ids, types: one.types });
    const near = (value, place) => Math.abs(value - one.expected[place]) <= one.max_absolute_error;
    // where an end is expected the text ends, and nothing follows
    const whole = golden.answer === "tokens" ? one.expected.slice(0, found.length) : one.expected;
    if (found.length !== whole.length || !found.every(near)) return `text ${number} gives [${found}], expected [${one.expected}]`;
    const next = one.expected[found.length];
    if (golden.answer === "tokens" && next !== undefined && !model.io.decoding.eos_token_id.includes(next)) return `text ${number} ends early`;
  }
  return null;
}

element("folder").addEventListener("change", () => guarded("model", open));
element("provider").addEventListener("change", () => element("folder").files.length && guarded("model", open));
element("run").addEventListener("click", () => guarded("result", run));
element("check").addEventListener("click", () => guarded("golden", check));
if (!("gpu" in navigator)) element("provider").querySelector("[value=webgpu]").disabled = true;
