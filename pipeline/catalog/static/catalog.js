// Instant search of the index, and buttons that copy. Pages are complete without it.
"use strict";

(() => {
  const make = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // ---- copying

  const copyText = async (text, source) => {
    if (navigator.clipboard && window.isSecureContext) {
      await navigator.clipboard.writeText(text);
      return;
    }
    const range = document.createRange();
    range.selectNodeContents(source);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    if (!document.execCommand("copy")) {
      throw new Error("not allowed");
    }
    selection.removeAllRanges();
  };

  const addCopyButtons = () => {
    const status = make("p", { className: "hidden" });
    status.setAttribute("role", "status");
    document.body.append(status);
    for (const box of document.querySelectorAll(".code, .copy")) {
      const source = box.querySelector("code");
      const button = make("button", { type: "button", textContent: "Copy" });
      const what = box.classList.contains("copy")
        ? source.textContent
        : box.querySelector("pre").getAttribute("aria-label");
      button.setAttribute("aria-label", `Copy ${what}`);
      button.addEventListener("click", async () => {
        try {
          await copyText(source.textContent, source);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Select it and copy";
        }
        status.textContent = button.textContent;
        setTimeout(() => {
          button.textContent = "Copy";
        }, 2000);
      });
      box.append(button);
    }
  };

  // ---- searching

  const MOST = 200;
  const form = document.getElementById("search");
  const found = document.getElementById("found");
  const list = document.getElementById("list");
  const pages = document.getElementById("pages");
  const FIELDS = ["c", "s", "l", "w"];
  let rows = null;
  let all = null;

  const load = (then) => {
    if (rows) {
      then();
      return;
    }
    const script = make("script", { src: form.dataset.rows });
    script.addEventListener("load", () => {
      rows = window.catalogRows.map((row) => ({
        row,
        text: [row.n, row.v, row.d, row.b, row.r, ...row.c, ...row.s, ...row.l]
          .join("\n")
          .toLowerCase(),
      }));
      then();
    });
    document.head.append(script);
  };

  const cell = (title, numeric, ...children) => {
    const element = make("td", { className: numeric ? "n" : "" }, ...children);
    element.setAttribute("role", "cell");
    element.dataset.is = title;
    return element;
  };

  const draw = (row) => {
    const head = make(
      "th",
      { scope: "row" },
      make("a", { href: `appliances/${row.n}/index.html`, textContent: row.n }),
      " ",
      make("small", { textContent: row.v }),
      make("p", { dir: "auto", textContent: row.d }),
    );
    head.setAttribute("role", "rowheader");
    if (row.l.length) {
      const more = row.l.length > 4 ? [`+${row.l.length - 4}`] : [];
      const chips = [...row.l.slice(0, 4), ...more].map((textContent) =>
        make("span", { textContent }),
      );
      head.append(make("p", { className: "chips" }, ...chips));
    }
    const places = Object.entries(row.p).map(([cloud, sites]) =>
      make("p", {}, make("b", { textContent: cloud }), ` ${sites}`),
    );
    const boot = row.e ? [row.o, " ", make("small", { textContent: "emulated" })] : [row.o];
    const line = make(
      "tr",
      {},
      head,
      cell("Sites", false, make("div", {}, ...(places.length ? places : ["–"]))),
      cell("Build", false, make("time", { textContent: row.t }), " ", make("code", { textContent: row.b })),
      cell("Image", true, row.z || "–"),
      cell("Boots in", true, ...boot),
      cell("State", false, make("span", { className: `state ${row.w}`, textContent: row.w })),
    );
    line.setAttribute("role", "row");
    return line;
  };

  const read = () => {
    const data = new FormData(form);
    const wanted = Object.fromEntries(FIELDS.map((key) => [key, data.get(key) || ""]));
    return { words: (data.get("q") || "").toLowerCase().split(/\s+/).filter(Boolean), wanted };
  };

  const fits = ({ row, text }, { words, wanted }) =>
    words.every((word) => text.includes(word)) &&
    FIELDS.every((key) => !wanted[key] || (key === "w" ? row.w === wanted.w : row[key].includes(wanted[key])));

  const rank = ({ row }, words) =>
    words.length === 0 || row.n.toLowerCase().startsWith(words[0]) ? 0 : row.n.includes(words[0]) ? 1 : 2;

  const show = () => {
    const query = read();
    const active = query.words.length > 0 || FIELDS.some((key) => query.wanted[key]);
    const parameters = [...new FormData(form)].filter(([, value]) => value);
    const search = new URLSearchParams(parameters).toString();
    history.replaceState(null, "", search ? `?${search}` : location.pathname);
    const body = list.tBodies[0];
    if (!active) {
      body.replaceChildren(...all);
    } else {
      const hits = rows.filter((each) => fits(each, query));
      hits.sort((one, other) => rank(one, query.words) - rank(other, query.words));
      body.replaceChildren(...hits.slice(0, MOST).map((each) => draw(each.row)));
      const first = hits.length > MOST ? `, of which the first ${MOST} are shown` : "";
      found.textContent = `${hits.length} of ${rows.length} appliances${first}`;
    }
    found.hidden = !active;
    list.classList.toggle("none", active && body.rows.length === 0);
    if (pages) {
      pages.hidden = active;
    }
  };

  const startSearch = () => {
    all = [...list.tBodies[0].rows];
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("focusin", () => load(() => {}), { once: true });
    form.addEventListener("input", () => load(show));
    const asked = new URLSearchParams(location.search);
    for (const control of form.elements) {
      control.value = asked.get(control.name) || "";
    }
    if ([...asked.keys()].length > 0) {
      load(show);
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
        event.preventDefault();
        form.elements.q.focus();
      }
    });
  };

  addCopyButtons();
  if (form && list) {
    startSearch();
  }
})();
