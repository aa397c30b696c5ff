// The printed page: the images that are shown, or the opened one, as pictures in full quality.

const MOST_PRINTED = 60;
let isPrepared = false; // what is to be printed stands in the page

function printedImages() {
  return opened.image ? [opened.image] : gallery.list.slice(0, MOST_PRINTED);
}

// Prepare what the browser then prints: cards may have to be read from files, pictures to be decoded.
async function startPrinting() {
  notify(t("正在准备打印……"));
  leaveComment();
  const list = printedImages();
  const cards = await Promise.all(list.map((image) => cardOf(image.index).catch(() => null)));
  fillPrint(list, cards);
  await Promise.all([...byId("print").querySelectorAll("img")].map((picture) => picture.decode().catch(() => null)));
  byId("notes").replaceChildren();
  isPrepared = true;
  window.print();
}

// The browser's own menu leaves no time: what is here already is printed.
function prepareAtOnce() {
  if (isPrepared) return;
  const list = printedImages();
  fillPrint(
    list,
    list.map((image) => readyCard(image.index)),
  );
}

function clearPrint() {
  isPrepared = false;
  byId("print").replaceChildren();
}

function fillPrint(list, cards) {
  const isAlone = Boolean(opened.image);
  const perRow = isAlone ? 1 : state.size >= 300 ? 2 : 3;
  const box = { 1: [186, 140], 2: [91, 90], 3: [59, 52] }[perRow]; // of a picture, in millimetres of 186 x 273
  const items = list.map((image, place) => printedImage(image, cards[place], box, isAlone));
  const rows = [];
  for (let first = 0; first < items.length; first += perRow)
    rows.push(element("div", { class: "row" }, ...items.slice(first, first + perRow)));
  byId("print").className = isAlone ? "alone" : "of-" + perRow;
  byId("print").replaceChildren(printedHead(list, isAlone), ...rows);
}

function printedHead(list, isAlone) {
  const textWord = DISPLAY_CONTROLS()[0]
    .options()
    .find(([value]) => value === asText(state.text));
  const filters = activeFilters().map(filterWords).join(t("；"));
  const count =
    gallery.list.length > list.length
      ? t("只印出前 {} 张，共 {} 张", list.length, gallery.list.length)
      : t("{} 张图像", list.length);
  const about = [
    t("热力图的文本") + t("：") + textWord[1],
    inLanguage(report.settings[state.setting] || { zh: "" }),
    t("不透明度") + " " + Math.round(100 * state.alpha) + "%",
    new Date().toLocaleDateString(document.documentElement.lang),
  ];
  return element(
    "header",
    {},
    element("h1", {}, visible(inLanguage(report.title))),
    !isAlone && element("p", {}, joined([count, filters])),
    element("p", {}, joined(about)),
    element(
      "p",
      { class: "legend" },
      "0 ",
      element("img", { class: "bar", src: colourBarAddress(), alt: "" }),
      " 1 ",
      element("span", {}, t("热力图回答在哪里，概率回答有没有")),
    ),
  );
}

function printedPicture(image, card, [boxWidth, boxHeight]) {
  const place = element("div", { class: "photograph" });
  if (!card) {
    if (!image.error) place.append(t("这张图像还没有读入：请用页面上的“打印”"));
    return place;
  }
  const [width, height] = fitted(card.size, boxWidth * 100, boxHeight * 100).map((length) => length / 100);
  Object.assign(place.style, { width: width + "mm", height: height + "mm" });
  const heat = heatAsAddress(card, image);
  place.append(element("img", { src: "data:image/jpeg;base64," + card.jpeg, alt: "" }));
  if (heat) place.append(element("img", { src: heat, alt: "" }));
  if (state.outline) place.append(printedOutlines(outlinesOf(card, shownText(image)), card.size));
  return place;
}

function printedOutlines(outlines, size) {
  const SVG = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  for (const [colour, share] of STROKES) {
    for (const contour of outlines.flatMap((outline) => outline.contours)) {
      const line = document.createElementNS(SVG, "polygon");
      const points = contour.map((value, place) => (value * size[place % 2]).toFixed(1)).join(" ");
      const attributes = {
        points,
        fill: "none",
        stroke: colour,
        "stroke-width": strokeWidth(share, size),
        "stroke-linejoin": "round",
      };
      for (const [name, value] of Object.entries(attributes)) line.setAttribute(name, value);
      drawing.append(line);
    }
  }
  return drawing;
}

function printedImage(image, card, box, isAlone) {
  const { mark, comment } = markOf(image);
  const note = card && !image.error ? heatNote(card, image) : "";
  const heat =
    shownText(image) === null
      ? ""
      : t("热力图") +
        " " +
        visible(report.names[shownText(image)]) +
        (note ? t("（{}）", note) : " " + percent(shownProbability(image)));
  return element(
    "div",
    { class: "item" },
    printedPicture(image, card, box),
    element(
      "div",
      { class: "words" },
      element("p", { class: "name" }, element("bdi", {}, visible(image.name))),
      ...verdict(image),
      !image.error && element("p", {}, heat),
      (mark || comment) &&
        element(
          "p",
          { class: "review" },
          joined([mark && MARK_SIGNS[mark] + " " + t(MARK_WORDS[mark]), visible(comment)]),
        ),
      isAlone && element("div", { class: "details" }, ...facts(image).filter((part) => !part.matches(".links"))),
    ),
  );
}
