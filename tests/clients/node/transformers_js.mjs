// Run an artifact in transformers.js, as it lies on the disk.
//
//     node transformers_js.mjs generate DIR COUNT TEXT...    greedy tokens after each text, alone and in one batch
//     node transformers_js.mjs embed DIR TEXT...             the mean embedding of each text, of length 1
//
// Prints one line of JSON.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { AutoModelForCausalLM, AutoTokenizer, env, pipeline } from "@huggingface/transformers";

// The graph lies beside config.json, not in a folder onnx/ below it; "fp32" is the file name without a suffix. Node finds
// weights beside the graph by itself, a browser has to be told of them.
const place = (directory) => ({
  subfolder: "",
  dtype: "fp32",
  use_external_data_format: existsSync(join(directory, "model.onnx_data")),
});

const numbers = (tensor) => tensor.tolist().map((row) => row.map(Number));

async function generate(directory, count, ...texts) {
  const tokenizer = await AutoTokenizer.from_pretrained(directory);
  tokenizer.padding_side = "left"; // so that the newest token of every row stands in the last column
  const model = await AutoModelForCausalLM.from_pretrained(directory, place(directory));
  const tokensAfter = async (batch) => {
    const inputs = tokenizer(batch, { padding: true });
    const width = inputs.input_ids.dims[1];
    const rows = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
    return numbers(rows).map((row) => row.slice(width));
  };
  const alone = [];
  for (const text of texts) alone.push(...(await tokensAfter([text])));
  return { ids: texts.map((text) => tokenizer.encode(text)), alone, batch: await tokensAfter(texts) };
}

async function embed(directory, ...texts) {
  const extract = await pipeline("feature-extraction", directory, place(directory));
  return numbers(await extract(texts, { pooling: "mean", normalize: true }));
}

const [command, ...rest] = process.argv.slice(2);
console.log(JSON.stringify({ version: env.version, found: await { generate, embed }[command](...rest) }));
