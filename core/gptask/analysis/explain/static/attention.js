/* Attention of every head: a tile for each layer (row) and head (column), and the chosen one with its words. */

import { element } from "./element.js";
import { WordGroup } from "./word_group.js";

const TILE = 28; // most pixels of a tile's side; larger maps show the largest weight of each part
const LARGE = 420; // pixels of the chosen map's side, about

/** The element for `weights` (bytes, 255 for all attention) of the shape [layers, heads, words, words]. */
export function attentionView(words, { shape: [layers, heads, size], weights }) {
  const chosen = { layer: layers - 1, head: 0, reader: size - 1 };
  const weight = (layer, head, reader, read) => weights[((layer * heads + head) * size + reader) * size + read];
  const said = element("output", { class: "note" });
  const choice = (label, count, name) => element("label", {}, `${label} `, element("select", {
    change: ({ target }) => { chosen[name] = Number(target.value); draw(); },
  }, Array.from({ length: count }, (_, number) => element("option", { value: number }, String(number)))));
  const [layerChoice, headChoice] = [choice("Layer", layers, "layer"), choice("Head", heads, "head")];
  const tile = Math.min(size, TILE);
  const side = tile + 2; // of a tile with the gap to the next one
  const overview = element("canvas", { width: heads * side, height: layers * side, "aria-hidden": "true" });
  overview.style.width = `${overview.width * Math.max(1, Math.floor(TILE / tile))}px`;
  const large = element("canvas", { width: size, height: size, "aria-hidden": "true" });
  large.style.width = `${size * Math.max(2, Math.floor(LARGE / size))}px`;
  const group = new WordGroup(words.join(" "), placed(words), "Words; each shows which ones it reads", {
    point: (reader) => { chosen.reader = reader; paintWords(); },
    grown: () => paintWords(),
  });

  /** Call `act` with the row and the column of the cell of a canvas below the mouse, `cell` pixels a side. */
  const at = (canvas, cell, act) => (event) => {
    const box = canvas.getBoundingClientRect();
    const [row, column] = [(event.clientY - box.top) / box.height * canvas.height, (event.clientX - box.left) / box.width * canvas.width];
    act(Math.floor(row / cell), Math.floor(column / cell));
  };
  const name = (layer, head) => `layer ${layer}, head ${head}`;
  overview.addEventListener("mousemove", at(overview, side, (layer, head) => {
    if (layer < layers && head < heads) said.value = name(layer, head);
  }));
  overview.addEventListener("click", at(overview, side, (layer, head) => {
    if (layer >= layers || head >= heads) return;
    Object.assign(chosen, { layer, head });
    draw();
  }));
  large.addEventListener("mousemove", at(large, 1, (reader, read) => {
    if (!(reader in words && read in words)) return;
    chosen.reader = reader;
    paintWords();
    said.value = `${name(chosen.layer, chosen.head)}: “${words[reader]}” reads “${words[read]}” `
      + `by ${shareOf(weight(chosen.layer, chosen.head, reader, read))}`;
  }));

  function drawOverview() {
    const step = size / tile;
    paint(overview, (y, x) => {
      const [layer, head, row, column] = [Math.floor(y / side), Math.floor(x / side), y % side, x % side];
      let most = 0;
      if (row >= tile || column >= tile) return most; // between two tiles
      for (let r = Math.floor(row * step); r < (row + 1) * step; r++) {
        for (let c = Math.floor(column * step); c < (column + 1) * step; c++) most = Math.max(most, weight(layer, head, r, c));
      }
      return most;
    });
  }

  function draw() {
    layerChoice.querySelector("select").value = String(chosen.layer);
    headChoice.querySelector("select").value = String(chosen.head);
    paint(large, (reader, read) => weight(chosen.layer, chosen.head, reader, read));
    paintWords();
  }

  function paintWords() {
    const row = words.map((_, read) => weight(chosen.layer, chosen.head, chosen.reader, read));
    const most = Math.max(...row, 1);
    for (const [read, node] of group.nodes) {
      node.className = read === chosen.reader ? "reader" : row[read] < 0.05 * most ? "faint" : "for";
      node.style.setProperty("--strength", String(Math.round(100 * row[read] / most)));
      node.setAttribute("aria-pressed", String(read === chosen.reader));
      node.title = shareOf(row[read]);
      node.setAttribute("aria-label", `${words[read]}: read by “${words[chosen.reader]}” by ${shareOf(row[read])}`);
    }
    const order = row.map((value, read) => [value, read]).filter(([value]) => value).sort(([a], [b]) => b - a).slice(0, 5);
    said.value = `${name(chosen.layer, chosen.head)}: “${words[chosen.reader]}” reads `
      + (order.map(([value, read]) => `“${words[read]}” ${shareOf(value)}`).join(", ") || "none of the words");
  }

  const view = element("div", { class: "heads" },
    element("p", { class: "note" }, "Attention is not a reason: it says where a head reads, not what the prediction depends on. "
      + "Each tile is a head: a row of it is a word that reads, a column a word that is read. Layers go down, heads to the right."),
    element("div", { class: "switch" }, layerChoice, headChoice),
    element("div", { class: "maps" }, element("div", { class: "overview", tabindex: 0, role: "group", "aria-label": "Heads" }, overview), large),
    group.element, said);
  requestAnimationFrame(() => { drawOverview(); draw(); }); // once the canvases have their colours
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawOverview(); draw(); });
  return view;
}

/** Colour each pixel of a canvas as strongly as `byteAt(row, column)`, 0 to 255, says. */
function paint(canvas, byteAt) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = getComputedStyle(canvas).color;
  context.fillRect(0, 0, 1, 1);
  const colour = context.getImageData(0, 0, 1, 1).data;
  const image = context.createImageData(canvas.width, canvas.height);
  for (let row = 0, place = 0; row < canvas.height; row++) for (let column = 0; column < canvas.width; column++, place += 4) {
    image.data.set(colour, place);
    image.data[place + 3] = Math.sqrt(255 * byteAt(row, column)); // weak ones can be seen, too
  }
  context.putImageData(image, 0, 0);
}

const shareOf = (byte) => `${Math.round(byte / 2.55)}%`;

/** Places in characters of words that are joined by spaces. */
function placed(words) {
  let start = 0;
  return words.map((word, number) => {
    const end = start + Array.from(word).length;
    const place = { start, end, number };
    start = end + 1;
    return place;
  });
}
