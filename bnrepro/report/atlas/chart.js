// Curves to be read: uPlot draws, the mouse or the arrow keys read values, and the same values stand in a table below.
"use strict";
(() => {
  const LIGHT = ["#0b4f9e", "#b3440b", "#00735c", "#8a3f8f", "#6b5900", "#c0244d", "#3d3d3d", "#1f7a99"];
  const DARK = ["#8ab8f5", "#f2a070", "#58cfb0", "#dba0e0", "#d8c24a", "#f58fa8", "#d0d0d0", "#7fd0ea"];
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
  const FIRST = 8; // lines that are shown at first
  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const named = (text) => text.replaceAll("_", " ").replace(/^(val|train)\b/, (short) => ({ val: "validation", train: "training" })[short]);
  const digits = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());
  const dark = () => getComputedStyle(document.body).backgroundColor !== "rgb(255, 255, 255)";

  // Mean over seeds with its interval by Student's t; of losses, those of the logarithm, as in the figures.
  function over(values, column, quantiles) {
    const log = column.endsWith("loss");
    const found = values.filter((v) => v !== null && (!log || v > 0)).map((v) => (log ? Math.log(v) : v));
    if (!found.length) return [null, null, null, 0];
    const n = found.length;
    const mean = found.reduce((a, b) => a + b, 0) / n;
    const spread = n > 1 ? Math.sqrt(found.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1)) : 0;
    const half = n > 1 ? (quantiles[Math.min(n, quantiles.length - 1)] * spread) / Math.sqrt(n) : 0;
    return [...[mean, mean - half, mean + half].map((v) => (log ? Math.exp(v) : v)), n];
  }

  class Chart {
    constructor(box) {
      this.box = box;
      const data = JSON.parse(document.getElementById(box.dataset.curves).textContent);
      this.quantiles = data.t;
      this.charts = data.charts;
      this.hidden = new Map(this.charts.map((chart) => {
        const moving = chart.lines.filter((line) => line.step.length > 1).slice(0, FIRST); // not those of one evaluation
        return [chart, new Set(chart.lines.filter((line) => !moving.includes(line)).map((line) => line.label))];
      }));
      this.controls();
      this.draw();
      new ResizeObserver(() => this.plot?.setSize({ width: this.frame.clientWidth, height: this.height() })).observe(this.frame);
      document.addEventListener("theme", () => this.draw());
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    }

    controls() {
      const select = (label, options, change) => {
        const field = make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
        field.addEventListener("change", change);
        this.bar.append(make("label", {}, `${label} `, field));
        return field;
      };
      const check = (label) => {
        const field = make("input", { type: "checkbox" });
        field.addEventListener("change", () => this.draw());
        this.bar.append(make("label", {}, field, label));
        return field;
      };
      const redraw = () => this.draw();
      this.bar = make("div", { className: "controls" });
      this.part = select("Part", this.charts.map((chart, i) => [i, named(chart.part)]), () => { this.fill(); this.draw(); });
      this.part.parentElement.hidden = this.charts.length < 2;
      this.column = select("Shown", [], redraw);
      this.x = select("against", [["epoch", "epoch"], ["step", "step"]], redraw);
      this.mode = select("as", [["mean", "mean and 95% interval"], ["seeds", "every seed"]], redraw);
      this.logY = check("log y");
      this.logX = check("log x");
      this.lines = make("fieldset");
      this.frame = make("div", { className: "plotted", tabIndex: 0 });
      this.frame.setAttribute("role", "slider");
      this.frame.setAttribute("aria-label", `Curves of ${this.box.dataset.title}: arrow keys read values`);
      this.frame.setAttribute("aria-orientation", "horizontal");
      this.frame.addEventListener("keydown", (event) => this.key(event));
      this.reading = make("p", { className: "reading" });
      this.reading.setAttribute("role", "status");
      this.table = make("details", {}, make("summary", {}, "The same values as a table"));
      this.table.addEventListener("toggle", () => this.tabulate());
      this.box.append(make("h3", {}, "Curves"), this.bar, this.lines, this.frame, this.reading, this.table);
      this.box.hidden = false;
      this.fill();
    }

    get chart() { return this.charts[this.part.value]; }
    get shown() { return this.chart.lines.filter((line) => !this.hidden.get(this.chart).has(line.label) && line[this.column.value]); }
    height() { return Math.max(260, Math.min(420, this.frame.clientWidth * 0.5)); }
    look(line) {
      const place = this.chart.lines.indexOf(line);
      const colors = dark() ? DARK : LIGHT;
      return { color: colors[place % colors.length], dash: DASHES[Math.floor(place / colors.length) % DASHES.length] };
    }

    fill() {
      this.column.replaceChildren(...this.chart.columns.map((column) => make("option", { value: column }, named(column))));
      const preferred = this.chart.columns.find((column) => column.startsWith("val")) ?? this.chart.columns[0];
      this.column.value = preferred;
    }

    legend() {
      const hidden = this.hidden.get(this.chart);
      const all = make("button", { type: "button" }, hidden.size ? "Show all" : "Hide all");
      all.addEventListener("click", () => {
        if (hidden.size) hidden.clear();
        else for (const line of this.chart.lines) hidden.add(line.label);
        this.draw();
        this.lines.querySelector("button")?.focus();
      });
      this.lines.replaceChildren(make("legend", { className: "hidden" }, "Lines"));
      for (const line of this.chart.lines) {
        const box = make("input", { type: "checkbox", checked: !hidden.has(line.label) });
        box.addEventListener("change", () => {
          if (box.checked) hidden.delete(line.label);
          else hidden.add(line.label);
          this.draw(false);
        });
        const { color, dash } = this.look(line);
        const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        swatch.setAttribute("class", "swatch");
        swatch.setAttribute("viewBox", "0 0 26 10");
        swatch.setAttribute("aria-hidden", "true");
        swatch.innerHTML = '<path d="M0 5H26" fill="none" stroke-width="3"/>';
        swatch.firstChild.setAttribute("stroke", color);
        swatch.firstChild.setAttribute("stroke-dasharray", dash.join(" "));
        const lost = line.ended.length ? `; ${line.ended.length} diverged` : "";
        this.lines.append(make("label", {}, box, swatch, `${line.label} (n=${line.seeds.length - line.ended.length}${lost})`));
      }
      if (this.chart.lines.length > 2) this.lines.append(all);
    }

    // Rows of uPlot: x, and of each line its mean with the ends of its interval, or each seed.
    rows() {
      const column = this.column.value;
      const xs = [...new Set(this.shown.flatMap((line) => line[this.x.value]))].sort((a, b) => a - b).filter((x) => !this.logX.checked || x > 0);
      const positive = (v) => (v === undefined || (this.logY.checked && v !== null && v <= 0) ? null : v);
      const rows = [];
      for (const line of this.shown) {
        const at = new Map(line[this.x.value].map((x, i) => [x, i]));
        const value = (seed, x) => (at.has(x) ? positive(line[column][seed][at.get(x)]) : null);
        const whole = line.seeds.map((seed, i) => i).filter((i) => !line.ended.includes(line.seeds[i]));
        const ends = xs.map((x) => over(whole.map((i) => value(i, x)), column, this.quantiles));
        rows.push({ line, ends: [0, 1, 2].map((k) => ends.map((end) => positive(end[k]))), seeds: line.seeds.map((_, i) => xs.map((x) => value(i, x))) });
      }
      return { xs, rows };
    }

    draw(legend = true) {
      if (legend) this.legend();
      this.plot?.destroy();
      this.at = null;
      this.now = this.rows();
      const ink = getComputedStyle(document.body).color;
      const grid = { stroke: dark() ? "#3a3e46" : "#e0e0e0", width: 1 };
      const series = [{ label: this.x.value }];
      const bands = [];
      const data = [this.now.xs];
      for (const { line, ends, seeds } of this.now.rows) {
        const { color, dash } = this.look(line);
        const one = { stroke: color, dash, spanGaps: true, points: { show: this.now.xs.length < 2 } };
        if (this.mode.value === "mean") {
          const place = series.length;
          const end = { spanGaps: true, points: { show: false }, auto: false }; // few seeds have wide ends, which would flatten the lines
          series.push({ ...one, width: 2 }, end, { ...end });
          bands.push({ series: [place + 2, place + 1], fill: `${color}26` });
          data.push(...ends);
        } else {
          for (const each of seeds) {
            series.push({ ...one, width: 1 });
            data.push(each);
          }
        }
      }
      const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
      const scale = (log) => (log ? { distr: 3 } : {});
      this.plot = new uPlot({
        width: this.frame.clientWidth || 600, height: this.height(), series, bands, legend: { show: false },
        scales: { x: { time: false, ...scale(this.logX.checked) }, y: scale(this.logY.checked) },
        axes: [{ ...axis, label: this.x.value }, { ...axis, label: named(this.column.value), size: 64 }],
        cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
        hooks: { setCursor: [(plot) => this.read(plot.cursor.idx)] },
      }, data, this.frame);
      this.plot.root.setAttribute("aria-hidden", "true");
      this.read(null);
      this.tabulate();
    }

    key(event) {
      const last = this.now.xs.length - 1;
      const at = this.at ?? -1;
      const to = { ArrowRight: Math.min(at + 1, last), ArrowUp: Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, 0), ArrowDown: Math.max(at - 1, 0), Home: 0, End: last }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      this.plot.setCursor({ left: this.plot.valToPos(this.now.xs[to], "x"), top: 10 });
      this.read(to);
    }

    // What the lines say at a place, in words; a line that was not evaluated there gives no value.
    words(i) {
      return this.now.rows.filter(({ ends, seeds }) => ends[0][i] !== null || seeds.some((each) => each[i] !== null)).map(({ line, ends, seeds }) => {
        if (this.mode.value === "seeds") return `${line.label}: ${seeds.map((each) => digits(each[i])).join(", ")}`;
        const [mean, low, high] = ends.map((end) => end[i]);
        return `${line.label}: ${digits(mean)}${low !== high ? ` [${digits(low)}, ${digits(high)}]` : ""}`;
      });
    }

    read(i) {
      if (i === this.at && i !== null) return;
      this.at = i ?? null;
      const there = this.at !== null && this.now.xs.length > 0;
      const text = there ? `${this.x.value} ${digits(this.now.xs[i])}: ${this.words(i).join("; ") || "no line was evaluated here"}` : "Hover, or use the arrow keys, to read values; drag to zoom, double-click to zoom out.";
      this.reading.textContent = text;
      this.frame.setAttribute("aria-valuemin", 0);
      this.frame.setAttribute("aria-valuemax", Math.max(0, this.now.xs.length - 1));
      this.frame.setAttribute("aria-valuenow", there ? this.at : 0);
      this.frame.setAttribute("aria-valuetext", text);
    }

    tabulate() {
      this.table.querySelector(".wide")?.remove();
      if (!this.table.open) return;
      const head = make("tr", {}, make("th", { scope: "col", className: "number" }, this.x.value), ...this.now.rows.map(({ line }) => make("th", { scope: "col", className: "number" }, line.label)));
      const cell = ({ ends, seeds }, i) => this.mode.value === "seeds" ? seeds.map((each) => fixed(each[i])).join(" ") : ends[0][i] === null ? "–" : `${fixed(ends[0][i])} [${fixed(ends[1][i])}, ${fixed(ends[2][i])}]`;
      const body = this.now.xs.map((x, i) => make("tr", {}, make("th", { scope: "row", className: "number" }, digits(x)), ...this.now.rows.map((row) => make("td", { className: "number" }, cell(row, i)))));
      const region = make("div", { className: "wide", tabIndex: 0 }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
      region.setAttribute("role", "region");
      region.setAttribute("aria-label", `${named(this.column.value)} by ${this.x.value}`);
      this.table.append(region);
    }
  }

  const fixed = (value) => (value === null ? "–" : value.toFixed(4));
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      new Chart(target);
    }
  }, { rootMargin: "200px" });
  for (const box of document.querySelectorAll(".chart")) {
    box.hidden = false; // so that it is seen
    seen.observe(box);
  }
})();
