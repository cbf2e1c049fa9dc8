// Give texts to the artifact in transformers.js: embeddings with their cosines, or what a language model writes on.
//
//     node run.mjs "a cat sleeps" "a kitten naps"

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "@huggingface/transformers";

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
} else if (io.task === "feature-extraction" || io.task === "sentence-similarity") {
  const embed = await pipeline("feature-extraction", artifact, place);
  const vectors = (await embed(texts, { pooling: io.pooling ?? "mean", normalize: true })).tolist();
  for (let i = 0; i < texts.length; i += 1) {
    for (let j = i + 1; j < texts.length; j += 1) {
      const cosine = vectors[i].reduce((sum, value, k) => sum + value * vectors[j][k], 0);
      console.log(`${cosine.toFixed(4)}  ${texts[i]}  |  ${texts[j]}`);
    }
  }
} else {
  const run = await pipeline(io.task, artifact, place);
  console.log(JSON.stringify(await run(texts), null, 2));
}
