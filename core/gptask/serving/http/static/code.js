/* A request as code: a curl command for a POSIX shell, and Python. The token is never part of it. */

import { BASE, hasToken } from "./api.js";

/** One word of a POSIX shell that stands for exactly this text. */
export function shellWord(text) {
  return /^[A-Za-z0-9_%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

export function curl(path, body) {
  const lines = [`curl ${body.stream ? "--no-buffer " : ""}${shellWord(BASE + path)}`];
  if (hasToken()) lines.push('-H "Authorization: Bearer $GPTASK_TOKEN"');
  lines.push("-H 'Content-Type: application/json'", `-d ${shellWord(JSON.stringify(body))}`);
  return lines.join(" \\\n  ");
}

/** A JSON value as a literal of Python; what is longer than a line takes one line an entry. */
export function pythonLiteral(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value); // its escapes mean the same in Python
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const entries = (inner) => Array.isArray(value)
    ? value.map((item) => pythonLiteral(item, inner))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonLiteral(item, inner)}`);
  const line = open + entries(indent).join(", ") + close;
  if (line.length + indent.length <= 76 && !line.includes("\n")) return line;
  const inner = `${indent}    `;
  return `${open}\n${entries(inner).map((entry) => `${inner}${entry},\n`).join("")}${indent}${close}`;
}

const SERVER = BASE.replace(/\/$/, "");

export function pythonPredict(run, example) {
  const token = hasToken() ? "  # the token is read from GPTASK_TOKEN" : "";
  return `import gptask

client = gptask.Client(${JSON.stringify(SERVER)})${token}
examples = ${pythonLiteral([example])}
for prediction in client.predict(${JSON.stringify(run)}, examples):
    print(prediction)
`;
}

/** The request of `body` by the openai library: chat if it has messages, else a completion. */
export function pythonOpenai(body) {
  const key = hasToken() ? 'os.environ["GPTASK_TOKEN"]' : '"none"';
  const [method, text] = body.messages
    ? ["chat.completions", "chunk.choices[0].delta.content"]
    : ["completions", "chunk.choices[0].text"];
  const options = Object.entries(body).map(([name, value]) => `    ${name}=${pythonLiteral(value, "    ")},\n`).join("");
  return `${hasToken() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${SERVER}/v1`)}, api_key=${key})
stream = client.${method}.create(
${options})
for chunk in stream:
    if chunk.choices:
        print(${text} or "", end="", flush=True)
print()
`;
}
