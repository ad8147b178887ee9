// The list of claims: search, filters and order, all of them in the address, so that a view can be sent; and the theme.
// Without this script everything is there, in the order of the papers.
"use strict";
(() => {
  const KEYS = ["q", "paper", "verdict", "kind", "scale", "sort"];
  const form = document.getElementById("filters");
  const table = document.querySelector("table.claims");
  const claims = [...document.querySelectorAll("tbody.claim")];
  const papers = [...document.querySelectorAll("tbody.paper")];
  const bodies = table ? [...table.tBodies] : [];
  const words = new Map();
  let told = false; // while the address is being read, it is not written

  const level = (select) => (body) => [...form.elements[select].options].findIndex((o) => o.value === body.dataset[select]);
  const effect = (body) => (body.dataset.effect === "" ? -Infinity : Number(body.dataset.effect));
  const ORDERS = {
    effect: (a, b) => effect(b) - effect(a),
    verdict: (a, b) => level("verdict")(a) - level("verdict")(b),
    scale: (a, b) => level("scale")(a) - level("scale")(b),
    n: (a, b) => b.dataset.n - a.dataset.n,
  };

  const text = (body) => {
    if (!words.has(body)) words.set(body, `${body.id} ${body.textContent}`.toLowerCase());
    return words.get(body);
  };

  function show() {
    const asked = Object.fromEntries(KEYS.map((key) => [key, form.elements[key].value]));
    const terms = asked.q.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (body) =>
      ["paper", "verdict", "kind", "scale"].every((key) => !asked[key] || body.dataset[key] === asked[key]) &&
      terms.every((term) => text(body).includes(term));
    let count = 0;
    for (const body of claims) count += !(body.hidden = !fits(body));
    for (const body of papers) {
      body.hidden = Boolean(asked.sort) || !claims.some((each) => !each.hidden && each.dataset.paper === body.dataset.paper);
    }
    const order = ORDERS[asked.sort] ? [...papers, ...[...claims].sort(ORDERS[asked.sort])] : bodies;
    table.append(...order);
    table.classList.toggle("sorted", Boolean(asked.sort)); // then a number alone does not say of which paper it is
    document.getElementById("shown").textContent = `${count} of ${claims.length} claims`;
  }

  function write() {
    if (!told) return;
    const state = new URLSearchParams();
    for (const key of KEYS) if (form.elements[key].value) state.set(key, form.elements[key].value);
    const open = claims.filter((body) => body.querySelector("details").open).map((body) => body.id);
    if (open.length) state.set("open", open.join(","));
    history.replaceState(null, "", `#${state.size ? state : "claims"}`);
  }

  function read() {
    const hash = decodeURIComponent(location.hash.slice(1));
    const target = hash && document.getElementById(hash);
    told = false;
    if (hash.includes("=") && !target) {
      const state = new URLSearchParams(location.hash.slice(1));
      for (const key of KEYS) set(key, state.get(key) ?? "");
      const open = (state.get("open") ?? "").split(",");
      for (const body of claims) if (open.includes(body.id)) body.querySelector("details").open = true;
      show();
      document.getElementById("claims").scrollIntoView();
    } else if (target) {
      if (target.hidden) {
        form.reset();
        show();
      }
      const details = target.matches("tbody") ? target.querySelector("details") : null;
      if (details) details.open = true;
      target.scrollIntoView();
    }
    setTimeout(() => { told = true; }); // `toggle` comes after
  }

  function set(key, value) {
    const field = form.elements[key];
    field.value = value;
    if (field.value !== value) field.value = ""; // a level that is not there
  }

  function theme() {
    const button = document.createElement("button");
    const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark" ||
      (getComputedStyle(document.documentElement).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    const name = () => { button.textContent = dark() ? "Light colours" : "Dark colours"; };
    button.id = "theme";
    button.type = "button";
    button.addEventListener("click", () => {
      document.documentElement.style.colorScheme = dark() ? "light" : "dark";
      name();
      document.dispatchEvent(new Event("theme"));
    });
    name();
    document.querySelector("header").append(button);
  }

  theme();
  if (form && table) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => { show(); write(); });
    form.addEventListener("reset", () => setTimeout(() => { show(); write(); }));
    for (const body of claims) body.querySelector("details").addEventListener("toggle", write);
    addEventListener("hashchange", read);
    show();
    read();
  }
})();
