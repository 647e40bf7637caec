// Draws every <figure class="chart"> with Plotly, when it comes into view: in the colours of the page, against what the
// reader has chosen. The figure's JSON is `Chart.data()` of flowward/pages/parts.py.
"use strict";
(() => {
  const axes = JSON.parse(document.querySelector("#axes").textContent);
  const chosen = { x: "iteration", smooth: null, log: false };
  const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const figures = [...document.querySelectorAll("figure.chart")];
  const specs = new Map(figures.map((figure) => [figure, JSON.parse(figure.querySelector("script").textContent)]));
  const drawn = new Set();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const seriesColour = (series) => colour(`--part-${(series.colour ?? 0) % 5}`);
  const kind = (series) => { const k = series.colour ?? 0; return (k + Math.floor(k / 5)) % 5; };  // of 25 runs no two look alike
  const faint = (hex, share) => hex + Math.round(255 * share).toString(16).padStart(2, "0");

  // What the runs of the page train on, as the choice of the x axis calls it.
  const noun = () => document.querySelector("[data-option=x] [value=samples]")?.textContent ?? "samples";
  let unit, size, titles;
  function measure() {
    const longest = Math.max(0, ...Object.values(axes).map((axis) => axis.seconds?.at(-1) ?? 0));
    [unit, size] = longest > 7200 ? ["h", 3600] : longest > 180 ? ["min", 60] : ["s", 1];
    titles = { iteration: "iteration", samples: `training ${noun()}`, seconds: `wall time (${unit})` };
    if (chosen.smooth !== null || !Object.keys(axes).length) return;
    const points = Math.max(0, ...Object.values(axes).map((axis) => axis.iteration?.length ?? 0));
    chosen.smooth = points > 75 ? 0.8 : 0;
    document.querySelectorAll("[data-option=smooth]").forEach((input) => { input.value = chosen.smooth; });
  }
  measure();
  const values = (series) => {
    const axis = axes[series.axis], own = axis[chosen.x];
    return !own ? axis.iteration : chosen.x === "seconds" ? own.map((x) => x / size) : own;
  };

  // Exponential moving average without the bias of its start.
  function smoothed(y) {
    let sum = 0, weight = 0;
    return y.map((value) => {
      if (value === null) return null;
      sum = chosen.smooth * sum + (1 - chosen.smooth) * value;
      weight = chosen.smooth * weight + (1 - chosen.smooth);
      return sum / weight;
    });
  }

  function curves(spec, several) {
    return spec.series.flatMap((series) => {
      const x = values(series), tint = seriesColour(series), parts = [];
      const name = escaped(series.name ?? spec.title);
      if (series.low) {
        const edge = { type: "scatter", x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
        parts.push({ ...edge, y: series.low });
        parts.push({ ...edge, y: series.high, fill: "tonexty", fillcolor: faint(tint, spec.series.length > 2 ? 0.1 : 0.2) });
      }
      const smooth = spec.smooth && chosen.smooth > 0;
      const line = {
        type: "scatter", x, y: series.y, name, showlegend: several && !smooth, text: series.said?.map(escaped),
        mode: spec.dots || x.length < 30 ? "lines+markers" : "lines",
        line: { color: smooth ? faint(tint, 0.3) : tint, width: smooth ? 1 : 2, dash: DASHES[kind(series)] },
        marker: { size: 7, color: tint, symbol: SYMBOLS[kind(series)] },
        hovertemplate: series.said ? "%{text}" : "%{y:.4g}", cliponaxis: false,
      };
      parts.push(line);
      if (smooth) {
        parts.push({
          ...line, y: smoothed(series.y), name: `${name}, smoothed`, showlegend: false, text: undefined,
          line: { ...line.line, color: tint, width: 2 }, hovertemplate: "%{y:.4g}",
          ...(several ? { name, showlegend: true, hoverinfo: "skip", hovertemplate: undefined } : {}),
        });
      }
      return parts;
    });
  }

  // One row per category; the series beside each other within it.
  function rows(spec) {
    const many = spec.series.length;
    return spec.series.map((series, k) => {
      const at = spec.categories.map((_, row) => row + (many > 1 ? (0.5 * k) / (many - 1) - 0.25 : 0));
      const reach = (end, sign) => series.y.map((y, i) => {
        const edge = series[end]?.[i] ?? null;
        return y === null || edge === null ? 0 : sign * (edge - y);
      });
      return {
        type: "scatter", mode: "markers", x: series.y, y: at, name: escaped(series.name ?? spec.title), showlegend: many > 1,
        marker: { size: 9, color: seriesColour(series), symbol: SYMBOLS[kind(series)] },
        error_x: {
          type: "data", symmetric: false, array: reach("high", 1), arrayminus: reach("low", -1),
          color: seriesColour(series), thickness: 1.5, width: 4,
        },
        text: series.said?.map(escaped), hovertemplate: "%{text}<extra>%{fullData.name}</extra>", cliponaxis: false,
      };
    });
  }

  function layout(spec, figure) {
    const ink = colour("--ink"), rule = colour("--rule");
    const bare = { zeroline: false, gridcolor: rule, linecolor: rule, automargin: true };
    const flat = spec.categories !== undefined;
    const y = spec.series.flatMap((series) => [series.y, series.low ?? []].flat()).filter((value) => value !== null);
    const log = chosen.log && spec.log && y.every((value) => value > 0);
    const amount = {
      ...bare, nticks: 6, ticksuffix: spec.suffix ?? "", exponentformat: "e", type: log ? "log" : "linear",
      ...(spec.limits ? { range: widened(spec.limits) } : {}),
      ...(!spec.limits && !log && y.every((value) => value >= 0) ? { rangemode: flat ? "normal" : "nonnegative" } : {}),
    };
    const moment = {
      ...bare, showgrid: false, ...whole(spec), title: { text: spec.x ?? titles[chosen.x], standoff: 4, font: { size: 11 } },
      hoverformat: chosen.x === "seconds" && !spec.x ? ".3g" : "",
    };
    const names = {
      ...bare, showgrid: false, autorange: "reversed", tickvals: spec.categories?.map((_, k) => k),
      ticktext: spec.categories?.map(shortened), range: [(spec.categories?.length ?? 0) - 0.5, -0.5],
    };
    if (flat) delete names.autorange;
    return {
      height: figure.querySelector(".plot").clientHeight, margin: { l: 48, r: 14, t: 10, b: 40 },
      font: { family: "system-ui, sans-serif", size: 12, color: ink },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hovermode: flat ? "closest" : "x unified", dragmode: matchMedia("(hover: none)").matches ? false : "zoom",
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: rule, font: { color: ink } },
      legend: { orientation: "h", traceorder: "normal", x: 0, y: 1.02, yanchor: "bottom" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: ink, orientation: "h" },
      xaxis: flat ? amount : moment, yaxis: flat ? names : amount,
      uirevision: `${chosen.x} ${chosen.log}`,  // what the reader has zoomed into stays when new points come
    };
  }
  // Iterations and samples are whole numbers: a few of them get a tick each.
  const whole = (spec) => {
    if (spec.categories) return {};
    const x = spec.series.flatMap((series) => values(series)), span = Math.max(...x) - Math.min(...x);
    return chosen.x !== "seconds" && span <= 7 ? { dtick: 1 } : { nticks: 7 };
  };
  const widened = ([low, high]) => [low - 0.03 * (high - low), high + 0.03 * (high - low)];
  const shortened = (name) => {
    const words = name.replaceAll("_", " ");
    return escaped(words.length > 22 ? words.slice(0, 21) + "…" : words);
  };
  const escaped = (words) => words.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  // With its title and the colour of the page behind it, which the chart on the page does not have.
  function picture(plot, spec) {
    const title = { text: escaped(spec.title), font: { size: 15 }, x: 0.02 };
    const own = { ...plot.layout, title, paper_bgcolor: colour("--paper") };
    own.margin = { ...own.margin, t: 48 };
    const name = spec.title.replace(/[^\p{L}\p{N}]+/gu, "-") || "chart";
    Plotly.downloadImage({ data: plot.data, layout: own }, { format: "png", filename: name, width: 900, height: 480, scale: 2 });
  }

  function draw(figure) {
    const spec = specs.get(figure), plot = figure.querySelector(".plot");
    if (!plot.clientWidth) return;  // inside a closed <details>
    const traces = spec.categories ? rows(spec) : curves(spec, spec.series.length > 1 && spec.legend !== false);
    const settings = {
      responsive: true, displaylogo: false, displayModeBar: matchMedia("(hover: none)").matches ? true : "hover",
      modeBarButtons: [[
        { name: "png", title: "save as PNG", icon: Plotly.Icons.camera, click: () => picture(plot, spec) }, "resetScale2d",
      ]],
    };
    Plotly.react(plot, traces, layout(spec, figure), settings);
    drawn.add(figure);
  }
  const again = () => drawn.forEach(draw);

  // For pages whose charts are made, or change, after they were loaded (runs.js).
  function change(figure, spec) {
    specs.set(figure, spec);
    if (!figures.includes(figure)) {
      figures.push(figure);
      seen.observe(figure);
    } else if (drawn.has(figure)) draw(figure);
  }
  function remove(figure) {
    figures.splice(figures.indexOf(figure), 1);
    seen.unobserve(figure);
    specs.delete(figure);
    if (drawn.delete(figure)) Plotly.purge(figure.querySelector(".plot"));
  }
  globalThis.charts = { axes, change, remove, measure };

  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting || drawn.has(entry.target)) return;
    draw(entry.target);
  }), { rootMargin: "300px" });
  figures.forEach((figure) => seen.observe(figure));
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", () => {
    if (part.open) part.querySelectorAll("figure.chart").forEach((figure) => { seen.unobserve(figure); seen.observe(figure); });
  }));
  addEventListener("beforeprint", () => figures.forEach((figure) => drawn.has(figure) || draw(figure)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

  const read = (input) => input.type === "checkbox" ? input.checked : input.type === "range" ? +input.value : input.value;
  document.querySelectorAll("[data-option]").forEach((input) => input.addEventListener("input", () => {
    const option = input.dataset.option;
    chosen[option] = read(input);
    document.querySelectorAll(`[data-option="${option}"]`).forEach((other) => {
      if (other.type === "checkbox") other.checked = chosen[option];
      else other.value = chosen[option];
    });
    again();
  }));

  // All series with a key as one table, a row for each run and iteration.
  function table() {
    const lines = new Map(), keys = new Set();
    for (const spec of specs.values()) for (const series of spec.series) {
      if (!series.key) continue;
      keys.add(series.key);
      const axis = axes[series.axis], run = axis.run ?? "";
      axis.iteration.forEach((iteration, k) => {
        const line = lines.get(`${run} ${iteration}`) ?? { run, iteration, samples: "", seconds: "" };
        line.samples = axis.samples?.[k] ?? line.samples;
        line.seconds = axis.seconds?.[k] ?? line.seconds;
        line[series.key] = series.y[k] ?? "";
        lines.set(`${run} ${iteration}`, line);
      });
    }
    const runs = [...lines.values()].some((line) => line.run) ? ["run"] : [];
    const head = [...runs, "iteration", "samples", "seconds", ...keys];
    const names = head.map((key) => key === "samples" ? noun() : key);
    const cell = (value) => /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
    const order = [...lines.values()].sort((a, b) => a.run < b.run ? -1 : a.run > b.run ? 1 : a.iteration - b.iteration);
    return [names, ...order.map((line) => head.map((key) => line[key] ?? ""))].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }
  document.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
    link.download = button.dataset.save;
    link.click();
    URL.revokeObjectURL(link.href);
  }));
})();
