// The chosen colours, before anything is painted. A classic script on purpose: modules run later, and the page would flash.
try {
  const chosen = localStorage.getItem("vision-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  /* no storage: the system's colours */
}
