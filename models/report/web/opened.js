// One image, opened large: its picture, all probabilities, the numbers, a mark and a comment.

// `failed`: the image whose picture could not be read; `last`: the id of what was open before it was closed.
const opened = { image: null, order: [], bitmap: null, card: null, failed: null, last: null, returnTo: null };
const MOST_BARS = 40;

function openImage(index) {
  opened.returnTo = document.activeElement;
  opened.order = gallery.list.includes(images[index]) ? gallery.list : images;
  changeNow({ open: images[index].id });
}

function closeImage() {
  changeNow({ open: null });
}

function openNext(step) {
  const next = opened.order[opened.order.indexOf(opened.image) + step];
  if (next) changeNow({ open: next.id });
}

// Follow the state: open, change to another image, show the choices of now, close.
function showOpened() {
  const image = state.open === null ? null : images[indexOfId.get(state.open)] || null;
  const isOther = image !== opened.image;
  if (isOther && opened.image) leaveComment();
  if (!image) return isOther && hideOpened();
  if (isOther) {
    if (!opened.order.includes(image)) opened.order = gallery.list.includes(image) ? gallery.list : images;
    Object.assign(opened, { image, card: null, failed: null });
    dropBitmap();
    buildOpened(image);
    loadOpened(image);
  }
  fillOpened();
}

function dropBitmap() {
  if (opened.bitmap) opened.bitmap.close();
  opened.bitmap = null;
}

function hideOpened() {
  opened.image = null;
  dropBitmap();
  byId("opened").hidden = true;
  byId("opened").replaceChildren();
  byId("screen").removeAttribute("aria-hidden");
  document.body.classList.remove("covered");
  const position = gallery.list.indexOf(images[indexOfId.get(opened.last)]);
  if (position >= 0) focusCard(position);
  else if (gallery.list.length) focusCard(gallery.position); // it has left the list: what stands in its place
  else if (opened.returnTo) opened.returnTo.focus();
}

async function loadOpened(image) {
  opened.last = image.id;
  if (image.error) return;
  try {
    const card = await cardOf(image.index);
    const bitmap = await decodePicture(card);
    if (opened.image !== image) return bitmap.close();
    Object.assign(opened, { card, bitmap });
  } catch (error) {
    opened.failed = image;
  }
  if (opened.image === image) fillOpened();
}

function tool(word, sign, attributes) {
  return element("button", { type: "button", title: t(word), "aria-label": t(word), ...attributes }, sign);
}

// The frame of the dialog, made once for an image; what follows the choices is filled in by fillOpened.
function buildOpened(image) {
  const place = opened.order.indexOf(image);
  const isFirstTime = byId("opened").hidden;
  const comment = element("textarea", { id: "comment", rows: 2, maxlength: LONGEST_COMMENT, change: leaveComment });
  comment.value = markOf(image).comment;
  byId("opened").replaceChildren(
    element(
      "div",
      { class: "picture" },
      element("canvas", { "aria-hidden": "true" }),
      element("p", { class: "quiet", id: "picture-note" }),
    ),
    element(
      "div",
      { class: "facts" },
      element(
        "div",
        { class: "line" },
        element("h2", { id: "opened-name", tabindex: -1 }, named(image.name)),
        tool("上一张", "‹", { id: "previous", disabled: place === 0, click: () => openNext(-1) }),
        element("span", { class: "number" }, `${place + 1} / ${opened.order.length}`),
        tool("下一张", "›", { id: "next", disabled: place === opened.order.length - 1, click: () => openNext(1) }),
        tool("关闭", "×", { id: "close", click: closeImage }),
      ),
      element("div", { id: "verdict" }),
      element("div", { class: "marks", role: "group", "aria-label": t("标记") }, ...MARKS.map(markButton)),
      element("label", { class: "comment" }, element("span", {}, t("评语")), comment),
      image.error ? "" : openedDisplay(),
      element("div", { id: "facts" }),
    ),
  );
  byId("opened").setAttribute("aria-labelledby", "opened-name");
  byId("opened").hidden = false;
  byId("screen").setAttribute("aria-hidden", "true");
  document.body.classList.add("covered");
  if (isFirstTime || !byId("opened").contains(document.activeElement))
    byId("opened-name").focus({ preventScroll: true });
}

// What the bar above the cards offers, as far as an opened image needs it.
function openedDisplay() {
  const toggle = (field, word, key) =>
    actionButton(t(word), key, () => change({ [field]: !state[field] }), { "data-toggle": field });
  return element(
    "div",
    { class: "line display" },
    toggle("heat", "热力图", "h"),
    report.has_annotations && toggle("outline", "轮廓", "o"),
    tool("更透明", "−", { click: () => changeAlpha(-1) }),
    element("span", { class: "number alpha", title: t("不透明度") }),
    tool("更不透明", "+", { click: () => changeAlpha(1) }),
    element("span", { class: "legend" }, "0", element("img", { class: "bar", alt: t("色标，从 0 到 1") }), "1"),
  );
}

function fillOpenedDisplay() {
  const display = byId("opened").querySelector(".display");
  for (const button of display.querySelectorAll("[data-toggle]"))
    button.setAttribute("aria-pressed", String(state[button.dataset.toggle]));
  display.querySelector(".alpha").textContent = alphaWords();
  display.querySelector(".bar").src = colourBarAddress();
}

function markButton(mark) {
  const click = () => toggleMark(opened.image, mark);
  return element(
    "button",
    { type: "button", class: "mark " + mark, "data-mark": mark, click },
    `${MARK_SIGNS[mark]} ${t(MARK_WORDS[mark])}`,
  );
}

function toggleMark(image, mark) {
  setMark(image, { mark: markOf(image).mark === mark ? "" : mark });
}

function leaveComment() {
  const field = byId("comment");
  if (field && opened.image && field.value !== markOf(opened.image).comment)
    setMark(opened.image, { comment: field.value });
}

function fillOpened() {
  const { image } = opened;
  if (!image) return;
  byId("verdict").replaceChildren(...verdict(image));
  for (const button of byId("opened").querySelectorAll("[data-mark]")) {
    button.setAttribute("aria-pressed", String(markOf(image).mark === button.dataset.mark));
  }
  if (!image.error) fillOpenedDisplay();
  keepingFocus(byId("facts"), () => byId("facts").replaceChildren(...facts(image)));
  drawOpened();
}

function drawOpened() {
  const { image, card, bitmap } = opened;
  const well = byId("opened").querySelector(".picture");
  const note = image.error || opened.failed === image ? t("图像读不出") : card ? heatNote(card, image) : "";
  byId("picture-note").textContent = note;
  well.classList.toggle("empty", Boolean(image.error));
  if (!card || !bitmap) return;
  const dense = densePixels();
  const size = fitted(card.size, (well.clientWidth - 16) * dense, (well.clientHeight - 16) * dense);
  const canvas = well.querySelector("canvas");
  drawPicture(canvas, preparedPicture(bitmap, card, image, size));
  canvas.style.width = size[0] / dense + "px";
}

// -- what is said of the image

function verdict(image) {
  const measured = measuredRow(image);
  const outcome = image.error
    ? element("p", { class: "failed" }, inLanguage(image.error))
    : element(
        "p",
        {},
        t("预测") + " ",
        named(report.names[image.predicted], { class: "predicted" }),
        " " + percent(image.probabilities[image.predicted]),
      );
  const label =
    image.labels.length > 0 &&
    element(
      "p",
      {},
      capital(t("标签")) + " ",
      element("bdi", {}, labelsOf(image)),
      " ",
      !image.error && !isRight(image) && element("span", { class: "wrong" }, "✗ " + t("预测不在标签之中")),
    );
  const row = shownRow(image);
  return [
    outcome,
    label,
    measured &&
      element(
        "p",
        {},
        badge(measured),
        " ",
        t(CASES[measured.case][0]),
        measured.annotated === null ? "" : t("（{} 的标注）", visible(report.names[measured.annotated])),
      ),
    row && row.warning && element("p", { class: "warning" }, "⚠ " + inLanguage(row.warning)),
  ].filter(Boolean);
}

// The texts whose bars are shown: all, or the likeliest and the image's own.
function textsToList(image) {
  const all = report.names.map((_, text) => text);
  if (all.length <= MOST_BARS) return all;
  const likely = all
    .slice()
    .sort((one, other) => image.probabilities[other] - image.probabilities[one])
    .slice(0, MOST_BARS);
  return [...new Set([...likely, ...image.labels, shownText(image)].filter((text) => text !== null))].sort(
    (one, other) => one - other,
  );
}

function probabilityBar(image, text) {
  const classes = [
    text === image.predicted && "predicted",
    image.labels.includes(text) && "label",
    !rowOf(image, text) && "unexplained",
  ];
  const title = report.texts[text].map(visible).concat(rowOf(image, text) ? [] : t("没有解释这段文本")).join("\n");
  const line = element(
    "button",
    {
      type: "button",
      class: "bar " + classes.filter(Boolean).join(" "),
      "aria-pressed": String(shownText(image) === text),
      click: () => change({ text }),
      title,
    },
    element("span", { class: "key" }, String(text + 1)),
    named(report.names[text], { title: null }),
    element("span", { class: "track" }, element("span", { class: "fill" })),
    element("span", { class: "number" }, percent(image.probabilities[text])),
  );
  line.querySelector(".fill").style.width = 100 * (image.probabilities[text] || 0) + "%";
  return line;
}

// [word, what stands beside it] of all that is known of an image and its shown row.
function numbers(image) {
  const row = shownRow(image);
  const measured = measuredRow(image);
  const lines = row
    ? [
        [t("热力图的文本"), visible(report.names[row.target])],
        [t("名次"), `${row.rank} / ${report.names.length}`],
        [t("相似度"), decimals(row.similarity, 4)],
      ]
    : [];
  const measuresOf = (one) => MEASURES.filter(([, read]) => one && isNumber(read(one)));
  const own = measuresOf(row);
  for (const [word, read, digits] of own) lines.push([t(word), decimals(read(row), digits)]);
  if (row && row.peak) lines.push([t("峰的位置"), `${row.peak[0]}, ${row.peak[1]}`]);
  if (row) lines.push([t("方法"), inLanguage(report.settings[state.setting])]);
  if (measured && measured !== row) {
    lines.push([t("与标注比较的文本"), visible(report.names[measured.target])]);
    const others = measuresOf(measured).filter((measure) => !own.includes(measure));
    for (const [word, read, digits] of others) lines.push([t(word), decimals(read(measured), digits)]);
  }
  if (image.size) lines.push([t("图像大小"), image.size.join(" × ")]);
  report.columns.forEach(
    (name, column) => image.values[column] && lines.push([columnName(name), visible(image.values[column])]),
  );
  if (image.id !== image.path) lines.push([capital(t("编号")), visible(image.id)]);
  if (image.path !== null) lines.push([t("路径"), visible(image.path)]);
  return lines;
}

function links(image) {
  const overlay = image.overlays && image.overlays[image.rows.indexOf(shownRow(image))];
  const entries = [
    [image.figure, "可视化图"],
    [overlay, "叠加图"],
  ].map(([path, word]) => [path && link(path), word]);
  const anchors = entries
    .filter(([address]) => address)
    .map(([address, word]) => element("a", { href: address, target: "_blank", rel: "noopener" }, t(word)));
  return element("p", { class: "links" }, ...anchors);
}

function facts(image) {
  const bars = image.probabilities ? textsToList(image).map((text) => probabilityBar(image, text)) : [];
  const table = numbers(image).flatMap(([word, value]) => [
    element("dt", {}, word),
    element("dd", {}, element("bdi", {}, value)),
  ]);
  const outlined = opened.card && state.outline ? outlinesOf(opened.card, shownText(image)) : [];
  const names = outlined.map((outline) => visible(report.names[outline.text])).join(t("、"));
  return [
    bars.length > 0 && element("h3", {}, t("概率")),
    bars.length > 0 && element("div", { class: "bars", role: "group", "aria-label": t("概率") }, ...bars),
    shadedText(opened.card, image),
    names !== "" && element("p", { class: "quiet" }, t("轮廓：{} 的标注", names)),
    element("h3", {}, t("数值")),
    element("dl", {}, ...table),
    links(image),
  ].filter(Boolean);
}
