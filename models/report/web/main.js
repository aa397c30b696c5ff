// The page starts here.

let summaryKey = ""; // what the summary was last made for
let focusFirst = false; // the first image is to be focused once the page shows the state
let wordsOf = null; // the language of the words in the page

// Make the page show the state.
function update() {
  language = state.lang;
  if (wordsOf !== language) fillPage();
  syncControls();
  const shown = selectedImages();
  showSelection(shown);
  const key = JSON.stringify([
    activeFilters().map((name) => [name, state[name]]),
    state.fold,
    state.group,
    state.text,
    state.setting,
    language,
    markedCount(),
  ]);
  if (key !== summaryKey) {
    showCounts();
    showSummary();
  }
  summaryKey = key;
  showGallery(shown);
  showOpened();
  if (focusFirst) focusCard(0);
  focusFirst = false;
  writeHashSoon();
}

function fillPage() {
  wordsOf = language;
  fillWords();
  byId("title").textContent = visible(inLanguage(report.title));
  buildControls();
  byId("notes").replaceChildren(); // what stands there is in the other language
  if (opened.image) opened.image = null; // made anew
  warnOfMarks();
}

// How high the bar is, for what sticks below it.
function measureBar() {
  document.documentElement.style.setProperty("--bar", byId("display").offsetHeight + "px");
}

let scrollPending = false;

function onScroll() {
  if (scrollPending) return;
  scrollPending = true;
  requestAnimationFrame(() => {
    scrollPending = false;
    showCardsInView();
  });
}

function listen() {
  document.addEventListener("keydown", onKey);
  window.addEventListener("scroll", onScroll, { passive: true });
  window.addEventListener("resize", () => (measureBar(), change({})));
  window.addEventListener("hashchange", () => {
    if (location.hash === writtenHash) return;
    readHash();
    change({});
  });
  window.addEventListener("pagehide", () => (leaveComment(), writeHash()));
  window.addEventListener("beforeunload", (event) => !areKept && marks.size && event.preventDefault());
  window.addEventListener("storage", (event) => event.key === MARKS_KEY && (readMarks(), change({})));
  window.addEventListener("beforeprint", prepareAtOnce);
  window.addEventListener("afterprint", clearPrint);
  new ResizeObserver(measureBar).observe(byId("display"));
  byId("skip").addEventListener("click", (event) => (event.preventDefault(), focusCard(gallery.position)));
}

readMarks();
readHash();
listen();
update();
measureBar();
