// Making elements. Text always becomes text nodes: what a model says is never markup.

const NONE = "–";

/** An element with `properties` set and `children` (elements or strings) inside. */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Put a figure where it is shown; an empty one is faint. */
export function showFigure(id, words) {
  byId(id).textContent = words;
  byId(id).classList.toggle("empty", words === NONE);
}

/** Say something to screen readers, once. */
export function announce(words) {
  byId("announcer").textContent = words;
}

export function rounded(number, digits = 0) {
  return number === null ? NONE : number.toFixed(digits);
}

export function percent(share) {
  return share === null ? NONE : `${Math.round(100 * share)} %`;
}

export function counted(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}
