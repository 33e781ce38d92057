// One run on the page: its words, tinted by where they came from, and its pace.

import { make, rounded } from "./dom.js";

export class RunView {
  constructor(run, title) {
    this.run = run;
    this.spans = [];
    this.speed = make("b", {}, "–");
    this.fill = make("i");
    this.text = make("div", { className: "text" });
    this.element = make(
      "div",
      { className: "run running" },
      make("h3", {}, title),
      make("p", { className: "pace" }, this.speed, "tokens per second"),
      make("div", { className: "bar", ariaHidden: "true" }, this.fill),
      this.text,
    );
  }

  /** Append a step's words. */
  add(step) {
    const span = make("span", { className: "step" }, ...step.pieces.flatMap(word));
    span.dataset.step = this.spans.length;
    this.spans.push(span);
    this.text.append(span);
    this.element.classList.toggle("traced", this.run.isTraced);
  }

  get isRunning() {
    return this.element.classList.contains("running");
  }

  end() {
    this.element.classList.remove("running");
  }

  /** Show the speed, as a bar on a scale that ends at `fastest`. */
  showPace(fastest) {
    this.speed.textContent = rounded(this.run.speed);
    this.fill.style.width = `${(100 * (this.run.speed ?? 0)) / fastest}%`;
  }

  /** Underline the words of one step; -1 for none. */
  mark(index) {
    this.marked?.classList.remove("shown");
    this.marked = this.spans[index];
    this.marked?.classList.add("shown");
  }

  /** Let the words fade that had not come `time` ms behind the first; Infinity shows all. */
  showUntil(time) {
    const start = this.run.steps[0]?.time ?? 0;
    this.spans.forEach((span, index) => {
      span.classList.toggle("ahead", this.run.steps[index].time - start > time);
    });
  }
}

/** A token's text as elements: space before the first tinted one is left without a tint. */
function word({ text, source }, at, pieces) {
  const token = (words) => make("span", { className: `token ${source}` }, words);
  const words = text.trimStart();
  if (pieces[at - 1]?.source === source || !words) return [token(text)];
  return [text.slice(0, text.length - words.length), token(words)];
}
