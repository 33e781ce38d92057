// The panel: figures of the run at hand, and its steps one by one as trees.

import { byId, counted, percent, rounded, showFigure } from "./dom.js";
import { drawTree } from "./tree.js";

const LIVE_MS = 800; // the least time that a tree stays while the answer is running
const PLAY_MS = 1000;
const FIGURES_MS = 150;

export class Panel {
  constructor() {
    this.slider = byId("step");
    this.button = byId("play");
    this.slider.addEventListener("input", () => {
      this.pause();
      this.isFollowing = false;
      this.show(Number(this.slider.value) - 1);
    });
    this.button.addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    const unfold = byId("unfold");
    unfold.addEventListener("click", () => open(unfold.getAttribute("aria-expanded") !== "true"));
  }

  /** Show a step that belongs to no run, to explain what is to be seen. */
  showExample(step) {
    this.turnTo(null);
    draw(step, `An example. ${inWords(step)}`, true);
  }

  /** Turn to a run; its steps are shown as they come, until the reader picks one. */
  turnTo(view) {
    if (this.view === view) return;
    this.pause();
    this.view?.mark(-1);
    this.view = view;
    this.isFollowing = true;
    this.lastShown = this.lastCounted = 0;
    byId("step-label").textContent = "Step";
    this.slider.disabled = this.button.disabled = true;
    this.showFigures();
  }

  /** A step came; show it if the one in sight had its time. */
  update(view, now) {
    if (this.view !== view) return;
    const { run } = view;
    if (now - this.lastCounted > FIGURES_MS) this.showFigures(now);
    if (!run.isTraced) return;
    this.allowSteps(view);
    if (this.isFollowing && now - this.lastShown > LIVE_MS) {
      this.lastShown = now;
      this.show(run.steps.length - 1, true);
    }
  }

  /** Turn to a run that is over: its steps can be played. */
  review(view) {
    this.turnTo(view);
    this.showFigures();
    const { run } = view;
    if (!run.isTraced) return;
    this.allowSteps(view);
    if (this.isFollowing) this.show(best(run), true, "The step that gained most. ");
  }

  /** Show a step that the reader asked for, of any run. */
  pick(view, index) {
    this.turnTo(view);
    this.pause();
    this.isFollowing = false;
    this.allowSteps(view);
    open(true);
    this.show(index);
  }

  allowSteps(view) {
    this.slider.disabled = false;
    this.button.disabled = view.isRunning;
  }

  show(index, unfolds = false, intro = "") {
    const { run } = this.view;
    const step = run.steps[index];
    if (!step?.tree) return;
    const words = intro + inWords(step);
    this.slider.max = run.steps.length;
    this.slider.value = index + 1;
    this.slider.setAttribute("aria-valuetext", `Step ${index + 1} of ${run.steps.length}. ${words}`);
    byId("step-label").textContent = `Step ${index + 1} / ${run.steps.length}`;
    draw(step, words, unfolds);
    this.view.mark(index);
  }

  play() {
    const last = this.view.run.steps.length;
    let at = Number(this.slider.value) % last;
    this.button.textContent = "Pause";
    const next = () => {
      this.show(at, true);
      at += 1;
      if (at === last) this.pause();
    };
    this.timer = setInterval(next, PLAY_MS);
    next();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }

  showFigures(now = 0) {
    this.lastCounted = now;
    const run = this.view?.run;
    showFigure("tau", rounded(run?.tau ?? null, 2));
    showFigure("speed", rounded(run?.speed ?? null));
    showFigure("share", percent(run?.share ?? null));
    for (const count of document.querySelectorAll("[data-count]")) {
      const source = count.dataset.count;
      const number = source === "refused" ? run?.refused : run?.count(source);
      count.textContent = run?.isTraced ? number : "";
      if (source === "predicted") count.parentElement.hidden = !number;
    }
  }
}

function open(isOpen) {
  const unfold = byId("unfold");
  unfold.setAttribute("aria-expanded", String(isOpen));
  unfold.textContent = isOpen ? "Hide the tree" : "Show the tree";
}

function draw(step, words, unfolds) {
  byId("caption").textContent = words;
  drawTree(byId("tree"), step, words, unfolds);
}

/** The first of the steps that gave most tokens. */
function best(run) {
  const gains = run.steps.map((step) => step.tokens.length);
  return gains.indexOf(Math.max(...gains));
}

/** The step in a sentence or three: what the picture shows. */
export function inWords(step) {
  if (!step.guessed) return `Nothing guessed: one pass of the model, ${ms(step.verifyMs)}, one token.`;
  const { guessed, passes, accepted, pending } = step;
  const drafting = passes ? ` in ${passes} ${passes === 1 ? "pass" : "passes"}` : "";
  const outcome = [
    `${accepted || "none"} accepted`,
    ...(step.count("bonus") ? [`${step.count("bonus")} of its own`] : []),
    ...(pending ? [`${pending} to be checked once more`] : []),
  ];
  return (
    `${counted(guessed, "token")} guessed${drafting}, ${ms(step.draftMs)}. ` +
    `One pass of the model over all, ${ms(step.verifyMs)}: ${outcome.join(", ")}.`
  );
}

function ms(time) {
  return `${time.toFixed(1)} ms`;
}
