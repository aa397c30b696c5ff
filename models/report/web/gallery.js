// The cards: only those near the view are elements, and their pictures are drawn when their turn comes.

const GAP = 10;
const CAPTION = some.labels || some.cases ? 86 : 68; // pixels below a card's picture, its border included
const gallery = { list: [], position: 0, cards: new Map(), columns: 1, width: 0, row: 0 };

function densePixels() {
  return Math.min(window.devicePixelRatio || 1, 2);
}

function buildCard(position) {
  const image = gallery.list[position];
  const canvas = element("canvas", { "aria-hidden": "true" });
  const well = element(
    "span",
    { class: "well" },
    image.error ? element("span", { class: "failed" }, inLanguage(image.error)) : canvas,
  );
  const lines = ["first", "second", "third", "fourth"].map((name) => element("span", { class: "line " + name }));
  lines[2].hidden = !some.labels && !some.cases;
  const button = element(
    "button",
    {
      type: "button",
      class: "card",
      tabindex: -1,
      click: () => openImage(image.index),
      focus: () => setCurrent(position),
    },
    well,
    ...lines,
  );
  const card = {
    image,
    position,
    button,
    canvas,
    well,
    lines,
    item: element("li", {}, button),
    picture: null,
    note: image.error ? t("没有热力图") : "",
  };
  const later = [...gallery.cards.keys()].filter((other) => other > position);
  byId("cards").insertBefore(card.item, later.length ? gallery.cards.get(Math.min(...later)).item : null); // read in their order
  gallery.cards.set(position, card);
  if (!image.error)
    queue(
      () => loadPicture(card),
      () => gallery.cards.get(position) === card,
    );
  return card;
}

async function loadPicture(card) {
  try {
    const content = await cardOf(card.image.index);
    if (!content) throw new Error("no card");
    const bitmap = await decodePicture(content);
    const side = Math.round((gallery.width - 2) * densePixels());
    card.picture = preparedPicture(bitmap, content, card.image, fitted([bitmap.width, bitmap.height], side, side));
    bitmap.close();
  } catch (error) {
    card.note = t("图像读不出");
    if (error.message === "card file") notify(t("旁边的文件夹 report_files 读不到：请把它和这个页面放在一起"));
  }
  if (gallery.cards.get(card.position) === card) fillCard(card);
}

function placeCard(card) {
  const { columns, width, row } = gallery;
  const style = card.item.style;
  style.left = (card.position % columns) * (width + GAP) + "px";
  style.top = Math.floor(card.position / columns) * row + "px";
  style.width = width + "px";
  card.well.style.height = width - 2 + "px";
  card.item.setAttribute("aria-posinset", card.position + 1);
  card.item.setAttribute("aria-setsize", gallery.list.length);
}

// -- what a card says

function badge(row) {
  const [words, short] = CASES[row.case];
  return element("span", { class: "badge " + row.case, title: t(words) }, t(short));
}

function signs(image) {
  const row = shownRow(image);
  const { mark, comment } = markOf(image);
  return [
    row &&
      row.warning &&
      element("span", { class: "warned", role: "img", "aria-label": t("有警告"), title: inLanguage(row.warning) }, "⚠"),
    comment &&
      element("span", { class: "commented", role: "img", "aria-label": t("有评语"), title: visible(comment) }, "✎"),
    mark &&
      element(
        "span",
        { class: "mark " + mark, role: "img", "aria-label": t(MARK_WORDS[mark]), title: t(MARK_WORDS[mark]) },
        MARK_SIGNS[mark],
      ),
  ].filter(Boolean);
}

function labelsOf(image) {
  return image.labels.map((label) => visible(report.names[label])).join(t("、"));
}

function predictedLine(image) {
  if (image.error) return [element("span", { class: "failed" }, t("失败"))];
  return [
    named(report.names[image.predicted], { class: "predicted" }),
    element("span", { class: "number" }, percent(image.probabilities[image.predicted])),
  ];
}

function labelLine(image) {
  const parts = [];
  if (image.labels.length) {
    parts.push(
      element(
        "bdi",
        { class: "label", title: labelsOf(image) },
        element("small", {}, capital(t("标签")) + " "),
        labelsOf(image),
      ),
    );
    if (!image.error && !isRight(image))
      parts.push(
        element(
          "span",
          { class: "wrong", role: "img", "aria-label": t("预测错误"), title: t("预测不在标签之中") },
          "✗",
        ),
      );
  }
  const measured = measuredRow(image);
  if (measured) parts.push(badge(measured));
  return parts;
}

function heatLine(card) {
  const { image } = card;
  if (image.error) return [];
  const text = shownText(image);
  const words = text === null ? "" : visible(report.names[text]);
  const note = card.note || (card.picture ? heatNote(card.picture.card, image) : "");
  if (note) return [element("span", { class: "quiet", title: joined([words, note]) }, joined([words, note]))];
  const number = sortedMeasure(image) || [text === image.predicted ? "" : percent(shownProbability(image))];
  return [
    element("bdi", { class: "quiet", title: words }, element("small", {}, t("热力图") + " "), words),
    element("span", { class: "number quiet" }, ...number),
  ];
}

// The measure that the cards are sorted by, [word, value]; null where they are sorted by something else.
function sortedMeasure(image) {
  const place = SORTS.findIndex(([name]) => name === state.sort) - (SORTS.length - MEASURES.length);
  if (place < 0) return null;
  const [word, read, digits] = MEASURES[place];
  return [element("small", {}, t(word) + " "), decimals(valueOfMeasure(read, image), digits)];
}

function spokenName(image) {
  const row = shownRow(image);
  const measured = measuredRow(image);
  return joined([
    visible(image.name),
    image.error
      ? t("失败")
      : t("预测 {}", visible(report.names[image.predicted])) + " " + percent(image.probabilities[image.predicted]),
    image.labels.length && t("标签 {}", labelsOf(image)),
    measured && t(CASES[measured.case][0]),
    row && row.warning && t("有警告"),
    markOf(image).mark && t(MARK_WORDS[markOf(image).mark]),
  ]);
}

function fillCard(card) {
  const { image, lines } = card;
  lines[0].replaceChildren(named(image.name, { class: "name" }), ...signs(image));
  lines[1].replaceChildren(...predictedLine(image));
  lines[2].replaceChildren(...labelLine(image));
  lines[3].replaceChildren(...heatLine(card));
  card.button.setAttribute("aria-label", spokenName(image));
  card.button.classList.toggle("failure", Boolean(image.error));
  card.button.tabIndex = card.position === gallery.position ? 0 : -1;
  if (!card.picture) return;
  drawPicture(card.canvas, card.picture);
  card.canvas.style.width = card.picture.size[0] / densePixels() + "px";
  card.canvas.style.height = card.picture.size[1] / densePixels() + "px";
}

// -- which cards are there

function layOut() {
  const whole = byId("cards").clientWidth;
  gallery.columns = Math.max(1, Math.floor((whole + GAP) / (state.size + GAP)));
  gallery.width = Math.floor((whole - GAP * (gallery.columns - 1)) / gallery.columns);
  gallery.row = gallery.width - 2 + CAPTION + GAP;
  byId("cards").style.height = Math.ceil(gallery.list.length / gallery.columns) * gallery.row + "px";
}

function removeCard(position) {
  gallery.cards.get(position).item.remove();
  gallery.cards.delete(position);
}

// Positions of the cards in the view and half a view around it.
function positionsNear() {
  const top = -byId("cards").getBoundingClientRect().top;
  const height = window.innerHeight;
  const first = Math.max(0, Math.floor((top - height / 2) / gallery.row)) * gallery.columns;
  const end = Math.ceil((top + 1.5 * height) / gallery.row) * gallery.columns;
  return [first, Math.min(end, gallery.list.length)];
}

function showCardsInView() {
  const [first, end] = positionsNear();
  for (const position of [...gallery.cards.keys()]) {
    if ((position < first || position >= end) && position !== gallery.position) removeCard(position);
  }
  for (let position = first; position < end; position++) showCard(position);
  if (gallery.position < gallery.list.length) showCard(gallery.position); // the Tab key leads to it
}

function showCard(position) {
  if (gallery.cards.has(position)) return;
  const card = buildCard(position);
  placeCard(card);
  fillCard(card);
}

let layout = ""; // what the cards that are there were made for
let selection = ""; // the filters and the order that they were chosen by

// Show a list of images; cards of an image that stays in its place are filled anew, not made anew.
function showGallery(list) {
  const current = gallery.list[gallery.position];
  const isFocused = byId("cards").contains(document.activeElement);
  gallery.list = list;
  layOut();
  const wanted = [gallery.columns, gallery.width, densePixels(), language].join();
  const isSame = (card) => wanted === layout && list[card.position] === card.image;
  for (const card of [...gallery.cards.values()]) if (!isSame(card)) removeCard(card.position);
  layout = wanted;
  const chosen = JSON.stringify([state.sort, state.desc, ...activeFilters().map((name) => [name, state[name]])]);
  const place = list.indexOf(current);
  if (chosen !== selection) gallery.position = 0;
  else gallery.position = place >= 0 ? place : Math.max(0, Math.min(gallery.position, list.length - 1));
  selection = chosen;
  for (const card of gallery.cards.values()) {
    placeCard(card);
    fillCard(card);
  }
  showCardsInView();
  if (isFocused && !byId("cards").contains(document.activeElement)) focusCard(gallery.position);
}

function setCurrent(position) {
  const before = gallery.cards.get(gallery.position);
  if (before) before.button.tabIndex = -1;
  gallery.position = position;
  if (gallery.cards.has(position)) gallery.cards.get(position).button.tabIndex = 0;
}

// Bring a card into the view, below the bar, and focus it.
function focusCard(position) {
  if (!gallery.list.length) return;
  const wanted = Math.min(Math.max(position, 0), gallery.list.length - 1);
  setCurrent(wanted);
  const top = byId("cards").getBoundingClientRect().top + Math.floor(wanted / gallery.columns) * gallery.row;
  const lineAbove = wanted < gallery.columns ? byId("selection").offsetHeight : 0; // it tells what is shown
  const bar = byId("display").offsetHeight + lineAbove + GAP;
  if (top < bar) window.scrollBy(0, top - bar);
  else if (top + gallery.row > window.innerHeight) window.scrollBy(0, top + gallery.row - window.innerHeight);
  showCardsInView();
  gallery.cards.get(wanted).button.focus({ preventScroll: true });
}

// How far each key goes, in cards.
const STEPS = {
  ArrowLeft: () => -1,
  ArrowRight: () => 1,
  ArrowUp: () => -gallery.columns,
  ArrowDown: () => gallery.columns,
  PageUp: () => -gallery.columns * Math.max(1, Math.floor(window.innerHeight / gallery.row)),
  PageDown: () => gallery.columns * Math.max(1, Math.floor(window.innerHeight / gallery.row)),
  Home: () => -gallery.position,
  End: () => gallery.list.length - 1 - gallery.position,
};

function moveOverCards(key) {
  const isThere = byId("cards").contains(document.activeElement);
  const target = gallery.position + STEPS[key]();
  const isBeyond = target < 0 || target >= gallery.list.length;
  if (isThere && isBeyond && key.startsWith("Arrow")) return;
  focusCard(isThere ? target : gallery.position);
}
