// Tables of measurements are sorted by a click on a heading, or by Enter on it.
const number = (text) => parseFloat(text.replace(/[+,]/g, ""));

function sort(head) {
  const column = [...head.parentNode.children].indexOf(head);
  const body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "descending";
  const value = (row) => row.cells[column].textContent.trim();
  const order = (a, b) => {
    const [x, y] = [number(value(a)), number(value(b))];
    return Number.isNaN(x) || Number.isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
  };
  const [full, empty] = [[], []];
  for (const row of body.rows) (value(row) ? full : empty).push(row);
  full.sort((a, b) => (down ? order(a, b) : order(b, a)));
  [...head.parentNode.children].forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "ascending" : "descending");
  body.append(...full, ...empty);
}

const heading = (event) => event.target.closest("article table thead th");
document.addEventListener("click", (event) => {
  const head = heading(event);
  if (head) sort(head);
});
document.addEventListener("keydown", (event) => {
  const head = event.key === "Enter" && heading(event);
  if (head) sort(head);
});
document.querySelectorAll("article table thead th").forEach((head) => {
  head.tabIndex = 0;
});
