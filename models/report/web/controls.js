// The bar of what all cards show, the filters beside them, and the line above them; each control is a row of a table.

const yesNo = (yes, no) => [
  ["1", yes],
  ["0", no],
];
const namesAsOptions = () => report.names.map((name, text) => [String(text), `${text + 1} ${visible(name)}`]);
const HEADINGS = ["显示", "筛选"];

// [field, kind, label, what it needs: options, limits, words]; `when`: whether the run has something for it.
const DISPLAY_CONTROLS = () => [
  {
    field: "text",
    kind: "select",
    label: "热力图的文本",
    options: () => [
      ["predicted", t("预测")],
      ...(some.labels ? [["label", capital(t("标签"))]] : []),
      ["first", t("最先解释的")],
      ...namesAsOptions(),
    ],
  },
  {
    field: "setting",
    kind: "select",
    label: "方法",
    when: report.settings.length > 1,
    options: () => report.settings.map((setting, place) => [String(place), inLanguage(setting)]),
  },
  { field: "heat", kind: "toggle", label: "热力图" },
  { field: "outline", kind: "toggle", label: "轮廓", when: report.has_annotations },
  { field: "alpha", kind: "range", label: "不透明度" },
  {
    field: "blend",
    kind: "select",
    label: "叠加",
    options: () =>
      [
        ["heat", t("越热越不透明")],
        ["constant", t("处处相同")],
      ].filter(([name]) => report.opacity[name]),
  },
  {
    field: "colormap",
    kind: "select",
    label: "色表",
    when: Object.keys(report.colormaps).length > 1,
    options: () => Object.keys(report.colormaps).map((name) => [name, name]),
  },
  {
    field: "scale",
    kind: "select",
    label: "色标",
    when: some.severalTexts,
    options: () => [
      ["shared", t("图像的各文本共用")],
      ["own", t("每张热力图自己的")],
    ],
  },
  {
    field: "size",
    kind: "select",
    label: "卡片",
    options: () => SIZES.map((size, place) => [String(size), t(["小", "中", "大", "特大"][place])]),
  },
];

const FILTER_CONTROLS = () => [
  { field: "q", kind: "search", label: "名称或编号" },
  { field: "predicted", kind: "select", label: "预测", all: true, options: namesAsOptions },
  { field: "label", kind: "select", label: "标签", all: true, when: some.labels, options: namesAsOptions },
  { field: "true", kind: "select", label: "真实类别", all: true, when: some.labels, options: namesAsOptions },
  {
    field: "right",
    kind: "select",
    label: "预测对错",
    all: true,
    when: some.labels,
    options: () => yesNo(t("预测正确"), t("预测错误")),
  },
  {
    field: "case",
    kind: "select",
    label: "四格",
    all: true,
    when: some.cases,
    options: () => Object.entries(CASES).map(([name, [words]]) => [name, t(words)]),
  },
  {
    field: "hit",
    kind: "select",
    label: "命中（容差）",
    all: true,
    when: some.cases && report.tolerance !== null,
    options: () => yesNo(t("命中"), t("没有命中")),
  },
  { field: "warning", kind: "select", label: "警告", all: true, options: () => yesNo(t("有警告"), t("没有警告")) },
  {
    field: "failed",
    kind: "select",
    label: "失败",
    all: true,
    when: some.failed,
    options: () => yesNo(t("失败的"), t("成功的")),
  },
  {
    field: "mark",
    kind: "select",
    label: "标记",
    all: true,
    options: () => [
      ...MARKS.map((mark) => [mark, t(MARK_WORDS[mark])]),
      ["any", t("已标记")],
      ["none", t("未标记")],
      ["comment", t("有评语")],
    ],
  },
  { field: "pmin", to: "pmax", kind: "between", label: "概率（%）", limits: [0, 100, 1] },
  { field: "smin", to: "smax", kind: "between", label: "文本特异性", when: some.specificities, limits: [0, 2, 0.05] },
  ...report.columns.map((name, column) => ({
    field: "column" + column,
    kind: valuesOf(column) ? "select" : "search",
    name: columnName(name),
    all: true,
    options: () => valuesOf(column).map((value) => [value, visible(value)]),
  })),
];

function labelOf(control) {
  return control.name || capital(t(control.label));
}

function valueFromText(field, text) {
  const [first, read] = FIELDS[field];
  const value = read(text);
  return value === undefined || text === "" ? (first === null ? null : text === "" ? first : state[field]) : value;
}

function inputOf(type, field, attributes) {
  const input = (event) => change({ [field]: valueFromText(field, event.target.value) });
  return element("input", { type, input, "data-field": field, autocomplete: "off", ...attributes });
}

const KINDS = {
  select: (control) => {
    const options = [...(control.all ? [["", capital(t("全部"))]] : []), ...control.options()];
    const choose = (event) => change({ [control.field]: valueFromText(control.field, event.target.value) });
    return element(
      "select",
      { change: choose, "data-field": control.field },
      ...options.map(([value, word]) => element("option", { value }, word)),
    );
  },
  toggle: (control) => {
    const toggle = () => change({ [control.field]: !state[control.field] });
    return element("button", { type: "button", "data-field": control.field, click: toggle }, labelOf(control));
  },
  range: (control) =>
    element(
      "span",
      { class: "amount" },
      inputOf("range", control.field, { min: 0, max: 1, step: 0.05 }),
      element("span", { class: "number", "aria-hidden": "true" }),
    ),
  search: (control) => inputOf("search", control.field, { maxlength: 300 }),
  between: (control) => {
    const [min, max, step] = control.limits;
    const end = (field, sign, word) =>
      inputOf("number", field, { min, max, step, "aria-label": labelOf(control) + " " + word, placeholder: sign });
    return element("span", { class: "between" }, end(control.field, "≥", t("最低")), end(control.to, "≤", t("最高")));
  },
};

function controlElement(control) {
  const field = KINDS[control.kind](control);
  if (control.kind === "toggle") return field;
  const tag = control.kind === "between" ? "div" : "label"; // a label has one field
  return element(tag, { class: "control" }, element("span", { title: labelOf(control) }, labelOf(control)), field);
}

function fillWith(place, controls, ...more) {
  byId(place).replaceChildren(...controls.filter((control) => control.when !== false).map(controlElement), ...more);
}

function buildControls() {
  fillWith("display", DISPLAY_CONTROLS(), legend());
  fillWith("filters", FILTER_CONTROLS());
  byId("display").setAttribute("aria-label", t(HEADINGS[0]));
  byId("filters").setAttribute("aria-label", t(HEADINGS[1]));
  byId("filters").prepend(element("h2", {}, t(HEADINGS[1])));
  byId("selection").replaceChildren(
    element("strong", { id: "count", role: "status" }),
    element("label", { class: "control" }, element("span", {}, t("排序")), sortSelect()),
    element("button", { type: "button", "data-field": "desc", click: () => change({ desc: !state.desc }) }),
    element("span", { id: "chips" }),
    actionButton(t("复制链接"), "l", copyLink, { id: "link" }),
  );
  byId("actions").replaceChildren(
    action("打印", "p", startPrinting),
    action("导出标记", "e", exportMarks),
    action("导入标记", "i", chooseImport),
    element("input", { type: "file", id: "import", accept: ".csv,text/csv", hidden: true, change: importChosen }),
    action("按键", "?", showHelp),
    actionButton(language === "zh" ? "English" : "\u4e2d\u6587", "z", switchLanguage, {
      id: "language",
      lang: language === "zh" ? "en" : "zh-CN",
    }),
  );
}

function action(word, key, click) {
  return actionButton(t(word), key, click);
}

// A button that shows the key that does the same.
function actionButton(words, key, click, attributes) {
  return element(
    "button",
    { type: "button", click, "aria-keyshortcuts": key, ...attributes },
    words,
    element("kbd", { "aria-hidden": "true" }, key),
  );
}

function chooseImport() {
  byId("import").click();
}

function importChosen(event) {
  const [file] = event.target.files;
  event.target.value = ""; // so that the same file can be chosen again
  if (file) importFile(file);
}

function sortSelect() {
  const options = offeredSorts().map(([name, word]) => element("option", { value: name }, t(word)));
  return element(
    "select",
    { "data-field": "sort", change: (event) => change({ sort: event.target.value }) },
    ...options,
  );
}

// The colour bar and what it does not say.
function legend() {
  return element(
    "div",
    { class: "legend" },
    element("span", {}, "0"),
    element("img", { class: "bar", alt: t("色标，从 0 到 1") }),
    element("span", {}, "1"),
    element("span", { class: "quiet" }, t("热力图回答在哪里，概率回答有没有")),
  );
}

// Make the controls show the state; the one that is being typed in is left alone.
function syncControls() {
  for (const control of document.querySelectorAll("#screen [data-field]")) {
    const value = state[control.dataset.field];
    if (control.tagName === "BUTTON") control.setAttribute("aria-pressed", String(value));
    else if (control !== document.activeElement || control.tagName === "SELECT")
      control.value = value === null ? "" : asText(value);
  }
  document.querySelector('[data-field="desc"]').textContent = t(state.desc ? "降序" : "升序");
  document.querySelector("#display .amount .number").textContent = alphaWords();
  document.querySelector("#display .bar").src = colourBarAddress();
}

function alphaWords() {
  return Math.round(100 * state.alpha) + "%";
}

// What a filter says, for its chip and the printed page.
function filterWords(name) {
  const control = FILTER_CONTROLS().find(({ field, to }) => field === name || to === name);
  const option = control.kind === "select" && control.options().find(([value]) => value === asText(state[name]));
  const sign = control.to ? (name === control.to ? " ≤ " : " ≥ ") : t("：");
  return labelOf(control) + sign + (option ? option[1] : visible(asText(state[name])));
}

function showSelection(shown) {
  byId("count").textContent = t("显示 {} / {} 张", shown.length, images.length);
  byId("nothing").hidden = shown.length > 0;
  const remove = (name) => () => change({ [name]: FIELDS[name][0] });
  const chips = activeFilters().map((name) =>
    element(
      "button",
      { type: "button", class: "chip", click: remove(name), title: t("去掉这个条件") },
      filterWords(name),
      element("span", { "aria-hidden": "true" }, " ×"),
    ),
  );
  if (chips.length) chips.push(element("button", { type: "button", id: "reset", click: reset }, t("全部去掉")));
  keepingFocus(byId("chips"), () => byId("chips").replaceChildren(...chips));
}

function switchLanguage() {
  change({ lang: language === "zh" ? "en" : "zh" });
}

// The address of what is shown, for a colleague.
async function copyLink() {
  writeHash();
  try {
    await navigator.clipboard.writeText(location.href);
    notify(t("链接已复制。报告在对方那里的位置不同时，把 # 起的部分接在对方的地址后面；标记不在链接里，请另发导出的 CSV"));
  } catch (error) {
    notify(t("浏览器不让复制：请复制地址栏里的地址"));
  }
}

// A line that the reader should see, until the next one; over an opened image it goes by itself.
function notify(sentence) {
  if (opened.image) flash(sentence);
  byId("notes").replaceChildren(
    element("span", {}, sentence),
    element("button", { type: "button", "aria-label": t("关闭"), click: () => byId("notes").replaceChildren() }, "×"),
  );
}
