// The form of a chat's settings, and the API key, which no chat holds.

import { EMPTY_SETTINGS, requestFields } from "./conversation.js";
import { byId, keep, kept, storageOf } from "./dom.js";

const KEY = "weir.key";

function openDrawer() {
  document.body.classList.add("drawer-open");
}

export class SettingsForm {
  #form = byId("settings");
  #key = byId("key");

  constructor(onChange) {
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("input", (event) => {
      if (event.target === this.#key) return;
      this.#mark(this.#problems());
      onChange();
    });
    // Of this browser tab alone, and gone with it.
    this.#key.value = kept(KEY, storageOf("sessionStorage")) ?? "";
    this.#key.addEventListener("change", () => {
      keep(KEY, this.key, storageOf("sessionStorage"));
      document.dispatchEvent(new Event("weir-key"));
    });
  }

  get key() {
    return this.#key.value.trim();
  }

  show(settings) {
    for (const name of Object.keys(EMPTY_SETTINGS))
      this.#form.elements[name].value = settings[name];
    this.#mark(this.#problems());
  }

  values() {
    return Object.fromEntries(
      Object.keys(EMPTY_SETTINGS).map((name) => [name, this.#form.elements[name].value]),
    );
  }

  set(name, value) {
    const field = this.#form.elements[name];
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  // May a request be made of what is here? If not, the fields that are wrong are shown.
  check() {
    const problems = this.#problems();
    const names = Object.keys(problems);
    if (names.length === 0) return true;
    openDrawer();
    this.#mark(problems);
    this.#form.elements[names[0]].focus();
    return false;
  }

  askForKey() {
    openDrawer();
    this.#key.focus();
  }

  #problems() {
    return requestFields(this.values()).problems;
  }

  #mark(problems) {
    for (const name of Object.keys(EMPTY_SETTINGS)) {
      const field = this.#form.elements[name];
      field.setAttribute("aria-invalid", String(name in problems));
      if (name in problems) field.setAttribute("aria-errormessage", "problems");
      else field.removeAttribute("aria-errormessage");
    }
    const text = Object.values(problems).join(" ");
    if (byId("problems").textContent !== text) byId("problems").textContent = text;
  }
}
