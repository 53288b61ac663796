// The conversation: pictures, questions, answers. Gradio gives element, props, trigger and watch.
const find = (name) => element.querySelector(".ux-" + name);
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = "ux-" + name;
  if (text !== undefined) made.textContent = text;
  return made;
};
let focused = null;

function phrase(line, turn, picture) {
  const button = make("button", "phrase");
  button.type = "button";
  button.style.setProperty("--c", line.colour);
  Object.assign(button.dataset, { number: line.number, turn: turn.number, picture });
  button.append(make("span", "key", String(line.number)), make("span", "words", line.text));
  const iou = line.score === null ? "" : `, predicted IoU ${line.score.toFixed(2)}`;
  button.setAttribute("aria-label", `${line.text}: mask ${line.number}${iou}. Show it alone`);
  button.setAttribute("aria-pressed", String(turn.shown && focused === line.number));
  return button;
}

function answer(turn, picture) {
  const box = make("div", "answer");
  for (const line of turn.lines) {
    const row = make("div", line.absent ? "line ux-absent" : "line");
    if (line.number) {
      row.append(phrase(line, turn, picture));
      const iou = line.score === null ? "" : `IoU ${line.score.toFixed(2)} · `;
      row.append(make("span", "facts", `${iou}${line.pixels} pixels`));
    } else row.append(make("span", "", line.text));
    box.append(row);
  }
  if (turn.sure) box.append(make("div", "sure", turn.sure));
  return box;
}

function turnOf(turn, picture) {
  const box = make("section", "turn" + (turn.shown ? " ux-now" : ""));
  box.append(make("div", "question", turn.question), answer(turn, picture));
  return box;
}

function pictureOf(picture) {
  const button = make("button", "thumb" + (picture.current ? " ux-now" : ""));
  button.type = "button";
  button.dataset.open = picture.number;
  const image = make("img");
  image.src = picture.thumb;
  image.alt = "";
  button.append(image, make("span", "", picture.name));
  button.setAttribute("aria-label", `Ask about ${picture.name}`);
  button.setAttribute("aria-current", String(picture.current));
  return button;
}

function offer(title, name, items, build) {
  const box = make("div", "offer");
  box.append(make("div", "sure", title));
  const row = make("div", name);
  row.append(...items.map(build));
  box.append(row);
  return box;
}

function example(item) {
  const button = make("button", "example");
  button.type = "button";
  button.dataset.example = item.number;
  const image = make("img");
  image.src = item.src;
  image.alt = "";
  button.append(image);
  button.setAttribute("aria-label", `Open the example ${item.number + 1}`);
  return button;
}

function suggestion(text) {
  const button = make("button", "suggestion", text);
  button.type = "button";
  button.dataset.ask = text;
  return button;
}

function render() {
  const now = props.value || {};
  const notice = find("notice");
  notice.hidden = !now.notice;
  notice.textContent = now.notice || "";
  const log = find("log");
  const rows = [];
  if (!now.pictures?.length) {
    const hello = make("div", "hello");
    hello.append(
      make("h2", "", "Point at anything with words"),
      make("p", "", "Drop a picture, or take one of these, and ask: “the window of the red house”."),
      offer("Examples", "examples", props.examples || [], example),
    );
    rows.push(hello);
  }
  for (const picture of now.pictures || []) {
    rows.push(pictureOf(picture), ...picture.turns.map((turn) => turnOf(turn, picture.number)));
    if (picture.current && now.pending) {
      const box = make("section", "turn ux-now ux-pending");
      box.append(make("div", "question", now.pending), make("div", "answer", now.words || "…"));
      box.setAttribute("aria-busy", "true");
      rows.push(box);
    }
  }
  if (now.suggestions?.length && !now.pending) {
    rows.push(offer("Try", "suggestions", now.suggestions, suggestion));
  }
  log.replaceChildren(...rows);
  const last = now.pending ? log.querySelector(".ux-pending") : log.querySelector(".ux-turn.ux-now");
  const place = last || log.querySelector(".ux-thumb.ux-now");
  if (place) log.scrollTop = Math.max(0, place.offsetTop + place.offsetHeight - log.clientHeight + 12);
  element.dataset.turns = String((now.pictures || []).reduce((sum, one) => sum + one.turns.length, 0));
  element.dataset.busy = String(Boolean(now.pending));
  if (now.token && new URL(location.href).searchParams.get("chat") !== now.token) {
    const link = new URL(location.href);
    link.searchParams.set("chat", now.token);
    history.replaceState(null, "", link);
  }
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const data = button.dataset;
  if (data.open !== undefined) trigger("open", { picture: Number(data.open) });
  else if (data.example !== undefined) trigger("example", { number: Number(data.example) });
  else if (data.ask !== undefined) trigger("ask", { text: data.ask });
  else if (data.number !== undefined) {
    const number = Number(data.number);
    if (button.closest(".ux-turn").classList.contains("ux-now")) {
      document.dispatchEvent(new CustomEvent("ux:focus", { detail: { number, hold: true } }));
    } else trigger("show", { picture: Number(data.picture), turn: Number(data.turn), number });
  }
});
for (const [kind, over] of [["pointerover", true], ["pointerout", false]]) {
  element.addEventListener(kind, (event) => {
    const button = event.target.closest(".ux-now .ux-phrase");
    if (!button || event.pointerType === "touch") return;
    const number = over ? Number(button.dataset.number) : null;
    document.dispatchEvent(new CustomEvent("ux:focus", { detail: { number, hold: false } }));
  });
}
document.addEventListener("ux:focused", (event) => {
  focused = event.detail.number;
  for (const button of element.querySelectorAll(".ux-now .ux-phrase")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.number) === focused));
  }
});

watch("value", () => {
  focused = null;
  render();
});
render();
