// Repeat the golden texts of an artifact: the ids by transformers.js, the answer by onnxruntime-node.
//
//     node check_texts.mjs [DIR]    the artifact; two folders up when not given
//
// Prints one line. Exit code 0: every text is reproduced; 1: ids or an answer differ; 2: the artifact cannot be read or run.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { AutoModelForCausalLM } from "@huggingface/transformers";
import { modelPlace } from "./place.mjs";
import { TextModel, openTokenizer, readJson } from "./text.mjs";

function difference(number, golden_case, ids, found) {
  if (ids.join() !== golden_case.ids.join()) {
    return `text ${number}: the tokenizer gives [${ids}], expected [${golden_case.ids}]`;
  }
  if (found.length !== golden_case.expected.length) {
    return `text ${number} gives ${found.length} numbers, expected ${golden_case.expected.length}`;
  }
  for (const [place, wanted] of golden_case.expected.entries()) {
    if (!(Math.abs(found[place] - wanted) <= golden_case.max_absolute_error)) {
      return `text ${number} at ${place} is ${found[place]}, expected ${wanted} within ${golden_case.max_absolute_error}`;
    }
  }
  return null;
}

async function answersDiffer(artifact, golden) {
  const model = await TextModel.open(artifact);
  for (const [number, one] of golden.cases.entries()) {
    const row = model.row(one.text, one.pair ?? null);
    const same = row.ids.join() === one.ids.join() && row.types.join() === one.types.join();
    const found = same && golden.answer !== "ids" ? await model.run(row) : [];
    if (row.ids.join() === one.ids.join() && !same) return `text ${number}: segments are [${row.types}], expected [${one.types}]`;
    const said = difference(number, one, row.ids, found);
    if (said) return said;
  }
  return null;
}

async function writingDiffers(artifact, golden) {
  const tokenizer = await openTokenizer(artifact);
  const model = await AutoModelForCausalLM.from_pretrained(artifact, modelPlace(artifact));
  for (const [number, one] of golden.cases.entries()) {
    const inputs = one.chat
      ? tokenizer.apply_chat_template([{ role: "user", content: one.text }], { add_generation_prompt: true, return_dict: true })
      : tokenizer(one.text);
    const ids = inputs.input_ids.tolist()[0].map(Number);
    const same = ids.join() === one.ids.join();
    const options = { max_new_tokens: one.expected.length, do_sample: false, repetition_penalty: 1.0 };
    const found = same ? (await model.generate({ ...inputs, ...options })).tolist()[0].slice(ids.length).map(Number) : [];
    const said = difference(number, one, ids, found.slice(0, one.expected.length));
    if (said) return said;
  }
  return null;
}

async function main(artifact) {
  const path = join(artifact, "golden", "texts.json");
  if (!existsSync(path)) {
    console.log("no golden texts");
    return 0;
  }
  const golden = await readJson(path);
  if (golden.format !== 1) throw new Error("texts.json has another format");
  const said = golden.answer === "tokens" ? await writingDiffers(artifact, golden) : await answersDiffer(artifact, golden);
  console.log(said ? `differs: ${said}` : `equal: ${golden.cases.length} texts, ${golden.answer}`);
  return said ? 1 : 0;
}

try {
  process.exitCode = await main(process.argv[2] ?? join(import.meta.dirname, "..", ".."));
} catch (error) {
  console.log(`unusable: ${String(error.message).split("\n")[0]}`);
  process.exitCode = 2;
}
