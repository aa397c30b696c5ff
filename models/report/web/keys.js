// The keyboard: what each key does, and the page that lists them.

// [keys as they are shown, what they do]
const KEY_WORDS = [
  ["← → ↑ ↓", "在图像之间移动；打开后是上一张、下一张"],
  ["Enter", "打开图像"],
  ["Esc", "关闭"],
  ["1 … 9", "热力图的文本换成第几个"],
  ["0", "回到原来的文本"],
  ["h", "热力图开或关"],
  ["o", "标注的轮廓开或关"],
  ["/", "查找"],
  ["m", "标记：再按 1 同意、2 不同意、3 存疑、0 清除"],
  ["c", "写评语"],
  ["p", "打印"],
  ["?", "这张表"],
];

let textBefore = null; // what was shown before the digits
let imageToMark = null; // m was pressed

function chooseText(digit) {
  const isByNumber = typeof state.text === "number";
  if (digit === 0) {
    const before = textBefore === null ? FIELDS.text[0] : textBefore;
    return change({ text: before });
  }
  if (digit > report.names.length) return;
  if (!isByNumber) textBefore = state.text;
  change({ text: digit - 1 });
}

function imageOfNow() {
  return opened.image || gallery.list[gallery.position] || null;
}

function awaitMark() {
  imageToMark = imageOfNow();
  if (imageToMark) byId("hint").textContent = t("标记 {}：1 同意，2 不同意，3 存疑，0 清除", visible(imageToMark.name));
}

function takeMark(key) {
  const image = imageToMark;
  imageToMark = null;
  byId("hint").textContent = "";
  const mark = { 0: "", 1: MARKS[0], 2: MARKS[1], 3: MARKS[2] }[key];
  if (mark !== undefined) setMark(image, { mark });
}

function writeComment() {
  const image = imageOfNow();
  if (!image) return;
  if (!opened.image) openImage(image.index);
  requestAnimationFrame(() => requestAnimationFrame(() => byId("comment") && byId("comment").focus()));
}

const ACTIONS = {
  h: () => change({ heat: !state.heat }),
  o: () => change({ outline: !state.outline }),
  m: awaitMark,
  c: writeComment,
  p: startPrinting,
  "?": showHelp,
};

function showHelp() {
  const lines = KEY_WORDS.flatMap(([keys, words]) => [
    element("dt", {}, element("kbd", {}, keys)),
    element("dd", {}, t(words)),
  ]);
  const close = element("button", { type: "button", click: hideHelp }, t("关闭"));
  helpReturn = document.activeElement;
  byId("help").replaceChildren(element("h2", { id: "help-name" }, t("按键")), element("dl", {}, ...lines), close);
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
  const stops = [...dialog.querySelectorAll("button:not([disabled]), a[href], textarea")];
  const first = event.shiftKey ? stops[stops.length - 1] : stops[0];
  const last = event.shiftKey ? stops[0] : stops[stops.length - 1];
  if (document.activeElement === last || !stops.includes(document.activeElement)) {
    event.preventDefault();
    first.focus();
  }
}

function escape(dialog) {
  const field = document.activeElement;
  if (isTyping(field)) return dialog === byId("opened") ? byId("opened-name").focus() : field.blur();
  if (dialog) dialog === byId("help") ? hideHelp() : closeImage();
}

function onKey(event) {
  const { key, target } = event;
  if (event.isComposing) return;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "p") return (event.preventDefault(), startPrinting());
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const dialog = dialogOnTop();
  if (imageToMark) return (event.preventDefault(), takeMark(key));
  if (key === "Escape") return escape(dialog);
  if (key === "Tab") return dialog && keepWithin(dialog, event);
  if (isTyping(target)) return;
  if (dialog === byId("help")) return key === "?" && hideHelp();
  if (/^[0-9]$/.test(key)) return chooseText(Number(key));
  if (ACTIONS[key]) return (event.preventDefault(), ACTIONS[key]());
  if (key === "/" && !dialog) return (event.preventDefault(), document.querySelector('[data-field="q"]').focus());
  if (!STEPS[key] || target.matches("input") || (!dialog && target.matches("button:not(.card), a"))) return;
  if (!dialog) return (event.preventDefault(), moveOverCards(key));
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[key];
  if (step) return (event.preventDefault(), openNext(step));
}
