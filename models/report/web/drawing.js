// How a heatmap lies on its picture: the same pixels as Python's overlays.

const colourTables = Object.fromEntries(Object.entries(report.colormaps).map(([name, text]) => [name, bytesOf(text)]));

// RGBA of each level 0..255 under the choices of now, 4 bytes each.
function levelColours() {
  const colours = colourTables[state.colormap];
  const opacity = report.opacity[state.blend];
  const table = new Uint8ClampedArray(4 * 256);
  for (let level = 0; level < 256; level++) {
    table.set(colours.subarray(3 * level, 3 * level + 3), 4 * level);
    table[4 * level + 3] = 255 * state.alpha * opacity[level];
  }
  return new Uint32Array(table.buffer);
}

// For the pixels of one axis: the two cells that each lies between, and the share of the second.
function cellsOf(low, high, pixels, cells) {
  const first = Math.max(0, Math.ceil(low * pixels - 0.5));
  const end = Math.min(pixels, Math.ceil(high * pixels - 0.5));
  const count = Math.max(0, end - first);
  const before = new Int32Array(count);
  const after = new Int32Array(count);
  const share = new Float32Array(count);
  for (let place = 0; place < count; place++) {
    const middle = (((first + place + 0.5) / pixels - low) / (high - low)) * cells - 0.5;
    const cell = Math.min(Math.max(middle, 0), cells - 1);
    before[place] = Math.floor(cell);
    after[place] = Math.min(before[place] + 1, cells - 1);
    share[place] = cell - before[place];
  }
  return { first, count, before, after, share };
}

// A map's levels on the pixels of a picture: bilinear, pixels' centres on half integers, cells' edges as the border.
// {left, top, width, height: of the part of the picture that it lies on, levels: Float32Array in [0, 255]}
function resizedLevels(map, region, [width, height]) {
  const [rows, columns] = map.grid;
  const cells = bytesOf(map.levels);
  const x = cellsOf(region[0], region[2], width, columns);
  const y = cellsOf(region[1], region[3], height, rows);
  const levels = new Float32Array(x.count * y.count);
  let place = 0;
  for (let row = 0; row < y.count; row++) {
    const above = y.before[row] * columns;
    const below = y.after[row] * columns;
    const down = y.share[row];
    for (let column = 0; column < x.count; column++) {
      const [left, right, along] = [x.before[column], x.after[column], x.share[column]];
      const upper = cells[above + left] + (cells[above + right] - cells[above + left]) * along;
      const lower = cells[below + left] + (cells[below + right] - cells[below + left]) * along;
      levels[place++] = upper + (lower - upper) * down;
    }
  }
  return { left: x.first, top: y.first, width: x.count, height: y.count, levels };
}

function mapOf(card, image, row) {
  const place = image.rows.indexOf(row);
  return row ? card.maps.find((map) => map.row === place) || null : null;
}

// What a map's levels are multiplied by under the scale of now.
function scaleOf(map) {
  return state.scale === "shared" ? map.peak : map.own || 1;
}

const scratch = document.createElement("canvas");

// Draw the colours of resized levels over what a canvas shows.
function drawHeat(context, resized, factor) {
  if (!resized.width || !resized.height) return;
  const table = levelColours();
  const pixels = new ImageData(resized.width, resized.height);
  const colours = new Uint32Array(pixels.data.buffer);
  const { levels } = resized;
  for (let place = 0; place < levels.length; place++) {
    colours[place] = table[Math.min(255, Math.round(levels[place] * factor))];
  }
  scratch.width = resized.width;
  scratch.height = resized.height;
  scratch.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(scratch, resized.left, resized.top);
}

// The outlines that belong to a text: its own, else all, with whose they are.
function outlinesOf(card, text) {
  const own = card.outlines.filter((outline) => outline.text === text);
  return own.length ? own : card.outlines;
}

// Black under white, seen on dark and on bright ground: [colour, width as a share of the longer side].
const STROKES = [
  ["#000", 4 / 768],
  ["#fff", 2 / 768],
];

function strokeWidth(share, [width, height]) {
  return Math.max(share * Math.max(width, height), share * 460);
}

function drawOutlines(context, outlines, size) {
  context.lineJoin = "round";
  for (const [colour, share] of STROKES) {
    context.strokeStyle = colour;
    context.lineWidth = strokeWidth(share, size);
    context.beginPath();
    for (const contour of outlines.flatMap((outline) => outline.contours)) {
      for (let place = 0; place < contour.length; place += 2) {
        const point = [contour[place] * size[0], contour[place + 1] * size[1]];
        if (place === 0) context.moveTo(...point);
        else context.lineTo(...point);
      }
      context.closePath();
    }
    context.stroke();
  }
}

// A picture that is ready to be drawn again and again at one size: the photograph and, once asked for, resized levels.
function preparedPicture(bitmap, card, image, size) {
  const photograph = document.createElement("canvas");
  [photograph.width, photograph.height] = size;
  const context = photograph.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, ...size);
  return { photograph, card, image, size, levels: new Map() };
}

function levelsOf(picture, map) {
  if (!picture.levels.has(map)) {
    picture.levels.clear(); // one text is shown at a time
    picture.levels.set(map, resizedLevels(map, picture.card.region, picture.size));
  }
  return picture.levels.get(map);
}

// Draw a prepared picture under the choices of now.
function drawPicture(canvas, picture) {
  const { card, image, size } = picture;
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const context = canvas.getContext("2d");
  context.drawImage(picture.photograph, 0, 0);
  const map = mapOf(card, image, shownRow(image));
  if (state.heat && map) drawHeat(context, levelsOf(picture, map), scaleOf(map));
  if (state.outline) drawOutlines(context, outlinesOf(card, shownText(image)), size);
}

// The heatmap alone as a PNG, for print; null where none is shown.
function heatAsAddress(card, image) {
  const map = mapOf(card, image, shownRow(image));
  if (!state.heat || !map) return null;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = card.size;
  drawHeat(canvas.getContext("2d"), resizedLevels(map, card.region, card.size), scaleOf(map));
  return canvas.toDataURL("image/png");
}

// The colour map as a picture, 0 at the left.
function colourBarAddress() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [256, 1];
  const pixels = new ImageData(256, 1);
  const colours = colourTables[state.colormap];
  for (let level = 0; level < 256; level++) {
    pixels.data.set([...colours.subarray(3 * level, 3 * level + 3), 255], 4 * level);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.toDataURL("image/png");
}

// What a reader must know of the heatmap that is shown, or is not; "" where there is nothing to say.
const FAINT = 0.2; // of the shared scale: hardly to be seen
function heatNote(card, image) {
  const text = shownText(image);
  if (text === null) return t("没有标签");
  const map = mapOf(card, image, shownRow(image));
  if (!shownRow(image)) return t("没有解释这段文本");
  if (!map) return t("没有热力图");
  if (/^A*=*$/.test(map.levels)) return t("热力图为空");
  const share = map.peak / (map.own || 1);
  return state.scale === "shared" && share < FAINT ? t("最高只到共用色标的 {}", percent(share)) : "";
}
