"use strict";
const PAGE_SIZE = 20;
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
  let limit = PAGE_SIZE;
  const matches = (card) => filters.every(({ dataset, value }) => {
    if (!value) return true;
    if (dataset.filter !== "text") return card[dataset.filter].includes(value);
    return value.toLowerCase().split(/\s+/).every((word) => card.text.includes(word));
  });
  const show = () => {
    let matching = 0;
    for (const card of cards) card.element.hidden = !(matches(card) && ++matching <= limit);
    output.value = matching === cards.length ? `${matching} shown` : `${matching} of ${cards.length} shown`;
    if (matching > limit) output.value = `${limit} of ${matching} shown`;
    more.hidden = matching <= limit;
  };
  for (const filter of filters) filter.addEventListener("input", () => { limit = PAGE_SIZE; show(); });
  more.addEventListener("click", () => { limit += 5 * PAGE_SIZE; show(); });
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
      const descending = head.getAttribute("aria-sort") !== "descending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column].textContent.trim();
      const byText = (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true });
      const number = (row) => Number(value(row).replaceAll(",", ""));
      const rows = [...body.rows];
      const numeric = rows.every((row) => !Number.isNaN(number(row)));
      rows.sort((a, b) => (descending ? -1 : 1) * (numeric ? number(a) - number(b) : byText(a, b)));
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
