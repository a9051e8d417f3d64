"use strict";
(() => {
  const root = document.documentElement;
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  root.classList.add("js");

  // Light or dark: as the system says until the reader chooses.
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("uniego-theme", value);
      return localStorage.getItem("uniego-theme");
    } catch {
      return null; // a browser that keeps nothing for files
    }
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const theme = make("button", { type: "button", class: "theme control" });
  const told = () => {
    const dark = (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
    theme.textContent = dark ? "Light" : "Dark";
    theme.setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
    return dark;
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  theme.addEventListener("click", () => {
    root.dataset.theme = told() ? "light" : "dark";
    stored(root.dataset.theme);
    told();
  });
  system.addEventListener("change", told);
  told();
  document.querySelector("header.top").append(theme);

  // Tabs, out of links to the parts.
  const list = document.querySelector("nav.tabs ul");
  const tabs = [...list.querySelectorAll("a")];
  const panels = tabs.map((tab) => document.getElementById(tab.hash.slice(1)));
  list.setAttribute("role", "tablist");
  list.setAttribute("aria-label", "Parts of the report");
  tabs.forEach((tab, place) => {
    tab.parentElement.setAttribute("role", "presentation");
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[place].id);
    panels[place].setAttribute("role", "tabpanel");
    panels[place].setAttribute("aria-labelledby", tab.id);
    panels[place].setAttribute("tabindex", "0");
  });
  const open = (chosen) => {
    tabs.forEach((tab, place) => {
      const is = place === chosen;
      tab.setAttribute("aria-selected", String(is));
      tab.tabIndex = is ? 0 : -1;
      panels[place].hidden = !is;
    });
    tabs[chosen].scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  const follow = () => {
    let id = "";
    try {
      id = decodeURIComponent(location.hash.slice(1));
    } catch { /* no address that the page knows */ }
    const target = id && document.getElementById(id);
    const place = target ? panels.findIndex((panel) => panel.contains(target)) : -1;
    open(place < 0 ? 0 : place);
    if (place >= 0 && target !== panels[place]) target.scrollIntoView();
  };
  const choose = (place, focus) => {
    open(place);
    history.replaceState(null, "", `#${panels[place].id}`);
    if (focus) tabs[place].focus();
  };
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", (event) => {
      event.preventDefault();
      choose(place, true);
    });
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const to = { ArrowRight: place === last ? 0 : place + 1, ArrowLeft: place ? place - 1 : last, Home: 0, End: last }[event.key];
      if (event.key === " ") choose(place, true);
      else if (to === undefined) return;
      else choose(to, true);
      event.preventDefault();
    });
  });
  addEventListener("hashchange", follow);

  // Rows that hold the words that were typed; how many are left is said.
  for (const table of document.querySelectorAll("table[data-filter]")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 6) continue;
    const box = make("div", { class: "filter control" });
    const input = make("input", { type: "search", placeholder: table.dataset.filter, "aria-label": table.dataset.filter, autocomplete: "off", spellcheck: "false" });
    const count = make("output", {}, `${rows.length} rows`);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      count.textContent = words.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
    });
    box.append(input, count);
    table.closest(".scroll").before(box);
  }

  // Sorting by a column; what has no number goes last either way.
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const key = (cell) => {
    if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "" || text === "–" ? null : /^[-+]?[\d.]+$/.test(text) ? Number(text) : text;
  };
  for (const table of document.querySelectorAll("table[data-sort]")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", class: "sort control" });
      button.append(...head.childNodes);
      head.append(button);
      if (!head.textContent.trim()) button.setAttribute("aria-label", "Sort by this column");
      button.addEventListener("click", () => {
        const numbers = [...body.rows].some((row) => typeof key(row.cells[column]) === "number");
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numbers;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = typeof a === "number" && typeof b === "number" ? a - b : compare(String(a), String(b));
          return down ? -order : order;
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // Which pictures are shown: a choice over what is marked on them.
  const choices = (section, items, name, words) => {
    const kinds = [...new Set(items.map((item) => item.dataset[name]))];
    if (kinds.length < 2) return;
    const group = make("div", { class: "choice control", role: "group", "aria-label": "Show" });
    for (const kind of ["", ...kinds]) {
      const count = items.filter((item) => !kind || item.dataset[name] === kind).length;
      const button = make("button", { type: "button", "aria-pressed": String(!kind) }, `${words[kind] || kind} (${count})`);
      button.addEventListener("click", () => {
        for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
        for (const item of items) item.hidden = Boolean(kind) && item.dataset[name] !== kind;
      });
      group.append(button);
    }
    section.querySelector("h2").after(group);
  };
  for (const section of document.querySelectorAll("section")) {
    const queries = [...section.querySelectorAll(".pic-query")];
    const samples = [...section.querySelectorAll(".pic-sample")];
    choices(section, queries, "first", { "": "All", right: "Found first", wrong: "Missed" });
    choices(section, samples, "split", { "": "All" });
  }
  follow();
})();
