// The settings, as they stand in the dialog. Nothing of them outlives the tab.

import { byId } from "./dom.js";

const SEEDS = 2 ** 31;

/** `onClose` is called whenever the reader is done. */
export function wireSettings(onClose) {
  const dialog = byId("settings");
  dialog.addEventListener("close", () => {
    for (const field of dialog.querySelectorAll("input:invalid")) field.value = field.defaultValue;
    onClose();
  });
  byId("open-settings").addEventListener("click", () => dialog.showModal());
  byId("tint").addEventListener("change", (event) => {
    document.body.classList.toggle("untinted", !event.target.checked);
  });
}

/** Open the dialog at the field for the API key. */
export function askForKey() {
  byId("key-field").hidden = false;
  if (!byId("settings").open) byId("settings").showModal();
  byId("api-key").focus();
}

/** The fields' values; null stands for the server's own choice. */
export function settings() {
  return {
    key: byId("api-key").value.trim(),
    system: byId("system").value,
    temperature: byId("temperature").valueAsNumber,
    maxTokens: number("max-tokens"),
    seed: number("seed") ?? Math.floor(Math.random() * SEEDS),
    replaysAlways: byId("always-replay").checked,
  };
}

function number(id) {
  const field = byId(id);
  return field.value === "" ? null : field.valueAsNumber;
}
