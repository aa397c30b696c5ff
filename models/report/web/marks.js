// A reader's marks and comments: kept in the browser under the run's name, taken out and brought in as CSV.

const MARK_WORDS = { agree: "同意", disagree: "不同意", unclear: "存疑" };
const MARK_SIGNS = { agree: "✓", disagree: "✗", unclear: "?" };
const MARKS_KEY = "clip-gradcam-marks:" + report.run;
const LONGEST_COMMENT = 2000;
const LARGEST_IMPORT = 20e6; // bytes
let marks = new Map(); // id -> {mark: one of MARKS or "", comment, time}
let areKept = true; // whether the browser keeps them

function isMarkOfOurs(value) {
  return (
    value && ["", ...MARKS].includes(value.mark) && typeof value.comment === "string" && typeof value.time === "string"
  );
}

function readMarks() {
  if (!areKept) return; // what is here is all there is
  try {
    const kept = JSON.parse(localStorage.getItem(MARKS_KEY) || "{}");
    marks = new Map(Object.entries(kept).filter(([, value]) => isMarkOfOurs(value)));
  } catch (error) {
    areKept = !(error instanceof DOMException); // what is there and no JSON is written over
  }
}

function keepMarks() {
  try {
    localStorage.setItem(MARKS_KEY, JSON.stringify(Object.fromEntries(marks)));
    areKept = true;
  } catch (error) {
    areKept = false;
  }
}

function markOf(image) {
  return marks.get(image.id) || { mark: "", comment: "", time: "" };
}

// Change an image's mark or comment; one without either is none.
function setMark(image, values) {
  const { mark, comment } = { ...markOf(image), ...values };
  readMarks(); // of another window, meanwhile
  if (mark || comment) marks.set(image.id, { mark, comment, time: new Date().toISOString() });
  else marks.delete(image.id);
  keepMarks();
  warnOfMarks();
  change({});
}

function warnOfMarks() {
  if (!areKept) notify(t("这个浏览器不保存标记：关闭页面之前请导出"));
}

// -- as a table

// What a spreadsheet would take for a formula, as runs/tables.py has it; one more ' before it is taken off when read.
const FORMULA = /^(?:[\s\x00-\x1f'"‘’“”＇＂]*[=+\-@＝＋－＠﹢﹣−⁺⁻﹦⁼﹫]|[\t\r])/;

function csvCell(text) {
  const safe = FORMULA.test(text) ? "'" + text : text;
  return /[",;\r\n\t]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

function plainCell(text) {
  return text[0] === "'" && FORMULA.test(text.slice(1)) ? text.slice(1) : text;
}

function marksAsCsv() {
  const marked = images.filter((image) => marks.has(image.id));
  const lines = marked.map((image) => {
    const { mark, comment, time } = markOf(image);
    return [image.id, visible(image.name), mark && t(MARK_WORDS[mark]), comment, time];
  });
  return (
    "\ufeff" +
    [["id", "name", "mark", "comment", "time"], ...lines].map((line) => line.map(csvCell).join(",") + "\r\n").join("")
  );
}

function exportMarks() {
  leaveComment();
  const count = markedCount();
  if (!count) return notify(t("还没有标记或评语"));
  const name = "marks-" + report.run.replace(/[^\w-]/g, "").slice(0, 8) + ".csv";
  const address = URL.createObjectURL(new Blob([marksAsCsv()], { type: "text/csv" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  notify(t("已导出 {} 条标记：{}，在浏览器的下载文件夹里", count, name));
}

// Lines of cells of a CSV; quotes, doubled quotes and line ends within them as spreadsheets write them.
function parseCsv(text) {
  const comma = (text.match(/[,;\t]/) || [","])[0];
  const lines = [[]];
  const cell = new RegExp(
    `(?:"((?:[^"]|"")*)"|([^"${comma}\\r\\n][^${comma}\\r\\n]*|))(${comma}|\\r\\n|\\r|\\n|$)`,
    "y",
  );
  while (cell.lastIndex < text.length) {
    const match = cell.exec(text);
    if (!match) throw new Error("csv");
    lines[lines.length - 1].push(match[1] === undefined ? match[2] : match[1].replaceAll('""', '"'));
    if (match[3] !== comma) lines.push([]);
  }
  return lines.filter((line) => line.some((content) => content !== ""));
}

// Bytes as text: UTF-8, or what Excel in China writes.
function decodeText(bytes) {
  for (const encoding of [bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le" : "utf-8", "gb18030"]) {
    try {
      return new TextDecoder(encoding, { fatal: true }).decode(bytes);
    } catch (error) {
      continue;
    }
  }
  throw new Error("encoding");
}

const MARK_OF_WORD = new Map(
  Object.entries(MARK_WORDS).flatMap(([mark, word]) =>
    [mark, word, (report.words[word] || word).toLowerCase()].map((name) => [name, mark]),
  ),
);

// A spreadsheet takes 001 for a number, and leaves 1.
const withoutZeros = (id) => id.replace(/^0+(?=[0-9]+$)/, "");
const indexWithoutZeros = new Map(); // undefined where it would be that of several images
for (const [id, index] of indexOfId) {
  const short = withoutZeros(id);
  indexWithoutZeros.set(short, indexWithoutZeros.has(short) ? undefined : index);
}

function indexOfCell(id) {
  return indexOfId.has(id) ? indexOfId.get(id) : indexWithoutZeros.get(withoutZeros(id));
}

// Take over the marks of a CSV's text; what was imported wins. Returns a sentence that says what came in.
function importMarks(text) {
  const [header, ...lines] = parseCsv(text);
  const place = Object.fromEntries((header || []).map((name, column) => [name.trim().toLowerCase(), column]));
  if (place.id === undefined || (place.mark === undefined && place.comment === undefined)) throw new Error("header");
  const counts = { taken: 0, replaced: 0, unknown: 0, words: 0 };
  readMarks();
  for (const line of lines) {
    const cell = (name) => plainCell(line[place[name]] || "");
    const word = cell("mark").trim().toLowerCase();
    const mark = word === "" ? "" : MARK_OF_WORD.get(word);
    const index = indexOfCell(cell("id"));
    if (index === undefined) counts.unknown++;
    else if (mark === undefined) counts.words++;
    else counts[takeOver(images[index], mark, cell("comment"), cell("time"))]++;
  }
  keepMarks();
  change({});
  return [
    t("导入 {} 条标记", counts.taken + counts.replaced),
    counts.replaced && t("{} 条与原有的不同，以导入的为准", counts.replaced),
    counts.unknown && t("{} 个编号不在这份报告中，没有导入", counts.unknown),
    counts.words && t("{} 条的标记不认识，没有导入", counts.words),
  ]
    .filter(Boolean)
    .join(t("；"));
}

function takeOver(image, mark, comment, time) {
  const before = markOf(image);
  const text = comment.slice(0, LONGEST_COMMENT);
  const isNew = !marks.has(image.id) || (before.mark === mark && before.comment === text);
  if (mark || text) marks.set(image.id, { mark, comment: text, time: time.slice(0, 40) || new Date().toISOString() });
  else marks.delete(image.id);
  return isNew ? "taken" : "replaced";
}

async function importFile(file) {
  try {
    if (file.size > LARGEST_IMPORT) throw new Error("size");
    notify(importMarks(decodeText(new Uint8Array(await file.arrayBuffer()))));
  } catch (error) {
    notify(t("这个文件读不出标记：应是这里导出的 CSV，列为 id、mark、comment"));
  }
}
