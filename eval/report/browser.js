"use strict";
/* The per-expression browser of a report. One list of which only the visible rows exist; data from the JSON
   block beside it. Text enters the page as text nodes only. */
(() => {
  const ROW = 44, SPARE = 8;
  const TRUTH = [0, 214, 150], ANSWER = [255, 150, 20], VEIL = [20, 26, 38, 165];

  /* Run lengths of a COCO code: six bits a character, signed, from the fourth run on relative to two before. */
  function runsOf(code) {
    const runs = [];
    let at = 0;
    while (at < code.length) {
      let value = 0, shift = 0, bits;
      do {
        bits = code.charCodeAt(at++) - 48;
        value |= (bits & 31) << shift;
        shift += 5;
      } while (bits & 32);
      if (bits & 16) value |= -1 << shift;
      if (runs.length > 2) value += runs[runs.length - 2];
      runs.push(value);
    }
    return runs;
  }

  /* Mask as bytes, row by row; codes run column by column. */
  function decode(code, height, width) {
    const mask = new Uint8Array(height * width);
    let place = 0, inside = 0;
    for (const run of runsOf(code)) {
      if (inside) for (let k = place; k < place + run; k++) mask[(k % height) * width + Math.floor(k / height)] = 1;
      place += run;
      inside = 1 - inside;
    }
    return mask;
  }

  function make(tag, name, text) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  /* A photo with a mask over it: clear inside, a bright edge, a dark veil outside. */
  function picture(image, code, colour, label) {
    const [height, width, uri] = image;
    const canvas = make("canvas");
    const scale = Math.max(1, Math.floor(256 / Math.max(height, width)));
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    const pen = canvas.getContext("2d");
    const paint = (photo) => {
      pen.imageSmoothingEnabled = false;
      pen.fillStyle = "#888";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      if (photo) pen.drawImage(photo, 0, 0, canvas.width, canvas.height);
      if (code !== null) pen.drawImage(layer(code, height, width, scale, colour), 0, 0);
    };
    paint(null);
    if (uri) {
      const photo = new Image();
      photo.onload = () => paint(photo);
      photo.src = uri;
    }
    return canvas;
  }

  function layer(code, height, width, scale, colour) {
    const sheet = make("canvas");
    sheet.width = width * scale;
    sheet.height = height * scale;
    const pen = sheet.getContext("2d");
    const pixels = pen.createImageData(sheet.width, sheet.height);
    const mask = code === "" ? new Uint8Array(height * width) : decode(code, height, width);
    const inside = (x, y) => x < 0 || y < 0 || x >= sheet.width || y >= sheet.height ||
      mask[Math.floor(y / scale) * width + Math.floor(x / scale)];
    for (let y = 0; y < sheet.height; y++) {
      for (let x = 0; x < sheet.width; x++) {
        const at = 4 * (y * sheet.width + x);
        if (!inside(x, y)) pixels.data.set(VEIL, at);
        else if (!(inside(x - 2, y) && inside(x + 2, y) && inside(x, y - 2) && inside(x, y + 2)))
          pixels.data.set([...colour, 255], at);
      }
    }
    pen.putImageData(pixels, 0, 0);
    return sheet;
  }

  function start(root) {
    const data = JSON.parse(document.getElementById(root.dataset.source).textContent);
    const form = root.querySelector("form"), list = root.querySelector(".list");
    const detail = root.querySelector(".detail"), found = root.querySelector(".found");
    const total = data.id.length, key = root.dataset.source;
    const hay = data.id.map((id, k) => (data.text[k] + " " + id).toLowerCase());
    let shown = [], chosen = -1, waiting = false;
    const space = make("div", "space");
    space.setAttribute("role", "presentation");
    list.append(space);
    if (data.runs.length < 2) form.elements.order.querySelector("[value=apart]").remove();

    const percent = (value) => (value === null ? "–" : value.toFixed(2));
    const spread = (k) => {
      const known = data.runs.map((run) => run.iou[k]).filter((iou) => iou !== null);
      return known.length < 2 ? 0 : Math.max(...known) - Math.min(...known);
    };

    function order(run) {
      const down = (column) => (a, b) => (column[b] ?? -1) - (column[a] ?? -1) || a - b;
      const compare = {
        worst: (a, b) => run.iou[a] - run.iou[b] || a - b,
        best: down(run.iou),
        surest: down(run.score),
        absent: down(run.absent),
        words: (a, b) => (data.text[a] < data.text[b] ? -1 : data.text[a] > data.text[b] ? 1 : a - b),
      }[form.elements.order.value];
      if (form.elements.order.value === "apart") {
        const gaps = new Map(shown.map((k) => [k, spread(k)]));
        shown.sort((a, b) => gaps.get(b) - gaps.get(a) || a - b);
      } else if (compare) shown.sort(compare);
    }

    function filter() {
      const fields = form.elements, run = data.runs[Number(fields.run.value)];
      const words = fields.words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const kinds = new Set([...form.querySelectorAll("[name=granularity]:checked")].map((box) => Number(box.value)));
      const decision = fields.decision.value === "" ? null : Number(fields.decision.value);
      const low = fields.low.value === "" ? 0 : Number(fields.low.value);
      const high = fields.high.value === "" ? 1 : Number(fields.high.value);
      shown = [];
      for (let k = 0; k < total; k++) {
        if (run.iou[k] === null || !kinds.has(data.granularity[k])) continue;
        if (decision !== null && run.decision[k] !== decision) continue;
        if (run.iou[k] < low || run.iou[k] > high) continue;
        if (words.every((word) => hay[k].includes(word))) shown.push(k);
      }
      order(run);
      found.textContent = shown.length.toLocaleString("en") + " of " + total.toLocaleString("en") + " expressions";
      space.style.height = shown.length * ROW + "px";
      list.scrollTop = 0;
      select(shown.length ? 0 : -1);
    }

    function row(at) {
      const k = shown[at], run = data.runs[Number(form.elements.run.value)];
      const node = make("div", "row");
      node.id = key + "-" + at;
      node.setAttribute("role", "option");
      node.setAttribute("aria-setsize", String(shown.length));
      node.setAttribute("aria-posinset", String(at + 1));
      node.setAttribute("aria-selected", String(at === chosen));
      node.style.top = at * ROW + "px";
      const name = data.decisions[run.decision[k]];
      const mark = make("span", "iou", name === "answered" ? percent(run.iou[k]) : name);
      mark.dataset.kind = name;
      const words = make("span", "words", data.text[k] || "(no words)");
      const under = make("small", "", data.granularities[data.granularity[k]] + " · " + data.id[k]);
      const text = make("span", "text");
      text.append(words, under);
      node.append(mark, text);
      node.addEventListener("click", () => select(at));
      return node;
    }

    function draw() {
      waiting = false;
      const from = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
      const to = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
      const rows = [];
      for (let at = from; at < to; at++) rows.push(row(at));
      space.replaceChildren(...rows);
      if (chosen >= from && chosen < to) list.setAttribute("aria-activedescendant", key + "-" + chosen);
      else list.removeAttribute("aria-activedescendant");
    }

    function select(at) {
      chosen = at;
      const top = at * ROW;
      if (at >= 0 && top < list.scrollTop) list.scrollTop = top;
      if (at >= 0 && top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
      draw();
      show();
    }

    function panel(image, code, colour, heading, line) {
      const box = make("div", "panel");
      box.append(make("b", "", heading), picture(image, code, colour, heading + ": " + line), make("span", "", line));
      return box;
    }

    function show() {
      if (chosen < 0) return detail.replaceChildren(make("p", "small", "Nothing fits these filters."));
      const k = shown[chosen], image = data.images[data.image[k]];
      const head = make("div", "head"), panels = make("div", "panels");
      const level = data.level[k] === null ? "" : " · level " + data.level[k];
      head.append(make("q", "", data.text[k]), make("small", "", data.granularities[data.granularity[k]] + level + " · " + data.id[k]));
      const truth = data.truth[k];
      panels.append(panel(image, null, TRUTH, "Picture", image[2] ? "as given" : "not embedded"));
      panels.append(panel(image, truth < 0 ? "" : data.masks[truth], TRUTH, "Truth", truth < 0 ? "nothing there" : "mask"));
      for (const run of data.runs) {
        if (run.iou[k] === null) continue;
        const facts = [data.decisions[run.decision[k]], "IoU " + percent(run.iou[k])];
        if (run.score[k] !== null) facts.push("predicted " + percent(run.score[k]));
        if (run.absent[k] !== null) facts.push("p(absent) " + percent(run.absent[k]));
        const heading = data.runs.length > 1 ? run.label : "Answer";
        panels.append(panel(image, run.mask[k] < 0 ? "" : data.masks[run.mask[k]], ANSWER, heading, facts.join(" · ")));
      }
      detail.replaceChildren(head, panels);
    }

    list.addEventListener("scroll", () => {
      if (!waiting) requestAnimationFrame(draw);
      waiting = true;
    });
    list.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1), last = shown.length - 1;
      const to = {
        ArrowDown: chosen + 1, ArrowUp: chosen - 1, PageDown: chosen + page, PageUp: chosen - page, Home: 0, End: last,
      }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      select(Math.min(last, Math.max(0, to)));
    });
    window.addEventListener("resize", draw);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", filter);
    form.addEventListener("reset", () => setTimeout(filter));
    filter();
  }

  document.querySelectorAll(".browser").forEach(start);
})();
