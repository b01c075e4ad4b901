/* What the views of a run share: the request as code, errors, a busy form, the list of answers. */

import { announce, copyButton, element, freshId } from "./dom.js";

/** A box with a request as code; `read()` gives {title: code}, or raises with what is missing. */
export class CodeBox {
  constructor(read) {
    this.read = read;
    this.body = element("div");
    this.element = element("details", { class: "code", toggle: () => this.update() },
      element("summary", {}, "This request as code"), this.body);
  }

  update() {
    if (!this.element.open) return;
    try {
      this.body.replaceChildren(...Object.entries(this.read()).flatMap(([title, code]) => [
        element("div", { class: "row" }, element("h3", {}, title), copyButton(() => code, `Copy ${title}`)),
        element("pre", { tabindex: "0", role: "group", "aria-label": title }, code),
      ]));
    } catch (error) {
      this.body.replaceChildren(element("p", { class: "note" }, error.message));
    }
  }
}

const REFUSED = new Set([400, 404, 413, 422]); // asked again, the same request is refused again

/** What went wrong, with a button that tries again, where that may help, once the server takes requests again. */
export function errorBox(error, retry) {
  if (error.status === 401) document.dispatchEvent(new Event("token-needed"));
  const box = element("div", { class: "error", role: "alert" }, element("p", {}, element("bdi", {}, error.message)));
  if (error.requestId) box.append(element("p", { class: "note" }, `Request id: ${error.requestId}`));
  if (retry && !REFUSED.has(error.status)) box.append(retryButton(error.retryAfter ?? 0, retry));
  return box;
}

function retryButton(seconds, retry) {
  const button = element("button", { type: "button", class: "quiet", click: retry });
  const count = (left) => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0) setTimeout(() => count(left - 1), 1000);
  };
  count(seconds);
  return button;
}

/**
 * A form whose submission runs `task(signal)`, once at a time. Its second button stops a task that runs; `more` are
 * further buttons. Enter with Ctrl (or Cmd) submits it; Enter alone does in a control of the class `enter`.
 */
export class RequestForm {
  constructor(label, hint, controls, task, more = []) {
    this.task = task;
    this.submit = element("button", { class: "main" }, label);
    this.stop = element("button", { type: "button", hidden: true, click: () => this.controller?.abort() }, "Stop");
    const id = freshId("hint");
    const keys = element("span", { class: "note", id }, hint);
    this.submit.setAttribute("aria-describedby", id);
    this.element = element("form", { novalidate: true }, controls, element("div", { class: "row" }, this.submit, this.stop, more, keys));
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      if (event.ctrlKey || event.metaKey || (!event.shiftKey && event.target.classList.contains("enter"))) {
        event.preventDefault();
        this.element.requestSubmit();
      }
    });
  }

  async run(task = this.task) {
    if (this.controller) return;
    this.controller = new AbortController();
    this.showBusy(true);
    try {
      await task(this.controller.signal);
    } finally {
      this.controller = null;
      this.showBusy(false);
    }
  }

  showBusy(busy) {
    const focused = document.activeElement;
    this.element.setAttribute("aria-busy", String(busy));
    this.submit.hidden = busy;
    this.stop.hidden = !busy;
    if (busy && focused === this.submit) this.stop.focus(); // a hidden button would lose the focus
    if (!busy && (focused === this.stop || focused === document.body)) this.submit.focus({ preventScroll: true });
  }
}

const MOST_CARDS = 20;

/** The last answers, the newest first. */
export class History {
  constructor() {
    this.list = element("ol", { class: "cards" });
    this.empty = element("p", { class: "note" }, "Answers appear here.");
    const clear = element("button", { type: "button", class: "quiet", click: () => {
      this.list.replaceChildren();
      this.showEmpty();
      announce("Answers cleared");
    } }, "Clear");
    this.head = element("div", { class: "row" }, element("h2", {}, "Answers"), clear);
    this.element = element("section", { "aria-label": "Answers" }, this.head, this.empty, this.list);
    this.clear = clear;
    this.showEmpty();
  }

  showEmpty() {
    const isEmpty = this.list.children.length === 0;
    this.empty.hidden = !isEmpty;
    this.clear.hidden = isEmpty;
  }

  add(...content) {
    const card = element("li", { class: "card" }, content);
    this.list.prepend(card);
    while (this.list.children.length > MOST_CARDS) this.list.lastElementChild.remove();
    this.showEmpty();
    return card;
  }
}

/** A labelled number that may be left out; `read()` is undefined then, and raises for what is no number. */
export function numberOption(label, attributes, isWhole) {
  const id = freshId("option");
  const input = element("input", { id, type: "number", placeholder: "default", step: isWhole ? 1 : "any", ...attributes });
  return {
    element: element("div", { class: "option" }, element("label", { for: id }, label), input),
    read() {
      if (!input.validity.valid) throw new Error(`${label}: ${input.validationMessage}`);
      return input.value === "" ? undefined : Number(input.value);
    },
  };
}

export const seconds = (milliseconds) =>
  milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
