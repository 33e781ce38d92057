// One turn of the conversation on the page: question, answer, its facts, and its replay.

import { counted, make, rounded } from "./dom.js";
import { Run } from "./run.js";
import { RunView } from "./run_view.js";

export class Turn {
  constructor(question) {
    this.question = question;
    this.request = null;
    this.runs = make("div", { className: "runs" });
    this.foot = make("div");
    const you = make("span", { className: "unseen" }, "You: ");
    const asked = make("p", { className: "question" }, you, question);
    this.element = make("article", { className: "turn" }, asked, this.runs, this.foot);
  }

  /** What of this turn belongs in front of the next question: nothing, where no answer came. */
  get messages() {
    const text = this.view?.run.text;
    if (!text) return [];
    return [
      { role: "user", content: this.question },
      { role: "assistant", content: text },
    ];
  }

  get views() {
    return [this.view, this.replay].filter((view) => view);
  }

  /** Begin the answer to `request`, or begin it again. */
  start(request) {
    this.request = request;
    this.view = new RunView(new Run(), "With speculation");
    this.replay = null;
    this.show();
    return this.view;
  }

  /** Begin the same answer without speculation, beside the first. */
  startReplay() {
    this.replay = new RunView(new Run(), "Without speculation");
    this.show();
    return this.replay;
  }

  show() {
    this.foot.replaceChildren();
    this.runs.replaceChildren(...this.views.map((view) => view.element));
    this.runs.classList.toggle("compared", this.replay !== null);
  }

  /** What stands below runs that are over; `actions` are called by its buttons. */
  showEnd(problem, actions) {
    if (this.replay && !this.replay.run.text) this.replay = null;
    this.show();
    this.showPaces();
    const verdict = this.replay && !problem ? this.verdict() : "";
    if (verdict) this.foot.append(make("p", { className: "verdict" }, verdict));
    if (problem) this.foot.append(alert(problem.message, actions.again));
    if (this.view.run.text || !problem) this.foot.append(this.facts(actions.replay));
    return verdict;
  }

  /** The pace of both runs, on one scale. */
  showPaces() {
    const fastest = Math.max(...this.views.map((view) => view.run.speed ?? 0)) || 1;
    for (const view of this.views) view.showPace(fastest);
  }

  facts(replay) {
    const { run } = this.view;
    const ends = { stopped: "stopped", length: "cut at max tokens" };
    const facts = [
      ends[run.finish],
      counted(run.tokens, "token"),
      run.isTraced && counted(run.steps.length, "step"),
      run.speed && `${rounded(run.speed)} per second`,
      `seed ${this.request.seed}`,
    ];
    const line = make("p", {}, facts.filter(Boolean).join(" · "));
    const buttons = run.text ? [button("Replay without speculation", replay)] : [];
    return make("div", { className: "facts" }, line, ...buttons);
  }

  /** What the two runs say about each other. */
  verdict() {
    const [one, other] = [this.view.run, this.replay.run];
    const length = Math.min(one.text.length, other.text.length);
    let at = 0;
    while (at < length && one.text[at] === other.text[at]) at += 1;
    const isPartial = one.isPartial || other.isPartial;
    if (at < length || (!isPartial && one.text.length !== other.text.length)) {
      return (
        `The texts differ from character ${at + 1} on: two tokens must have nearly tied. ` +
        "With --deterministic the server rules that out."
      );
    }
    const same = isPartial ? "Identical as far as both went" : "Identical, character for character";
    const factor = one.speed / other.speed;
    return Number.isFinite(factor) ? `${same}, ${rounded(factor, 2)} times as fast.` : `${same}.`;
  }
}

function alert(message, again) {
  const element = make("div", { className: "problem" }, make("p", {}, message));
  element.setAttribute("role", "alert");
  element.append(button("Try again", again));
  return element;
}

function button(label, action) {
  const element = make("button", { type: "button", className: "quiet" }, label);
  element.addEventListener("click", action);
  return element;
}
