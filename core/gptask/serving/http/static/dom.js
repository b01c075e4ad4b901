/* Building blocks of the page. Text enters the page as text nodes alone: nothing is ever read as HTML. */

import { element } from "./element.js";

export { element };

let lastId = 0;
export const freshId = (prefix) => `${prefix}-${++lastId}`;

/** Has a screen reader say a text. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** A text as a reader writes it: line breaks kept, in its own direction. */
export const textBlock = (text, attributes = {}) => element("div", { class: "text", dir: "auto", ...attributes }, text);

const LONG = 600;

/** A text that shows its beginning if it is long, with a button for all of it. */
export function foldedText(text) {
  const characters = [...text];
  if (characters.length <= LONG) return textBlock(text);
  const shown = document.createTextNode(`${characters.slice(0, LONG / 2).join("")} …`);
  const button = element("button", { type: "button", class: "quiet", click: () => {
    shown.data = text;
    button.remove();
  } }, `show all ${characters.length} characters`);
  return element("div", {}, textBlock(shown), button);
}

/** A button that copies what `read` returns. */
export function copyButton(read, label = "Copy") {
  const button = element("button", { type: "button", class: "quiet", click: async () => {
    const copied = await copy(read());
    announce(copied ? "Copied" : "Copying failed");
    button.textContent = copied ? "Copied" : "Copying failed";
    setTimeout(() => { button.textContent = label; }, 1500);
  } }, label);
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // the clipboard is for secure contexts: https and this machine
    const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
    const focused = document.activeElement;
    document.body.append(area);
    area.value = text;
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

/** The digits behind the point that suit a number's size. */
export const digitsOf = (value) => Number.isInteger(value) ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 4;

/** A number for readers; with `digits` exactly so many behind the point. */
export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits || digitsOf(value) });

export function percent(share) {
  if (typeof share !== "number") return "–"; // JSON has no word for what is not a number
  if (share > 0 && share < 0.001) return "<0.1%";
  if (share < 1 && share > 0.999) return ">99.9%";
  return `${(share * 100).toFixed(1)}%`;
}
