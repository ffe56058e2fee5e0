// Tables with the class `sortable` sort by a click on a heading: first the smallest, again the largest.
(() => {
  "use strict";
  const collator = new Intl.Collator(undefined, {numeric: true});

  // By numbers or by text; cells without a value come last either way.
  function compare(a, b, isNumber, sign) {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * (isNumber ? Number(a) - Number(b) : collator.compare(a, b));
  }

  function sort(table, column, heading) {
    const isAscending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const body = table.tBodies[0], isNumber = heading.classList.contains("number");
    const value = row => row.cells[column].dataset.value;
    const rows = [...body.rows];
    rows.sort((a, b) => compare(value(a), value(b), isNumber, isAscending ? 1 : -1));
    body.append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) =>
      heading.querySelector("button").addEventListener("click", () => sort(table, column, heading)));
  }
})();
