/* The views of a model that writes: a conversation, and the continuation of a text, both streamed. */

import { call, events } from "./api.js";
import { curl, pythonOpenai } from "./code.js";
import { announce, copyButton, element, foldedText, freshId, textBlock } from "./dom.js";
import { CodeBox, History, RequestForm, errorBox, numberOption, seconds } from "./parts.js";

const CUT = "The answer ends at the most tokens that were allowed.";

function samplingOptions() {
  const temperature = numberOption("Temperature", { min: 0, max: 2 }, false);
  const maxTokens = numberOption("Max tokens", { min: 1 }, true);
  return {
    elements: [temperature.element, maxTokens.element],
    read: () => withoutUndefined({ temperature: temperature.read(), max_tokens: maxTokens.read() }),
  };
}

const withoutUndefined = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined));

function openaiCode(path, body) {
  return { curl: curl(path, body), Python: pythonOpenai(body) };
}

/** Write the answer to a streamed request into an element as it comes; the result says how it ended. */
async function stream(path, body, signal, target) {
  const text = target.appendChild(document.createTextNode(""));
  const start = performance.now();
  const ended = (state, more) => ({ state, text: text.data, time: seconds(performance.now() - start), ...more });
  target.setAttribute("aria-busy", "true");
  let isCut = false;
  try {
    for await (const event of events(await call(path, body, signal))) {
      const choice = event.choices?.[0];
      text.appendData(choice?.delta?.content ?? choice?.text ?? "");
      isCut ||= choice?.finish_reason === "length";
      target.dispatchEvent(new Event("grown"));
    }
    announce(`Answer: ${text.data}`);
    return ended("done", { isCut });
  } catch (error) {
    if (error.name !== "AbortError") return ended("failed", { error });
    announce("Stopped");
    return ended("stopped");
  } finally {
    target.removeAttribute("aria-busy");
  }
}

function ending(result) {
  const notes = { done: result.time, stopped: `stopped after ${result.time}`, failed: result.text ? "broke off" : "no answer" };
  const line = element("p", { class: "note row" }, notes[result.state]);
  if (result.text) line.append(copyButton(() => result.text));
  return [result.isCut && element("p", { class: "note" }, CUT), line];
}

const growingText = (label, attributes) => {
  const id = freshId("text");
  const area = element("textarea", { id, dir: "auto", ...attributes });
  return [area, element("div", { class: "field" }, element("label", { for: id }, label), area)];
};

/** Continue a text. */
export function completeView(model) {
  const [prompt, field] = growingText("Text to continue", { rows: 4, placeholder: "Once upon a time" });
  const options = samplingOptions();
  const history = new History();
  const problem = element("div");
  const request = () => {
    if (!prompt.value) throw new Error("Write a text to continue.");
    return { model: model.id, prompt: prompt.value, ...options.read(), stream: true };
  };
  const code = new CodeBox(() => openaiCode("v1/completions", request()));

  async function complete(signal) {
    problem.replaceChildren();
    let body;
    try { body = request(); } catch (error) {
      problem.append(errorBox(error));
      prompt.focus();
      return;
    }
    const continuation = element("span", { class: "continuation" });
    const card = history.add(textBlock(body.prompt, { class: "text prompt" }));
    card.firstChild.append(continuation);
    const result = await stream("v1/completions", body, signal, continuation);
    if (result.state === "failed" && !result.text) {
      card.remove();
      history.showEmpty();
    } else {
      card.append(...ending(result).filter(Boolean));
    }
    if (result.error) problem.append(errorBox(result.error, () => form.run()));
  }

  const form = new RequestForm("Continue", "Ctrl + Enter", [field, element("div", { class: "options" }, options.elements)], complete);
  form.element.addEventListener("input", () => code.update());
  return element("div", {}, form.element, problem, code.element, history.element);
}

/** A conversation. An exchange that failed stays in sight, but is not part of what is sent on. */
export function chatView(model) {
  if (!model.chat_template) return element("p", { class: "warning" }, `${model.id} has no chat template: it continues texts, but knows no turns of a conversation.`);
  const [system, systemField] = growingText("System message", { rows: 2, placeholder: "none" });
  const [question, questionField] = growingText("Message", { rows: 2, class: "enter", enterkeyhint: "send" });
  const options = samplingOptions();
  const log = element("ol", { class: "log", "aria-label": "Conversation", tabindex: "0" });
  const problem = element("div");
  let exchanges = [];

  const request = (text) => {
    const turns = exchanges.flatMap(({ question: asked, answer }) =>
      [{ role: "user", content: asked }, { role: "assistant", content: answer }]);
    if (text.trim()) turns.push({ role: "user", content: text });
    else turns.pop(); // nothing new is asked: the last request
    if (!turns.length) throw new Error("Write a message.");
    if (system.value.trim()) turns.unshift({ role: "system", content: system.value });
    return { model: model.id, messages: turns, ...options.read(), stream: true };
  };
  const code = new CodeBox(() => openaiCode("v1/chat/completions", request(question.value)));

  async function send(signal) {
    const text = question.value;
    problem.replaceChildren();
    let body;
    try {
      if (!text.trim()) throw new Error("Write a message.");
      body = request(text);
    } catch (error) {
      problem.append(errorBox(error));
      question.focus();
      return;
    }
    await exchange(text, body, signal);
    code.update();
  }

  async function exchange(text, body, signal) {
    const answer = textBlock("", { class: "text" });
    const [asked, answered] = [turn("user", foldedText(text)), turn("assistant", answer)];
    log.querySelectorAll(".failed").forEach((failed) => failed.remove());
    log.append(asked, answered);
    answer.addEventListener("grown", scrollDown);
    question.value = "";
    scrollDown(true);
    const result = await stream("v1/chat/completions", body, signal, answer);
    if (!log.contains(answered)) return; // it was cleared meanwhile
    answered.append(...ending(result).filter(Boolean));
    if (result.state !== "failed" && result.text) {
      exchanges.push({ question: text, answer: result.text });
    } else {
      asked.classList.add("failed");
      answered.classList.add("failed");
      question.value ||= text;
    }
    if (result.error) problem.append(errorBox(result.error, () => form.run()));
    scrollDown();
  }

  const turn = (role, content) => element("li", { class: `turn-${role}` }, element("small", {}, role), content);
  let isPinned = true;
  log.addEventListener("scroll", () => { isPinned = log.scrollHeight - log.scrollTop - log.clientHeight < 40; });
  const scrollDown = (always) => { if (isPinned || always === true) log.scrollTop = log.scrollHeight; };

  const clear = element("button", { type: "button", click: () => {
    form.controller?.abort();
    exchanges = [];
    log.replaceChildren();
    problem.replaceChildren();
    code.update();
    announce("Conversation cleared");
    question.focus();
  } }, "Clear");
  const settings = element("details", { class: "settings" }, element("summary", {}, "Settings"),
    systemField, element("div", { class: "options" }, options.elements));
  const form = new RequestForm("Send", "Enter sends, Shift + Enter begins a new line", [settings, log, problem, questionField], send, [clear]);
  form.element.addEventListener("input", () => code.update());
  return element("div", {}, form.element, code.element);
}
