// Hints below tables and figures that are wider than their place. For the report and for the site.
"use strict";
(() => {
  const look = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const wide = target.scrollWidth > target.clientWidth + 1;
      const there = target.nextElementSibling?.matches(".hint") ? target.nextElementSibling : null;
      if (wide && !there) {
        const hint = document.createElement("p");
        hint.className = "hint";
        hint.textContent = "⇄ wider than the screen: it scrolls sideways";
        target.after(hint);
      } else if (!wide && there) there.remove();
      if (wide || target.scrollHeight > target.clientHeight + 1) target.tabIndex = 0;
      else target.removeAttribute("tabindex"); // nothing to scroll: no stop for the keyboard
    }
  });
  for (const each of document.querySelectorAll(".wide[role], .paper[role], .pst-scrollable-table-container")) look.observe(each);
})();
