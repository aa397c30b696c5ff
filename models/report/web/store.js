// The images' cards: in the page itself, or in files beside it of which only the last used are kept.

const CARDS_PER_FILE = 200;
const FILES_KEPT = 12; // some 150 MB
const inlineCards = new Map();
for (const script of document.querySelectorAll("script.card")) inlineCards.set(Number(script.dataset.index), script);
const files = new Map(); // number of a file -> {cards: an array once it is loaded, wait: a promise of it}

// Called by the files of cards.
window.addCards = (first, cards) => {
  const file = files.get(Math.floor(first / CARDS_PER_FILE));
  if (file) file.cards = cards;
};

function loadFile(number) {
  const file = files.get(number) || { cards: null, wait: null };
  files.delete(number);
  files.set(number, file); // the last used comes last
  if (!file.wait) {
    file.wait = new Promise((resolve, reject) => {
      const script = element("script", { src: link(report.card_files[number]) });
      script.onload = () => (script.remove(), file.cards ? resolve(file.cards) : reject(new Error("card file")));
      script.onerror = () => (script.remove(), files.delete(number), reject(new Error("card file")));
      document.body.append(script);
    });
    for (const [other, { cards }] of files)
      if (files.size > FILES_KEPT && other !== number && cards) files.delete(other);
  }
  return file.wait;
}

// An image's card, null where it has none. Rejected where the file that should have it cannot be read.
async function cardOf(index) {
  if (!report.card_files) return readyCard(index);
  const cards = await loadFile(Math.floor(index / CARDS_PER_FILE));
  return cards[index % CARDS_PER_FILE] || null;
}

// The same without waiting; null where it is not here yet.
function readyCard(index) {
  if (!report.card_files) return inlineCards.has(index) ? JSON.parse(inlineCards.get(index).textContent) : null;
  const file = files.get(Math.floor(index / CARDS_PER_FILE));
  return (file && file.cards && file.cards[index % CARDS_PER_FILE]) || null;
}

// Bytes of base64.
function bytesOf(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  return bytes;
}

function decodePicture(card) {
  return createImageBitmap(new Blob([bytesOf(card.jpeg)], { type: "image/jpeg" }));
}

// Work that waits for its turn, a few pieces at a time; what nobody wants any more is left out.
const MOST_AT_ONCE = 4;
const waiting = [];
let running = 0;

function queue(work, isWanted) {
  waiting.push({ work, isWanted });
  runWaiting();
}

function runWaiting() {
  while (running < MOST_AT_ONCE && waiting.length) {
    const { work, isWanted } = waiting.shift();
    if (!isWanted()) continue;
    running++;
    work().finally(() => {
      running--;
      runWaiting();
    });
  }
}
