// One answer as it came: its steps with their trees, and the figures that follow from them.

/** What one chunk brought: tokens as the server traced them, and the text as `pieces` by source. */
class Step {
  constructor(text, trace, time) {
    this.time = time;
    this.tree = trace?.tree ?? null;
    this.passes = trace?.passes ?? 0;
    this.draftMs = trace?.draft_ms ?? 0;
    this.verifyMs = trace?.verify_ms ?? 0;
    this.tokens = trace?.tokens ?? [];
    this.pieces = trace ? pieces(text, this.tokens) : [{ text, source: "unknown" }];
  }

  /** How many nodes hang below the root: the others are older than this step. */
  get guessed() {
    return this.tree ? this.tree.tokens.length - 1 - (this.tree.root ?? 0) : 0;
  }

  get accepted() {
    return this.tokens.length - this.count("bonus");
  }

  /** How many tokens of the path are not given yet: the next step checks them once more. */
  get pending() {
    return Math.max(0, (this.tree?.path.length ?? 0) - this.tokens.length);
  }

  count(source) {
    return this.tokens.filter((token) => token.source === source).length;
  }
}

/**
 * The text cut where its tokens begin. A token's own text may be missing in it: half a character, the
 * end token, or words that the server still holds back. What lies between two tokens that are found
 * goes to the one that was not.
 */
function pieces(text, tokens) {
  const cut = [];
  let at = 0;
  let missing = null;
  const take = (end, source) => {
    if (end > at) cut.push({ text: text.slice(at, end), source });
    at = end;
  };
  for (const { text: own, source } of tokens) {
    const found = own ? text.indexOf(own, at) : -1;
    if (found < 0) {
      missing ??= source;
      continue;
    }
    take(found, missing ?? source);
    take(found + own.length, source);
    missing = null;
  }
  take(text.length, missing ?? tokens.at(-1)?.source ?? "unknown");
  return cut;
}

export class Run {
  constructor() {
    this.steps = [];
    this.text = "";
    this.usage = null;
    this.finish = null;
  }

  /** Take in a chunk that arrived at `time` (ms); the step that it brought, or null. */
  add(chunk, time) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    const text = choice?.delta?.content ?? "";
    if (!text && !chunk.falcon) return null;
    const step = new Step(text, chunk.falcon, time);
    this.steps.push(step);
    this.text += text;
    return step;
  }

  /** Whether it was stopped or broke off. */
  get isPartial() {
    return this.finish !== "stop" && this.finish !== "length";
  }

  get isTraced() {
    return this.steps.some((step) => step.tree);
  }

  get tokens() {
    return this.usage?.completion_tokens ?? this.traced;
  }

  get traced() {
    return this.steps.reduce((sum, step) => sum + step.tokens.length, 0);
  }

  /** Mean tokens per step, the model's own included; null where the server does not tell. */
  get tau() {
    return this.isTraced ? this.traced / this.steps.length : null;
  }

  /** Share of tokens that had been guessed, 0 to 1, or null. */
  get share() {
    return this.traced ? 1 - this.count("bonus") / this.traced : null;
  }

  count(source) {
    return this.steps.reduce((sum, step) => sum + step.count(source), 0);
  }

  get refused() {
    return this.steps.reduce((sum, step) => sum + step.guessed - step.accepted, 0);
  }

  /** From the first step to the last, in ms: the prompt is not counted. */
  get duration() {
    return this.steps.length ? this.steps.at(-1).time - this.steps[0].time : 0;
  }

  /** Tokens per second behind the first step, or null. */
  get speed() {
    const tokens = this.tokens - (this.steps[0]?.tokens.length || 1);
    return this.duration > 0 && tokens > 0 ? (1000 * tokens) / this.duration : null;
  }
}
