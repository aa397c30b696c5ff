// What the page says, and how its elements are made. Names and texts are data: they only ever become text nodes.

const report = JSON.parse(document.getElementById("report").textContent);
const LANGUAGES = ["zh", "en"];
let language = LANGUAGES.includes(report.lang) ? report.lang : "zh";

// A sentence of ours in the page's language, its holes {} filled with values in their order.
function t(sentence, ...values) {
  const template = language === "zh" ? sentence : report.words[sentence] || sentence;
  let next = 0;
  return values.length ? template.replace(/\{\}/g, () => values[next++]) : template;
}

// One of the document's own sentences, {zh, en}.
function inLanguage(pair) {
  return pair[language] || pair.zh;
}

function joined(parts) {
  return parts.filter(Boolean).join(t("，"));
}

// Data as it is shown: what is no visible character, or turns the letters after it, as \u....
const UNPRINTABLE =
  /[\p{Cc}\p{Zl}\p{Zp}\p{Cs}\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0]/gu;
function visible(text) {
  return String(text).replace(
    UNPRINTABLE,
    (character) => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0"),
  );
}

// As a heading, a label or a choice of its own.
function capital(words) {
  return words.slice(0, 1).toUpperCase() + words.slice(1);
}

// The list's own columns have the names of the list, but for the two that the tool itself reads.
const COLUMN_WORDS = new Map([
  ["patient", "患者"],
  ["split", "划分"],
]);
function columnName(name) {
  return COLUMN_WORDS.has(name) ? t(COLUMN_WORDS.get(name)) : visible(name);
}

// An element with attributes, listeners (values that are functions, by the event's name) and children: nodes, or texts.
function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// A name or text of the user's, kept apart from the direction of the words around it.
function named(text, attributes) {
  return element("bdi", { title: visible(text), ...attributes }, visible(text));
}

function byId(id) {
  return document.getElementById(id);
}

// A probability in [0, 1]: neither 0.0% nor 100.0% where it is more, or less.
function percent(probability) {
  if (probability === null || probability === undefined) return "–";
  const shown = (100 * probability).toFixed(1) + "%";
  if (shown === "0.0%" && probability > 0) return "<0.1%";
  return shown === "100.0%" && probability < 1 ? ">99.9%" : shown;
}

function decimals(value, digits) {
  return value === null || value === undefined ? "–" : (Number(value.toFixed(digits)) + 0).toFixed(digits);
}

// Fill each element of the page that stands in page.html with its sentence.
function fillWords() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = inLanguage(report.title);
  for (const place of document.querySelectorAll("[data-t]")) place.textContent = t(place.dataset.t);
}
