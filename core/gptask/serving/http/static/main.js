/* The page: the list of runs, and the view of the chosen one, which the address names (#run=news&view=chat). */

import { call, hasToken, setToken } from "./api.js";
import { announce, digitsOf, element, number } from "./dom.js";
import { errorBox } from "./parts.js";
import { predictView } from "./predict.js";
import { chatView, completeView } from "./writing.js";

const VIEWS = { predict: ["Predict", predictView], chat: ["Chat", chatView], complete: ["Complete", completeView] };
const find = (id) => document.getElementById(id);
const views = new Map(); // built views by address: what was written and answered stays while the page is open
let models = [];

async function load() {
  try {
    const { data } = await (await call("v1/models")).json();
    for (const model of data) {
      model.fields ??= [];
      if (typeof model.metric?.value !== "number") model.metric = null; // it was no finite number
      const before = models.find(({ id }) => id === model.id);
      if (before && formOf(before) !== formOf(model)) forget(model.id); // it was replaced by another run
    }
    models = data;
    show();
  } catch (error) {
    find("main").replaceChildren(element("h1", {}, "No runs"), errorBox(error, load));
    if (error.status !== 401) listRuns(null);
  }
}

const formOf = ({ task, fields, writes, chat_template: template, explains }) =>
  JSON.stringify([task, fields, writes, template, explains]);

function forget(id) {
  for (const view of Object.keys(VIEWS)) views.delete(address(id, view));
}

const address = (id, view) => `#${new URLSearchParams(view ? { run: id, view } : { run: id })}`;

/** The views that a model has. The first one is shown unless the address names another. */
function viewsOf(model) {
  const predicts = model.task !== null && model.fields.length > 0;
  const talks = model.writes && model.fields.some(({ kind }) => kind === "messages");
  const names = [...(predicts ? ["predict"] : []), ...(model.writes ? ["chat", "complete"] : [])];
  const first = talks || (!predicts && model.chat_template) ? "chat" : predicts ? "predict" : "complete";
  return { names, first: names.includes(first) ? first : names[0] };
}

function show() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const model = models.find(({ id }) => id === parameters.get("run")) ?? models[0];
  listRuns(model);
  if (!model) {
    find("main").replaceChildren(element("h1", {}, "No runs"), element("p", {},
      "This server serves no runs yet. A finished run that is put into the folder runs_root appears here."));
    return;
  }
  const { names, first } = viewsOf(model);
  const view = names.includes(parameters.get("view")) ? parameters.get("view") : first;
  const key = address(model.id, view);
  if (view && !views.has(key)) views.set(key, VIEWS[view][1](model));
  document.title = `${model.id} – gptask serve`;
  find("main").replaceChildren(...header(model), ...(names.length > 1 ? [tabs(model, names, view)] : []),
    views.get(key) ?? element("p", { class: "note" }, "This run answers nothing that the page could show."));
}

function listRuns(chosen) {
  const entry = (model) => element("li", {}, element("a", { href: address(model.id), "aria-current": model === chosen && "page" },
    element("bdi", { class: "name" }, model.id),
    element("small", {}, model.task ?? "backbone", model.metric && [" · ", element("span", {}, short(model.metric))])));
  find("run-list").replaceChildren(...models.map(entry));
  find("run-select").replaceChildren(...models.map((model) => element("option", { value: model.id }, model.id)));
  if (chosen) find("run-select").value = chosen.id;
  find("run-select").disabled = !models.length;
}

const short = (metric) => `${metric.name} ${number(metric.value)}`;

/** A metric in words: accuracy 90.8 (88.9 to 92.8), n = 872, test. */
function metricInWords({ name, value, low, high, n, higher_is_better: higher, split }) {
  const isKnown = typeof low === "number" && typeof high === "number";
  const digits = Math.max(...(isKnown ? [value, low, high] : [value]).map(digitsOf));
  const interval = isKnown ? ` (${number(low, digits)} to ${number(high, digits)})` : "";
  return [`${name} ${number(value, digits)}${interval}`, typeof n === "number" && `n\u00a0=\u00a0${number(n)}`, split,
    higher === false && "lower is better"].filter(Boolean).join(", ");
}

function header(model) {
  const facts = {
    task: model.task ?? "none: the bare backbone",
    labels: model.labels?.length && `${model.labels.length}: ${model.labels.join(", ")}`,
    "longest input": model.max_tokens && `${number(model.max_tokens)} tokens`,
    context: model.context && `${number(model.context)} tokens`,
    backbone: model.backbone,
    adapter: model.adapter,
    "loaded since": model.loaded && new Date(model.loaded).toLocaleString(),
  };
  const rows = Object.entries(facts).filter(([, value]) => value).map(([name, value]) =>
    element("div", { class: String(value).length > 40 && "full" }, element("dt", {}, name), element("dd", { dir: "auto" }, String(value))));
  return [
    element("h1", {}, element("bdi", {}, model.id)),
    element("p", { class: "lead" }, [model.task ?? "backbone", model.metric && metricInWords(model.metric)].filter(Boolean).join(" · ")),
    model.description && element("p", { class: "note", dir: "auto" }, model.description),
    element("details", { class: "about" }, element("summary", {}, "About this run"), element("dl", { class: "facts" }, rows)),
  ].filter(Boolean);
}

const tabs = (model, names, current) => element("nav", { class: "tabs", "aria-label": "Ways to use the run" }, names.map((name) =>
  element("a", { href: address(model.id, name), "aria-current": name === current && "page" }, VIEWS[name][0])));

addEventListener("hashchange", () => { if (location.hash.includes("run=")) show(); });
document.addEventListener("token-needed", () => {
  document.querySelector(".token").open = true;
  find("token").focus();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address keeps its run
  find("main").focus();
});
find("run-select").addEventListener("change", (event) => { location.hash = address(event.target.value); });
find("reload").addEventListener("click", async () => {
  await load();
  announce(`${models.length} runs`);
});
find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(find("token").value);
  find("token").value = "";
  document.querySelector(".token").open = false;
  document.querySelector(".token summary").textContent = hasToken() ? "Token: set" : "Token";
  load();
});
if (hasToken()) document.querySelector(".token summary").textContent = "Token: set";
load();
