"use strict";
/* The browser of single expressions. Its data is the JSON block of the page; the list holds only the visible rows;
   text enters the page as text nodes only. */
(() => {
  const ROW = 44, SPARE = 8;
  const TRUTH = [40, 200, 110], ANSWER = [255, 168, 0], VEIL = [20, 26, 38, 153], DARK = [8, 10, 16, 255];

  /* Run lengths of a COCO code: six bits a character, signed; from the fourth on relative to the last but one. */
  function runLengths(code) {
    const runs = [];
    for (let at = 0; at < code.length;) {
      let value = 0, shift = 0, bits;
      do {
        bits = code.charCodeAt(at++) - 48;
        value |= (bits & 31) << shift;
        shift += 5;
      } while (bits & 32);
      if (bits & 16) value |= -1 << shift;
      runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    }
    return runs;
  }

  /* A mask as bytes, column by column like its code. */
  function decode(code, height, width) {
    const mask = new Uint8Array(height * width);
    let start = 0;
    runLengths(code).forEach((length, k) => mask.fill(k % 2, start, start += length));
    return mask;
  }

  function make(tag, className, text, attributes = {}) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  /* A photo, and over it a mask unless `code` is null: clear inside, a double outline around, a dark veil over the rest. */
  function picture([height, width, uri], code, colour, label) {
    const scale = Math.max(1, Math.floor(256 / Math.max(height, width)));
    const size = { width: width * scale, height: height * scale };
    const canvas = make("canvas", "", undefined, { ...size, role: "img", "aria-label": label });
    const pen = canvas.getContext("2d");
    const paint = (photo) => {
      pen.imageSmoothingEnabled = false;
      pen.fillStyle = "#888";
      pen.fillRect(0, 0, size.width, size.height);
      if (photo) pen.drawImage(photo, 0, 0, size.width, size.height);
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
    const sheet = make("canvas", "", undefined, { width: width * scale, height: height * scale });
    const pen = sheet.getContext("2d");
    const pixels = pen.createImageData(sheet.width, sheet.height);
    const mask = decode(code, height, width);
    const inside = (x, y) => x >= 0 && y >= 0 && x < sheet.width && y < sheet.height &&
      mask[Math.floor(x / scale) * height + Math.floor(y / scale)];
    const near = (x, y, reach) => {
      for (let down = -reach; down <= reach; down++)
        for (let across = -reach; across <= reach; across++)
          if (inside(x + across, y + down)) return true;
      return false;
    };
    for (let y = 0; y < sheet.height; y++) {
      for (let x = 0; x < sheet.width; x++) {
        if (inside(x, y)) continue;
        const found = near(x, y, 2) ? [...colour, 255] : near(x, y, 3) ? DARK : VEIL;
        pixels.data.set(found, 4 * (y * sheet.width + x));
      }
    }
    pen.putImageData(pixels, 0, 0);
    return sheet;
  }

  function start(root) {
    const key = root.dataset.source, data = JSON.parse(document.getElementById(key).textContent);
    const [form, list, detail, found] = ["form", ".list", ".detail", ".found"].map((name) => root.querySelector(name));
    const fields = form.elements, total = data.id.length;
    const searchable = data.id.map((id, k) => (data.text[k] + " " + id).toLowerCase());
    const space = list.appendChild(make("div", "space", undefined, { role: "presentation" }));
    let shown = [], chosen = -1, waiting = false;  // expressions of the list; place of the chosen one

    const run = () => data.runs[Number(fields.run.value)];
    const code = (place) => (place < 0 ? "" : data.masks[place]);
    const spread = (k) => {
      const ious = data.runs.map((each) => each.iou[k]).filter((iou) => iou !== null);
      return Math.max(...ious) - Math.min(...ious);
    };

    /* What the list is sorted by: smaller first, then as in the file. */
    const sortKeys = {
      worst: (k) => run().iou[k],
      best: (k) => -run().iou[k],
      surest: (k) => -(run().score[k] ?? -1),
      absent: (k) => -(run().absent[k] ?? -1),
      words: (k) => data.text[k],
      spread: (k) => -spread(k),
    };

    function filter() {
      const words = fields.words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const kinds = new Set([...form.querySelectorAll("[name=granularity]:checked")].map((box) => Number(box.value)));
      const outcome = fields.outcome.value, low = fields.low.value || 0, high = fields.high.value || 1;
      const { iou, outcome: outcomes } = run();
      shown = [];
      for (let k = 0; k < total; k++) {
        if (iou[k] === null || iou[k] < low || iou[k] > high) continue;
        if (!kinds.has(data.granularity[k]) || (outcome !== "" && outcomes[k] !== Number(outcome))) continue;
        if (words.every((word) => searchable[k].includes(word))) shown.push(k);
      }
      const sortKey = sortKeys[fields.order.value];
      if (sortKey) {
        const keys = new Map(shown.map((k) => [k, sortKey(k)]));
        shown.sort((a, b) => (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : a - b));
      }
      found.textContent = shown.length.toLocaleString("en") + " of " + total.toLocaleString("en") + " expressions";
      space.style.height = shown.length * ROW + "px";
      list.scrollTop = 0;
      select(shown.length ? 0 : -1);
    }

    function row(at) {
      const k = shown[at], outcome = data.outcomes[run().outcome[k]];
      const node = make("div", "row", undefined, {
        id: key + "-" + at, role: "option", "aria-setsize": shown.length, "aria-posinset": at + 1, "aria-selected": at === chosen,
      });
      node.style.top = at * ROW + "px";
      const mark = make("span", "iou", outcome === "answered" ? run().iou[k].toFixed(2) : outcome, { "data-outcome": outcome });
      const text = make("span", "text");
      text.append(make("span", "words", data.text[k] || "(no words)"),
        make("small", "", data.granularities[data.granularity[k]] + " · " + data.id[k]));
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
      if (at >= 0) list.scrollTop = Math.max(Math.min(list.scrollTop, top), top + ROW - list.clientHeight);
      draw();
      show();
    }

    function panel(image, code, colour, heading, line) {
      const box = make("div", "panel");
      box.append(make("b", "", heading), picture(image, code, colour, heading + ": " + line), make("span", "", line));
      return box;
    }

    function show() {
      if (chosen < 0) return detail.replaceChildren(make("p", "small", "No expression matches these filters."));
      const k = shown[chosen], image = data.images[data.image[k]];
      const head = make("div", "head"), panels = make("div", "panels");
      const level = data.level[k] === null ? "" : " · level " + data.level[k];
      head.append(make("q", "", data.text[k]), make("small", "", data.granularities[data.granularity[k]] + level + " · " + data.id[k]));
      const truth = data.truth[k];
      panels.append(panel(image, null, TRUTH, "Picture", image[2] ? "without masks" : "not embedded"),
        panel(image, code(truth), TRUTH, "Truth", truth < 0 ? "no target" : "mask"));
      for (const { label, outcome, iou, score, absent, mask } of data.runs) {
        if (iou[k] === null) continue;
        const facts = [data.outcomes[outcome[k]], "IoU " + iou[k].toFixed(2)];
        if (score[k] !== null) facts.push("predicted " + score[k].toFixed(2));
        if (absent[k] !== null) facts.push("p(absent) " + absent[k].toFixed(2));
        const heading = data.runs.length > 1 ? label : "Answer";
        panels.append(panel(image, code(mask[k]), ANSWER, heading, facts.join(" · ")));
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
