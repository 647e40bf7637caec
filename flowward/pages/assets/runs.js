// Several runs on one page. Their values (flowward/pages/watch/overlay.py) come from the page itself (`flowward compare`)
// or from the server's stream of events (`flowward watch`): first all runs, then only what is new. All text is set as text.
"use strict";
(() => {
  const runs = new Map(), specs = {}, colours = new Map(), figures = new Map();  // by run; by name of chart
  const embedded = document.querySelector("#runs");
  const at = (id) => document.getElementById(id);
  const FIRST = 5;  // runs that are drawn until the reader chooses
  const SHAPES = ["M8 3a5 5 0 1 0 .01 0z", "M8 2l6 6-6 6-6-6z", "M3 3h10v10H3z", "M8 2.5l6 11H2z", "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z"];
  let chosenByReader = false, clock = 0, folder = {};  // clock: seconds that the server's clock is ahead

  function el(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children.filter((child) => child !== "" && child !== null));
    return made;
  }
  function mark(colour) {
    const made = el("span", { class: "mark", "aria-hidden": "true" });
    if (colour === undefined) return made;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), path = document.createElementNS(svg.namespaceURI, "path");
    svg.setAttribute("viewBox", "0 0 16 16");
    path.setAttribute("d", SHAPES[(colour + Math.floor(colour / 5)) % 5]);
    path.style.fill = `var(--part-${colour % 5})`;
    svg.append(path);
    made.append(svg);
    return made;
  }
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  const sorted = () => [...runs.values()].sort((a, b) => a.id < b.id ? -1 : 1);
  const chosen = () => sorted().filter((run) => colours.has(run.id));
  const short = (id) => id.length > 28 ? `…${id.slice(-27)}` : id;

  // Which runs are drawn. A colour stays with its run as long as that is chosen.
  function choose(id, on) {
    if (!on) return colours.delete(id);
    if (colours.has(id)) return;
    const taken = new Set(colours.values());
    let free = 0;
    while (taken.has(free)) free++;
    colours.set(id, free);
  }
  function chooseFirst() {
    const rank = (run) => (run.facts.state === "running" ? 1e12 : 0) + run.facts.last;
    const order = sorted().sort((a, b) => rank(b) - rank(a)).slice(0, embedded ? 25 : FIRST).map((run) => run.id);
    const kept = embedded ? null : remembered();
    sorted().filter((run) => kept ? kept.includes(run.id) : order.includes(run.id)).forEach((run) => choose(run.id, true));
  }
  function remembered() {
    try { return JSON.parse(sessionStorage.getItem("chosen")); } catch { return null; }
  }
  function remember() {
    chosenByReader = true;
    try { sessionStorage.setItem("chosen", JSON.stringify([...colours.keys()])); } catch { /* a private window */ }
  }

  // The values of a run: replaced, or continued by those of its new lines.
  function put(given) {
    forget(given.id);
    Object.assign(specs, given.charts);
    runs.set(given.id, { id: given.id, facts: given.facts, settings: given.settings, series: given.series, axes: given.axes });
    for (const kind of ["trained", "evaluated"]) charts.axes[`${given.id} ${kind}`] = { ...given.axes[kind], run: given.id };
  }
  function append(given) {
    const run = runs.get(given.id);
    Object.assign(specs, given.charts);
    run.facts = given.facts;
    const before = {}, added = {};
    for (const kind of ["trained", "evaluated"]) {
      const axis = charts.axes[`${given.id} ${kind}`], fresh = given.axes[kind];
      [before[kind], added[kind]] = [axis.iteration.length, fresh.iteration.length];
      for (const part of ["iteration", "samples", "seconds"]) axis[part].push(...fresh[part]);
    }
    for (const [name, fresh] of Object.entries(given.series)) run.series[name] ??= { axis: fresh.axis, y: [] };
    for (const [name, series] of Object.entries(run.series)) {
      const fresh = given.series[name] ?? {}, many = before[series.axis], more = added[series.axis];
      for (const part of ["y", "low", "high", "said"]) {
        if (!series[part] && !fresh[part]) continue;
        const filler = part === "said" ? "" : null;
        series[part] = [...(series[part] ?? Array(many).fill(filler))];
        while (series[part].length < many) series[part].push(filler);
        series[part].push(...(fresh[part] ?? Array(more).fill(filler)));
      }
    }
  }
  function forget(id) {
    runs.delete(id);
    for (const kind of ["trained", "evaluated"]) delete charts.axes[`${id} ${kind}`];
  }

  // Words: those of the chosen runs, which may train on images and on episodes.
  const words = (name) => [...new Set(chosen().map((run) => run.facts.nouns[name]))].join(" or ");
  function drawWords() {
    if (!colours.size) return;
    at("noun").textContent = words("samples");
    document.querySelectorAll("[data-option=x] [value=samples]").forEach((option) => { option.textContent = words("samples"); });
    at("intervals").textContent = `Brackets and bands are 95 % confidence intervals over ${words("intervals")}. They do not cover ${words("beyond")} or other training seeds.`;
  }

  // Charts: one for each name that a chosen run has.
  function drawCharts(changed = null) {
    const own = chosen(), heads = new Set(own.map((run) => run.facts.headline).filter(Boolean));
    const wanted = new Set(own.flatMap((run) => Object.keys(run.series)));
    const names = Object.keys(specs).filter((name) => wanted.has(name)), places = {};
    for (const name of names) {
      const spec = specs[name], isHead = heads.has(spec.score);
      if (spec.section === "category" && !isHead) continue;
      const section = spec.section === "score" && !isHead ? "category" : spec.section;
      (places[section] ??= []).push(name);
    }
    for (const section of ["score", "category", "reward", "part", "watched", "other", "step"]) {
      arrange(at(`charts-${section}`), places[section] ?? [], ["score", "reward"].includes(section) ? 320 : 200);
    }
    const shown = new Set(Object.values(places).flat());
    for (const [name, made] of figures) if (!shown.has(name)) {
      charts.remove(made.querySelector("figure"));
      made.remove();
      figures.delete(name);
    }
    drawWords();
    charts.measure();
    for (const name of shown) if (changed === null || runs.get(changed)?.series[name]) {
      charts.change(figures.get(name).querySelector("figure"), merged(name, own, heads.size > 1));
    }
    for (const id of ["other", "step"]) at(`charts-${id}`).parentElement.hidden = !places[id];
    at("scores").querySelector("h2").textContent = places.score || places.category ? "Scores" : "Scores: no evaluation has been recorded";
  }
  function merged(name, own, severalHeads) {
    const spec = specs[name], key = name.slice(name.indexOf("/") + 1);
    const series = own.filter((run) => run.series[name]).map((run) => {
      const { axis, ...rest } = run.series[name];
      return { ...rest, axis: `${run.id} ${axis}`, name: run.id, key, colour: colours.get(run.id) };
    });
    const title = spec.section === "category" && severalHeads ? `${spec.score}, ${spec.title}` : spec.title;
    return { ...spec, title, series, legend: false };
  }
  function arrange(place, names, height) {
    names.forEach((name, k) => {
      const made = figures.get(name) ?? figure(name);
      made.querySelector("figure").style.setProperty("--height", `${height}px`);
      if (place.children[k] !== made) place.insertBefore(made, place.children[k] ?? null);
    });
  }
  function figure(name) {
    const spec = specs[name], made = el("div", {},
      el("figure", { class: "chart", role: "group", "aria-label": spec.title }, el("figcaption", {}, spec.title), el("div", { class: "plot" })));
    if (spec.key && spec.section !== "reward") {
      const note = el("p", { class: "note" }, el("code", {}, spec.key));
      if (spec.line) note.append(`: ${spec.line}. `, el("b", {}, "Healthy:"), ` ${spec.healthy}.`);
      made.append(note);
    }
    figures.set(name, made);
    return made;
  }

  // The table of runs, and what is said above it.
  const HEADS = ["run", "what", "state", "iteration", "last line", "headline score", "change", "warnings"];
  function row(run) {
    const facts = run.facts, box = el("input", { type: "checkbox" });
    box.checked = colours.has(run.id);
    box.addEventListener("change", () => { choose(run.id, box.checked); remember(); drawAll(); });
    const state = [el("span", { class: `state ${facts.state}` }, facts.state), facts.said ? el("span", { class: "quiet" }, facts.said) : ""];
    const warned = facts.health.reduce((sum, [, many]) => sum + Number(many.replaceAll(",", "")), 0);
    const cells = [
      [el("label", {}, box, mark(colours.get(run.id)), el("span", {}, run.id))],
      [facts.wrong || facts.what], state, [`${facts.iteration.toLocaleString("en")}${facts.planned ? ` / ${facts.planned.toLocaleString("en")}` : ""}`],
      [el("span", { "data-since": facts.last })], [facts.score || "no evaluation"], [facts.change], [warned ? String(warned) : ""],
    ];
    return el("tr", { role: "row" }, ...cells.map((cell, k) => {
      const made = el("td", { role: "cell", ...([3, 6, 7].includes(k) ? { class: "number" } : {}), ...(k ? { "data-head": HEADS[k] } : {}) });
      made.append(...cell.filter((part) => part !== ""));
      return made;
    }));
  }
  function drawTable() {
    const focus = [...at("rows").querySelectorAll("input")].indexOf(document.activeElement);
    at("rows").replaceChildren(...sorted().map(row));
    if (focus >= 0) at("rows").querySelectorAll("input")[focus]?.focus();
    at("legend").replaceChildren(...chosen().map((run) => el("span", { title: run.id }, mark(colours.get(run.id)), short(run.id))));
    at("legend").hidden = !colours.size;
    at("thinned").hidden = !chosen().some((run) => run.facts.thinned);
    at("choices").hidden = runs.size < 2;
    document.querySelector("[data-choose=running]").hidden = !sorted().some((run) => run.facts.state === "running");
    const said = unlike();
    at("notice").hidden = !said;
    at("notice").textContent = said;
    at("empty").hidden = runs.size > 0;
    at("empty").textContent = folder.there === false ? `${folder.folder} was deleted or moved.`
      : `There are no runs in ${folder.folder} yet. This page shows them as soon as they start.`;
    document.querySelectorAll("section:not(#table), .wide, .contents").forEach((part) => { part.hidden = !runs.size; });
    const unseen = colours.size > 0 && !chosen().some((run) => run.facts.pictures);  // episodes have no pictures
    for (const part of [at("samples"), document.querySelector("[href='#samples']").parentElement]) part.hidden = unseen || !runs.size;
    since();
  }
  // The same sentence as `overlay.unlike`.
  function unlike() {
    const heads = new Map();
    for (const run of chosen()) {
      const head = run.facts.headline && `${run.facts.headline} on ${run.facts.prompts}`;
      heads.set(head, [...(heads.get(head) ?? []), run.id]);
    }
    const missing = heads.get("") ?? [], parts = [];
    heads.delete("");
    const told = [...heads].map(([head, names]) => `${head} (${names.join(", ")})`).join("; ");
    if (heads.size > 1) parts.push(`the headline scores differ and cannot be compared: ${told}`);
    if (missing.length) parts.push(`no evaluation has been recorded for ${missing.join(", ")}`);
    const said = parts.join("; ");
    return said && `${said[0].toUpperCase()}${said.slice(1)}.`;
  }
  function since() {
    const now = Date.now() / 1000 + clock;
    document.querySelectorAll("[data-since]").forEach((place) => {
      const moment = Number(place.dataset.since);
      place.textContent = embedded ? new Date(1000 * moment).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : ago(Math.max(0, now - moment));
    });
  }
  const ago = (seconds) => seconds < 90 ? `${Math.round(seconds)} s ago` : seconds < 5400 ? `${Math.round(seconds / 60)} min ago`
    : seconds < 172800 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;

  function table(head, rows, words) {
    return el("table", { role: "table", class: "stacked" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head.map((cell) => el("th", { role: "columnheader", scope: "col" }, cell)))),
      el("tbody", { role: "rowgroup" }, ...rows.map((cells) => el("tr", { role: "row" }, ...cells.map((cell, k) =>
        el("td", { role: "cell", ...(k ? { "data-head": head[k] } : {}), ...(k >= words ? { class: "number" } : {}) }, cell))))));
  }
  function drawWarnings() {
    const rows = chosen().flatMap((run) => run.facts.health.map((line) => [run.id, ...line]));
    at("warnings").replaceChildren(rows.length ? table(["run", "warning, with its latest values", "count", "iterations"], rows, 4)
      : el("p", {}, chosen().length ? "No problems found." : "No run is chosen."));
  }
  function drawSettings() {
    const own = chosen(), keys = [...new Set(own.flatMap((run) => Object.keys(run.settings)))];
    const rows = keys.map((key) => [key, ...own.map((run) => run.settings[key] ?? "–")]).filter(([, ...values]) => new Set(values).size > 1);
    const head = ["setting", ...own.map((run) => run.id)], shared = (row) => !row.includes("–"), open = at("differences").querySelector("details")?.open;
    const some = rows.filter((row) => !shared(row)), main = rows.filter(shared);
    at("differences").replaceChildren(main.length ? table(head, main, 99)
      : el("p", {}, own.length < 2 ? "Choose two or more runs." : some.length ? "All settings that every chosen run has are the same." : "The chosen runs have the same settings."));
    if (!some.length) return;
    const more = el("details", {}, el("summary", {}, `${count(some.length, "setting")} that some of these runs do not have`), table(head, some, 99));
    more.open = open ?? false;
    at("differences").append(more);
  }

  // Pictures: the latest of each chosen run at the slider's iteration, the same prompt side by side.
  const slider = at("moments").querySelector("input"), loaded = new Map();
  let moments = [], drawing = 0, visible = false;
  const FEW = 6, OPEN = 9;  // runs side by side; prompts that are always visible
  function drawMoments() {
    const followed = +slider.value >= moments.length - 1;  // at the end, the slider goes on with new pictures
    const now = moments[+slider.value];
    moments = [...new Set(chosen().slice(0, FEW).flatMap((run) => run.facts.samples))].sort((a, b) => a - b);
    slider.max = Math.max(0, moments.length - 1);
    slider.value = followed || now === undefined ? slider.max : Math.max(0, moments.findLastIndex((each) => each <= now));
    at("moments").hidden = moments.length < 2;
    at("about-samples").textContent = !moments.length ? "The chosen runs have no sample images yet."
      : `Each run's latest pictures up to this iteration${colours.size > FEW ? `, of the first ${FEW} chosen runs` : ""}. Select a picture to enlarge it; the arrow keys move on, Escape closes.`;
    drawPictures();
  }
  const when = (iteration) => iteration === 0 ? "before training" : `after ${count(iteration, "iteration")}`;
  async function pictures(run, iteration) {
    if (embedded) return JSON.parse(embedded.textContent).pictures[run.id]?.[iteration] ?? [];
    const key = `${run.id} ${iteration}`;
    if (!loaded.has(key)) {
      const query = new URLSearchParams(location.search);
      query.set("run", run.id);
      query.set("iteration", iteration);
      loaded.set(key, fetch(`pictures?${query}`).then((answer) => answer.ok ? answer.json() : []).catch(() => []));
      if (loaded.size > 200) loaded.delete(loaded.keys().next().value);
    }
    return loaded.get(key);
  }
  async function drawPictures() {
    const iteration = moments[+slider.value], mine = ++drawing;
    if (!visible || iteration === undefined) return iteration === undefined && at("pictures").replaceChildren();
    const label = when(iteration);
    at("moments").querySelector("output").textContent = label[0].toUpperCase() + label.slice(1);
    slider.setAttribute("aria-valuetext", label);
    const cards = new Map();
    const found = await Promise.all(chosen().slice(0, FEW).map(async (run) => {
      const own = run.facts.samples.findLast((each) => each <= iteration);
      return own === undefined ? [] : [run, own, await pictures(run, own)];
    }));
    if (mine !== drawing) return;  // the slider has moved on
    for (const [run, own, shots] of found) for (const shot of shots ?? []) {
      const key = `${shot.number} ${shot.prompt}`, card = cards.get(key) ?? { shot, shots: [] };
      card.shots.push(picture(run, own, shot));
      cards.set(key, card);
    }
    const made = [...cards.values()].map(({ shot, shots }) => el("article", { class: "card" },
      el("p", { class: "prompt", dir: "auto" }, shot.prompt), shot.about ? el("p", { class: "quiet" }, shot.about) : "", el("div", { class: "shots" }, ...shots)));
    const open = at("pictures").querySelector("details")?.open;
    at("pictures").style.setProperty("--pictures", Math.max(1, ...[...cards.values()].map((card) => card.shots.length)));
    at("pictures").replaceChildren(el("div", { class: "cards" }, ...made.slice(0, OPEN)));
    if (made.length > OPEN) {
      const more = el("details", {}, el("summary", {}, count(made.length - OPEN, "more prompt")), el("div", { class: "cards" }, ...made.slice(OPEN)));
      more.open = open ?? false;
      at("pictures").append(more);
    }
  }
  function picture(run, iteration, shot) {
    const alt = `${shot.prompt}, ${run.id}, ${when(iteration)}`;
    const facts = el("span", { class: "facts" }, ...shot.facts.map(([name, value, verdict]) =>
      el("span", { class: `fact ${verdict}` }, [{ right: "✓", wrong: "✗" }[verdict], name, value].filter(Boolean).join(" "))));
    const image = el("img", { src: shot.image, alt, "data-later": "", ...(shot.small ? { class: "small" } : {}) });
    return el("figure", { class: "shot" }, el("button", { type: "button", class: "zoom", "aria-label": `enlarge: ${alt}` }, image),
      el("figcaption", {}, mark(colours.get(run.id)), el("span", {}, short(run.id)), el("span", { class: "quiet" }, `, ${when(iteration)}`), facts));
  }
  slider.addEventListener("input", drawPictures);
  at("moments").querySelectorAll("[data-by]").forEach((button) => button.addEventListener("click", () => {
    slider.value = +slider.value + Number(button.dataset.by);
    drawPictures();
  }));
  new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting || visible) return;
    visible = true;
    drawPictures();
  }, { rootMargin: "400px" }).observe(at("samples"));

  document.querySelectorAll("[data-choose]").forEach((button) => button.addEventListener("click", () => {
    const which = { all: () => true, none: () => false, running: (run) => run.facts.state === "running" }[button.dataset.choose];
    sorted().forEach((run) => choose(run.id, which(run)));
    remember();
    drawAll();
  }));

  // The table is on the screen before the charts are made.
  function drawAll() {
    drawTable();
    requestAnimationFrame(() => setTimeout(() => {
      drawCharts();
      drawWarnings();
      drawSettings();
      drawMoments();
    }));
  }
  function start(given) {
    folder = given;
    clock = given.now - Date.now() / 1000;
    const isNew = !runs.size;
    [...runs.keys()].filter((id) => !given.runs.some((run) => run.id === id)).forEach(gone);
    given.runs.forEach(put);
    if (isNew) chooseFirst();
    drawAll();
  }
  function gone(id) {
    const run = runs.get(id);
    if (run) run.facts = { ...run.facts, state: "deleted", said: "its curves stay until this page is loaded again" };
  }
  if (embedded) return start(JSON.parse(embedded.textContent));

  // What came is put in at once and drawn at most once in half a second.
  let waits = null, all = false, changed = new Set();
  function soon(id, everything = false) {
    changed.add(id);
    all ||= everything;
    waits ??= setTimeout(() => {
      const some = changed;
      [waits, changed] = [null, new Set()];
      if (all) drawAll();
      else {
        drawTable();
        for (const each of some) if (colours.has(each)) drawCharts(each);
        drawWarnings();
        drawMoments();
      }
      all = false;
    }, 500);
  }
  const source = new EventSource(`events${location.search}`);
  const on = (name, act) => source.addEventListener(name, (event) => act(JSON.parse(event.data)));
  const live = (words) => { at("state").textContent = words; };
  source.addEventListener("open", () => live("Following: new lines appear without a reload."));
  source.addEventListener("error", () => live("Not connected: flowward watch has ended, or the network is down. Trying again …"));
  on("runs", start);
  on("folder", (given) => { folder = given; drawTable(); });
  on("run", (given) => {
    const isNew = !runs.has(given.id);
    put(given);
    if (isNew && !chosenByReader && colours.size < FIRST) choose(given.id, true);
    soon(given.id, true);
  });
  on("lines", (given) => { append(given); soon(given.id); });
  on("facts", (given) => {
    const run = runs.get(given.id), grown = run.facts.samples.length !== given.facts.samples.length;
    run.facts = given.facts;
    soon(given.id, grown);
  });
  on("gone", ({ id }) => { gone(id); soon(id); });
  setInterval(since, 5000);
})();
