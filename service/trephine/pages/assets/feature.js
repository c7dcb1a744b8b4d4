"use strict";
(() => {
  const root = document.documentElement;
  const contexts = [...document.querySelectorAll(".contexts li")];
  const toggle = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  };
  const step = by => {
    if (!contexts.length) return;
    const at = contexts.indexOf(document.activeElement);
    const next = contexts[at < 0 ? (by > 0 ? 0 : contexts.length - 1) : Math.min(contexts.length - 1, Math.max(0, at + by))];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  };
  document.getElementById("theme").addEventListener("click", toggle);
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "d") toggle();
    else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
    else return;
    event.preventDefault();
  });
})();
