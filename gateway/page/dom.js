// Small helpers over the document. Text always goes through text nodes.

export const byId = (id) => document.getElementById(id);

// element("button", {class: "x", type: "button", onclick: f, "aria-label": "..."}, "text",
// child...) A property that begins with "on" is a listener; false and null leave an attribute out.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const button = (text, onclick, attributes = {}) =>
  element("button", { type: "button", class: "quiet", onclick, ...attributes }, text);

export async function copyText(text, from) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS, on another host than this one, there is no clipboard but by way of a selection.
    const area = element("textarea", { "aria-hidden": "true", class: "off-screen" });
    area.value = text;
    document.body.append(area);
    area.select();
    copied = document.execCommand("copy");
    area.remove();
  }
  const before = from.textContent;
  from.focus();
  from.textContent = copied ? "Copied" : "Not copied";
  say(from.textContent);
  setTimeout(() => (from.textContent = before), 1500);
}

// Offers `text` as a file.
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// A short notice for screen readers; it replaces the last one.
export function say(text) {
  byId("status").textContent = text;
}

// The browser's storages, which it may refuse (then nothing outlives the page) or have full.
export function storageOf(name) {
  try {
    return window[name];
  } catch {
    return {
      length: 0,
      key: () => null,
      getItem: () => null,
      removeItem() {},
      setItem() {
        throw new Error("closed");
      },
    };
  }
}

export const kept = (name, storage = storageOf("localStorage")) => storage.getItem(name);

export function keep(name, value, storage = storageOf("localStorage")) {
  try {
    storage.setItem(name, value);
  } catch {
    // It is forgotten with the page, then.
  }
}
