"use strict";
const STEP = 20;
for (const list of document.querySelectorAll(".browse")) {
  const cards = [...list.querySelectorAll(".card")].map((element) => ({
    element,
    text: element.textContent.toLowerCase(),
    state: element.dataset.state.split(" "),
    change: [element.dataset.change],
    run: element.dataset.run.split(" "),
    label: [...element.querySelectorAll("[data-label]")].map((mark) => mark.dataset.label),
  }));
  const filters = [...list.querySelectorAll("[data-filter]")];
  const output = list.querySelector("output");
  const more = list.querySelector("button.more");
  let limit = STEP;
  const fits = (card) => filters.every(({ dataset, value }) => {
    if (!value) return true;
    if (dataset.filter !== "text") return card[dataset.filter].includes(value);
    return value.toLowerCase().split(/\s+/).every((word) => card.text.includes(word));
  });
  const show = () => {
    let found = 0;
    for (const card of cards) card.element.hidden = !(fits(card) && ++found <= limit);
    output.value = found === cards.length ? `${found} shown` : `${found} of ${cards.length} shown`;
    if (found > limit) output.value = `${limit} of ${found} shown`;
    more.hidden = found <= limit;
  };
  for (const filter of filters) filter.addEventListener("input", () => { limit = STEP; show(); });
  more.addEventListener("click", () => { limit += 5 * STEP; show(); });
  list.querySelector(".tools").hidden = false;
  show();
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].textContent.trim();
      const order = (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true });
      const number = (row) => Number(value(row).replaceAll(",", ""));
      const rows = [...body.rows];
      const numeric = rows.every((row) => !Number.isNaN(number(row)));
      rows.sort((a, b) => (down ? -1 : 1) * (numeric ? number(a) - number(b) : order(a, b)));
      body.append(...rows);
    });
  });
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open], .long)")];
  for (const element of opened) element.open = true;
});
addEventListener("afterprint", () => { for (const element of opened) element.open = false; });
