"use strict";
// The inspector of pairs. Texts are untrusted, so they enter the page only as text nodes.
(() => {
  const PAGE = 50; // rows added at a time
  const EXCERPT = 1200; // characters shown of a long text
  const MOST_MARKS = 1000; // above this, hidden characters are spelt out in plain text
  const DEPTHS = [1 / 8, 1 / 4, 1 / 2, 1]; // shares of a model's scale from which on a token's colour is one deeper

  // The same characters as in `wording.py`, which gives the reasons.
  const HIDDEN =
    /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\u{e0000}-\u{e007f}]/gu;

  const data = JSON.parse(document.getElementById("pair-data").textContent);
  const form = document.getElementById("filters");
  const table = document.getElementById("list");
  const body = table.tBodies[0];
  const shown = document.getElementById("shown");
  const more = document.getElementById("more");
  const sort = { key: "margin", direction: 1 };
  let rows = []; // the pairs that pass the filters, in order
  let count = 0; // how many of them stand in the table

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const codepoint = (mark) => `U+${mark.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const spelt = (text) => text.replace(HIDDEN, (mark) => `⟨${codepoint(mark)}⟩`);

  // Return the text as nodes, with every hidden or reordering character replaced by a visible mark.
  function nodes(text) {
    const marks = [...text.matchAll(HIDDEN)];
    if (marks.length > MOST_MARKS) return [spelt(text)];
    const parts = [];
    let from = 0;
    for (const mark of marks) {
      parts.push(text.slice(from, mark.index), make("span", { class: "mark" }, codepoint(mark[0])));
      from = mark.index + mark[0].length;
    }
    return [...parts, text.slice(from)];
  }

  // Cut the text, but not inside a character of two code units.
  function excerpt(text, limit) {
    const inside = /[\ud800-\udbff]/.test(text[limit - 1] ?? "");
    return text.slice(0, inside ? limit - 1 : limit);
  }

  const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");
  const reward = (value) => (Math.abs(value) < 1e4 ? fixed(value, 3) : value.toExponential(3).replace("-", "−"));
  const whole = (value) => value.toLocaleString("en-US").replace("-", "−");

  for (const pair of data.pairs) {
    pair.margins = pair.rewards.map((rewards) => rewards && rewards[0] - rewards[1]);
    pair.known = pair.margins.filter((margin) => margin !== null);
  }

  const marginOf = (pair, model) => pair.margins[model];

  const lengthOf = (pair) => pair.lengths[0] - pair.lengths[1];
  const asked = (pair) => pair.prompt?.at(-1)?.[1] ?? pair.id;
  const order = new Intl.Collator("en").compare;

  // Return what a search looks through; made once for each pair, at the first search.
  function words(pair) {
    const texts = [pair.prompt, pair.chosen, pair.rejected].flatMap((turns) => (turns ?? []).map((turn) => turn[1]));
    return (pair.words ??= [pair.id, ...texts].join("\n").toLowerCase());
  }

  const OUTCOMES = {
    "": () => true,
    wrong: (margin) => margin < 0,
    right: (margin) => margin > 0,
    tied: (margin) => margin === 0,
    disagree: (_, pair) => pair.known.some((margin) => margin > 0) && pair.known.some((margin) => margin < 0),
    "all-wrong": (_, pair) => pair.known.every((margin) => margin < 0),
    gained: (margin, pair, other) => margin > 0 && pair.margins[other] !== null && pair.margins[other] <= 0,
    lost: (margin, pair, other) => margin <= 0 && pair.margins[other] > 0,
  };

  function filters() {
    const fields = new FormData(form);
    const number = (name, otherwise) => (fields.get(name) === "" ? otherwise : Number(fields.get(name)));
    return {
      model: Number(fields.get("model")),
      data: fields.get("data"),
      other: Number(fields.get("other")),
      outcome: OUTCOMES[fields.get("outcome")],
      search: fields.get("search").toLowerCase(),
      margin: [number("margin-from", -Infinity), number("margin-to", Infinity)],
      longer: [number("longer-from", -Infinity), number("longer-to", Infinity)],
      length: [number("length-from", -Infinity), number("length-to", Infinity)],
    };
  }

  function passes(pair, wanted) {
    const margin = marginOf(pair, wanted.model);
    if (margin === null) return false;
    const within = (value, [low, high]) => low <= value && value <= high;
    return (
      (wanted.data === "" || pair.data === Number(wanted.data)) &&
      wanted.outcome(margin, pair, wanted.other) &&
      within(margin, wanted.margin) &&
      within(Math.max(...pair.lengths), wanted.longer) &&
      within(lengthOf(pair), wanted.length) &&
      (wanted.search === "" || words(pair).includes(wanted.search))
    );
  }

  function keyOf(pair, model) {
    if (sort.key === "margin") return marginOf(pair, model);
    if (sort.key === "length") return lengthOf(pair);
    return sort.key === "data" ? data.data[pair.data] : asked(pair);
  }

  function update() {
    const wanted = filters();
    const keyed = data.pairs.filter((pair) => passes(pair, wanted)).map((pair) => [keyOf(pair, wanted.model), pair]);
    keyed.sort(([a], [b]) => sort.direction * (typeof a === "number" ? a - b : order(a, b)));
    rows = keyed.map(([, pair]) => pair);
    count = 0;
    body.replaceChildren();
    addRows(wanted.model);
  }

  function addRows(model) {
    const next = rows.slice(count, count + PAGE);
    body.append(...next.map((pair) => listRow(pair, model)));
    count += next.length;
    more.hidden = count >= rows.length;
    shown.textContent = rows.length
      ? `${whole(count)} of ${whole(rows.length)} matching pairs shown.`
      : "No pair matches these filters.";
  }

  function listRow(pair, model) {
    const name = make("bdi", {}, ...nodes(excerpt(asked(pair).trim().replace(/\s+/g, " "), 160)));
    const opener = make("button", { type: "button", class: "opener", "aria-expanded": "false" }, name);
    const margin = marginOf(pair, model);
    const row = make(
      "tr",
      { class: margin < 0 ? "wrong" : "right" },
      make("td", {}, opener),
      make("td", { class: "set" }, make("bdi", {}, ...nodes(data.data[pair.data]))),
      make("td", { class: "number margin" }, reward(margin)),
      make("td", { class: "number" }, whole(lengthOf(pair))),
    );
    opener.addEventListener("click", () => toggle(row, opener, pair, model));
    return row;
  }

  function toggle(row, opener, pair, model) {
    const opens = opener.getAttribute("aria-expanded") === "false";
    opener.setAttribute("aria-expanded", String(opens));
    if (opens) row.after(make("tr", { class: "detail" }, make("td", { colspan: "4" }, detail(pair, model))));
    else row.nextElementSibling.remove();
  }

  function detail(pair, model) {
    const parts = [];
    if (pair.prompt) {
      parts.push(make("section", { class: "prompt" }, make("h4", {}, "Prompt"), ...pair.prompt.map(turn)));
    }
    const responses = ["chosen", "rejected"].map((which, side) => response(pair, which, side, model));
    if (pair.tokens?.[model]?.some((side) => side)) parts.push(legend(model));
    parts.push(make("div", { class: "responses" }, ...responses), rewardsTable(pair, model));
    parts.push(make("p", { class: "note" }, "Pair ", make("bdi", {}, ...nodes(pair.id))));
    return make("div", {}, ...parts);
  }

  function response(pair, which, side, model) {
    const wins = pair.rewards[model][side] > pair.rewards[model][1 - side];
    const heading = make("h4", {}, side === 0 ? "Chosen " : "Rejected ", make("small", {}, "reward "));
    heading.lastChild.append(make("b", {}, reward(pair.rewards[model][side])), wins ? ", the higher" : "");
    heading.lastChild.append(`; ${whole(pair.lengths[side])} characters`);
    const turns = pair[which] ?? [];
    const tokens = pair.tokens?.[model]?.[side];
    const contents = turns.map(([, text], at) => contentOf(text, tokens && { pieces: tokens.turns[at], model }));
    const texts = turns.length === 1 ? [contents[0]] : turns.map(([role], at) => turnOf(role, contents[at]));
    const absent = pair[which] ? [] : [make("p", { class: "note" }, "The text is not part of this page.")];
    const section = make("section", { class: which }, heading, ...texts, ...absent);
    if (tokens) section.append(...tokenReader(section, turns, tokens));
    return section;
  }

  const turnOf = (role, content) => make("div", { class: "turn" }, make("span", { class: "role" }, role), content);
  const turn = ([role, text]) => turnOf(role, contentOf(text));

  function ratio(value) {
    const digits = Math.abs(value) < 0.01 ? value.toPrecision(1) : value.toFixed(2);
    return (value > 0 ? "+" : "") + digits.replace("-", "−");
  }

  // Return the depth of a token's colour, with the side of 0: "more-3", "less-1", or "even".
  function depthOf(value, model) {
    const depth = DEPTHS.filter((share) => Math.abs(value) >= share * data.scales[model]).length;
    return depth && value ? `${value > 0 ? "more" : "less"}-${depth}` : "even";
  }

  // Return the pieces of a text, each with its log-ratio and the reward so far: [[text, number or null, same], ...].
  function pieced(text, pieces) {
    let at = 0;
    return pieces.map(([length, ...values]) => [text.slice(at, (at += length)), ...values]);
  }

  const numbers = (value, soFar) => ratio(value) + (soFar === null ? "" : `; reward so far ${reward(soFar)}`);

  // Return the text's first characters, about `limit` of them, as coloured tokens.
  function tokenNodes(text, limit, { pieces, model }) {
    const parts = [];
    let left = limit;
    for (const [piece, value, soFar] of pieced(text, pieces)) {
      if (left <= 0) break;
      if (value === null) parts.push(...nodes(excerpt(piece, left)));
      else {
        const lines = /^[\r\n]+$/.test(piece) ? " line-end" : "";
        const title = numbers(value, soFar);
        const attributes = { class: `token ${depthOf(value, model)}${lines}`, title, tabindex: "-1" };
        parts.push(make("span", attributes, ...nodes(piece)));
      }
      left -= piece.length;
    }
    return parts;
  }

  function legend(model) {
    const scale = data.scales[model];
    const swatch = (value) => make("span", { class: `token ${depthOf(value, model)}` }, ratio(value));
    const sides = [...DEPTHS].reverse().map((share) => -share * scale);
    const swatches = [...sides.map(swatch), make("span", { class: "token even" }, "0")];
    swatches.push(...DEPTHS.map((share) => swatch(share * scale)));
    const worded = [
      "Tokens are coloured by log π(token) − log π",
      make("sub", {}, "ref"),
      "(token): blue where the model finds them likelier than its reference does, orange and dotted where less likely. ",
    ];
    return make("p", { class: "note legend" }, ...worded, make("span", { class: "swatches" }, ...swatches));
  }

  // Below a response, show the numbers of the token under the pointer or in focus, and a table of all tokens.
  // Tab reaches one token; the arrow keys move between tokens.
  function tokenReader(section, turns, tokens) {
    const hint = "Point at a token, or Tab to it and use the arrow keys.";
    const readout = make("p", { class: "readout", role: "status" }, hint);
    function read(token) {
      const text = make("bdi", {}, token.textContent.replace(/\n/g, "↵"));
      readout.replaceChildren("“", text, `” ${token.title}`);
    }
    const first = section.querySelector(".token");
    if (first) first.tabIndex = 0;
    for (const kind of ["mouseover", "focusin"]) {
      section.addEventListener(kind, (event) => {
        const token = event.target.closest(".token");
        if (token) read(token);
      });
    }
    section.addEventListener("keydown", (event) => {
      const all = [...section.querySelectorAll(".token")];
      moveFocus(event, all, { ArrowRight: 1, ArrowLeft: -1, Home: -all.length, End: all.length });
    });
    return [readout, tokenTable(turns, tokens)];
  }

  // Move the focus between the elements of a list; `steps` maps keys to steps.
  function moveFocus(event, elements, steps) {
    const at = elements.indexOf(event.target);
    if (at < 0 || !(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const next = elements[Math.min(Math.max(at + steps[event.key], 0), elements.length - 1)];
    if (event.target.hasAttribute("tabindex")) {
      event.target.tabIndex = -1;
      next.tabIndex = 0;
    }
    next.focus();
  }

  function tokenTable(turns, tokens) {
    const details = make("details", { class: "token-table" }, make("summary", {}, "Tokens as a table"));
    function fill() {
      const all = turns.flatMap(([, text], at) => pieced(text, tokens.turns[at])).filter(([, value]) => value !== null);
      const rewarded = tokens.reward !== null;
      const rows = [...all, ["(the chat template's own)", tokens.template, tokens.reward]].map(([text, value, soFar]) => {
        const head = make("th", { scope: "row" }, make("bdi", {}, ...nodes(text.replace(/\n/g, "↵"))));
        const cells = rewarded ? [ratio(value), reward(soFar)] : [ratio(value)];
        return make("tr", {}, head, ...cells.map((cell) => make("td", { class: "number" }, cell)));
      });
      const heads = ["Token", "Log-ratio", ...(rewarded ? ["Reward so far"] : [])].map((name, column) =>
        make("th", { scope: "col", class: column ? "number" : "name" }, name),
      );
      const inner = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
      details.append(make("div", { class: "tall", tabindex: "0", role: "region", "aria-label": "Tokens" }, inner));
    }
    details.addEventListener("toggle", fill, { once: true });
    return details;
  }

  function contentOf(text, tokens) {
    const block = make("div", { class: "text", dir: "auto" });
    const shownNodes = (limit) => (tokens ? tokenNodes(text, limit, tokens) : nodes(excerpt(text, limit)));
    if (text.length <= 1.25 * EXCERPT) {
      block.append(...shownNodes(text.length));
      return block;
    }
    const button = make("button", { type: "button", "aria-expanded": "true" });
    function flip() {
      const opens = button.getAttribute("aria-expanded") === "false";
      button.setAttribute("aria-expanded", String(opens));
      button.textContent = opens ? "Show less" : `Show all ${whole([...text].length)} characters`;
      block.replaceChildren(...shownNodes(opens ? text.length : EXCERPT), ...(opens ? [] : ["…"]));
      block.classList.toggle("tall", opens);
      if (opens) block.setAttribute("tabindex", "0");
      else block.removeAttribute("tabindex");
    }
    flip();
    button.addEventListener("click", flip);
    return make("div", {}, block, button);
  }

  function rewardsTable(pair, model) {
    const cells = (values) => values.map((value) => make("td", { class: "number" }, value));
    const rows = data.models.map((name, index) => {
      const rewards = pair.rewards[index];
      const worded = rewards ? [...rewards, rewards[0] - rewards[1]].map(reward) : ["unscored", "", ""];
      const head = make("th", { scope: "row" }, make("bdi", {}, ...nodes(name)));
      return make("tr", index === model ? { class: "selected" } : {}, head, ...cells(worded));
    });
    const heads = ["Model", "Chosen", "Rejected", "Margin"].map((name, column) =>
      make("th", { scope: "col", class: column ? "number" : "name" }, name),
    );
    return make("table", { class: "rewards" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  }

  function sortBy(head) {
    const key = head.dataset.key;
    sort.direction = sort.key === key ? -sort.direction : 1;
    sort.key = key;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sort.direction > 0 ? "ascending" : "descending");
    update();
  }

  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sortBy(head));
  }
  body.addEventListener("keydown", (event) => {
    const openers = [...body.querySelectorAll(".opener")];
    moveFocus(event, openers, { ArrowDown: 1, ArrowUp: -1, Home: -openers.length, End: openers.length });
  });
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector(".clear").addEventListener("click", () => {
    form.reset(); // not by a reset button: its event comes before the fields are cleared
    update();
  });
  // A number of pairs in the comparisons shows those pairs.
  for (const link of document.querySelectorAll("a[data-outcome]")) {
    link.addEventListener("click", () => {
      form.reset();
      for (const [name, value] of Object.entries(link.dataset)) form.elements[name].value = value;
      update();
    });
  }
  more.addEventListener("click", () => addRows(filters().model));
  form.hidden = table.hidden = false;
  update();
})();
