"use strict";
const make = (tag, words, put) => put.appendChild(Object.assign(document.createElement(tag), { textContent: words }));
const save = (name, blob) => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

// A link into a folded part opens it.
const reveal = () => {
  const part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = part; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (part) part.scrollIntoView();
};
addEventListener("hashchange", reveal);
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => setTimeout(reveal));
reveal();

// Paper has the plots of all sections, and the tables that the reader has opened.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details.section:not([open])")];
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => { for (const part of folded) part.open = false; });

// Tables sort by a column, show the rows that hold some words, and are saved as they are shown.
const value = (cell) => {
  const words = cell.textContent, number = parseFloat(words.replace(/[,~]/g, ""));
  return cell.className === "t" ? words : isNaN(number) ? Infinity : number;
};
const sort = (table, head, place) => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [value(row.cells[place]), row]);
  rows.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1));
  table.tBodies[0].append(...rows.map(([, row]) => row));
};
const equip = (part) => {
  const table = part.querySelector("table"), rows = [...table.tBodies[0].rows], bar = document.createElement("div");
  bar.className = "bar";
  part.querySelector(".scroll").before(bar);
  const filter = make("input", "", bar), csv = make("button", "CSV", bar), count = make("span", "", bar);
  Object.assign(filter, { type: "search", placeholder: "Filter: 8192 1024 …" });
  filter.setAttribute("aria-label", "Show the rows that hold these words");
  count.className = "small";
  count.setAttribute("role", "status");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const cells = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join(" ");
      row.hidden = !words.every((word) => cells.includes(word));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
  const quoted = (cell) => `"${cell.textContent.replaceAll('"', '""')}"`;
  csv.addEventListener("click", () => {
    const shown = [table.tHead.rows[0], ...table.tBodies[0].rows].filter((row) => !row.hidden);
    const lines = shown.map((row) => [...row.cells].map(quoted).join(","));
    save(part.dataset.file, new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  });
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const words = head.textContent;
    head.textContent = "";
    make("button", words, head).addEventListener("click", () => sort(table, head, place));
  });
};
for (const part of document.querySelectorAll("details.table")) {
  part.addEventListener("toggle", () => equip(part), { once: true });
}

// A plot as PNG: its panels side by side, as the reader has them; those that are scrolled whole.
for (const figure of document.querySelectorAll("figure")) {
  const button = make("button", "PNG", figure);
  button.className = "save";
  button.setAttribute("aria-label", `Save as PNG: ${figure.querySelector("strong").textContent}`);
  button.addEventListener("click", () => {
    const all = figure.querySelector(".panels").getBoundingClientRect();
    let { width, height } = all;
    const panels = [...figure.querySelectorAll("svg")].map((svg) => {
      const box = svg.getBoundingClientRect(), copy = svg.cloneNode(true);
      const [x, y] = [box.x - all.x + svg.parentElement.scrollLeft, box.y - all.y];
      [width, height] = [Math.max(width, x + box.width), Math.max(height, y + box.height)];
      for (const [name, value] of Object.entries({ x, y, width: box.width, height: box.height })) copy.setAttribute(name, value);
      return new XMLSerializer().serializeToString(copy);
    });
    const style = document.getElementById("plots").textContent, canvas = document.createElement("canvas");
    const open = `<svg xmlns="http://www.w3.org/2000/svg" class="plot" width="${width}" height="${height}">`;
    const text = `${open}<style>${style}</style><rect class="paper" width="100%" height="100%"/>${panels.join("")}</svg>`;
    const image = new Image();
    image.addEventListener("load", () => {
      [canvas.width, canvas.height] = [2 * width, 2 * height];
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(`${figure.id}.png`, blob));
    });
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  });
}
