// The page: two tabs, a theme, the model's name.

import { listModels } from "./api.js";
import { Chat } from "./chat.js";
import { byId, keep, kept } from "./dom.js";
import { Watch } from "./watch.js";

const TABS = ["chat", "watch"];
const THEMES = ["system", "light", "dark"];

const chat = new Chat();
const watch = new Watch();
const key = () => byId("key").value.trim();

function showTab(name, focus = false) {
  for (const tab of TABS) {
    const chosen = tab === name;
    const head = byId(`tab-${tab}`);
    head.setAttribute("aria-selected", String(chosen));
    head.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) head.focus();
    byId(`panel-${tab}`).hidden = !chosen;
  }
  document.body.dataset.tab = name;
  history.replaceState(null, "", name === "chat" ? location.pathname : `#${name}`);
  watch.shown = name === "watch";
}

function setUpTabs() {
  TABS.forEach((tab, index) => {
    const head = byId(`tab-${tab}`);
    head.addEventListener("click", () => showTab(tab));
    head.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step !== undefined) showTab(TABS[(index + step + TABS.length) % TABS.length], true);
    });
  });
  showTab(TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "chat");
}

function setUpTheme() {
  const control = byId("theme");
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    const word = { system: "Auto", light: "Light", dark: "Dark" }[theme];
    control.textContent = word;
    control.setAttribute("aria-label", `${word} colours. Change`);
  };
  let theme = THEMES.includes(kept("weir.theme")) ? kept("weir.theme") : "system";
  show(theme);
  control.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    keep("weir.theme", theme);
    show(theme);
  });
}

function setUpDrawer() {
  const control = byId("drawer");
  const observe = new MutationObserver(() => {
    control.setAttribute("aria-expanded", String(document.body.classList.contains("drawer-open")));
  });
  observe.observe(document.body, { attributeFilter: ["class"] });
  control.addEventListener("click", () => {
    showTab("chat");
    document.body.classList.toggle("drawer-open");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !document.body.classList.contains("drawer-open")) return;
    document.body.classList.remove("drawer-open");
    control.focus();
  });
}

// The server may still be starting, or want a key first.
async function findModel() {
  const place = byId("model");
  try {
    const [name] = await listModels(key());
    chat.modelName = name ?? "";
    place.textContent = name ?? "no model";
    place.title = place.textContent;
  } catch (error) {
    place.textContent = error.needsKey ? "an API key is needed" : "no server";
    if (!error.needsKey) setTimeout(findModel, 3000);
  }
}

setUpTabs();
setUpTheme();
setUpDrawer();
document.addEventListener("weir-key", findModel);
document.addEventListener("visibilitychange", () => watch.wake());
findModel();
if (document.body.dataset.tab === "chat") byId("prompt").focus();
