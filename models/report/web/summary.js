// The run on top of the page: counts, classes with the evaluation's numbers, the confusion matrix.

const MOST_CLASSES = 20;

function groupOfNow() {
  return report.evaluation ? report.evaluation.groups[state.group] || null : null;
}

// The filter that shows a group's images: its split, where the list has one.
function filterOfGroup(group) {
  const column = report.columns.indexOf("split");
  return group && group.split !== null && column >= 0 ? { ["column" + column]: group.split } : {};
}

function imagesOfGroup(group) {
  const filters = Object.entries(filterOfGroup(group));
  return images.filter((image) => !image.error && filters.every(([name, value]) => CONDITIONS[name](image, value)));
}

function counted(list, read) {
  const counts = report.names.map(() => 0);
  for (const image of list) for (const text of read(image)) counts[text]++;
  return counts;
}

// The classes to list: those that occur, the most frequent where they are many; in the order of the texts.
function listedClasses(labelled, predicted) {
  const frequent = report.names.map((_, text) => text).filter((text) => labelled[text] + predicted[text]);
  frequent.sort((one, other) => labelled[other] + predicted[other] - labelled[one] - predicted[one]);
  return frequent.slice(0, MOST_CLASSES).sort((one, other) => one - other);
}

function filterButton(label, values, attributes) {
  const isOn = Object.entries(values).every(([name, value]) => state[name] === value);
  const cleared = Object.fromEntries(Object.keys(values).map((name) => [name, FIELDS[name][0]]));
  const click = () => change(isOn ? cleared : values);
  return element(
    "button",
    { type: "button", class: "link", "aria-pressed": String(isOn), click, ...attributes },
    label,
  );
}

function showCounts() {
  const failed = images.filter((image) => image.error).length;
  const warned = images.filter((image) => shownRow(image) && shownRow(image).warning).length;
  const wrong = images.filter((image) => CONDITIONS.right(image, false)).length;
  const parts = [
    element("span", {}, t("图像 {}", images.length)),
    some.labels && filterButton(t("预测错误 {}", wrong), { right: false }),
    filterButton(t("失败 {}", failed), { failed: true }),
    filterButton(t("有警告 {}", warned), { warning: true }),
    ...Object.keys(CASES)
      .filter(() => some.cases)
      .map(caseCount),
    element("span", {}, t("已标记 {}", markedCount())),
  ];
  keepingFocus(byId("counts"), () => byId("counts").replaceChildren(...parts.filter(Boolean)));
}

function markedCount() {
  return images.filter((image) => marks.has(image.id)).length;
}

function caseCount(name) {
  const [words, short] = CASES[name];
  const count = images.filter((image) => CONDITIONS.case(image, name)).length;
  return filterButton(
    element("span", { class: "badge " + name }, `${t(short)} ${count}`),
    { case: name },
    { title: t(words) },
  );
}

// A column of the classes' table: its heading, what a cell shows of (class or null for a line of several, numbers).
function evaluationColumns(group) {
  const number = (measure, write) => (_, numbers) => numbers[measure] && write(numbers[measure]);
  const share = (value) => (isNumber(value) ? decimals(value, 2) : "–");
  const interval = ({ value, low, high }) => share(value) + (isNumber(low) ? ` [${share(low)}, ${share(high)}]` : "");
  const columns = [
    ["准确率", number("accuracy", interval)],
    ["AUC", number("auc", interval)],
    ["命中（容差）", number("pointing", interval)],
    ["随机", number("pointing", ({ chance }) => share(chance))],
    ["该类平均位置", number("pointing", ({ class_place: place }) => share(place))],
    ["命中（严格）", number("pointing_strict", interval)],
    ["能量", number("energy", interval)],
  ];
  const lines = group ? [group.overall, group.macro, ...Object.values(group.classes)] : [];
  return columns.filter(([, cell]) => lines.some((line) => ![undefined, "–"].includes(cell(null, line))));
}

function classesTable(group, list) {
  const ofGroup = filterOfGroup(group);
  const labelled = counted(list, (image) => image.labels);
  const predicted = counted(list, (image) => (image.predicted === null ? [] : [image.predicted]));
  const classes = listedClasses(labelled, predicted);
  const measured = evaluationColumns(group);
  const heading = (word) => element("th", { scope: "col" }, capital(t(word)));
  const cells = (numbers, text) => measured.map(([, cell]) => element("td", {}, cell(text, numbers || {}) || "–"));
  const ofClass = (text) =>
    element(
      "tr",
      {},
      element(
        "th",
        { scope: "row" },
        filterButton(named(report.names[text]), {
          ...ofGroup,
          ...(some.labels ? { label: text } : { predicted: text }),
        }),
      ),
      some.labels && element("td", {}, filterButton(String(labelled[text]), { ...ofGroup, label: text })),
      element("td", {}, filterButton(String(predicted[text]), { ...ofGroup, predicted: text })),
      ...cells(group && group.classes[report.names[text]], text),
    );
  const ofSeveral = (word, numbers, counts) =>
    element(
      "tr",
      { class: "several" },
      element("th", { scope: "row" }, capital(t(word))),
      ...counts.map((count) => element("td", {}, count)),
      ...cells(numbers),
    );
  const total = String(list.length);
  const several = group
    ? [
        ofSeveral(
          "全部",
          group.overall,
          some.labels ? [String(list.filter((image) => image.labels.length).length), total] : [total],
        ),
        ofSeveral("类平均", group.macro, some.labels ? ["", ""] : [""]),
      ]
    : [];
  const more = report.names.filter((_, text) => labelled[text] + predicted[text]).length - classes.length;
  return [
    element(
      "table",
      { class: "classes" },
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          heading("类别"),
          some.labels && heading("标签"),
          heading("预测"),
          ...measured.map(([word]) => heading(word)),
        ),
      ),
      element("tbody", {}, ...several, ...classes.map(ofClass)),
    ),
    more > 0 && element("p", { class: "quiet" }, t("另有 {} 类", more)),
  ];
}

// Cells by true class and prediction; a click shows those images.
function confusionMatrix(group, list) {
  const labelled = list.filter((image) => trueClass(image) !== null);
  const classes = listedClasses(
    counted(labelled, (image) => [trueClass(image)]),
    counted(labelled, (image) => [image.predicted]),
  );
  const counts = new Map();
  for (const image of labelled) {
    const key = trueClass(image) + "," + image.predicted;
    counts.set(key, (counts.get(key) || 0) + 1);
  }
  const sizes = counted(labelled, (image) => [trueClass(image)]);
  const cell = (truth, predicted) => {
    const count = counts.get(truth + "," + predicted) || 0;
    const label = t("真实 {}，预测 {}：{} 张", visible(report.names[truth]), visible(report.names[predicted]), count);
    const place = element("td", { class: truth === predicted ? "right" : null });
    if (!count) return place;
    const button = filterButton(
      String(count),
      { ...filterOfGroup(group), true: truth, predicted },
      { title: label, "aria-label": label, "data-cell": truth + "," + predicted },
    );
    place.style.setProperty("--share", (count / sizes[truth]).toFixed(3));
    place.append(button);
    return place;
  };
  const line = (truth) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, `${truth + 1} `, named(report.names[truth])),
      ...classes.map((predicted) => cell(truth, predicted)),
    );
  const heading = (text) => element("th", { scope: "col", title: visible(report.names[text]) }, String(text + 1));
  return element(
    "table",
    { class: "confusion" },
    element("caption", {}, t("混淆矩阵：行是真实类别，列是预测")),
    element("thead", {}, element("tr", {}, element("td", {}), ...classes.map(heading))),
    element("tbody", { keydown: moveInMatrix }, ...classes.map(line)),
  );
}

// The matrix is one stop of the Tab key; arrows go from cell to cell.
function moveInMatrix(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const from = event.target.closest("td");
  if (!step || !from) return;
  event.preventDefault();
  event.stopPropagation();
  const lines = [...event.currentTarget.rows];
  let [row, column] = [lines.indexOf(from.parentElement), from.cellIndex];
  for (;;) {
    [row, column] = [row + step[0], column + step[1]];
    const cell = lines[row] && lines[row].cells[column];
    if (!cell || !column) return;
    const button = cell.querySelector("button");
    if (button) return button.focus();
  }
}

function groupChoice() {
  const groups = report.evaluation.groups;
  const settingOf = (group) => report.settings.find((setting) => setting.zh === group.setting);
  const words = ({ split, ...group }) =>
    joined([
      split !== null && t("划分 {}", visible(split)),
      settingOf(group) ? inLanguage(settingOf(group)) : group.setting,
    ]);
  const options = groups.map((group, place) =>
    element("option", { value: place, selected: place === state.group }, words(group)),
  );
  const choose = (event) => change({ group: Number(event.target.value) });
  return element("label", {}, t("评估"), " ", element("select", { change: choose, "data-key": "group" }, ...options));
}

function showSummary() {
  const group = groupOfNow();
  const list = imagesOfGroup(group);
  const fold = element(
    "button",
    {
      type: "button",
      class: "fold",
      "aria-expanded": String(!state.fold),
      "data-key": "fold",
      click: () => change({ fold: !state.fold }),
    },
    t("概要"),
  );
  const parts = state.fold
    ? []
    : [
        element("div", { class: "part wide" }, ...classesTable(group, list)),
        some.labels && element("div", { class: "part" }, confusionMatrix(group, list)),
      ];
  const choice = !state.fold && report.evaluation && report.evaluation.groups.length > 1 && groupChoice();
  keepingFocus(byId("summary"), () =>
    byId("summary").replaceChildren(
      element("div", { class: "line" }, element("h2", {}, fold), choice || ""),
      element("div", { class: "parts" }, ...parts.filter(Boolean)),
    ),
  );
  const cells = [...byId("summary").querySelectorAll(".confusion button")];
  cells.forEach((button) => (button.tabIndex = -1));
  const first =
    cells.find((button) => button === document.activeElement || button.getAttribute("aria-pressed") === "true") ||
    cells[0];
  if (first) first.tabIndex = 0;
}

// Put new elements into a place and leave the focus on what stands where the focused one stood.
function keepingFocus(place, refill) {
  const focusables = () => [...place.querySelectorAll("button, select, input, a, textarea, .word")];
  const before = focusables().indexOf(document.activeElement);
  refill();
  const after = before >= 0 && focusables()[before];
  if (after) after.focus({ preventScroll: true });
}
