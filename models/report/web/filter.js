// Which images are shown, and in which order.

function within(value, low, high) {
  return isNumber(value) && (low === null || value >= low) && (high === null || value <= high);
}

function searchedText(image) {
  return [image.name, image.id, image.path || ""].join("\n").toLowerCase();
}

// Field of the state: whether an image passes where the field has this value.
const CONDITIONS = {
  q: (image, words) =>
    words
      .toLowerCase()
      .split(/\s+/)
      .every((word) => searchedText(image).includes(word)),
  predicted: (image, text) => image.predicted === text,
  label: (image, text) => image.labels.includes(text),
  true: (image, text) => trueClass(image) === text,
  right: (image, right) => trueClass(image) !== null && isRight(image) === right,
  case: (image, name) => Boolean(measuredRow(image)) && measuredRow(image).case === name,
  hit: (image, wanted) => Boolean(measuredRow(image)) && hit(measuredRow(image)) === wanted,
  warning: (image, wanted) => Boolean(shownRow(image) && shownRow(image).warning) === wanted,
  failed: (image, wanted) => Boolean(image.error) === wanted,
  mark: (image, wanted) => {
    const { mark, comment } = markOf(image);
    const isMarked = marks.has(image.id);
    return { any: isMarked, none: !isMarked, comment: comment !== "" }[wanted] ?? mark === wanted;
  },
  pmin: (image, low) => within(100 * shownProbability(image), low, null) && shownProbability(image) !== null,
  pmax: (image, high) => within(100 * shownProbability(image), null, high) && shownProbability(image) !== null,
  smin: (image, low) => Boolean(shownRow(image)) && within(shownRow(image).specificity, low, null),
  smax: (image, high) => Boolean(shownRow(image)) && within(shownRow(image).specificity, null, high),
};
report.columns.forEach((_, column) => {
  CONDITIONS["column" + column] = (image, wanted) => {
    const value = image.values[column] || "";
    return valuesOf(column) ? value === wanted : value.toLowerCase().includes(wanted.toLowerCase());
  };
});

const collator = new Intl.Collator("zh-CN", { numeric: true });
function compareNames(one, other) {
  return collator.compare(one, other);
}

// The values of a list's column, sorted, where they are few enough to choose from; else null.
const MOST_CHOICES = 15;
const choicesOfColumn = report.columns.map((_, column) => {
  const values = new Set(images.map((image) => image.values[column] || ""));
  values.delete("");
  return values.size <= MOST_CHOICES && values.size < images.length ? [...values].sort(compareNames) : null;
});

function valuesOf(column) {
  return choicesOfColumn[column];
}

// What images are sorted by: name in the state, word, how it is read. Numbers and texts; null comes last.
const SORTS = [
  ["order", "原来的顺序", (image) => image.index],
  ["name", "名称", (image) => image.name],
  ["p", "概率（所示文本）", shownProbability],
  ["top", "概率（预测）", (image) => (image.probabilities ? image.probabilities[image.predicted] : null)],
  ["predicted", "预测", (image) => (image.predicted === null ? null : image.predicted)],
  ["time", "标记的时间", (image) => markOf(image).time || null],
  ...MEASURES.map(([word, read], place) => ["m" + place, word, (image) => valueOfMeasure(read, image)]),
];

function valueOfMeasure(read, image) {
  const rows = [shownRow(image), measuredRow(image)].filter(Boolean);
  const values = rows.map(read).filter(isNumber);
  return values.length ? values[0] : null;
}

// The sorts that tell images apart.
function offeredSorts() {
  const always = SORTS.slice(0, SORTS.length - MEASURES.length);
  return [...always, ...SORTS.slice(always.length).filter((_, place) => hasMeasure[place])];
}
const hasMeasure = MEASURES.map(([, read]) => images.some((image) => image.rows.some((row) => isNumber(read(row)))));

function compareValues(one, other) {
  return typeof one === "string" ? compareNames(one, other) : one - other;
}

function activeFilters() {
  return FILTERS.filter((name) => state[name] !== FIELDS[name][0] && state[name] !== "" && CONDITIONS[name]);
}

// The images that pass, in their order.
function selectedImages() {
  const filters = activeFilters();
  const passed = images.filter((image) => filters.every((name) => CONDITIONS[name](image, state[name])));
  const [, , read] = SORTS.find(([name]) => name === state.sort) || SORTS[0];
  const keyed = passed.map((image) => [read(image), image]);
  const sign = state.desc ? -1 : 1;
  keyed.sort(([one, first], [other, second]) => {
    if (one === null || other === null) return (one === null) - (other === null) || first.index - second.index;
    return sign * compareValues(one, other) || first.index - second.index;
  });
  return keyed.map(([, image]) => image);
}
