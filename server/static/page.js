// The chat: ask, stream, stop, replay. One answer runs at a time.

import { announce, byId } from "./dom.js";
import { EXAMPLE } from "./example.js";
import { Panel } from "./panel.js";
import { Run } from "./run.js";
import { Scroller } from "./scroller.js";
import { askForKey, settings, wireSettings } from "./settings.js";
import { completion, Problem, servedModel } from "./stream.js";
import { Turn } from "./turn.js";

const question = byId("question");
const send = byId("send");
const panel = new Panel();
const scroller = new Scroller(byId("scroller"), byId("to-newest"));
const wantsStillness = matchMedia("(prefers-reduced-motion: reduce)");

let model = null;
let turns = [];
let running = null; // the AbortController of the answer that is running

function start() {
  wireSettings(greet);
  wireComposer();
  byId("new-chat").addEventListener("click", clear);
  byId("turns").addEventListener("click", showStepOf);
  panel.showExample(new Run().add(EXAMPLE, 0));
  greet();
}

/** Show whose server this is, or why it does not say. */
async function greet() {
  try {
    await findModel();
  } catch (error) {
    byId("model").textContent = error.message;
    if (error.wantsKey) askForKey();
  }
}

async function findModel() {
  model ??= await servedModel(settings().key);
  byId("model").textContent = model;
}

function ask(text) {
  const turn = new Turn(text);
  turns.push(turn);
  byId("welcome").hidden = true;
  byId("turns").append(turn.element);
  scroller.toNewest();
  return answer(turn);
}

/** Run a turn's answer, again if it had one. */
async function answer(turn) {
  const view = turn.start(requestOf(turn));
  announce("Sent.");
  const problem = await run(view, turn.request);
  end(turn, problem, () => answer(turn));
  if (problem) return;
  const wasStopped = view.run.finish === "stopped";
  announce(wasStopped ? "Stopped." : `Answer: ${view.run.text}`);
  if (settings().replaysAlways && !wasStopped) await replay(turn);
}

/** The same request without speculation, while the first answer is shown again at its own pace. */
async function replay(turn) {
  const first = turn.view.run;
  const view = turn.startReplay();
  announce("Replaying without speculation.");
  if (!wantsStillness.matches) keepPace(turn.view, view);
  const limit = (first.isPartial && first.tokens) || turn.request.max_tokens;
  const request = { ...turn.request, max_tokens: limit, speculative: { enabled: false, trace: true } };
  const problem = await run(view, request, () => turn.showPaces());
  announce(end(turn, problem, () => replay(turn)));
  if (panel.view === view) panel.review(turn.view);
}

function requestOf(turn) {
  const { system, temperature, maxTokens, seed } = settings();
  const earlier = turns.slice(0, turns.indexOf(turn)).flatMap((other) => other.messages);
  const prompt = system.trim() ? [{ role: "system", content: system }] : [];
  return {
    messages: [...prompt, ...earlier, { role: "user", content: turn.question }],
    temperature,
    max_tokens: maxTokens,
    seed,
    speculative: { enabled: true, trace: true },
  };
}

/** Stream a completion into a view, until its end or a stop; the `Problem` if there was one. */
async function run(view, request, onStep = () => {}) {
  running = new AbortController();
  const { signal } = running;
  showBusy(true);
  panel.turnTo(view);
  scroller.follow();
  try {
    await findModel();
    for await (const chunk of completion({ model, ...request }, settings().key, signal)) {
      const now = performance.now();
      const step = view.run.add(chunk, now);
      if (!step) continue;
      view.add(step);
      onStep(step);
      panel.update(view, now);
      scroller.follow();
    }
  } catch (error) {
    if (error instanceof Problem) return error;
    if (error.name !== "AbortError") throw error;
    view.run.finish = "stopped";
  } finally {
    running = null;
    view.end();
    if (panel.view === view) panel.review(view);
    showBusy(false);
  }
  return null;
}

/** Below a turn that is over: its facts, the verdict of its replay, its problem. */
function end(turn, problem, again) {
  const verdict = turn.showEnd(problem, { again, replay: () => replay(turn) });
  scroller.follow();
  if (problem?.wantsKey) askForKey();
  return verdict;
}

/** While `replay` runs, let the words of `view` appear as they first did. */
function keepPace(view, replay) {
  if (!replay.isRunning) return view.showUntil(Infinity);
  const start = replay.run.steps[0]?.time ?? Infinity;
  view.showUntil(performance.now() - start);
  requestAnimationFrame(() => keepPace(view, replay));
}

function showBusy(isBusy) {
  const focused = document.activeElement;
  send.textContent = isBusy ? "Stop" : "Send";
  for (const button of document.querySelectorAll("#turns button")) button.disabled = isBusy;
  if (isBusy && (focused === document.body || !focused.isConnected)) send.focus();
}

function wireComposer() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else submit();
  });
  question.addEventListener("keydown", (event) => {
    const isComposing = event.isComposing || event.keyCode === 229; // the latter is Safari's
    if (event.key !== "Enter" || event.shiftKey || isComposing) return;
    event.preventDefault();
    if (!running) submit();
  });
  question.addEventListener("input", fit);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !byId("settings").open) running?.abort();
  });
  byId("examples").addEventListener("click", (event) => {
    const text = event.target.closest("button")?.textContent;
    if (!text || running) return;
    ask(text);
    send.focus();
  });
}

function submit() {
  const text = question.value.trim();
  if (!text) return;
  question.value = "";
  fit();
  ask(text);
}

/** Let the message box be as high as its text. */
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

function clear() {
  running?.abort();
  turns = [];
  byId("turns").replaceChildren();
  byId("welcome").hidden = false;
  panel.showExample(new Run().add(EXAMPLE, 0));
  announce("New chat.");
  question.focus();
}

/** A click on words shows the step that gave them. */
function showStepOf(event) {
  const span = event.target.closest(".traced .step");
  if (!span || !getSelection().isCollapsed) return;
  const view = turns.flatMap((turn) => turn.views).find(({ element }) => element.contains(span));
  panel.pick(view, Number(span.dataset.step));
}

start();
