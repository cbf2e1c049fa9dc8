// The row of tokens that a text becomes, and what the numbers of an answer are made into: by io.json, without a library.

/** Ids and segments of a text, or of two that are read together; `bare` gives the ids of a text without special tokens. */
export function rowOf(io, bare, text, pair = null) {
  const { marks, max_length: limit, lowercase } = io.tokenizer;
  if (!marks) throw new Error("the tokenizer does more than put tokens around a text");
  const lowered = (one) => (lowercase ? one.toLowerCase() : one);
  const first = bare(lowered((io.prompts?.[io.default_prompt] ?? "") + text));
  if (pair === null) {
    const [before, after] = marks.single;
    const kept = limit ? first.slice(0, Math.max(0, limit - before.length - after.length)) : first;
    const ids = [...before, ...kept, ...after];
    return { ids, types: ids.map(() => 0) };
  }
  if (!marks.pair) throw new Error("the tokenizer reads no pairs");
  const [before, between, after] = marks.pair;
  const second = bare(lowered(pair));
  const room = limit ? Math.max(0, limit - before.length - between.length - after.length) : Infinity;
  const [one, two] = keptSizes(first.length, second.length, room);
  const head = [...before, ...first.slice(0, one), ...between];
  const tail = [...second.slice(0, two), ...after];
  return { ids: [...head, ...tail], types: [...head.map(() => 0), ...tail.map(() => marks.second_type)] };
}

/** What a graph answers to text: one vector, a score per label, or per token and label; and the output it comes from. */
export function answerOf(io) {
  const names = io.outputs.map((output) => output.name);
  if (names.includes("sentence_embedding")) return { kind: "embedding", output: "sentence_embedding" };
  const kinds = { "text-classification": "scores", "token-classification": "token_scores" };
  if (io.task in kinds && names.includes("logits")) return { kind: kinds[io.task], output: "logits" };
  return { kind: "ids", output: null };
}

/** Values of an input of the graph for a row: padded where the graph has a fixed length, all its rows alike. */
export function inputOf(io, spec, { ids, types }) {
  const axes = io.inputs.find((one) => one.meaning === "ids").axes;
  const width = typeof axes[1] === "number" ? axes[1] : ids.length;
  const rows = typeof axes[0] === "number" ? axes[0] : 1;
  const start = startOf(io, ids, width);
  const made = {
    ids: (at) => ids[at] ?? io.tokenizer.pad_id,
    mask: (at) => Number(at in ids),
    types: (at) => types[at] ?? 0,
    positions: (at) => Math.min(Math.max(at, 0), ids.length - 1),
  };
  if (!(spec.meaning in made)) throw new Error(`input ${spec.name} is not made from text`);
  const row = Array.from({ length: width }, (_, place) => made[spec.meaning](place - start));
  return { values: Array(rows).fill(row).flat(), shape: [rows, width] };
}

/** Numbers of the answer, from the output's values and sizes. */
export function answerNumbers(io, { ids }, values, dims) {
  const { kind } = answerOf(io);
  const first = values.slice(0, values.length / dims[0]);
  if (kind === "embedding") return first;
  if (kind === "scores") return scored(first, io.scores);
  const [width, labels] = [dims.at(-2), dims.at(-1)];
  const start = startOf(io, ids, width);
  return ids.flatMap((_, place) => scored(first.slice((start + place) * labels, (start + place + 1) * labels), "softmax"));
}

function startOf(io, ids, width) {
  return io.tokenizer.padding_side === "left" ? width - ids.length : 0;
}

/** How many tokens of two texts are kept where both may have so many: the longer one is cut first. */
function keptSizes(first, second, room) {
  if (first + second <= room) return [first, second];
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
