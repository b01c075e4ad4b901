/* A run's answer: labels with probabilities, spans and tags in their text, texts, or whatever else a task predicts. */

import { copyButton, element, foldedText, number, percent, textBlock } from "./dom.js";
import { placedWords } from "./words.js";

const TOP = 8;
const COLOURS = 6;

/**
 * The element that shows an answer, one sentence that says it, and the names of the fields that it shows anyway.
 *
 * `raw(name)` is the text of a field as it was written. What is shown depends on the answer's form alone, so that a
 * plugin's answers look like those of the built-in tasks.
 */
export function renderAnswer(answer, model, raw) {
  const { prediction, probabilities, score } = answer;
  const tokens = model.fields.find(({ kind }) => kind === "tokens");
  const parts = [];
  let shown = [];
  let summary = typeof prediction === "string" ? prediction : JSON.stringify(prediction);
  const spans = tokens && spansOf(prediction, placedWords(raw(tokens.name)).length);
  const holder = !probabilities && !model.writes && typeof prediction === "string" && prediction
    && model.fields.find(({ name, kind }) => kind === "text" && raw(name).includes(prediction));
  if (probabilities) {
    const labels = Array.isArray(prediction) ? prediction : [prediction];
    parts.push(labelLine(labels), bars(probabilities, new Set(labels)));
    summary = labels.map((label) => `${label} ${label in probabilities ? percent(probabilities[label]) : ""}`).join(", ");
  } else if (spans) {
    parts.push(markedWords(raw(tokens.name), spans));
    shown = [tokens.name];
    summary = spans.map(({ type, text }) => `${type}: ${text}`).join(", ") || "nothing is marked";
  } else if (holder) {
    parts.push(textAnswer(prediction), markedText(holder.name, raw(holder.name), prediction));
    shown = [holder.name];
  } else {
    parts.push(plainValue(prediction));
  }
  if (answer.samples?.length > 1) parts.push(sampleList(answer.samples));
  if (answer.truncated > 0) parts.unshift(element("p", { class: "warning" }, truncation(answer.truncated)));
  const facts = { ...(typeof score === "number" && score !== probabilities?.[prediction] ? { score } : {}), ...answer.extra };
  if (Object.keys(facts).length) parts.push(factList(facts));
  return { element: element("div", { class: "answer" }, parts), summary, shown };
}

export const truncation = (tokens) =>
  `truncated: ${number(tokens)} ${tokens === 1 ? "token was" : "tokens were"} cut off, as the input is too long for the run`;

function labelLine(labels) {
  if (!labels.length) return element("p", { class: "prediction" }, "no label is likely enough");
  return element("p", { class: "prediction" }, labels.map((label, place) => [place ? ", " : "", element("bdi", {}, String(label))]));
}

/** Probabilities as bars, the likeliest first; labels beyond the first ones on demand. */
function bars(probabilities, predicted) {
  const sorted = Object.entries(probabilities).sort(([, a], [, b]) => (b ?? 0) - (a ?? 0));
  const list = element("ol", { class: "bars" });
  const show = (entries) => list.append(...entries.map(([label, share]) => {
    const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
    bar.firstChild.style.width = `${100 * Math.min(1, Math.max(0, share ?? 0))}%`;
    const name = element("span", { class: "label", dir: "auto" }, label);
    const mark = predicted.has(label) && element("span", { class: "unseen" }, "predicted, ");
    return element("li", { class: predicted.has(label) && "predicted" }, name, bar, element("span", { class: "share" }, mark, percent(share)));
  }));
  show(sorted.slice(0, TOP));
  if (sorted.length <= TOP) return list;
  const more = element("button", { type: "button", class: "quiet", click: () => {
    show(sorted.slice(TOP));
    more.remove();
  } }, `show all ${sorted.length}`);
  return element("div", {}, list, more);
}

/** Spans {type, start, end} of words, from spans or from one tag a word; null for other predictions. */
function spansOf(prediction, words) {
  if (!Array.isArray(prediction)) return null;
  const isSpan = (item) => Number.isInteger(item?.start) && Number.isInteger(item?.end) && "type" in item;
  if (prediction.every(isSpan)) return prediction;
  if (prediction.length !== words || !prediction.every((tag) => typeof tag === "string")) return null;
  const spans = [];
  prediction.forEach((tag, place) => {
    if (tag === "O") return;
    const [, prefix, type] = /^(?:([BIESLUM])-)?(.+)$/s.exec(tag) ?? [null, undefined, tag];
    const last = spans.at(-1);
    if (last?.end === place && last.type === type && ["I", "E", "L", "M"].includes(prefix)) last.end = place + 1;
    else spans.push({ type, start: place, end: place + 1 });
  });
  return spans;
}

function markedWords(text, spans) {
  const words = placedWords(text);
  const types = [...new Set(spans.map(({ type }) => String(type)))];
  const paragraph = element("div", { class: "text marked", dir: "auto" });
  let written = 0; // characters of the text
  for (const span of spans.toSorted((a, b) => a.start - b.start)) {
    const [first, last] = [words[span.start], words[span.end - 1]];
    if (!first || !last || first.start < written) continue; // it overlaps with the one before: the table has it
    const end = last.start + last.word.length;
    paragraph.append(text.slice(written, first.start), element("mark", { class: `c${types.indexOf(String(span.type)) % COLOURS}` },
      text.slice(first.start, end), "\u00a0", element("span", { class: "tag" }, String(span.type))));
    written = end;
  }
  paragraph.append(text.slice(written));
  if (!spans.length) return element("div", {}, paragraph, element("p", { class: "note" }, "Nothing is marked."));
  return element("div", {}, scrolling(paragraph, "Marked text"), legend(types, spans), spanTable(spans, words, text));
}

const legend = (types, spans) => element("ul", { class: "legend", "aria-label": "Legend" }, types.map((type, place) =>
  element("li", {}, element("span", { class: `tag c${place % COLOURS}` }, type), ` ${spans.filter((span) => String(span.type) === type).length}`)));

function spanTable(spans, words, text) {
  if (!spans.some((span) => typeof span.score === "number")) return null;
  const row = (span) => {
    const last = words[span.end - 1];
    const written = span.text ?? (last ? text.slice(words[span.start].start, last.start + last.word.length) : "");
    return element("tr", {}, element("th", { scope: "row", dir: "auto" }, written), element("td", {}, String(span.type)),
      element("td", { class: "right" }, typeof span.score === "number" ? percent(span.score) : ""));
  };
  const head = element("tr", {}, element("th", { scope: "col" }, "words"), element("th", { scope: "col" }, "type"),
    element("th", { scope: "col", class: "right" }, "probability"));
  return element("details", {}, element("summary", {}, "Probabilities"),
    element("table", {}, element("thead", {}, head), element("tbody", {}, spans.map(row))));
}

/** The text of a field with each place marked where the prediction stands. */
function markedText(name, text, prediction) {
  const pieces = text.split(prediction);
  const paragraph = element("div", { class: "text marked", dir: "auto" },
    pieces.map((piece, place) => [place ? element("mark", { class: "c0" }, prediction) : null, piece]));
  const places = pieces.length - 1;
  const note = `In ${name}` + (places > 1 ? `, where it stands ${places} times:` : ":");
  return element("div", {}, element("p", { class: "note" }, note), scrolling(paragraph, name));
}

/** A long text in a box that scrolls, with the first mark in sight. */
function scrolling(content, label) {
  const box = element("div", { class: "scrolling", role: "group", tabindex: "0", "aria-label": label }, content);
  requestAnimationFrame(() => {
    const mark = box.querySelector("mark");
    if (box.scrollHeight <= box.clientHeight) box.removeAttribute("tabindex");
    else if (mark) box.scrollTop = Math.max(0, mark.offsetTop - box.clientHeight / 2);
  });
  return box;
}

const textAnswer = (text) => element("div", { class: "prediction" }, textBlock(text), copyButton(() => text));

function plainValue(value) {
  if (value === "") return element("p", { class: "prediction" }, "no answer: the text is empty");
  if (value === null || value === undefined) return element("p", { class: "prediction" }, "no prediction");
  if (typeof value === "string") return textAnswer(value);
  if (typeof value === "number") return element("p", { class: "prediction" }, number(value));
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) return labelLine(value);
  return Array.isArray(value) ? element("pre", {}, JSON.stringify(value, null, 2)) : factList(value);
}

const sampleList = (samples) => element("details", { open: true }, element("summary", {}, `${samples.length} samples`),
  element("ol", { class: "samples" }, samples.map((sample) =>
    element("li", {}, typeof sample === "string" ? foldedText(sample) : JSON.stringify(sample)))));

function factList(facts) {
  const written = (value) => typeof value === "number" ? number(value) : typeof value === "string" ? value : JSON.stringify(value);
  return element("dl", { class: "facts" }, Object.entries(facts).map(([name, value]) =>
    element("div", {}, element("dt", {}, name.replaceAll("_", " ")), element("dd", { dir: "auto" }, written(value)))));
}
