// Give texts to the artifact in transformers.js: embeddings with their cosines, labels with their scores, or what a
// language model writes on. What the graph gives is taken as it is: pooling and layers behind it lie in the graph.
//
//     node run.mjs "a cat sleeps" "a kitten naps"

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { AutoModel, AutoTokenizer, pipeline } from "@huggingface/transformers";

const artifact = join(import.meta.dirname, "..", "..");
const io = JSON.parse(readFileSync(join(artifact, "io.json"), "utf8"));
const texts = process.argv.slice(2);
if (texts.length === 0) texts.push("a cat sleeps", "a kitten naps");

// the graph lies beside config.json; "fp32" is the file name without a suffix, whatever precision is inside
const place = { subfolder: "", dtype: "fp32", use_external_data_format: existsSync(join(artifact, "model.onnx_data")) };

if (io.decoding) {
  const write = await pipeline("text-generation", artifact, place);
  const { context_length: limit, crossing, crossings = [] } = io.decoding;
  for (const text of texts) {
    const count = write.tokenizer(text).input_ids.dims.at(-1);
    // transformers.js goes on from a cache that would have to be read anew beyond a crossing: it stops before
    const end = (crossing === "reread" && crossings.find((length) => length >= count)) || limit || Infinity;
    if (count > end) throw new Error(`${count} tokens, the model takes ${end}`);
    console.log((await write(text, { max_new_tokens: Math.min(40, end - count + 1) }))[0].generated_text);
  }
} else if (io.outputs.some((output) => output.name === "sentence_embedding")) {
  const vectors = (await answers("sentence_embedding")).map(unit);
  for (let i = 0; i < texts.length; i += 1) {
    for (let j = i + 1; j < texts.length; j += 1) {
      const cosine = vectors[i].reduce((sum, value, k) => sum + value * vectors[j][k], 0);
      console.log(`${cosine.toFixed(4)}  ${texts[i]}  |  ${texts[j]}`);
    }
  }
} else if (io.scores && io.task === "text-classification") {
  const rows = (await answers("logits")).map(scored);
  for (const [place, row] of rows.entries()) {
    const labels = row.map((score, index) => ({ label: io.labels?.[index] ?? `LABEL_${index}`, score }));
    labels.sort((one, other) => other.score - one.score);
    console.log(JSON.stringify({ text: texts[place], labels }));
  }
} else {
  const run = await pipeline(io.task, artifact, place);
  console.log(JSON.stringify(await run(texts), null, 2));
}

// Rows of one output of the graph for the texts, tokenized as the checkpoint does it.
async function answers(output) {
  const [tokenizer, model] = await Promise.all([
    AutoTokenizer.from_pretrained(artifact), AutoModel.from_pretrained(artifact, place),
  ]);
  const limit = io.tokenizer.max_length || undefined;
  const prompt = io.prompts?.[io.default_prompt] ?? "";
  const whole = texts.map((text) => prompt + text);
  const prepared = io.tokenizer.lowercase ? whole.map((text) => text.toLowerCase()) : whole;
  const fed = await tokenizer(prepared, { padding: true, truncation: Boolean(limit), max_length: limit });
  return (await model(fed))[output].tolist();
}

function unit(vector) {
  const length = Math.hypot(...vector);
  return vector.map((value) => value / length);
}

// What io.json says that logits are made into.
function scored(logits) {
  if (io.scores === "none") return logits;
  if (io.scores === "sigmoid") return logits.map((value) => 1 / (1 + Math.exp(-value)));
  const most = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - most));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}
