"use strict";
// The table of questions: all of them stay in columns of small numbers; only the rows of a page become elements.
(() => {
  const PAGE = 25;
  const { hashLength, tasks } = JSON.parse(document.getElementById("questions-data").textContent);
  const compared = tasks.some((task) => task.before !== undefined);
  const withText = tasks.some((task) => task.texts !== undefined);
  const at = (id) => document.getElementById("questions-" + id);
  const search = at("search"), taskChoice = at("task"), show = at("show"), status = at("status");
  const previous = at("previous"), next = at("next");
  const [head] = at("table").tHead.rows, [body] = at("table").tBodies;

  const letter = (column, i) => typeof column === "string" ? column[i] : String(column[i] + 1);
  const share = (column, i) => column === undefined ? null : column[i] / 10;
  const idOf = (task, i) => typeof task.ids === "number" ? task.ids + i : task.ids[i];
  const hashOf = (task, i) => task.hashes.slice(i * hashLength, (i + 1) * hashLength);
  const right = (task, column, i) => column !== undefined && letter(column, i) === letter(task.answers, i);
  const textOf = (task, i) => {
    const [question, ...choices] = task.texts[i];
    return [question, ...choices.map((choice, k) => String.fromCharCode(65 + k) + ". " + choice)].join("\n");
  };
  const signed = (value, digits) => (value < 0 ? "\u2212" : value > 0 ? "+" : "") + Math.abs(value).toFixed(digits);

  // Title, text of a cell, and what to sort by if it can be sorted.
  const columns = [
    { title: "Task", text: (t) => t.name },
    { title: "Number", text: (t, i) => String(idOf(t, i)), by: (t, i) => idOf(t, i) },
    { title: "Hash", text: (t, i) => hashOf(t, i), code: true },
    { title: "Right answer", text: (t, i) => letter(t.answers, i) },
  ];
  if (compared) columns.push(
    { title: "Before", text: (t, i) => t.before === undefined ? "" : letter(t.before, i) },
    { title: "Probability before, %", text: (t, i) => share(t.beforeShare, i)?.toFixed(1) ?? "", by: (t, i) => share(t.beforeShare, i) ?? -1 },
  );
  columns.push(
    { title: compared ? "After" : "Answer", text: (t, i) => letter(t.after, i) },
    { title: compared ? "Probability after, %" : "Probability, %", text: (t, i) => share(t.afterShare, i).toFixed(1), by: (t, i) => share(t.afterShare, i) },
  );
  if (compared) columns.push({
    title: "Change, points",
    text: (t, i) => t.beforeShare === undefined ? "" : signed(share(t.afterShare, i) - share(t.beforeShare, i), 1),
    by: (t, i) => t.beforeShare === undefined ? 0 : share(t.afterShare, i) - share(t.beforeShare, i),
  });
  columns.push({ title: "Lead", text: (t, i) => signed(t.margins[i] / 100, 2), by: (t, i) => t.margins[i] });
  if (withText) columns.push({ title: "Question", text: (t, i) => t.texts === undefined ? "" : textOf(t, i), wide: true });

  const filters = {
    all: () => true,
    right: (t, i) => right(t, t.after, i),
    wrong: (t, i) => !right(t, t.after, i),
    lost: (t, i) => right(t, t.before, i) && !right(t, t.after, i),
    gained: (t, i) => t.before !== undefined && !right(t, t.before, i) && right(t, t.after, i),
    flipped: (t, i) => t.before !== undefined && right(t, t.before, i) !== right(t, t.after, i),
  };

  let found = [];
  let page = 0;
  let sorted = { column: null, sign: 1 };

  // A number finds that question; anything else the beginning of a hash, or words of the text.
  const matches = (wanted, t, i) => wanted === ""
    || String(idOf(t, i)) === wanted
    || (wanted.length > 3 && (hashOf(t, i).startsWith(wanted) || wanted.startsWith(hashOf(t, i))))
    || (t.texts !== undefined && textOf(t, i).toLowerCase().includes(wanted));

  const find = () => {
    const wanted = search.value.trim().toLowerCase();
    const keep = filters[show.value];
    found = [];
    tasks.forEach((t, k) => {
      if (taskChoice.value !== "" && taskChoice.value !== String(k)) return;
      for (let i = 0; i < t.count; i++) if (keep(t, i) && matches(wanted, t, i)) found.push([t, i]);
    });
    if (sorted.column !== null) {
      const { by } = columns[sorted.column];
      found.sort(([t, i], [u, j]) => sorted.sign * (by(t, i) - by(u, j)));
    }
    page = 0;
    draw();
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    body.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(([t, i]) => {
      const row = document.createElement("tr");
      for (const column of columns) {
        const cell = document.createElement("td");
        if (column.wide) cell.className = "text";
        const holder = column.code ? cell.appendChild(document.createElement("code")) : cell;
        holder.textContent = column.text(t, i);
        row.append(cell);
      }
      return row;
    }));
    status.textContent = `${found.length.toLocaleString("en")} questions; page ${page + 1} of ${pages.toLocaleString("en")}`;
    previous.disabled = page === 0;
    next.disabled = page + 1 >= pages;
  };

  columns.forEach((column, number) => {
    const cell = document.createElement("th");
    cell.scope = "col";
    if (column.wide) cell.className = "text";
    if (column.by) {
      const button = cell.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = column.title;
      button.addEventListener("click", () => {
        sorted = { column: number, sign: sorted.column === number ? -sorted.sign : 1 };
        for (const other of head.cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending");
        find();
      });
    } else {
      cell.textContent = column.title;
    }
    head.append(cell);
  });
  tasks.forEach((task, k) => taskChoice.add(new Option(task.name, String(k))));
  at("form").addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", find);
  taskChoice.addEventListener("change", find);
  show.addEventListener("change", find);
  previous.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  find();
})();
