// What is known of an image under the choices of now: its rows of the chosen setting, the text that is shown.

const images = report.images;
images.forEach((image, index) => {
  image.index = index;
  image.bySetting = report.settings.map((_, setting) => image.rows.filter((row) => row.setting === setting));
});
const indexOfId = new Map(images.map((image) => [image.id, image.index]));

function rowsOf(image) {
  return image.bySetting[state.setting] || [];
}

function rowOf(image, text) {
  return rowsOf(image).find((row) => row.target === text) || null;
}

const TEXTS_BY_WORD = {
  predicted: (image) => image.predicted,
  label: (image) => {
    const explained = image.labels.find((label) => rowOf(image, label));
    return explained === undefined ? image.labels[0] : explained;
  },
  first: (image) => (rowsOf(image).length ? rowsOf(image)[0].target : null),
};

// Index of the text whose heatmap is shown; null where there is none to show.
function shownText(image) {
  const text = TEXTS_BY_WORD[state.text] ? TEXTS_BY_WORD[state.text](image) : state.text;
  return text === undefined ? null : text;
}

function shownRow(image) {
  const text = shownText(image);
  return text === null ? null : rowOf(image, text);
}

// The row that was held against an annotation: the shown one, else the annotated text's own, else the first.
function measuredRow(image) {
  const rows = rowsOf(image).filter((row) => row.case);
  const shown = shownText(image);
  return (
    rows.find((row) => row.target === shown) || rows.find((row) => row.target === row.annotated) || rows[0] || null
  );
}

function shownProbability(image) {
  const text = shownText(image);
  return text === null || !image.probabilities ? null : image.probabilities[text];
}

function isRight(image) {
  return image.labels.includes(image.predicted);
}

// As the evaluation has it: what was predicted where that is right, else the first label; null without one.
function trueClass(image) {
  if (!image.labels.length || image.predicted === null) return null;
  return isRight(image) ? image.predicted : image.labels[0];
}

function hit(row) {
  return row.distance !== null && row.distance <= report.tolerance;
}

const some = {
  labels: images.some((image) => image.labels.length),
  cases: images.some((image) => image.rows.some((row) => row.case)),
  failed: images.some((image) => image.error),
  specificities: images.some((image) => image.rows.some((row) => row.specificity !== null)),
  severalTexts: images.some((image) => image.bySetting.some((rows) => rows.length > 1)),
};

const CASES = {
  right_inside: ["预测正确，峰在标注内", "对/内"],
  right_outside: ["预测正确，峰在标注外", "对/外"],
  wrong_inside: ["预测错误，峰在标注内", "错/内"],
  wrong_outside: ["预测错误，峰在标注外", "错/外"],
};

// Measures of a row: [name, how it is read, how it is written]; the sort and the opened image offer those that there are.
const MEASURES = [
  ["文本特异性", (row) => row.specificity, 2],
  ["峰到标注的距离", (row) => row.distance, 1],
  ["能量", (row) => row.measures && row.measures.energy, 3],
  ["IoU（半高）", (row) => row.measures && row.measures.iou_half, 3],
  ["IoU（Otsu）", (row) => row.measures && row.measures.iou_otsu, 3],
  ["对比噪声比", (row) => row.measures && row.measures.contrast_to_noise, 2],
  ["高于一半的面积", (row) => row.area, 3],
  ["删除优于随机", (row) => row.measures && row.measures.deletion_margin, 3],
  ["插入优于随机", (row) => row.measures && row.measures.insertion_margin, 3],
];

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

// Two sizes: the largest of the proportions width : height in a box, in whole pixels.
function fitted([width, height], boxWidth, boxHeight) {
  const scale = Math.min(boxWidth / width, boxHeight / height);
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

// A file's path below the report, as a link; null for what leads elsewhere.
function link(path) {
  const steps = String(path).split("/");
  if (steps.some((step) => step === "" || step === "." || step === "..")) return null;
  try {
    return steps.map(encodeURIComponent).join("/");
  } catch (error) {
    return null; // half of a surrogate pair: a name that no address can have
  }
}
