/* The view of a run's own task: its fields as a form, its answers below. */

import { renderAnswer } from "./answers.js";
import { call } from "./api.js";
import { curl, pythonPredict } from "./code.js";
import { announce, copyButton, element, foldedText } from "./dom.js";
import { explanationView } from "./explanation.js";
import { FieldError, buildForm } from "./fields.js";
import { CodeBox, History, RequestForm, errorBox, seconds } from "./parts.js";

const METHODS = { ig: "by gradients", occlusion: "by leaving words out", attention: "by attention" };
const NOTES = {
  ig: "A solid line speaks for what is predicted, a dashed one against it.",
  attention: "Attention is not a reason: it says where the model reads, not what its prediction depends on.",
};

/** The heads' maps of an answer, in bytes. */
const attentionOf = ({ shape, weights }) =>
  ({ shape, weights: Uint8Array.from(atob(weights), (character) => character.charCodeAt(0)) });

export function predictView(model) {
  const path = `v1/predict/${encodeURIComponent(model.id)}`;
  const fields = buildForm(model.fields);
  const history = new History();
  const problem = element("div");
  const code = new CodeBox(() => {
    const example = fields.read();
    return { curl: curl(path, example), Python: pythonPredict(model.id, example) };
  });

  /** Ask for what is in the form: `ask(example, signal)` makes the request, `show(answer, texts, time)` its card. */
  const task = (ask, show) => async function run(signal) {
    problem.replaceChildren();
    try {
      const example = fields.read();
      const texts = new Map(model.fields.map(({ name }) => [name, fields.raw(name)])); // the user may write on meanwhile
      const start = performance.now();
      announce("Waiting for the answer");
      const answer = await (await ask(example, signal)).json();
      announce(show(answer, texts, seconds(performance.now() - start)));
    } catch (error) {
      if (error.name === "AbortError") announce("Stopped");
      else if (error instanceof FieldError) fields.showError(error.field, error.message);
      else if (!fields.showError(error.param, error.message)) problem.append(errorBox(error, () => form.run(run)));
    }
  };

  const predict = task((example, signal) => call(path, example, signal), (answer, texts, time) => {
    const { element: body, summary, shown } = renderAnswer(answer, model, (name) => texts.get(name));
    history.add(inputs(model, texts, shown), body, rawAnswer(answer, time));
    return `Answer: ${summary}`;
  });

  const method = element("select", { "aria-label": "Method" }, (model.explains ?? []).map((name) =>
    element("option", { value: name }, METHODS[name] ?? name)));
  const explain = task((example, signal) => call("v1/explain", { model: model.id, example, method: method.value }, signal), (answer, texts, time) => {
    const { attention, ...rest } = answer;
    const loadAttention = attention ? async () => attentionOf(attention) : null;
    history.add(element("p", { class: "note" }, NOTES[answer.method] ?? NOTES.ig), explanationView(answer, { loadAttention }), rawAnswer(rest, time));
    return "The explanation is shown";
  });

  const controls = model.explains?.length > 0
    ? [element("button", { type: "button", click: () => form.run(explain) }, "Explain"), method] : [];
  const form = new RequestForm("Predict", "Ctrl + Enter", fields.elements, predict, controls);
  form.element.addEventListener("input", () => code.update());
  return element("div", {}, form.element, problem, code.element, history.element);
}

/** What was asked, without the fields that the answer shows. */
function inputs(model, texts, shown) {
  const written = (name) => {
    const value = texts.get(name);
    if (typeof value === "string") return value.trim() && foldedText(value);
    return value.length && value.map(({ role, content }) => element("div", { class: "said" },
      element("small", {}, role), foldedText(content)));
  };
  const rows = model.fields.filter(({ name }) => !shown.includes(name)).map(({ name }) => [name, written(name)]);
  const filled = rows.filter(([, value]) => value);
  return filled.length > 0 && element("dl", { class: "inputs" }, filled.map(([name, value]) =>
    [element("dt", {}, name), element("dd", {}, value)]));
}

function rawAnswer(answer, time) {
  const json = JSON.stringify(answer, null, 2);
  return element("details", { class: "raw" }, element("summary", {}, `JSON, ${time}`),
    element("pre", { tabindex: "0", role: "group", "aria-label": "Answer as JSON" }, json), copyButton(() => json));
}
