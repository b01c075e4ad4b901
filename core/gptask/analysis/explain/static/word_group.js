/* Words that are one stop of the Tab key: arrow keys move between them. */

import { element } from "./element.js";

const SHOWN_WORDS = 400; // of a long text, before a button shows the others

/** A text as it can be seen: control characters have pictures. */
export const visible = (text) => text.replace(/\r\n?/g, "\n")
  .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f]/g, (character) => String.fromCodePoint(0x2400 + character.codePointAt(0)))
  .replace(/[\x7f-\x9f]/g, "\u2421");

/**
 * The words of a text as buttons, and what stands between them as it is written.
 *
 * `words` are {start, end, number} in characters (not in UTF-16 units), in order. `activate(number)` is called with a
 * word that is clicked or gets Enter or Space, `point(number)` with the one that has the focus or the mouse. `nodes`
 * maps numbers to the elements shown; `grown` is called when a long text shows all of them.
 */
export class WordGroup {
  constructor(text, words, label, { activate = () => {}, point = () => {}, grown = () => {} }) {
    this.nodes = new Map();
    this.characters = Array.from(text);
    this.box = element("div", { class: "word-group", dir: "auto", role: "group", "aria-label": label });
    this.written = 0;
    this.show(words.slice(0, SHOWN_WORDS));
    if (words.length > SHOWN_WORDS) {
      const more = element("button", { type: "button", class: "more", click: () => {
        more.remove();
        this.show(words.slice(SHOWN_WORDS));
        this.finish();
        grown();
        this.focus(words[SHOWN_WORDS].number);
      } }, `Show all ${words.length.toLocaleString("en")} words`);
      this.element = element("div", {}, this.box, more);
    } else {
      this.finish();
      this.element = this.box;
    }
    const pointed = (event) => this.numberOf(event.target) !== null && point(this.numberOf(event.target));
    this.box.addEventListener("mouseover", pointed);
    this.box.addEventListener("focusin", pointed);
    this.box.addEventListener("click", ({ target }) => {
      const number = this.numberOf(target);
      if (number === null) return;
      this.focus(number);
      activate(number);
    });
    this.box.addEventListener("keydown", (event) => this.onKey(event, activate));
  }

  show(words) {
    const parts = [];
    for (const { start, end, number } of words) {
      parts.push(visible(this.characters.slice(this.written, start).join("")));
      const node = element("span", { role: "button", tabindex: this.nodes.size ? -1 : 0, "data-word": number },
        visible(this.characters.slice(start, end).join("")));
      this.nodes.set(number, node);
      parts.push(node);
      this.written = end;
    }
    this.box.append(...parts);
  }

  finish() {
    this.box.append(visible(this.characters.slice(this.written).join("")));
  }

  numberOf(node) {
    const word = node.closest("[data-word]");
    return word ? Number(word.dataset.word) : null;
  }

  focus(number) {
    for (const node of this.box.querySelectorAll("[tabindex='0']")) node.tabIndex = -1;
    this.nodes.get(number).tabIndex = 0;
    this.nodes.get(number).focus();
  }

  onKey(event, activate) {
    const number = this.numberOf(event.target);
    if (number === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const numbers = [...this.nodes.keys()];
    const place = numbers.indexOf(number);
    const forward = getComputedStyle(this.box).direction === "rtl" ? -1 : 1;
    const places = { ArrowRight: place + forward, ArrowLeft: place - forward, Home: 0, End: numbers.length - 1 };
    if (event.key in places) {
      const next = numbers[places[event.key]];
      if (next !== undefined) this.focus(next);
    } else if (event.key === "Enter" || event.key === " ") {
      activate(number);
    } else {
      return;
    }
    event.preventDefault();
  }
}
