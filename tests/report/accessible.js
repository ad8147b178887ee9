// What axe would find that the page could get wrong, as far as a few lines can: texts too faint to read, and controls,
// regions and pictures without a name. An expression: {faint: [...], nameless: [...], levels: [...], stuck: [...]}.
(() => {
  const channel = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = (color) => {
    const [r, g, b] = color.match(/[\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (!/, 0\)$/.test(color)) return color;
    }
  };
  const told = (element) => element.outerHTML.slice(0, 100);
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!words || element instanceof SVGElement || element.closest("figure, .plotted") || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${told(element)} ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  const named = (e) => e.ariaLabel || e.alt || e.labels?.length || e.textContent.trim() || document.getElementById(e.getAttribute("aria-labelledby"));
  const roles = "a, button, input, select, summary, table, img, [role=region], [role=slider], [role=img]";
  const wide = [...document.querySelectorAll(".wide[role]")].filter((e) => e.scrollWidth > e.clientWidth + 1);
  return {
    faint,
    nameless: [...document.querySelectorAll(roles)].filter((e) => !named(e)).map(told),
    levels: [...document.querySelectorAll("h1, h2, h3, h4")].map((h) => Number(h.tagName[1])),
    stuck: wide.filter((e) => e.tabIndex < 0).map(told),
  };
})()
