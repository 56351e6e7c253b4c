// The leaderboard and the table of classes: sorting, the baseline, the boundary radius, absolute or difference.

const baseline = () => Number($("baseline").value);

function numeric(cell, key) {
  const text = cell?.dataset[key];
  return text === undefined || text === "" ? NaN : Number(text);
}

// Rows by the cells of one column; what has no number stays last.
function sortRows(table, column, descending, key) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, index) => {
    const cell = row.cells[column];
    const value = column === 0 ? cell.dataset.v : numeric(cell, cell.dataset.s === undefined ? key() : "s");
    return { row, index, value };
  });
  const order = descending ? -1 : 1;
  rows.sort((one, other) => {
    if (column === 0) return order * one.value.localeCompare(other.value, "en", { numeric: true });
    const missing = Number.isNaN(one.value) - Number.isNaN(other.value);
    return missing || order * (one.value - other.value) || one.index - other.index;
  });
  body.append(...rows.map((entry) => entry.row));
}

function sortable(table, key) {
  const heads = [...table.tHead.rows[0].cells];
  const state = { column: -1, descending: true };
  const apply = () => {
    if (state.column >= 0) sortRows(table, state.column, state.descending, key);
  };
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const first = column !== 0; // numbers begin with the largest, names with a
      state.descending = state.column === column ? !state.descending : first;
      state.column = column;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      apply();
    });
  });
  return apply;
}

// Whether two methods were evaluated on the same images: others are not compared.
const alike = (one, other) => DATA.methods[one].images === DATA.methods[other].images;

const board = $("board"), heat = $("heat");
const boardRows = [...board.tBodies[0].rows];
sortable(board, () => "v");

function showBoard() {
  const base = boardRows[baseline()];
  boardRows.forEach((row, index) => {
    row.classList.toggle("baseline", row === base && boardRows.length > 1);
    for (const cell of row.querySelectorAll("td")) {
      const value = numeric(cell, "v"), other = numeric(base.cells[cell.cellIndex], "v");
      const factor = cell.dataset.k === "cost" && other > 0 ? `${(value / other).toFixed(2)}×` : "";
      const text = cell.dataset.k === "cost" ? factor : signed(value - other);
      const apart = row === base || !alike(index, baseline()) || Number.isNaN(value) || Number.isNaN(other);
      cell.querySelector(".delta").textContent = apart ? "" : text;
    }
  });
}

function showRadius() {
  if (!$("radius")) return;
  const wanted = `${$("convention").value} ${$("radius").value}`;
  for (const cell of board.querySelectorAll("[data-f]")) cell.hidden = cell.dataset.f !== wanted;
}

// The heat map. A cell's colour is its IoU, or its distance from the baseline's, the largest of which is the full colour.
const heatCells = [...heat.querySelectorAll("td.heat")];
const firstHeat = heat.tHead.rows[0].cells.length - DATA.methods.length;
const heatSort = sortable(heat, () => (chosen("heat-mode") === "iou" ? chosen("heat-protocol") : "d"));

function showHeat() {
  const key = chosen("heat-protocol"), apart = chosen("heat-mode") === "difference";
  heat.classList.toggle("difference", apart);
  const values = heatCells.map((cell) => {
    const value = numeric(cell, key);
    if (!apart) return value;
    return alike(cell.cellIndex - firstHeat, baseline()) ? value - numeric(cell.parentNode.cells[firstHeat + baseline()], key) : NaN;
  });
  const known = values.filter(Number.isFinite).map(Math.abs);
  const most = apart ? Math.max(0.02, ...known) : 1;
  heatCells.forEach((cell, index) => {
    const value = values[index];
    const isBase = apart && cell.cellIndex === firstHeat + baseline();
    cell.textContent = !Number.isFinite(value) ? DASH : isBase ? percent(numeric(cell, key), 1) : apart ? signed(value, 1) : percent(value, 1);
    cell.dataset.d = Number.isFinite(value) ? value : "";
    cell.style.setProperty("--t", Number.isFinite(value) && !isBase ? Math.min(1, Math.abs(value) / most).toFixed(3) : 0);
    cell.style.setProperty("--side", value < 0 ? "var(--less)" : "var(--more)");
  });
  heatSort();
}

function findClasses() {
  const wanted = $("heat-find").value.trim().toLowerCase();
  let found = 0;
  for (const row of heat.tBodies[0].rows) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    found += !row.hidden;
  }
  $("heat-count").textContent = wanted ? `${found} of ${DATA.classes.length}` : "";
}

$("baseline").addEventListener("change", () => {
  showBoard();
  showHeat();
});
for (const id of ["radius", "convention"]) $(id)?.addEventListener("change", showRadius);
for (const name of ["heat-mode", "heat-protocol"]) onChoice(name, showHeat);
$("heat-find").addEventListener("input", findClasses);
for (const part of [$("baseline").closest("label"), $("heat-mode"), $("board-hint")]) part.hidden = DATA.methods.length < 2; // nothing to compare
showBoard();
showRadius();
showHeat();
