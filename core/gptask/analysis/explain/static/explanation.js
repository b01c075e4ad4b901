/* One explained input: its words coloured by what they speak for, and what changes when one of them is deleted. */

import { attentionView } from "./attention.js";
import { element } from "./element.js";
import { WordGroup, visible } from "./word_group.js";

const FAINT = 0.05; // of the strongest word's value: a weaker word has no line below it
const STRONGEST = 6;
const ROUGH = 0.1; // completeness error
const MOST_BARS = 6;
const LONG = 600; // characters of a text that is not explained

export function share(value) {
  if (typeof value !== "number") return "–";
  if (value > 0 && value < 0.001) return "<0.1%";
  if (value < 1 && value > 0.999) return ">99.9%";
  return `${(100 * value).toFixed(1)}%`;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toPrecision(2)}`;
const decimal = (value) => value.toFixed(2).replace("-", "−");
const isNumber = (value) => typeof value === "number";

/** A prediction or a reference as text. */
export function valueText(value) {
  if (value === null || value === undefined) return "none";
  if (typeof value === "string") return value === "" ? "(an empty text)" : visible(value);
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) return visible(value.join(", ")) || "none";
  if (Array.isArray(value) && value.every((item) => item !== null && typeof item === "object" && "text" in item && "type" in item)) {
    return value.map(({ type, text }) => `${type}: ${visible(String(text))}`).join(", ") || "none";
  }
  return visible(JSON.stringify(value));
}

/** Whether a class is predicted as the reference has it; null where that is no matter of equality. */
export function isRight({ prediction, reference, probabilities }) {
  if (!probabilities || reference === undefined || reference === null) return null;
  const sorted = (value) => JSON.stringify(Array.isArray(value) ? value.toSorted() : value);
  return sorted(prediction) === sorted(reference);
}

/** The element of an explanation. `choose(maps)` is the number of the map shown first, `loadAttention()` promises maps. */
export function explanationView(explanation, { choose = () => 0, loadAttention = null } = {}) {
  return new ExplanationView(explanation, choose, loadAttention).element;
}

class ExplanationView {
  constructor(explanation, choose, loadAttention) {
    Object.assign(this, { explanation, words: explanation.words ?? [], maps: explanation.maps ?? [] });
    this.number = Math.max(0, choose(this.maps));
    this.deleted = null;
    this.groups = [];
    this.outcome = element("div", { class: "outcome", role: "status" });
    this.strongest = element("p", { class: "note strongest" });
    this.facts = element("p", { class: "note" });
    const switcher = this.maps.length > 1 && this.switcher();
    this.element = element("div", { class: "explanation" }, this.heading(), switcher, this.fields(), this.strongest,
      this.outcome, this.facts, loadAttention && this.attention(loadAttention));
    this.paint();
  }

  get map() {
    return this.maps[this.number];
  }

  /** What is predicted, and what the reference says; words of a written text choose what is explained. */
  heading() {
    const { prediction, reference, written = [] } = this.explanation;
    let answer = element("span", { class: "prediction", dir: "auto" }, valueText(prediction));
    if (written.length && typeof prediction === "string") {
      const places = new Map(this.maps.map(({ place }, number) => [place, number]));
      const words = written.map(({ start, end }, number) => ({ start, end, number })).filter(({ number }) => places.has(number));
      this.written = new WordGroup(prediction, words, "Predicted text; a word shows what speaks for it",
        { activate: (place) => this.show(places.get(place)), grown: () => this.paint() });
      answer = this.written.element;
    }
    return element("dl", { class: "answer" }, element("div", {}, element("dt", {}, "predicted"), element("dd", {}, answer)),
      reference !== undefined && element("div", {}, element("dt", {}, "true"),
        element("dd", { class: "reference", dir: "auto" }, valueText(reference))));
  }

  switcher() {
    const options = this.maps.map((map, number) => element("option", { value: number }, this.nameOf(map)));
    this.select = element("select", { "aria-label": "Explained", change: ({ target }) => this.show(Number(target.value)) }, options);
    return element("p", { class: "switch" }, "Why ", this.select);
  }

  nameOf({ target, place, against, probability }) {
    const word = isNumber(place) && !this.explanation.written?.length && this.words[place]
      ? `${visible(this.words[place].text)}: ` : "";
    return `${word}${target === "" ? "(empty)" : visible(target)}${against ? ` and not ${visible(against)}` : ""} (${share(probability)})`;
  }

  show(number) {
    this.number = number;
    this.paint();
  }

  fields() {
    const entries = Object.entries(this.explanation.fields ?? {});
    return entries.map(([name, text]) => {
      const words = this.words.map(({ field, start, end }, number) => ({ field, start, end, number }))
        .filter(({ field }) => field === name).sort((a, b) => a.start - b.start);
      const caption = entries.length > 1 && element("p", { class: "caption" }, visible(name));
      if (!words.length) return text && element("div", {}, caption, element("p", { class: "unread", dir: "auto" }, folded(text)));
      const group = new WordGroup(text, words, `Words of ${name}; Enter deletes one`,
        { activate: (number) => this.toggle(number), grown: () => this.paint() });
      this.groups.push(group);
      return element("div", {}, caption, group.element);
    });
  }

  toggle(number) {
    this.deleted = this.deleted === number ? null : number;
    this.paint();
  }

  paint() {
    if (!this.map) {
      this.facts.textContent = "There is nothing to explain: no word of this input was read, or nothing is predicted.";
      return;
    }
    if (this.select) this.select.value = String(this.number);
    const values = this.map.attributions;
    const largest = Math.max(...values.map((value) => Math.abs(value ?? 0)), 1e-12);
    for (const group of this.groups) for (const [number, node] of group.nodes) this.paintWord(node, number, values[number], largest);
    if (this.written) for (const [place, node] of this.written.nodes) node.setAttribute("aria-pressed", String(place === this.map.place));
    this.showStrongest(values);
    this.showOutcome();
    this.showFacts();
  }

  paintWord(node, number, value, largest) {
    const strength = Math.abs(value ?? 0) / largest;
    const kind = !isNumber(value) ? "cut" : strength < FAINT ? "faint" : value < 0 ? "against" : "for";
    node.className = kind;
    node.style.setProperty("--strength", (100 * strength).toFixed(0));
    node.setAttribute("aria-pressed", String(number === this.deleted));
    const meaning = kind === "cut" ? "not read" : `${signed(value)} ${value < 0 ? "against" : "for"} ${visible(this.map.target)}`;
    const after = this.map.without?.[number];
    node.title = isNumber(after) ? `${meaning}; without it ${share(this.map.probability)} → ${share(after)}` : meaning;
    node.setAttribute("aria-label", `${node.textContent}: ${meaning}`);
  }

  showStrongest(values) {
    const order = values.map((value, number) => [value, number]).filter(([value]) => isNumber(value) && value !== 0)
      .sort(([a], [b]) => Math.abs(b) - Math.abs(a)).slice(0, STRONGEST);
    this.strongest.replaceChildren("Strongest: ", ...order.flatMap(([value, number], place) =>
      [place ? ", " : "", element("bdi", {}, visible(this.words[number].text)), ` ${signed(value)}`]));
    this.strongest.hidden = !order.length;
  }

  /** The probabilities, before and after the deletion of a word. */
  showOutcome() {
    const word = this.deleted === null ? null : this.words[this.deleted];
    const title = word ? element("p", { class: "caption" }, "Without “", element("bdi", {}, visible(word.text)), "”")
      : element("p", { class: "caption" }, this.map.without ? "A word that is clicked is deleted." : null);
    const list = element("ol", { class: "bars" }, this.probabilities().map(([name, before, after]) => element("li", {},
      element("span", { class: "label", dir: "auto" }, name), bar(word && isNumber(after) ? after : before),
      element("span", { class: "share" }, word && isNumber(after) ? `${share(before)} → ${share(after)}` : share(before)))));
    const missing = word && !isNumber(this.map.without?.[this.deleted])
      && element("p", { class: "note" }, "What the run predicts without this word was not computed.");
    this.outcome.replaceChildren(title, list, missing || "");
  }

  probabilities() {
    const classes = Object.entries(this.explanation.probabilities ?? {});
    const after = (map) => map?.without?.[this.deleted];
    if (!classes.length) return [[this.nameOf(this.map).replace(/ \([^)]*\)$/, ""), this.map.probability, after(this.map)]];
    const maps = new Map(this.maps.map((map) => [map.target, map]));
    const order = classes.sort(([a, p], [b, q]) => maps.has(b) - maps.has(a) || (q ?? 0) - (p ?? 0)).slice(0, MOST_BARS);
    return order.map(([name, probability]) => [visible(name), probability, after(maps.get(name))]);
  }

  showFacts() {
    const { steps, completeness_error: error, faithfulness, random } = this.map;
    this.facts.textContent = [
      isNumber(steps) && `${steps} steps`,
      isNumber(error) && `completeness error ${share(error)}${error > ROUGH ? ": a rough map, more steps make it better" : ""}`,
      isNumber(faithfulness) && `faithfulness of this map ${decimal(faithfulness)}`
        + (isNumber(random) ? ` (random order ${decimal(random)})` : ""),
    ].filter(Boolean).join(", ");
    this.facts.hidden = !this.facts.textContent;
  }

  attention(load) {
    const body = element("div", {}, element("p", { class: "note" }, "Loading …"));
    let isLoaded = false;
    return element("details", { class: "attention", toggle: async ({ target }) => {
      if (!target.open || isLoaded) return;
      isLoaded = true;
      body.replaceChildren(attentionView(this.words.map(({ text }) => visible(text)), await load()));
    } }, element("summary", {}, "Attention of every layer and head"), body);
  }
}

function bar(value) {
  const filled = element("i");
  filled.style.width = `${100 * Math.min(1, Math.max(0, value ?? 0))}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, filled);
}

function folded(text) {
  const characters = Array.from(text);
  const cut = characters.length > LONG ? `${characters.slice(0, LONG).join("")} … (${characters.length.toLocaleString("en")} characters)` : text;
  return visible(cut);
}
