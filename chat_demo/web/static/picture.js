// The picture with its masks. Gradio gives element, props, trigger and watch. What visitors wrote is set as text.
const find = (name) => element.querySelector(".ux-" + name);
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = "ux-" + name;
  if (text !== undefined) made.textContent = text;
  return made;
};
const look = (window.uxLook = window.uxLook || { opacity: 0.6, threshold: 0 });
let focus = null; // number of the one mask that was clicked
let hover = null; // number of the one that the pointer is on
let images = new Map();
let drawing = 0; // counts renders: an image that loads late belongs to an earlier one
let tool = "add";
let radius = 0; // of the brush, in pixels of the photo; 0: not chosen yet
let stroke = null;
let cross = null; // the keyboard's place in the photo

const value = () => props.value || {};
const layers = () => value().layers || [];
const passes = (one) => one.there && (one.score === null || one.score >= look.threshold);

function shown() {
  const alone = hover ?? focus;
  return layers().filter((one) => passes(one) && (alone === null || one.number === alone));
}

function load(address) {
  return new Promise((done) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => done(null);
    image.src = address;
  });
}

async function render() {
  const mine = ++drawing;
  const now = value();
  const has = Boolean(now.src);
  find("empty").hidden = has;
  find("frame").hidden = !has;
  find("empty").textContent = now.hint || "No picture yet.";
  find("tools").hidden = !(has && now.edit);
  if (!has) {
    find("legend").replaceChildren();
    return;
  }
  if (now.edit && !radius) radius = Math.max(1, Math.round(now.photo_width / 40));
  if (now.edit && !find("tools").childElementCount) tools();
  const frame = find("frame");
  frame.style.setProperty("--ratio", now.width / now.height);
  frame.classList.toggle("ux-editing", Boolean(now.edit));
  const photo = find("photo");
  photo.src = now.src;
  photo.alt = described(now);
  focus = now.focus ?? null;
  hover = null;
  const loaded = await Promise.all(layers().map((one) => (one.there ? load(one.mask) : null)));
  if (mine !== drawing) return;
  images = new Map(layers().map((one, index) => [one.number, loaded[index]]));
  const outlines = layers().filter((one) => one.there).map((one) => {
    const image = make("img");
    image.src = one.outline;
    image.dataset.number = one.number;
    image.alt = "";
    return image;
  });
  find("outlines").replaceChildren(...outlines);
  for (const canvas of [find("veil"), find("stroke")]) {
    canvas.width = now.width;
    canvas.height = now.height;
  }
  legend();
  paint();
  element.dataset.ready = String(mine);
}

function described(now) {
  const there = layers().filter((one) => one.there).map((one) => one.phrase);
  return there.length ? `${now.name}, marked: ${there.join(", ")}` : now.name;
}

function paint() {
  const now = value();
  const list = shown();
  const canvas = find("veil");
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (list.length) {
    pen.globalCompositeOperation = "source-over";
    pen.fillStyle = now.veil;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.globalCompositeOperation = "destination-out";
    for (const one of list) if (images.get(one.number)) pen.drawImage(images.get(one.number), 0, 0);
  }
  canvas.style.opacity = look.opacity;
  const numbers = new Set(list.map((one) => String(one.number)));
  for (const image of find("outlines").children) image.hidden = !numbers.has(image.dataset.number);
  for (const button of find("legend").querySelectorAll("button")) {
    const one = layers().find((each) => String(each.number) === button.dataset.number);
    button.setAttribute("aria-pressed", String(focus === one.number));
    button.classList.toggle("ux-off", !numbers.has(button.dataset.number));
  }
  element.dataset.shown = [...numbers].join(",");
}

function legend() {
  const buttons = layers().map((one) => {
    const button = make("button", "chip");
    button.type = "button";
    button.dataset.number = one.number;
    button.style.setProperty("--c", one.colour);
    button.append(make("span", "key", one.there ? String(one.number) : "–"), make("span", "words", one.phrase));
    if (one.score !== null) button.append(make("span", "score", one.score.toFixed(2)));
    button.disabled = !one.there;
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-label", one.there
      ? `${one.phrase}: show this mask alone` + (one.score === null ? "" : `, predicted IoU ${one.score.toFixed(2)}`)
      : `${one.phrase}: not there`);
    return button;
  });
  find("legend").replaceChildren(...buttons);
}

function toggle(number) {
  focus = focus === number ? null : number;
  hover = null;
  paint();
  document.dispatchEvent(new CustomEvent("ux:focused", { detail: { number: focus } }));
}

element.addEventListener("click", (event) => {
  const chip = event.target.closest(".ux-chip");
  if (chip && !chip.disabled) toggle(Number(chip.dataset.number));
  const chosen = event.target.closest(".ux-tool");
  if (chosen) use(chosen.dataset.tool);
});
for (const [kind, over] of [["pointerover", true], ["pointerout", false]]) {
  element.addEventListener(kind, (event) => {
    const chip = event.target.closest(".ux-chip");
    if (!chip || event.pointerType === "touch") return;
    hover = over ? Number(chip.dataset.number) : null;
    paint();
  });
}
document.addEventListener("ux:look", (event) => {
  Object.assign(look, event.detail);
  paint();
});
if (props.linked) {
  document.addEventListener("ux:focus", (event) => {
    if (event.detail.hold) toggle(event.detail.number);
    else {
      hover = event.detail.number;
      paint();
    }
  });
}

// a picture that is dropped or pasted goes the way of the button that opens one
function hand(files) {
  const button = document.getElementById(props.opener); // Gradio puts the field of the files beside it
  const input = button?.parentElement.querySelector("input[type=file]");
  if (!input || !files.length) return;
  const data = new DataTransfer();
  data.items.add(files[0]);
  input.files = data.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
if (props.opener) {
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    find("picture").classList.add("ux-over");
  });
  element.addEventListener("dragleave", () => find("picture").classList.remove("ux-over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    find("picture").classList.remove("ux-over");
    hand([...event.dataTransfer.files]);
  });
  element.addEventListener("paste", (event) => hand([...event.clipboardData.files]));
}

// --- correction: clicks, brush, keys ---
const TOOLS = [
  ["add", "+", "Add: click what belongs to the mask", "+"],
  ["remove", "−", "Take away: click what does not", "-"],
  ["brush", "Brush", "Brush", "b"],
  ["erase", "Eraser", "Eraser", "e"],
  ["smaller", "Smaller", "A smaller brush", "["],
  ["larger", "Larger", "A larger brush", "]"],
];

function tools() {
  find("tools").replaceChildren(...TOOLS.map(([name, text, label, key]) => {
    const button = make("button", "tool", text);
    button.type = "button";
    button.dataset.tool = name;
    button.title = `${label} (key ${key})`;
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-keyshortcuts", key);
    return button;
  }));
  use("add");
}

function use(name) {
  if (name === "smaller") radius = Math.max(1, Math.round(radius * 0.7));
  else if (name === "larger") radius = Math.min(400, Math.ceil(radius * 1.4));
  else tool = name;
  for (const button of find("tools").children) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
  const painting = tool === "brush" || tool === "erase";
  find("said").textContent = painting ? `${tool}, ${2 * radius} pixels wide` : "";
}

function at(event) {
  const box = find("frame").getBoundingClientRect();
  const now = value();
  const part = (place, from, length, most) => Math.min(most - 1, Math.max(0, ((place - from) / length) * most));
  return [
    part(event.clientX, box.left, box.width, now.photo_width),
    part(event.clientY, box.top, box.height, now.photo_height),
  ];
}

function preview() {
  const now = value();
  const canvas = find("stroke");
  const pen = canvas.getContext("2d");
  const scale = now.width / now.photo_width;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!stroke) return;
  pen.lineWidth = 2 * radius * scale;
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = tool === "erase" ? "rgba(8,10,16,.75)" : "rgba(255,255,255,.75)";
  pen.beginPath();
  stroke.forEach(([x, y], index) => pen[index ? "lineTo" : "moveTo"]((x + 0.5) * scale, (y + 0.5) * scale));
  if (stroke.length === 1) pen.lineTo((stroke[0][0] + 0.5) * scale, (stroke[0][1] + 0.5) * scale);
  pen.stroke();
}

function apply(points) {
  if (tool === "brush" || tool === "erase") trigger("stroke", { points, radius, erase: tool === "erase" });
  else trigger("point", { x: points[0][0], y: points[0][1], add: tool === "add" });
}

const frame = find("frame");
frame.addEventListener("pointerdown", (event) => {
  if (!value().edit || event.button) return;
  event.preventDefault();
  find("picture").focus({ preventScroll: true });
  if (tool === "add" || tool === "remove") return apply([at(event)]);
  frame.setPointerCapture(event.pointerId);
  stroke = [at(event)];
  preview();
});
frame.addEventListener("pointermove", (event) => {
  if (!stroke || stroke.length > 1500) return;
  stroke.push(at(event));
  preview();
});
for (const kind of ["pointerup", "pointercancel"]) {
  frame.addEventListener(kind, () => {
    if (!stroke) return;
    const points = stroke;
    stroke = null;
    apply(points);
  });
}

function move(dx, dy) {
  const now = value();
  cross = cross || [now.photo_width / 2, now.photo_height / 2];
  cross = [
    Math.min(now.photo_width - 1, Math.max(0, cross[0] + dx)),
    Math.min(now.photo_height - 1, Math.max(0, cross[1] + dy)),
  ];
  const mark = find("cross");
  mark.hidden = false;
  mark.style.left = `${(100 * (cross[0] + 0.5)) / now.photo_width}%`;
  mark.style.top = `${(100 * (cross[1] + 0.5)) / now.photo_height}%`;
  find("said").textContent = `${Math.round(cross[0])}, ${Math.round(cross[1])}`;
}

const KEYS = { a: "accept", r: "reject", u: "undo", n: "next", p: "previous" };
element.addEventListener("keydown", (event) => {
  const now = value();
  if (!now.edit || event.altKey || event.metaKey || event.target.closest("input, textarea")) return;
  const step = Math.max(1, Math.round(now.photo_width / (event.shiftKey ? 8 : 64)));
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  const chosen = TOOLS.find((one) => one[3] === event.key);
  const inPicture = !event.target.closest("button");
  if (event.ctrlKey ? event.key === "z" : KEYS[event.key]) {
    trigger("command", { name: event.ctrlKey ? "undo" : KEYS[event.key] });
  } else if (event.ctrlKey) return;
  else if (event.key === "w") document.querySelector("#ux-reword textarea, #ux-reword input")?.focus();
  else if (moves[event.key] && inPicture) move(...moves[event.key]);
  else if (chosen) use(chosen[0]);
  else if ((event.key === " " || event.key === "Enter") && inPicture) {
    if (!cross) move(0, 0);
    apply([cross]);
  } else return;
  event.preventDefault();
});

watch("value", render);
render();
