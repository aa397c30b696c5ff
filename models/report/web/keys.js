// The keyboard: what each key does, and the page that lists them.

// What one key finds: the filter or order that it sets, and takes off when it is pressed again; `when`: there is such.
// Of these filters one is on at a time.
const ONE_FILTER = { right: null, case: null, failed: null, warning: null, mark: null };
const FINDERS = {
  w: { words: "只看预测错误的", values: { ...ONE_FILTER, right: false }, when: some.labels },
  r: { words: "只看预测正确而峰在标注外的", values: { ...ONE_FILTER, case: "right_outside" }, when: some.cases },
  f: { words: "只看失败的", values: { ...ONE_FILTER, failed: true }, when: true },
  a: { words: "只看有警告的", values: { ...ONE_FILTER, warning: true }, when: true },
  k: { words: "只看已标记或有评语的", values: { ...ONE_FILTER, mark: "any" }, when: true },
  u: { words: "预测概率最低的在前", values: { sort: "top", desc: false }, when: true },
  s: { words: "文本特异性最低的在前", values: { sort: "m0", desc: false }, when: some.specificities },
};

// Headings of the page that lists the keys; below each [keys as they are shown, what they do].
const KEY_WORDS = () => [
  [
    "找图像",
    [
      ...Object.entries(FINDERS)
        .filter(([, { when }]) => when)
        .map(([key, { words }]) => [key, words]),
      ["x", "去掉全部条件和排序"],
      ["/", "按名称查找；Tab 到其他条件，Enter 到图像"],
    ],
  ],
  [
    "看图像",
    [
      ["← → ↑ ↓", "在图像之间移动；打开后是上一张、下一张"],
      ["Home End", "第一张、最后一张"],
      ["Enter", "打开图像"],
      ["Esc", "关闭；从输入框回到图像"],
      ["h", "热力图开或关"],
      ["o", "标注的轮廓开或关"],
      ["− +", "热力图更透明、更不透明"],
      ["1 … 9", "热力图的文本换成第几个"],
      ["[ ]", "热力图的文本换成上一个、下一个"],
      ["0", "回到原来的文本"],
      ...(report.settings.length > 1 ? [[", .", "换成上一种、下一种方法"]] : []),
      ["v", "卡片的大小"],
      ["d", "概要收起或展开"],
    ],
  ],
  [
    "标记和转交",
    [
      ["m", "标记：再按 1 同意、2 不同意、3 存疑、0 清除"],
      ["c", "写评语，Esc 写完"],
      ["e", "导出标记"],
      ["i", "导入标记"],
      ["p", "打印看到的图像，或打开的一张"],
      ["l", "复制链接"],
      ["z", "换成英文"],
      ["?", "这张表"],
    ],
  ],
];

let textBefore = null; // what was shown before the digits
let imageToMark = null; // m was pressed

function chooseText(digit) {
  if (digit === 0) return showText(textBefore === null ? FIELDS.text[0] : textBefore);
  if (digit <= report.names.length) showText(digit - 1);
}

function showText(text) {
  if (typeof state.text !== "number") textBefore = state.text;
  change({ text });
  flash(t("热力图的文本") + t("：") + textOptions().find(([value]) => value === asText(text))[1]);
}

function textOptions() {
  return DISPLAY_CONTROLS()[0].options();
}

// The next in the list of texts, or the one before; round at its ends.
function stepText(step) {
  const values = textOptions().map(([value]) => value);
  const place = (values.indexOf(asText(state.text)) + step + values.length) % values.length;
  showText(FIELDS.text[1](values[place]));
}

function stepSetting(step) {
  const count = report.settings.length;
  if (count === 1) return;
  const setting = (state.setting + step + count) % count;
  change({ setting });
  flash(inLanguage(report.settings[setting]));
}

function changeAlpha(step) {
  const alpha = Math.min(1, Math.max(0, Math.round(10 * state.alpha + step) / 10));
  change({ alpha });
  flash(t("不透明度") + " " + Math.round(100 * alpha) + "%");
}

function nextSize() {
  change({ size: SIZES[(SIZES.indexOf(state.size) + 1) % SIZES.length] });
}

// Show what a key finds, from the first image on; the same key again: no longer.
function find({ words, values, when }) {
  if (!when) return flash(t("{}：这份报告里没有这一项", t(words)));
  const isOn = Object.entries(values).every(([name, value]) => state[name] === value);
  const cleared = Object.fromEntries(Object.keys(values).map((name) => [name, FIELDS[name][0]]));
  startWith(isOn ? cleared : values);
}

function startWith(values) {
  focusFirst = true;
  changeNow({ ...values, open: null });
}

function startAfresh() {
  const names = [...FILTERS, "sort", "desc"];
  startWith(Object.fromEntries(names.map((name) => [name, FIELDS[name][0]])));
}

let hintTimer = null;

// A word in passing, over whatever is shown.
function flash(sentence) {
  showHint(sentence);
  hintTimer = setTimeout(() => showHint(""), Math.max(1500, 80 * sentence.length));
}

function showHint(sentence) {
  clearTimeout(hintTimer);
  byId("hint").textContent = sentence;
}

function imageOfNow() {
  return opened.image || gallery.list[gallery.position] || null;
}

function awaitMark() {
  imageToMark = imageOfNow();
  if (imageToMark) showHint(t("标记 {}：1 同意，2 不同意，3 存疑，0 清除", visible(imageToMark.name)));
}

function takeMark(key) {
  const image = imageToMark;
  imageToMark = null;
  showHint("");
  const mark = { 0: "", 1: MARKS[0], 2: MARKS[1], 3: MARKS[2] }[key];
  if (mark !== undefined) setMark(image, { mark });
}

function writeComment() {
  const image = imageOfNow();
  if (!image) return;
  if (!opened.image) openImage(image.index);
  byId("comment").focus();
}

const ACTIONS = {
  ...Object.fromEntries(Object.entries(FINDERS).map(([key, finder]) => [key, () => find(finder)])),
  x: startAfresh,
  h: () => change({ heat: !state.heat }),
  o: () => change({ outline: !state.outline }),
  "-": () => changeAlpha(-1),
  "+": () => changeAlpha(1),
  "=": () => changeAlpha(1), // the + of a keyboard without Shift
  "[": () => stepText(-1),
  "]": () => stepText(1),
  ",": () => stepSetting(-1),
  ".": () => stepSetting(1),
  v: nextSize,
  d: () => change({ fold: !state.fold }),
  m: awaitMark,
  c: writeComment,
  e: exportMarks,
  i: chooseImport,
  p: startPrinting,
  l: copyLink,
  z: switchLanguage,
  "?": showHelp,
};

function showHelp() {
  const line = ([keys, words]) => [
    element("dt", {}, ...keys.split(" ").map((key) => (key === "…" ? key : element("kbd", {}, key)))),
    element("dd", {}, t(words)),
  ];
  const parts = KEY_WORDS().map(([heading, lines]) =>
    element("section", {}, element("h3", {}, t(heading)), element("dl", {}, ...lines.flatMap(line))),
  );
  const close = element("button", { type: "button", click: hideHelp }, t("关闭"));
  helpReturn = document.activeElement;
  byId("help").replaceChildren(
    element("h2", { id: "help-name" }, t("按键")),
    element("div", { class: "parts" }, ...parts),
    close,
  );
  byId("help").setAttribute("aria-labelledby", "help-name");
  byId("help").hidden = false;
  close.focus();
}

let helpReturn = null; // what had the focus

function hideHelp() {
  byId("help").hidden = true;
  if (helpReturn) helpReturn.focus();
}

// Fields where keys are letters. In the others single keys keep their meaning, but for those of the field itself.
function isTyping(target) {
  return target.matches("textarea, select, input:not([type=range])");
}

// The dialog that is on top, null where none is.
function dialogOnTop() {
  return ["help", "opened"].map(byId).find((dialog) => !dialog.hidden) || null;
}

// The Tab key stays within a dialog.
function keepWithin(dialog, event) {
  const stops = [...dialog.querySelectorAll("button:not([disabled]), a[href], textarea, .word[tabindex='0']")];
  const first = event.shiftKey ? stops[stops.length - 1] : stops[0];
  const last = event.shiftKey ? stops[0] : stops[stops.length - 1];
  if (document.activeElement === last || !stops.includes(document.activeElement)) {
    event.preventDefault();
    first.focus();
  }
}

function escape(dialog) {
  const field = document.activeElement;
  if (isTyping(field) && dialog === byId("opened")) return byId("opened-name").focus();
  if (!dialog && field.matches("input, select")) return leaveField(field);
  if (!dialog) return byId("notes").replaceChildren();
  dialog === byId("help") ? hideHelp() : closeImage();
}

function leaveField(field) {
  field.blur();
  focusCard(gallery.position);
}

function onKey(event) {
  const { target } = event;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key; // as well with the capitals locked
  if (event.isComposing) return;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "p") return (event.preventDefault(), startPrinting());
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const dialog = dialogOnTop();
  if (imageToMark) return (event.preventDefault(), takeMark(key));
  if (key === "Escape") return escape(dialog);
  if (key === "Tab") return dialog && keepWithin(dialog, event);
  if (key === "Enter" && !dialog && target.matches("input:not([type=range])"))
    return (event.preventDefault(), leaveField(target));
  if (isTyping(target)) return;
  if (dialog === byId("help")) return key === "?" && hideHelp();
  if (/^[0-9]$/.test(key)) return chooseText(Number(key));
  if (ACTIONS[key]) return (event.preventDefault(), ACTIONS[key]());
  if (key === "/" && !dialog) return (event.preventDefault(), document.querySelector('[data-field="q"]').focus());
  if (!STEPS[key] || target.matches("input")) return;
  if (!dialog) return (event.preventDefault(), moveOverCards(key));
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[key];
  if (step) return (event.preventDefault(), openNext(step));
}
