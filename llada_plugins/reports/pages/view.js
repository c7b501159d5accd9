// The viewer of trajectories. What models and files say reaches the page as text only: through
// textContent, never as markup. docs/view.md describes the data.
"use strict";

const MASKED = 1, KEPT = 2, REMASKED = 4, EDITED = 8; // bits of a pass's flags
const NONE = -1; // where a frame has a mask
const ROW = 52; // pixels of a row in the list, as in view.css
const DELAY = 350; // milliseconds a step when playing

const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent);
const packed = byId("lines").textContent.trim().split("\n");

const state = {
  shown: [], // numbers of the questions that the filters leave
  question: 0, // number of the question that is open
  panels: [], // one for each run that has an answer
  frame: 0,
  timer: null,
  drawn: null, // the places [first, last) of the list whose rows exist
  texts: null, // what is searched in, once something is
};

// ---- data

async function unpack(number) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser cannot unpack the steps: it has no DecompressionStream; use one of 2023 or later");
  }
  const bytes = Uint8Array.from(atob(packed[number]), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function half(bits) { // a float16
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * 2 ** -24 * fraction;
  return sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
}

function halves(base64) {
  const bytes = bytesOf(base64);
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => half(bytes[2 * i] | (bytes[2 * i + 1] << 8)));
}

function unpackPass(event) {
  const bytes = bytesOf(event.proposed);
  const view = new DataView(bytes.buffer);
  return {
    ...event,
    proposed: Int32Array.from({ length: bytes.length / 4 }, (_, i) => view.getInt32(4 * i, true)),
    score: halves(event.score),
    policy: event.policy === null ? null : halves(event.policy),
    flags: bytesOf(event.flags),
  };
}

// The answer's states in order, as sampling/frames.py has them: before the first step, after each,
// and where a review masked or put back tokens.
function framesOf(events) {
  const length = Math.max(0, ...events.map((event) => (event.kind === "pass" ? event.start + event.width : 0)));
  const frames = [{ tokens: new Int32Array(length).fill(NONE), event: -1, step: null }];
  const show = (tokens, event, step) => {
    const before = frames[frames.length - 1].tokens;
    if (step !== null || tokens.some((token, place) => token !== before[place])) {
      frames.push({ tokens, event, step });
    }
  };
  events.forEach((event, number) => {
    if (event.kind === "accepted") {
      const tokens = new Int32Array(length).fill(NONE);
      tokens.set(event.answer.slice(0, length));
      show(tokens, number, null);
    } else if (event.kind === "pass") {
      show(stateBefore(event, frames[frames.length - 1].tokens), number, null);
      for (let step = 0; step < event.steps; step++) {
        show(stateAfter(event, step, frames[frames.length - 1].tokens), number, step);
      }
    }
  });
  return frames;
}

function stateBefore(pass, tokens) {
  const found = tokens.slice();
  for (let place = 0; place < pass.width; place++) {
    const at = place * pass.steps;
    found[pass.start + place] = pass.flags[at] & MASKED ? NONE : pass.proposed[at];
  }
  return found;
}

function stateAfter(pass, step, tokens) {
  const found = tokens.slice();
  for (let place = 0; place < pass.width; place++) {
    const at = place * pass.steps + step, flags = pass.flags[at];
    const masked = (flags & MASKED && !(flags & KEPT)) || flags & REMASKED;
    found[pass.start + place] = masked ? NONE : pass.proposed[at];
  }
  return found;
}

// Tokens that stood and are gone in a frame: {frame, place, first, last}.
function changesOf(frames) {
  const end = frames[frames.length - 1].tokens, found = [];
  for (let number = 1; number < frames.length; number++) {
    const before = frames[number - 1].tokens, after = frames[number].tokens;
    for (let place = 0; place < end.length; place++) {
      if (before[place] !== NONE && after[place] !== before[place]) {
        found.push({ frame: number, place, first: before[place], last: end[place] });
      }
    }
  }
  return found;
}

// ---- text: letters that would act, not show, are written out

function visible(text) {
  return text
    .replace(/\n/g, "↵\n")
    .replace(/\t/g, "⇥")
    .replace(/[\u0000-\u0009\u000b-\u001f]/g, (letter) => String.fromCharCode(0x2400 + letter.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
      (letter) => `[U+${letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

function element(kind, words, className) {
  const made = document.createElement(kind);
  if (words !== undefined) made.textContent = words;
  if (className) made.className = className;
  return made;
}

function mark(verdict) {
  if (verdict === null) return element("span", "?", "dim");
  const made = element("span", verdict ? "✓" : "✗", verdict ? "right" : "wrong");
  made.setAttribute("aria-label", verdict ? "right" : "wrong");
  made.setAttribute("role", "img");
  return made;
}

const percent = (number) => (Number.isFinite(number) ? number.toFixed(3) : "pinned");

// ---- the list of questions

function textOf(number) {
  state.texts ??= index.questions.map((question) =>
    [question.id, question.prompt, ...question.answers.filter(Boolean).map((answer) => answer.text)].join("\n").toLowerCase());
  return state.texts[number];
}

const FILTERS = {
  all: () => true,
  right: (answers) => answers.some((answer) => answer.verdict === true),
  wrong: (answers) => answers.some((answer) => answer.verdict === false),
  differs: (answers) => FILTERS.right(answers) && FILTERS.wrong(answers),
  changed: (answers) => answers.some((answer) => answer.corrected > 0),
};

function applyFilters() {
  const words = byId("search").value.toLowerCase(), keep = FILTERS[byId("filter").value];
  state.shown = [];
  index.questions.forEach((question, number) => {
    if ((!words || textOf(number).includes(words)) && keep(question.answers.filter(Boolean))) state.shown.push(number);
  });
  byId("found").textContent = `${state.shown.length} of ${index.questions.length} questions`;
  byId("rows").style.height = `${state.shown.length * ROW}px`;
  byId("list").scrollTop = 0;
  drawList();
}

// Only rows near those that are seen exist; scrolling makes new ones when it comes to their end.
function scrollList() {
  const [first, last] = seen(0);
  if (!state.drawn || first < state.drawn[0] || last > state.drawn[1]) drawList();
}

function seen(margin) { // places in the list, [first, last)
  const { scrollTop, clientHeight } = byId("list");
  const last = Math.ceil((scrollTop + clientHeight) / ROW) + margin;
  return [Math.max(0, Math.floor(scrollTop / ROW) - margin), Math.min(state.shown.length, last)];
}

function drawList() {
  const list = byId("list"), rows = byId("rows"), [first, last] = seen(10);
  state.drawn = [first, last];
  rows.replaceChildren(...state.shown.slice(first, last).map((number, place) => rowOf(number, first + place)));
  const open = rows.querySelector('[aria-selected="true"]');
  if (open) list.setAttribute("aria-activedescendant", open.id);
  else list.removeAttribute("aria-activedescendant");
}

function rowOf(number, place) {
  const question = index.questions[number], row = element("div", undefined, "row");
  row.id = `question-${number}`;
  row.setAttribute("role", "option");
  row.setAttribute("aria-selected", String(number === state.question));
  row.setAttribute("aria-setsize", String(state.shown.length));
  row.setAttribute("aria-posinset", String(place + 1));
  row.style.top = `${place * ROW}px`;
  const head = element("div", `${question.id} `);
  question.answers.forEach((answer) => head.append(answer ? mark(answer.verdict) : "–", " "));
  const corrected = Math.max(0, ...question.answers.map((answer) => (answer ? answer.corrected : 0)));
  if (corrected) head.append(`↺${corrected}`);
  const prompt = question.prompt.slice(-300).replace(/\s+/g, " ").slice(-120);
  row.append(head, element("div", visible(prompt), "dim"));
  row.addEventListener("click", () => open(number));
  return row;
}

function moveInList(place) {
  if (!state.shown.length) return;
  const number = Math.max(0, Math.min(state.shown.length - 1, place)), list = byId("list");
  const top = number * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  open(state.shown[number]);
}

// ---- one question

// step: that is shown first; of null the last
async function open(number, step = null) {
  pause();
  state.question = number;
  drawList();
  const question = index.questions[number], panels = [];
  try {
    for (let run = 0; run < index.runs.length; run++) {
      const answer = question.answers[run];
      if (answer) panels.push(panelOf(run, answer, await unpack(answer.line)));
    }
  } catch (error) {
    return tell(`this answer cannot be shown: ${error.message}`);
  }
  if (state.question !== number) return undefined; // another was opened meanwhile
  tell("");
  state.panels = panels;
  const prompt = byId("prompt");
  prompt.querySelector("summary").textContent = `Question ${question.id}, ${question.prompt_tokens} tokens`;
  prompt.querySelector("pre").textContent = visible(question.prompt);
  prompt.open = question.prompt.length < 2000;
  byId("panels").replaceChildren(...panels.map((panel) => panel.root));
  byId("slider").max = String(Math.max(0, ...panels.map((panel) => panel.frames.length - 1)));
  scaleTogether(panels);
  show(step ?? Number(byId("slider").max));
  return undefined;
}

function panelOf(run, answer, line) {
  const events = line.events.map((event) => (event.kind === "pass" ? unpackPass(event) : event));
  const frames = framesOf(events), length = frames[0].tokens.length;
  const panel = { run, answer, line, events, frames, changes: changesOf(frames), steps: standSteps(frames) };
  panel.bounds = boundsOf(panel);
  panel.root = element("section", undefined, "panel");
  panel.root.setAttribute("aria-label", index.runs[run].name);
  const head = element("h2", `${index.runs[run].name} `);
  head.append(mark(answer.verdict));
  const perForward = answer.forwards ? (answer.tokens / answer.forwards).toFixed(2) : "–";
  const costs = [`${answer.tokens} tokens`, `${answer.forwards} forwards`, `${perForward} tokens a forward`,
    `${answer.seconds.toFixed(2)} s`];
  if (answer.prm) costs.push(`${answer.prm} PRM calls`);
  if (answer.cut) costs.push("later blocks were not written down");
  panel.now = element("p", "", "now");
  panel.now.setAttribute("role", "status");
  panel.now.setAttribute("aria-live", "polite");
  panel.box = element("div", undefined, "answer");
  panel.box.setAttribute("role", "group");
  panel.box.setAttribute("aria-label", "answer");
  panel.tokens = Array.from({ length }, (_, place) => tokenOf(panel, place));
  panel.box.append(...panel.tokens);
  panel.box.addEventListener("keydown", (event) => moveInAnswer(panel, event));
  panel.curve = curveOf(panel);
  panel.root.append(head, element("p", costs.join(", "), "dim"), panel.box, panel.now, panel.curve.root, listOfChanges(panel));
  return panel;
}

function tokenOf(panel, place) {
  const token = element("span", "░", "token masked");
  const tellOf = () => { byId("token").textContent = describe(panel, place); };
  token.addEventListener("pointerenter", tellOf);
  token.addEventListener("focus", tellOf);
  token.tabIndex = place ? -1 : 0; // Tab goes to the answer, arrows from token to token
  return token;
}

function moveInAnswer(panel, event) {
  const place = panel.tokens.indexOf(event.target);
  const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: panel.tokens.length - 1 }[event.key];
  if (place < 0 || to === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  if (!panel.tokens[to]) return;
  panel.tokens[place].tabIndex = -1;
  panel.tokens[to].tabIndex = 0;
  panel.tokens[to].focus();
}

// The frame since which each token of each frame has stood.
function standSteps(frames) {
  const found = [new Int32Array(frames[0].tokens.length)];
  for (let number = 1; number < frames.length; number++) {
    const before = frames[number - 1].tokens, after = frames[number].tokens;
    found.push(found[number - 1].map((since, place) => (before[place] === after[place] ? since : number)));
  }
  return found;
}

const piece = (panel, token) => visible(panel.line.pieces[token] ?? `[${token}]`);

// What a step says of a place: of the last step that proposed something there.
function valueAt(panel, number, place, name) {
  for (let at = number; at > 0; at--) {
    const frame = panel.frames[at], event = frame.step === null ? null : panel.events[frame.event];
    if (!event || place < event.start || place >= event.start + event.width) continue;
    const value = event[name] === null ? NaN : event[name][(place - event.start) * event.steps + frame.step];
    if (Number.isFinite(value)) return value;
  }
  return NaN;
}

function boundsOf(panel) {
  const bounds = {};
  for (const name of ["score", "policy"]) {
    let least = Infinity, most = -Infinity;
    for (const event of panel.events) {
      if (event.kind !== "pass" || event[name] === null) continue;
      for (const value of event[name]) {
        if (Number.isFinite(value)) { least = Math.min(least, value); most = Math.max(most, value); }
      }
    }
    bounds[name] = [least, most];
  }
  return bounds;
}

// Runs of one confidence source have one scale of colours, so that they compare; probabilities
// have 0 and 1 as its ends.
function scaleTogether(panels) {
  for (const panel of panels) {
    panel.scales = {};
    const alike = panels.filter((other) => other.line.source === panel.line.source);
    for (const [name, from] of [["score", alike], ["policy", panels]]) {
      const least = Math.min(...from.map((other) => other.bounds[name][0]));
      const most = Math.max(...from.map((other) => other.bounds[name][1]));
      panel.scales[name] = least <= most && least >= 0 && most <= 1 ? [0, 1] : [least, most];
    }
  }
}

function colourOf(panel, number, place, by) {
  if (by === "none") return "";
  if (by === "step") return `c${Math.floor(9.99 * panel.steps[number][place] / Math.max(1, panel.frames.length))}`;
  const [least, most] = panel.scales[by], value = valueAt(panel, number, place, by);
  if (!Number.isFinite(value)) return "";
  return `c${Math.max(0, Math.min(9, Math.floor(10 * (value - least) / Math.max(1e-9, most - least))))}`;
}

function describe(panel, place) {
  const number = Math.min(state.frame, panel.frames.length - 1), frame = panel.frames[number];
  const token = frame.tokens[place], words = [`Position ${place}:`];
  words.push(token === NONE ? "masked" : `"${piece(panel, token)}" (token ${token}), since step ${panel.steps[number][place]}`);
  const proposed = valueAt(panel, number, place, "proposed");
  if (token === NONE && Number.isFinite(proposed)) words.push(`proposed "${piece(panel, proposed)}"`);
  words.push(`confidence ${percent(valueAt(panel, number, place, "score"))}`);
  const policy = valueAt(panel, number, place, "policy");
  if (Number.isFinite(policy)) words.push(`UPS score ${percent(policy)}`);
  return words.join(", ").replace(":,", ":");
}

function listOfChanges(panel) {
  const box = element("details"), list = element("ol");
  const corrected = panel.changes.filter((change) => change.first !== change.last);
  box.append(element("summary", `${corrected.length} tokens corrected, ${panel.changes.length} taken back`), list);
  box.open = corrected.length > 0 && corrected.length < 30;
  const order = [...corrected, ...panel.changes.filter((change) => change.first === change.last)];
  for (const change of order.slice(0, 1000)) {
    const item = element("li"), button = element("button");
    button.textContent = toldOf(panel, change);
    button.type = "button";
    button.addEventListener("click", () => { pause(); show(change.frame); });
    item.append(button);
    list.append(item);
  }
  return box;
}

// "wrong → masked again → right", or by which token it was replaced.
function toldOf(panel, change) {
  const quoted = (token) => (token === NONE ? "masked" : `"${piece(panel, token)}"`);
  const then = panel.frames[change.frame].tokens[change.place];
  const words = [quoted(change.first), then === NONE ? "masked again" : `replaced by ${quoted(then)}`];
  if (then !== change.last) words.push(quoted(change.last));
  return `${words.join(" → ")} (position ${change.place}, step ${change.frame})`;
}

// ---- the curve of masks

function svg(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function curveOf(panel) {
  const counts = panel.frames.map((frame) => frame.tokens.reduce((sum, token) => sum + (token === NONE), 0));
  const most = Math.max(1, ...counts), across = Math.max(1, counts.length - 1);
  const x = (number) => 1 + 298 * number / across, y = (count) => 88 - 82 * count / most;
  const root = svg("svg", { viewBox: "0 0 300 90", preserveAspectRatio: "none", class: "curve", "aria-hidden": "true" });
  const told = `Masked tokens: ${counts[0]} at first, ${counts[counts.length - 1]} after step ${counts.length - 1}`;
  const points = counts.map((count, number) => `${x(number).toFixed(1)},${y(count).toFixed(1)}`).join(" ");
  const cursor = svg("line", { y1: 0, y2: 90, class: "cursor", "vector-effect": "non-scaling-stroke" });
  root.append(
    svg("line", { x1: 0, y1: 88, x2: 300, y2: 88, class: "axis", "vector-effect": "non-scaling-stroke" }),
    svg("polyline", { points, fill: "none", stroke: "currentColor", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }),
    cursor);
  const box = element("div");
  box.append(root, element("p", told, "dim told"));
  return { root: box, counts, cursor, x };
}

// ---- a step

function show(number) {
  const slider = byId("slider");
  state.frame = Math.max(0, Math.min(Number(slider.max), number));
  slider.value = String(state.frame);
  slider.setAttribute("aria-valuetext", `step ${state.frame} of ${slider.max}`);
  state.panels.forEach(drawPanel);
  drawScale();
}

function drawPanel(panel) {
  const number = Math.min(state.frame, panel.frames.length - 1), frame = panel.frames[number];
  const before = panel.frames[Math.max(0, number - 1)].tokens, by = byId("colour").value;
  const kept = [], back = [], edited = [], proposals = byId("proposals").checked;
  frame.tokens.forEach((token, place) => {
    const span = panel.tokens[place], classes = ["token"];
    let words = "░";
    if (token === NONE) {
      classes.push("masked");
      if (before[place] !== NONE) { classes.push("back"); back.push(piece(panel, before[place])); }
      const proposed = proposals ? valueAt(panel, number, place, "proposed") : NaN;
      if (Number.isFinite(proposed) && proposed !== NONE) words = piece(panel, proposed);
    } else {
      words = piece(panel, token);
      classes.push(colourOf(panel, number, place, by));
      if (before[place] === NONE) { classes.push("kept"); kept.push(words); }
      else if (before[place] !== token) { classes.push("edited"); edited.push(words); }
    }
    const className = classes.filter(Boolean).join(" ");
    if (span.textContent !== words) span.textContent = words;
    if (span.className !== className) span.className = className;
  });
  panel.now.textContent = summary(panel, number, kept, back, edited);
  panel.curve.cursor.setAttribute("x1", panel.curve.x(number));
  panel.curve.cursor.setAttribute("x2", panel.curve.x(number));
}

function summary(panel, number, kept, back, edited) {
  const frame = panel.frames[number], event = panel.events[frame.event];
  const words = [`After step ${number} of ${panel.frames.length - 1}: ${panel.curve.counts[number]} masked`];
  const few = (pieces) => pieces.slice(0, 12).map((each) => `"${each.replace(/\n/g, "")}"`).join(" ") + (pieces.length > 12 ? " …" : "");
  if (kept.length) words.push(`new ${few(kept)}`);
  if (back.length) words.push(`masked again ${few(back)}`);
  if (edited.length) words.push(`replaced by ${few(edited)}`);
  if (event && frame.step === null) words.push(event.kind === "accepted" ? "what the review accepted" : "the review begins this block again");
  const judged = panel.events.filter((each) => each.kind === "judged" && each.of === frame.event);
  if (judged.length && event && frame.step === event.steps - 1) {
    const scores = judged[0].scores.map((score) => (score === null ? "–" : score.toFixed(3)));
    words.push(`process reward model: ${scores.join(", ")}`);
  }
  return words.join("; ");
}

function drawScale() {
  const [least, most] = endsOf(byId("colour").value);
  byId("least").textContent = least;
  byId("most").textContent = most;
}

function endsOf(by) {
  if (by === "none" || !state.panels.length) return ["", ""];
  if (by === "step") return ["first step", "last step"];
  const scales = state.panels.map((panel) => panel.scales[by]).filter((ends) => ends.every(Number.isFinite));
  if (!scales.length) return ["not written down", ""];
  if (new Set(scales.map(String)).size > 1) return ["least", "most of its run"];
  return scales[0].map((end) => String(Math.round(1000 * end) / 1000));
}

function pause() {
  clearInterval(state.timer);
  state.timer = null;
  byId("play").textContent = "Play";
  announce("polite");
}

// A screen reader is told of single steps, not of all that play.
function announce(how) {
  state.panels.forEach((panel) => panel.now.setAttribute("aria-live", how));
}

function play() {
  if (state.timer !== null) { pause(); return; }
  if (state.frame >= Number(byId("slider").max)) show(0);
  byId("play").textContent = "Pause";
  announce("off");
  state.timer = setInterval(() => {
    show(state.frame + 1);
    if (state.frame >= Number(byId("slider").max)) pause();
  }, DELAY);
}

function tell(trouble) {
  byId("trouble").textContent = trouble;
  byId("trouble").hidden = !trouble;
}

// ---- the page

function describeRuns() {
  byId("runs").replaceChildren(...index.runs.map((run) => {
    const line = element("p", `${run.name}: ${run.summary}`);
    if (run.damaged) line.append(element("span", ` (${run.damaged} places in ${run.path} held no whole line)`, "wrong"));
    return line;
  }));
}

const LIST_KEYS = {
  ArrowDown: (place) => place + 1,
  ArrowUp: (place) => place - 1,
  PageDown: (place) => place + 10,
  PageUp: (place) => place - 10,
  Home: () => 0,
  End: () => state.shown.length - 1,
};
const STEP_KEYS = {
  ArrowRight: () => show(state.frame + 1),
  ArrowLeft: () => show(state.frame - 1),
  Home: () => show(0),
  End: () => show(Number(byId("slider").max)),
  " ": play,
  "/": () => byId("search").focus(),
};

// Does what has the focus do something of its own with this key?
function takesKey(target, key) {
  if (target.matches('input[type="checkbox"], button, summary, a')) return key === " ";
  return target.matches("input, select, textarea");
}

function listen() {
  byId("search").addEventListener("input", applyFilters);
  byId("filter").addEventListener("change", applyFilters);
  byId("list").addEventListener("scroll", scrollList);
  byId("list").addEventListener("keydown", (event) => {
    const go = LIST_KEYS[event.key];
    if (!go) return;
    event.preventDefault();
    event.stopPropagation();
    moveInList(go(state.shown.indexOf(state.question)));
  });
  byId("slider").addEventListener("input", (event) => { pause(); show(Number(event.target.value)); });
  byId("play").addEventListener("click", play);
  byId("colour").addEventListener("change", () => show(state.frame));
  byId("proposals").addEventListener("change", () => show(state.frame));
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || takesKey(event.target, event.key)) return;
    const go = STEP_KEYS[event.key];
    if (!go) return;
    event.preventDefault();
    go();
  });
  window.addEventListener("resize", drawList);
  window.addEventListener("hashchange", follow);
}

// The question and the step that the address names: #question=3&step=5.
function follow() {
  const [question, step] = ["question", "step"].map((name) => location.hash.match(new RegExp(`\\b${name}=(\\d+)`)));
  const number = Math.min(index.questions.length - 1, question ? Number(question[1]) : 0);
  open(number, step ? Number(step[1]) : null);
}

describeRuns();
listen();
applyFilters();
follow();
