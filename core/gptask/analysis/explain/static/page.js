/* The page of `gptask explain`: a line of JSON for each text is parsed, and its card is built, once it is to be seen. */

import { element } from "./element.js";
import { explanationView, isRight, valueText } from "./explanation.js";
import { visible } from "./word_group.js";

const PAGE_SIZE = 20;
const find = (id) => document.getElementById(id);
const lines = find("explanations").textContent.split("\n").filter((line) => line.trim());
const parsed = new Map();
let limit = PAGE_SIZE;

function explanationOf(number) {
  if (!parsed.has(number)) parsed.set(number, JSON.parse(lines[number]));
  return parsed.get(number);
}

/** The maps of heads of a text, which are compressed, as `attentionView` takes them; null where the page has none. */
function attentionLoader(number) {
  const holder = find(`attention-${number}`);
  if (!holder) return null;
  return async () => {
    const { shape, deflated } = JSON.parse(holder.textContent);
    const bytes = Uint8Array.from(atob(deflated), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return { shape, weights: new Uint8Array(await new Response(stream).arrayBuffer()) };
  };
}

/** The number of the map that the reader wants to see of each text: of the predicted class, the true one, or a class. */
function chosenMap(explanation) {
  const wanted = find("class").value;
  const name = wanted === "true" ? explanation.reference : wanted.startsWith("=") ? wanted.slice(1) : undefined;
  const names = Array.isArray(name) ? name : [name];
  return (maps) => Math.max(0, maps.findIndex(({ target }) => names.includes(target)));
}

function card(number) {
  const explanation = explanationOf(number);
  const right = isRight(explanation);
  const facts = [
    right !== null && element("span", { class: right ? "right" : "wrong" }, right ? "✓ right" : "✗ wrong"),
    typeof explanation.score === "number" && element("span", {}, `confidence ${explanation.score.toFixed(2)}`),
  ];
  const head = element("p", { class: "id verdict" }, element("span", { dir: "auto" }, visible(String(explanation.id))), facts);
  const view = explanationView(explanation, { choose: chosenMap(explanation), loadAttention: attentionLoader(number) });
  return element("li", { class: "card" }, head, view);
}

function matches(number) {
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = find("state").value;
  if (!words.length && !state) return true;
  const explanation = explanationOf(number);
  if (state && isRight(explanation) !== (state === "right")) return false;
  const { id, fields, prediction, reference } = explanation;
  const text = [id, ...Object.values(fields ?? {}), valueText(prediction), valueText(reference)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

/** Show the texts that match, the first ones of them. */
function show(keepsCards = false) {
  const numbers = [...lines.keys()].filter(matches);
  const shown = numbers.slice(0, limit);
  const cards = find("cards");
  if (!keepsCards) cards.replaceChildren();
  cards.append(...shown.slice(cards.children.length).map(card));
  const of = numbers.length === lines.length ? "" : ` that match, of ${lines.length.toLocaleString("en")}`;
  find("count").value = `${shown.length.toLocaleString("en")} of ${numbers.length.toLocaleString("en")} texts${of} are shown`;
  find("more").hidden = shown.length === numbers.length;
}

const restart = () => { limit = PAGE_SIZE; show(); };
for (const id of ["search", "state", "class"]) find(id).addEventListener("input", restart);
find("more").addEventListener("click", () => {
  const next = limit;
  limit += PAGE_SIZE;
  show(true);
  find("cards").children[next]?.querySelector("[tabindex='0'], select")?.focus();
});
find("tools").hidden = false;
show();
