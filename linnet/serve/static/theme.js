// Light or dark: as the system has it, or as chosen with the switch.
//
// A classic script in the head, as a module would run after the first paint and the page would flash. The colours are
// all in style.css as light-dark(), so one attribute of the root changes them. The choice is kept for this browser.
"use strict";

(() => {
  const KEPT_AS = "linnet-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

  function kept() {
    try {
      return localStorage.getItem(KEPT_AS);
    } catch {
      return null; // Storage is switched off: the system decides.
    }
  }

  function keep(theme) {
    try {
      localStorage.setItem(KEPT_AS, theme);
    } catch {
      // Then for this page only.
    }
  }

  const chosen = kept();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    const changed = () => {
      show();
      dispatchEvent(new Event("themechange"));
    };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      keep(root.dataset.theme);
      changed();
    });
    system.addEventListener("change", changed);
    show();
  });
})();
