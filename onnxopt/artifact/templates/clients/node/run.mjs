// Give texts to the artifact: embeddings with their cosines, labels with their scores, entities, or what a language
// model writes on, in the chat template where it has one. What the graph gives is taken as it is.
//
//     node run.mjs "a cat sleeps" "a kitten naps"
//     node run.mjs --pair "how many people?" "about 3.6 million people"     two texts that are read together
//
// Exit code 2, with what is in the way in one line: it cannot run.

import { join } from "node:path";
import { pipeline } from "@huggingface/transformers";
import { modelPlace } from "./place.mjs";
import { answerOf } from "./rows.mjs";
import { TextModel, openTokenizer, readJson } from "./text.mjs";

process.on("uncaughtException", (error) => {
  console.error(`unusable: ${String(error.message).split("\n")[0]}`);
  process.exit(2);
});

const artifact = join(import.meta.dirname, "..", "..");
const io = await readJson(artifact, "io.json");
const pairs = process.argv[2] === "--pair";
const texts = process.argv.slice(pairs ? 3 : 2);
if (texts.length === 0) texts.push("a cat sleeps", "a kitten naps");
if (pairs && (io.decoding || answerOf(io).kind !== "scores")) throw new Error("--pair is for a model that scores two texts together");
if (pairs && texts.length % 2) throw new Error("--pair takes two texts each");
const asked = pairs ? Array.from({ length: texts.length / 2 }, (_, i) => texts.slice(2 * i, 2 * i + 2)) : texts.map((text) => [text, null]);

if (io.decoding) {
  await write();
} else {
  const model = await TextModel.open(artifact);
  const { kind } = answerOf(io);
  if (kind === "ids") {
    console.log(JSON.stringify(await (await pipeline(io.task, artifact, modelPlace(artifact)))(texts), null, 2));
  } else {
    const rows = asked.map(([text, pair]) => model.row(text, pair));
    const found = [];
    for (const row of rows) found.push(await model.run(row)); // each alone, so that no neighbour changes it
    ({ embedding: showCosines, scores: showLabels, token_scores: showEntities })[kind](model, rows, found);
  }
}

async function write() {
  await openTokenizer(artifact);
  const generate = await pipeline("text-generation", artifact, modelPlace(artifact));
  const { context_length: limit, crossing, crossings = [] } = io.decoding;
  for (const text of texts) {
    const chats = Boolean(generate.tokenizer.chat_template);
    const given = chats ? [{ role: "user", content: text }] : text;
    const count = chats
      ? generate.tokenizer.apply_chat_template(given, { add_generation_prompt: true, return_tensor: false }).length
      : generate.tokenizer(text).input_ids.dims.at(-1);
    // transformers.js goes on from a cache that would have to be read anew beyond a crossing: it stops before
    const end = (crossing === "reread" && crossings.find((length) => length >= count)) || limit || Infinity;
    if (count > end) throw new Error(`${count} tokens, the model takes ${end}`);
    const [{ generated_text: answer }] = await generate(given, { max_new_tokens: Math.min(40, end - count + 1) });
    console.log(chats ? answer.at(-1).content : answer);
  }
}

function showCosines(_model, _rows, vectors) {
  const unit = vectors.map((vector) => vector.map((value) => value / Math.hypot(...vector)));
  for (let i = 0; i < texts.length; i += 1) {
    for (let j = i + 1; j < texts.length; j += 1) {
      const cosine = unit[i].reduce((sum, value, k) => sum + value * unit[j][k], 0);
      console.log(`${cosine.toFixed(4)}  ${texts[i]}  |  ${texts[j]}`);
    }
  }
  if (texts.length === 1) console.log(JSON.stringify(vectors[0]));
}

function showLabels(model, _rows, found) {
  for (const [place, scores] of found.entries()) {
    const labels = scores.map((score, index) => ({ label: model.label(index), score }));
    labels.sort((one, other) => other.score - one.score);
    const [text, pair] = asked[place];
    console.log(JSON.stringify({ text, ...(pair === null ? {} : { pair }), labels }));
  }
}

// Words side by side with the same label are one thing; `B-` in front of it begins another one.
function showEntities(model, rows, found) {
  for (const [place, scores] of found.entries()) {
    console.log(JSON.stringify({ text: asked[place][0], entities: model.entities(rows[place].ids, scores) }));
  }
}
