// What is shown and which images: one object, written into the address after #, so that it can be sent or loaded again.

const isOneOf = (values) => (text) => (values.includes(text) ? text : undefined);
const isIndex = (count) => (text) => (/^\d{1,6}$/.test(text) && Number(text) < count ? Number(text) : undefined);
const isFlag = (text) => (["0", "1"].includes(text) ? text === "1" : undefined);
const isAmount = (low, high) => (text) =>
  text.trim() !== "" && Number(text) >= low && Number(text) <= high ? Number(text) : undefined;
const isText = (text) => text.slice(0, 300);
const firstOf =
  (...readers) =>
  (text) =>
    readers.map((read) => read(text)).find((value) => value !== undefined);
const SIZES = [150, 210, 300, 450]; // of a card, in pixels
const MARKS = ["agree", "disagree", "unclear"];
const choice = report.choice;

// Name: [value at first, how it is read from text]; undefined: no such value. null: nothing is chosen.
const FIELDS = {
  lang: [language, isOneOf(LANGUAGES)],
  text: [null, firstOf(isOneOf(Object.keys(TEXTS_BY_WORD)), isIndex(report.names.length))],
  setting: [0, isIndex(report.settings.length)],
  heat: [true, isFlag],
  alpha: [choice.alpha, isAmount(0, 1)],
  blend: [choice.blend, isOneOf(Object.keys(report.opacity))],
  colormap: [choice.colormap, isOneOf(Object.keys(report.colormaps))],
  scale: [some.severalTexts ? "shared" : "own", isOneOf(["own", "shared"])],
  outline: [true, isFlag],
  size: [SIZES[1], firstOf(...SIZES.map((size) => (text) => (text === String(size) ? size : undefined)))],
  fold: [false, isFlag], // whether the summary is folded
  group: [0, isIndex(report.evaluation ? report.evaluation.groups.length : 1)], // of the evaluation
  q: ["", isText],
  predicted: [null, isIndex(report.names.length)],
  label: [null, isIndex(report.names.length)],
  true: [null, isIndex(report.names.length)],
  right: [null, isFlag],
  case: [null, isOneOf(Object.keys(CASES))],
  hit: [null, isFlag],
  warning: [null, isFlag],
  failed: [null, isFlag],
  mark: [null, isOneOf(["any", "none", "comment", ...MARKS])],
  pmin: [null, isAmount(0, 100)],
  pmax: [null, isAmount(0, 100)],
  smin: [null, isAmount(0, 2)],
  smax: [null, isAmount(0, 2)],
  sort: ["order", (text) => (SORTS.some(([name]) => name === text) ? text : undefined)],
  desc: [false, isFlag],
  open: [null, isText],
};
FIELDS.text[0] = firstOf(isOneOf(Object.keys(TEXTS_BY_WORD)), isIndex(report.names.length))(String(choice.text));
report.columns.forEach((_, column) => (FIELDS["column" + column] = ["", isText]));
const FILTERS = Object.keys(FIELDS)
  .slice(Object.keys(FIELDS).indexOf("q"))
  .filter((name) => !["sort", "desc", "open"].includes(name));

const state = Object.fromEntries(Object.entries(FIELDS).map(([name, [first]]) => [name, first]));
if (state.text === undefined) state.text = FIELDS.text[0] = mostlyPredicted() ? "predicted" : "first";

// Whether most images have a heatmap of what was predicted; runs of chosen texts have not.
function mostlyPredicted() {
  const succeeded = images.filter((image) => !image.error);
  const explained = succeeded.filter((image) => image.rows.some((row) => row.target === image.predicted));
  return 2 * explained.length >= succeeded.length;
}

function asText(value) {
  return typeof value === "boolean" ? String(Number(value)) : String(value);
}

function stateAsHash() {
  const changed = Object.entries(state).filter(([name, value]) => value !== FIELDS[name][0] && value !== null);
  return new URLSearchParams(changed.map(([name, value]) => [name, asText(value)])).toString();
}

// Take over what the address says; what it leaves out, or what is no value, is as at first.
function readHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const [name, [first, read]] of Object.entries(FIELDS)) {
    const value = wanted.has(name) ? read(wanted.get(name)) : undefined;
    state[name] = value === undefined ? first : value;
  }
  language = state.lang;
}

let hashTimer = null;
let writtenHash = null; // the hash as we wrote it: a change to another is the user's

function writeHash() {
  clearTimeout(hashTimer);
  hashTimer = null;
  const hash = "#" + stateAsHash();
  if (hash === (location.hash || "#")) return;
  writtenHash = hash;
  history.replaceState(null, "", hash);
}

// Browsers refuse more than a few changes of the address in a second.
function writeHashSoon() {
  if (hashTimer === null) hashTimer = setTimeout(writeHash, 300);
}

let updatePending = false;

// Change fields of the state; the page follows before the next frame.
function change(values) {
  Object.assign(state, values);
  if (updatePending) return;
  updatePending = true;
  requestAnimationFrame(() => {
    updatePending = false;
    update();
  });
}

// The same at once, where the next key depends on what is shown.
function changeNow(values) {
  Object.assign(state, values);
  update();
}

function reset() {
  change(Object.fromEntries(FILTERS.map((name) => [name, FIELDS[name][0]])));
}
