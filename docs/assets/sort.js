// Tables of measurements are sorted by a click on a heading.
document.addEventListener("click", (event) => {
  const head = event.target.closest("article table thead th");
  if (!head) return;
  const column = [...head.parentNode.children].indexOf(head);
  const body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "descending";
  const value = (row) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(text.replace(/[+,]/g, ""));
  const order = (a, b) => {
    const [x, y] = [number(value(a)), number(value(b))];
    return Number.isNaN(x) || Number.isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
  };
  const rows = [...body.rows].sort((a, b) => (down ? order(a, b) : order(b, a)));
  [...head.parentNode.children].forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "ascending" : "descending");
  body.append(...rows);
});
