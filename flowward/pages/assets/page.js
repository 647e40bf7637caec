// The enlarged view of pictures, the slider over the iterations of a run, and copyable commands.
"use strict";
(() => {
  const full = document.querySelector("dialog.enlarged");
  const image = full.querySelector("img");
  let around = [], at = 0;  // the pictures of the same gallery, and which of them is shown

  function show(number) {
    at = (number + around.length) % around.length;
    const own = around[at].querySelector("img"), card = around[at].closest(".card");
    image.src = own.src;
    image.alt = own.alt;
    image.className = own.className;
    full.querySelector(".prompt").textContent = card?.querySelector(".prompt")?.textContent ?? "";
    const said = around[at].closest("figure")?.querySelector("figcaption")?.innerText.split(/\s*\n\s*/).filter(Boolean).join(" · ");
    full.querySelector(".quiet").textContent = `${said || own.alt} (${at + 1} of ${around.length})`;
    full.classList.toggle("alone", around.length < 2);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.zoom");
    if (!button) return;
    const gallery = button.closest("[data-gallery]") ?? button.parentElement;
    around = [...gallery.querySelectorAll("button.zoom")].filter((each) => each.offsetParent);
    show(around.indexOf(button));
    full.showModal();
  });
  full.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    show(at + by);
  });
  full.querySelectorAll("[data-move]").forEach((button) =>
    button.addEventListener("click", () => show(at + Number(button.dataset.move))));
  full.querySelector("[data-close]").addEventListener("click", () => full.close());
  full.addEventListener("click", (event) => { if (event.target === full || event.target === image) full.close(); });

  // Pictures that follow a slider: of each, what it shows at each moment, in the JSON of its section.
  document.querySelectorAll("[data-moments]").forEach((section) => {
    const slider = section.querySelector(".slider input");
    if (!slider) return;
    const { moments, frames } = JSON.parse(section.querySelector("script.frames").textContent);
    const places = [...section.querySelectorAll("img[data-later]")];
    const last = places.map((place) => place.src);
    const players = places.map((place) => place.closest("figure").querySelector("[data-later-sound]"));
    const sounds = players.map((player) => player?.src);
    function move() {
      const now = +slider.value;
      section.querySelector(".slider output").textContent = moments[now];
      slider.setAttribute("aria-valuetext", moments[now]);
      places.forEach((place, k) => {
        const frame = frames[k][now], figure = place.closest("figure");
        place.src = frame.image ?? last[k];
        place.alt = frame.alt;
        place.closest("button").setAttribute("aria-label", `enlarge: ${frame.alt}`);
        if (players[k]) {
          const sound = "image" in frame ? frame.sound ?? "" : sounds[k];
          players[k].hidden = !sound;
          if (players[k].src !== sound) players[k].src = sound;
          players[k].ariaLabel = `listen: ${frame.alt}`;
        }
        const label = figure.querySelector("[data-later-label]"), facts = figure.querySelector("[data-later-facts]");
        if (label) label.textContent = moments[now];
        if (facts) facts.replaceChildren(...(frame.facts ?? []).map(detail));
      });
    }
    function detail([name, value, verdict]) {
      const line = document.createElement("span");
      line.className = `fact ${verdict}`;
      line.textContent = [{ right: "✓", wrong: "✗" }[verdict], name, value].filter(Boolean).join(" ");
      return line;
    }
    slider.addEventListener("input", move);
    section.querySelectorAll("[data-by]").forEach((button) => button.addEventListener("click", () => {
      slider.value = +slider.value + Number(button.dataset.by);
      move();
    }));
  });

  // Tables that sort: by the first number of a cell, the largest first, or by its words; a second time the other way.
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.querySelectorAll("th")], body = table.tBodies[0];
    const choice = table.closest(".wide").querySelector(".sort-by select");
    const number = (text) => parseFloat(text.replace(/[,\u202f]/g, "").match(/[-+\u2212]?\d+(\.\d+)?/)?.[0].replace("\u2212", "-") ?? "NaN");
    function order(column) {
      const rows = [...body.rows], values = rows.map((row) => number(row.cells[column].textContent));
      const words = heads[column].className !== "number";
      const up = heads[column].ariaSort ? heads[column].ariaSort === "descending" : words;
      const place = rows.map((row, k) => k).sort((a, b) => {
        if (words) return rows[a].cells[column].textContent.localeCompare(rows[b].cells[column].textContent) * (up ? 1 : -1);
        if (isNaN(values[a]) || isNaN(values[b])) return isNaN(values[a]) - isNaN(values[b]);
        return (values[a] - values[b]) * (up ? 1 : -1);
      });
      heads.forEach((head) => { head.ariaSort = null; });
      heads[column].ariaSort = up ? "ascending" : "descending";
      choice.value = column;
      body.replaceChildren(...place.map((k) => rows[k]));
    }
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => order(column)));
    choice.addEventListener("change", () => order(+choice.value));
  });

  document.querySelectorAll(".copyable button").forEach((button) => button.addEventListener("click", () => {
    const command = button.previousElementSibling;
    getSelection().selectAllChildren(command);  // if the page may not use the clipboard, the reader can press Ctrl+C
    navigator.clipboard?.writeText(command.textContent).then(() => { button.textContent = "copied"; });
  }));
})();
