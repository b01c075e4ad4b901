/* A form of a run's fields: a control for each kind of value. */

import { element, freshId } from "./dom.js";
import { placedWords } from "./words.js";

/** A field whose value can't be used; the message says how to mend it. */
export class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function integers(text) {
  const parts = text.split(/[\s,;]+/).filter(Boolean);
  const wrong = parts.find((part) => !/^[+-]?\d+$/.test(part));
  if (wrong !== undefined) throw new Error(`"${wrong}" is no whole number; expected some such as 3 or 3, 7`);
  return parts.map(Number);
}

function decimal(text) {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`"${text}" is no number; expected one such as 0.5`);
  return value;
}

/* A kind's hint, and what makes its value of the text in the control. An unknown kind is sent as text. */
const KINDS = {
  text: { parse: (text) => text },
  label: { parse: (text) => text.trim(), line: true },
  texts: { hint: "one text a line", parse: lines },
  labels: { hint: "one label a line", parse: lines },
  integers: { hint: "whole numbers, such as 3, 7", parse: integers, line: true },
  number: { hint: "a number", parse: decimal, line: true },
  tokens: { hint: "a text; it is split into words", parse: (text) => placedWords(text).map(({ word }) => word) },
  tags: { hint: "one tag a word, spaces between them", parse: (text) => text.split(/\s+/).filter(Boolean) },
};

/** The form of these fields: an element, and `read()` for the request's object; it raises FieldError. */
export function buildForm(fields) {
  const numbersOfWords = fields.some((field) => field.kind === "integers");
  const controls = fields.map((field) =>
    field.kind === "messages" ? new MessagesControl(field) : new TextControl(field, numbersOfWords));
  return {
    elements: controls.map((control) => control.element),
    raw: (name) => controls.find((control) => control.field.name === name)?.raw(),
    read() {
      const example = {};
      for (const control of controls) {
        const value = control.read();
        if (value !== undefined) example[control.field.name] = value;
      }
      return example;
    },
    /** Show an error at the field it is about, if it names one; whether it does. */
    showError(name, message) {
      const control = controls.find(({ field }) => name === field.name || name?.startsWith(`${field.name}.`));
      control?.showError(message);
      control?.focus();
      return control !== undefined;
    },
  };
}

/** What every control has around it: a label, a hint, a place for an error. */
class Control {
  constructor(field, hint, group) {
    this.field = field;
    this.id = freshId("field");
    this.error = element("p", { class: "field-error", id: `${this.id}-error`, hidden: true });
    const caption = [field.name, " ", element("small", {}, field.required ? "required" : "optional")];
    const head = group
      ? element("legend", {}, caption)
      : element("label", { for: this.id }, caption);
    const note = hint && element("p", { class: "note", id: `${this.id}-hint` }, hint);
    this.element = element(group ? "fieldset" : "div", { class: "field", input: () => this.showError("") }, head, note);
    this.described = [hint && `${this.id}-hint`, `${this.id}-error`].filter(Boolean).join(" ");
  }

  showError(message) {
    this.error.textContent = message;
    this.error.hidden = !message;
    if (message) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
  }

  focus() {
    this.input.focus();
  }

  missing(isEmpty) {
    if (isEmpty && this.field.required) throw new FieldError(this.field.name, `Fill in ${this.field.name}.`);
  }
}

class TextControl extends Control {
  constructor(field, numbersOfWords) {
    const kind = KINDS[field.kind] ?? KINDS.text;
    super(field, kind.hint, false);
    this.parse = kind.parse;
    this.input = element(kind.line ? "input" : "textarea", {
      id: this.id, dir: "auto", placeholder: field.help, autocomplete: "off", "aria-describedby": this.described,
      "aria-required": field.required ? "true" : null, inputmode: field.kind === "number" ? "decimal" : null,
      rows: kind.line ? null : 3,
    });
    this.element.append(this.input);
    if (field.kind === "tokens" && numbersOfWords) this.element.append(this.numberedWords());
    this.element.append(this.error);
  }

  /** The words with their positions, which another field of the task may name. */
  numberedWords() {
    const list = element("p", { class: "note words", dir: "auto" });
    this.input.addEventListener("input", () => {
      list.replaceChildren(...placedWords(this.input.value).flatMap(({ word }, position) =>
        [element("span", {}, element("small", {}, String(position)), ` ${word}`), " "]));
    });
    return list;
  }

  raw() {
    return this.input.value;
  }

  /** The value; undefined leaves an optional field out. */
  read() {
    const text = this.input.value;
    if (!text.trim()) {
      this.missing(!this.field.blank);
      return this.field.required ? this.parse(text) : undefined;
    }
    try {
      return this.parse(text);
    } catch (error) {
      throw new FieldError(this.field.name, error.message);
    }
  }
}

const ROLES = ["user", "assistant", "system"];

class MessagesControl extends Control {
  constructor(field) {
    super(field, field.help, true);
    this.turns = element("div", { class: "turns" });
    const add = element("button", { type: "button", class: "quiet", click: () => {
      this.addTurn(this.turns.lastElementChild?.querySelector("select").value === "user" ? "assistant" : "user").focus();
    } }, "Add a message");
    this.element.append(this.turns, add, this.error);
    this.addTurn("user");
  }

  get input() {
    return this.turns.querySelector("textarea") ?? this.element.querySelector("button");
  }

  addTurn(role) {
    const content = element("textarea", { "aria-label": "Message", dir: "auto", rows: 2, "aria-describedby": this.described });
    const roles = element("select", { "aria-label": "Role" }, ROLES.map((name) => element("option", {}, name)));
    roles.value = role;
    const turn = element("div", { class: "turn" }, roles, content, element("button", {
      type: "button", class: "quiet", "aria-label": "Remove this message", click: () => {
        turn.remove();
        if (!this.turns.children.length) this.addTurn("user");
        this.element.dispatchEvent(new Event("input", { bubbles: true }));
        this.focus();
      },
    }, "Remove"));
    this.turns.append(turn);
    return content;
  }

  raw() {
    return [...this.turns.children].map((turn) => ({
      role: turn.querySelector("select").value,
      content: turn.querySelector("textarea").value,
    })).filter(({ content }) => content.trim());
  }

  read() {
    const messages = this.raw();
    this.missing(!messages.length);
    return messages.length ? messages : undefined;
  }
}
