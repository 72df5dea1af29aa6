"use strict";
// The table of questions: all of them stay in columns of small numbers; only the rows of a page become elements.
(() => {
  const PAGE = 25;
  const { hashLength, runs, tasks } = JSON.parse(document.getElementById("questions-data").textContent);
  const compared = runs.length > 1;
  const withText = tasks.some((task) => task.texts !== undefined);
  const at = (id) => document.getElementById("questions-" + id);
  const search = at("search"), runChoice = at("run"), taskChoice = at("task"), show = at("show"), status = at("status");
  const previous = at("previous"), next = at("next");
  const [head] = at("table").tHead.rows, [body] = at("table").tBodies;

  const letter = (column, i) => typeof column === "string" ? column[i] : String(column[i] + 1);
  const idOf = (task, i) => typeof task.ids === "number" ? task.ids + i : task.ids[i];
  const hashOf = (task, i) => task.hashes.slice(i * hashLength, (i + 1) * hashLength);
  // The run that is shown, and the baseline; null where it did not answer all questions of the task.
  const after = (task) => task.answers[runChoice === null ? runs.length - 1 : Number(runChoice.value)];
  const before = (task) => compared ? task.answers[0] : null;
  const chosen = (run, i) => run === null ? "" : letter(run.chosen, i);
  const share = (run, i) => run === null ? null : run.share[i] / 10;
  const changed = (t, i) => before(t) === null || after(t) === null ? null : share(after(t), i) - share(before(t), i);
  const right = (task, run, i) => chosen(run, i) === letter(task.right, i);
  const textOf = (task, i) => {
    const [question, ...choices] = task.texts[i];
    return [question, ...choices.map((choice, k) => String.fromCharCode(65 + k) + ". " + choice)].join("\n");
  };
  const signed = (value, digits) => (value < 0 ? "\u2212" : value > 0 ? "+" : "") + Math.abs(value).toFixed(digits);

  // Title, text of a cell, and what to sort by if it can be sorted.
  const columns = [
    { title: "Task", text: (t) => t.name, name: true },
    { title: "Number", text: (t, i) => String(idOf(t, i)), by: (t, i) => idOf(t, i) },
    { title: "Hash", text: (t, i) => hashOf(t, i), code: true },
    { title: "Right answer", text: (t, i) => letter(t.right, i) },
  ];
  if (compared) columns.push(
    { title: "Before", text: (t, i) => chosen(before(t), i) },
    { title: "Probability before, %", text: (t, i) => share(before(t), i)?.toFixed(1) ?? "", by: (t, i) => share(before(t), i) ?? -1 },
  );
  columns.push(
    { title: compared ? "After" : "Answer", text: (t, i) => chosen(after(t), i) },
    { title: compared ? "Probability after, %" : "Probability, %", text: (t, i) => share(after(t), i)?.toFixed(1) ?? "", by: (t, i) => share(after(t), i) ?? -1 },
  );
  if (compared) columns.push({
    title: "Change, points",
    text: (t, i) => changed(t, i) === null ? "" : signed(changed(t, i), 1),
    by: (t, i) => changed(t, i) ?? 0,
  });
  columns.push({
    title: "Lead",
    text: (t, i) => after(t) === null ? "" : signed(after(t).lead[i] / 100, 2),
    by: (t, i) => after(t)?.lead[i] ?? 0,
  });
  if (withText) columns.push({ title: "Question", text: (t, i) => t.texts === undefined ? "" : textOf(t, i), wide: true });

  const both = (t) => before(t) !== null && after(t) !== null;
  const filters = {
    all: () => true,
    right: (t, i) => after(t) !== null && right(t, after(t), i),
    wrong: (t, i) => after(t) !== null && !right(t, after(t), i),
    lost: (t, i) => both(t) && right(t, before(t), i) && !right(t, after(t), i),
    gained: (t, i) => both(t) && !right(t, before(t), i) && right(t, after(t), i),
    flipped: (t, i) => both(t) && right(t, before(t), i) !== right(t, after(t), i),
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
        // A name may be broken after its underscores.
        if (column.name) cell.append(...column.text(t, i).split(/(?<=_)/).flatMap((part) => [part, document.createElement("wbr")]));
        else holder.textContent = column.text(t, i);
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
  if (runChoice !== null) {
    runs.forEach((name, k) => k > 0 && runChoice.add(new Option(name, String(k))));
    runChoice.value = String(runs.length - 1);
    runChoice.addEventListener("change", find);
  }
  at("form").addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", find);
  taskChoice.addEventListener("change", find);
  show.addEventListener("change", find);
  previous.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  find();
})();
