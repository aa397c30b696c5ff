// The explained text as shaded words: what each adds to the similarity, in the same colours as Python's figures.

function mixed(colour, strength) {
  return `rgb(${colour.map((level) => Math.floor(255 + (level - 255) * strength + 0.5)).join(", ")})`;
}

// Shade an element by a contribution, where `peak` has the full colour; what speaks against the text has a line below.
function shade(node, contribution, peak) {
  const strength = peak > 0 ? Math.min(1, Math.abs(contribution) / peak) : 0;
  const { support, against, line } = report.word_colours;
  node.style.backgroundColor = mixed(contribution < 0 ? against : support, strength);
  if (contribution < 0) node.style.borderBottomColor = mixed(line, strength);
  return node;
}

// Two digits that count, however small it is, and its sign.
function signed(contribution) {
  return (contribution < 0 ? "" : "+") + Number(contribution.toPrecision(2));
}

function contributionsOf(ofText) {
  return ofText.descriptions.flat().flatMap(([, contribution]) => (contribution === null ? [] : [contribution]));
}

// The shown text's words with what they mean; null where they were not weighed.
function shadedText(card, image) {
  const ofText = card && card.words && card.words.texts.find(({ text }) => text === shownText(image));
  if (!ofText || !shownRow(image)) return null;
  const { peak } = card.words;
  const all = contributionsOf(ofText);
  const note = element("p", { class: "quiet pointed", role: "status" });
  const { descriptions } = ofText;
  const title = t(report.contrast ? "词语对“不同于其他文本”的贡献" : "词语对相似度的贡献");
  const paragraphs = descriptions.map((pieces) =>
    element("p", {}, ...pieces.map(([letters, contribution]) => shadedWord(letters, contribution, peak, all))),
  );
  const group = element("div", { class: "shaded", role: "group", "aria-label": title }, ...paragraphs);
  listenToWords(group, note);
  return element(
    "section",
    {},
    element("h3", {}, title),
    group,
    descriptions.length < ofText.of &&
      element("p", { class: "quiet" }, t("词语：每个类别只显示合计贡献最大的描述，至多 {} 段", descriptions.length)),
    shadeLegend(peak),
    note,
  );
}

// Letters with the sentence that is shown where one points at them.
function shadedWord(letters, contribution, peak, all) {
  if (contribution === null) return visible(letters);
  const rank = 1 + all.filter((other) => other > contribution).length;
  const values = [visible(letters), signed(contribution), rank, all.length];
  const sentence = t("{}：贡献 {}，名次 {} / {}（1 最支持）", ...values);
  const word = element("bdi", { class: "word", tabindex: -1, "data-sentence": sentence }, visible(letters));
  return shade(word, contribution, peak);
}

// One stop of the Tab key; arrows go from word to word.
function listenToWords(group, note) {
  const words = [...group.querySelectorAll(".word")];
  const rest = t("指着一个词语，或用 Tab 与 ← →，看它的数值");
  const say = (word) => (note.textContent = word ? word.dataset.sentence : rest);
  const focused = () => words.find((word) => word === document.activeElement);
  const takeStop = (word) => words.forEach((other) => (other.tabIndex = other === word ? 0 : -1));
  takeStop(words[0]);
  say(null);
  group.addEventListener("mouseover", (event) => say(event.target.closest(".word") || focused()));
  group.addEventListener("mouseleave", () => say(focused()));
  group.addEventListener("focusin", (event) => (takeStop(event.target), say(event.target)));
  group.addEventListener("focusout", () => say(null));
  group.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const next = words[words.indexOf(event.target) + step];
    if (next) next.focus();
  });
}

const SHADE_STEPS = 13;

function shadeLegend(peak) {
  const middle = (SHADE_STEPS - 1) / 2;
  const shares = Array.from({ length: SHADE_STEPS }, (_, step) => (step - middle) / middle);
  const steps = shares.map((share) => shade(element("span", {}), share, 1));
  return element(
    "p",
    { class: "legend" },
    element("span", {}, `${t("反对")} ${signed(-peak)}`),
    element("span", { class: "shades" }, ...steps),
    element("span", {}, `${signed(peak)} ${t("支持")}`),
  );
}
