// The tables, pictures and examples of a report, built from the compressed data of the file. Every text of a user, a
// file or a model becomes a text node; nothing is parsed as markup. Addresses: "#=board", "#=examples", "#=training",
// "#=runs", and "#task/example/rowA/rowB", with "/2" at the end for the second table.
"use strict";
(async () => {
  const MISSING = "–", SIGNS = { baseline: "†", untrained: "‡", trained: "" }, PAGE = 100;
  const known = (x) => x !== null && x !== undefined;

  // ---- elements ---------------------------------------------------------------------------------------------------
  const fill = (node, props, children) => {
    for (const [key, value] of Object.entries(props || {})) {
      if (!known(value) || value === false) continue;
      if (typeof value === "function") node.addEventListener(key, value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((child) => known(child) && child !== false));
    return node;
  };
  const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
  const SVG = "http://www.w3.org/2000/svg";
  const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);
  const picture = (width, height, label, ...children) =>
    s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, ...children);
  const tip = (text) => s("title", null, text);
  const word = (x, y, text, props) => s("text", { x, y, ...props }, text);
  const tick = (x, y, text, anchor = "middle") => word(x, y, text, { class: "tick", "text-anchor": anchor });
  const path = (look, d) => s("path", { class: look, d });
  const dot = (look, cx, cy, r = 3.5, ...children) => s("circle", { class: `dot ${look}`, cx, cy, r }, ...children);
  const figure = (title, ...children) => h("figure", null, h("figcaption", null, name(title)), ...children);
  const option = (value, text) => h("option", { value }, text);
  const note = (...children) => h("p", { class: "note" }, ...children);
  const faint = (text) => h("p", { class: "dim" }, text);
  const warning = (...children) => h("p", { class: "warning" }, ...children);
  const lazy = (summary, make) => {
    const box = h("details", { toggle: () => { if (box.open && box.children.length === 1) box.append(make()); } },
      h("summary", null, summary));
    return box;
  };

  // ---- numbers: scores in percent, differences in percentage points, as in the Markdown ---------------------------
  // Python rounds a tie to the even digit; a number has a tie at its first decimal only if it is an odd quarter.
  const fixed = (x) => {
    const low = Math.floor(10 * x);
    return Number.isInteger(4 * x) && (4 * x) % 2 ? ((low % 2 ? low + 1 : low) / 10).toFixed(1) : x.toFixed(1);
  };
  const percent = (x) => (known(x) ? fixed(100 * x) : MISSING);
  const unsigned = (x) => { const text = fixed(100 * x); return text === "-0.0" ? "0.0" : text; };
  const points = (x) => (unsigned(x).startsWith("-") ? "" : "+") + unsigned(x);
  const gain = (value, low, high) => `${points(value)} (${unsigned(low)} to ${unsigned(high)})`;
  const range = (ends) => (ends ? `${percent(ends[0])} to ${percent(ends[1])}` : MISSING);
  const digits = (x, n = 3) => (known(x) ? String(Number(x.toPrecision(n))) : MISSING);
  const compact = (x) => new Intl.NumberFormat("en", { notation: "compact" }).format(x);
  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);

  // ---- text of unknown origin -------------------------------------------------------------------------------------
  const HIDDEN = /([\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff])/;
  const language = (text) => (/[\u3400-\u9fff]/.test(text) ? "zh" : null);
  // Characters that hide or reorder what follows them are printed as their code points.
  const codePoint = (c) => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const code = (c) => h("span", { class: "code", title: "an invisible character" }, codePoint(c));
  const visible = (text) => text.split(HIDDEN).map((piece, k) => (k % 2 ? code(piece) : piece));
  const name = (text) => h("bdi", { lang: language(text) }, visible(text));
  // A text with the parts that a parser has read: [text, "found", "missing" or "spurious"]; longer parts come first.
  const marked = (text, parts = []) => {
    const cover = new Array(text.length).fill("");
    for (const [part, kind] of [...parts].sort((a, b) => b[0].length - a[0].length)) {
      for (let at = part ? text.indexOf(part) : -1; at >= 0; at = text.indexOf(part, at + part.length)) {
        if (cover.slice(at, at + part.length).every((k) => !k)) cover.fill(kind, at, at + part.length);
      }
    }
    const out = [];
    for (let at = 0, end; at < text.length; at = end) {
      for (end = at; end < text.length && cover[end] === cover[at]; end++);
      const piece = visible(text.slice(at, end));
      out.push(cover[at] ? h("mark", { class: cover[at], title: cover[at] }, piece) : piece);
    }
    return h("div", { class: "text", dir: "auto", lang: language(text) }, out);
  };

  // ---- data and state ---------------------------------------------------------------------------------------------
  const blocks = new Map();
  const unpack = (id) => {
    if (!blocks.has(id)) {
      const binary = atob(document.getElementById(id).textContent), bytes = new Uint8Array(binary.length);
      for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
      blocks.set(id, new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json());
    }
    return blocks.get(id);
  };
  if (typeof DecompressionStream === "undefined") { document.getElementById("old").hidden = false; return; }
  const D = await unpack("board");
  const state = {};
  const reset = (table) => Object.assign(state, {
    table, reference: "", filter: "", folded: new Set(), cost: "stored", task: null, example: null, a: 0,
    b: D.tables[table] && D.tables[table].rows.length > 1 ? 1 : 0,
    protocol: D.protocol, seed: "all", list: "a", only: "", low: "", high: "", text: "", more: PAGE, moved: false,
  });
  const T = () => D.tables[state.table], R = () => T().rows, label = (i) => R()[i].method;
  const root = () => document.querySelector(`[data-table="${state.table}"]`);
  const slot = (key) => root().querySelector(`[data-slot="${key}"]`);
  const field = (key) => root().querySelector(`[name="${key}"]`);
  const rowsWith = (test) => R().map((r, i) => [r, i]).filter(([r]) => test(r));
  const rowNamed = (text) => R().findIndex((r) => r.method === text);
  const ablations = (i) => R().flatMap((r, k) => (r.parent === i ? [k] : []));
  const say = (text) => { document.getElementById("live").textContent = text; };
  const link = (task, example, a, b) => {
    const parts = [task, example, label(a), label(b), ...(state.table ? [state.table + 1] : [])];
    return `#${parts.map(encodeURIComponent).join("/")}`;
  };

  // ---- board: sortable tables -------------------------------------------------------------------------------------
  const rowHead = (i) => {
    const r = R()[i], folded = state.folded.has(i);
    const toggle = () => { folded ? state.folded.delete(i) : state.folded.add(i); drawTables(); };
    return h("th", { scope: "row" },
      ablations(i).length ? h("button", { class: "fold", "aria-expanded": String(!folded), click: toggle,
        "aria-label": `ablations of ${r.method}` }, folded ? "▸" : "▾") : null,
      name(r.method), SIGNS[r.kind], r.flags.length ? h("small", null, ` (${r.flags.join(", ")})`) : null);
  };
  // The rows in the order of a column, each with its ablations below it, as far as the filter lets them through.
  const visibleRows = (order) => {
    const value = (i) => { const v = order.column.get(i); return v === v && known(v) ? v : null; };
    const compare = (i, j) => {
      const a = value(i), b = value(j);
      if (a === null || b === null) return (a === null) - (b === null);
      return (order.down ? -1 : 1) * (typeof a === "string" ? a.localeCompare(b) : a - b);
    };
    const sorted = (rows) => (order.column ? [...rows].sort(compare) : rows);
    const fits = (i) => label(i).toLowerCase().includes(state.filter.toLowerCase());
    const top = R().flatMap((r, i) => (known(r.parent) ? [] : [i]));
    return sorted(top).flatMap((i) => [i, ...(state.folded.has(i) ? [] : sorted(ablations(i)))])
      .filter((i) => fits(i) || ablations(i).some(fits) || (known(R()[i].parent) && fits(R()[i].parent)));
  };
  const orders = new Map();  // The order of each table stays when it is drawn again.
  // columns: {head, title, get: row index -> what to sort by, cell: row index -> nodes or a td}; the first is the row.
  const grid = (caption, columns) => {
    const body = h("tbody"), heads = h("tr"), order = { column: null, down: true, ...orders.get(caption) };
    if (order.column) order.column = columns.find((column) => column.head === order.column.head) || null;
    const sort = (column) => {
      order.down = order.column && order.column.head === column.head ? !order.down : column !== columns[0];
      order.column = column;
      orders.set(caption, order);
      draw();
      say(`sorted by ${column.title || column.head}`);
    };
    const heading = (column, k) => h("th", { scope: "col", title: column.title, class: k ? null : "first",
      "aria-sort": order.column !== column ? null : order.down ? "descending" : "ascending" },
    h("button", { click: () => { sort(column); heads.children[k].firstChild.focus(); } }, column.head));
    const draw = () => {
      heads.replaceChildren(...columns.map(heading));
      body.replaceChildren(...visibleRows(order).map((i) => {
        const look = [known(R()[i].parent) ? "nested" : "", String(i) === state.reference ? "reference" : ""].join(" ");
        const cells = columns.slice(1).map((column) => column.cell(i));
        const td = (cell) => (cell instanceof HTMLTableCellElement ? cell : h("td", null, cell));
        return h("tr", { class: look }, rowHead(i), cells.map(td));
      }));
    };
    draw();
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      h("table", null, h("caption", null, caption), h("thead", null, heads), body));
  };
  const METHOD = { head: "method", get: (i) => label(i) };
  const printed = (head, title, get, print) => ({ head, title, get, cell: (i) => print(get(i)) });
  const strong = (bold, props, text) => h(bold ? "strong" : "span", props, text);
  const missing = (i, column) => h("td", { class: "missing", title: R()[i].missing[column] }, MISSING);

  // ---- board: columns ---------------------------------------------------------------------------------------------
  // The difference of a row to the reference: [value, low, high, p, p adjusted, MDD, significant, why not tested].
  const against = (i, k) => (state.reference === "" ? null : (T().against[state.reference][i] || [])[k]);
  const significant = (d) => d && d[6] && !T().sample;  // On an embedded sample nothing is marked.
  const sign = (d) => (!d || d[7] || T().sample ? "" : d[6] ? (d[0] > 0 ? " ▲" : " ▼") : " ≈");
  const inWords = (i, k) => {
    const d = against(i, k);
    if (!d) return "";
    const seeds = `${R()[i].seeds.length} and ${R()[state.reference].seeds.length} seeds`;
    const test = d[7] ? `not tested: ${d[7]}` : `p ${digits(d[4])} after correction, ${digits(d[3])} before`;
    const mdd = `minimum detectable difference ${percent(d[5])}`;
    return `; against ${label(state.reference)}: ${gain(d[0], d[1], d[2])}, ${test}, ${mdd}, ${seeds}`;
  };
  const rail = (cell) => {
    if (!known(cell.value)) return "";
    const x = (v) => 3 + 114 * v, ends = cell.ci95;
    return picture(120, 14, `${percent(cell.value)}, interval ${range(ends)}`, path("axis", "M3 7H117"),
      ends && path("bar", `M${x(ends[0])} 7H${x(ends[1])}`), dot("", x(cell.value), 7, 3));
  };
  const meanCell = (i) => {
    const { value, best, tied_with_best: tied, sd } = R()[i].mean;
    if (!known(value)) return missing(i, "mean");
    return [strong(best, null, percent(value)), tied ? "≈" : "", known(sd) ? ` ± ${percent(sd)}` : ""];
  };
  const differenceColumns = () => {
    const d = (i) => against(i, 0);
    const why = (i) => h("abbr", { title: d(i)[7] }, "not tested");
    return [
      { head: "Δ (95 % interval)", title: "difference to the reference row", get: (i) => d(i) && d(i)[0],
        cell: (i) => d(i) ? strong(significant(d(i)), { title: inWords(i, 0) }, gain(...d(i)) + sign(d(i))) : MISSING },
      { head: "p", title: "p value after Holm's correction for all rows", get: (i) => d(i) && d(i)[4],
        cell: (i) => (d(i) ? (d(i)[7] ? why(i) : digits(d(i)[4])) : MISSING) },
      printed("MDD", "minimum detectable difference", (i) => d(i) && d(i)[5], percent)];
  };
  const deltaColumn = { head: "Δ to its method", title: "an ablation minus its method",
    get: (i) => R()[i].delta && R()[i].delta.value,
    cell: (i) => {
      const delta = R()[i].delta;
      if (!delta || !known(delta.value)) return MISSING;
      const also = R()[i].also_differs_in;
      return strong(delta.significant, { title: also.length ? `differs also in: ${also.join("; ")}` : null },
        gain(delta.value, ...delta.ci95) + (delta.untested ? " (not tested)" : ""));
    } };
  const meanTable = () => {
    const protocols = [...new Set(R().flatMap((r) => Object.keys(r.other_means)))];
    const unparsed = (i) => mean(Object.values(R()[i].unparsed));
    return grid("Means, in percent", [METHOD,
      { head: "#", title: "rank", get: (i) => R()[i].rank && -R()[i].rank, cell: (i) => R()[i].rank || MISSING },
      { head: "mean ± sd", get: (i) => R()[i].mean.value, cell: meanCell },
      { head: "95 % interval", get: (i) => (R()[i].mean.ci95 || [])[0], cell: (i) => range(R()[i].mean.ci95) },
      { head: "0 to 100", title: "mean and interval", get: (i) => R()[i].mean.value, cell: (i) => rail(R()[i].mean) },
      ...(state.reference !== "" ? differenceColumns() : R().some((r) => r.delta) ? [deltaColumn] : []),
      { head: "seeds", get: (i) => R()[i].seeds.length, cell: (i) => R()[i].seeds.length },
      printed("unparsed", "predictions that do not follow the task's format, in percent", unparsed, percent),
      ...protocols.map((p) => printed(p, `mean under the protocol ${p}`, (i) => R()[i].other_means[p], percent))]);
  };
  const taskCell = (i, task, k) => {
    const cell = R()[i].tasks[task], d = against(i, k + 1);
    if (!known(cell.value)) return missing(i, task);
    const other = state.reference !== "" && String(i) !== state.reference ? Number(state.reference) : i ? 0 : 1;
    const mark = d ? sign(d) : cell.tied_with_best && state.reference === "" ? "≈" : "";
    const title = `${task}: ${percent(cell.value)} (${range(cell.ci95)})${inWords(i, k + 1)}`;
    const href = R()[other] ? link(task, "", i, other) : null;
    const look = significant(d) ? (d[0] > 0 ? "up" : "down") : "dim";
    return h("a", { href, title }, strong(cell.best, null, percent(cell.value)), cell.no_train ? "°" : "",
      h("span", { class: look }, mark));
  };
  const taskTable = () => grid("Scores on each task, in percent", [METHOD, ...T().tasks.map((task, k) => ({
    head: T().short[k], title: `${task}: ${T().headlines[task]}`, get: (i) => R()[i].tasks[task].value,
    cell: (i) => taskCell(i, task, k) }))]);
  const costTable = () => grid("Costs", [METHOD, ...T().costs.map(({ head, title, values, texts }) => ({
    head, title, get: (i) => values[i], cell: (i) => texts[i] }))]);
  const drawTables = () => slot("tables").replaceChildren(meanTable(), taskTable(), costTable());

  // ---- board: pictures --------------------------------------------------------------------------------------------
  const colour = (i) => `c${i % 8}${i > 7 ? " dashed" : ""}`;
  const clipped = (text, n) => (text.length > n ? `${text.slice(0, n - 1)}…` : text);
  const panel = (task) => {
    const rows = rowsWith((r) => known(r.tasks[task].value));
    const height = 18 + 15 * rows.length, x = (v) => 112 + 150 * v;
    return figure(task, picture(280, height, `${task}: scores of ${rows.length} rows`,
      [0, 0.5, 1].map((v) => [path("axis", `M${x(v)} 0V${height - 14}`), tick(x(v), height - 3, 100 * v)]),
      rows.map(([r, i], k) => {
        const { value, ci95 } = r.tasks[task], y = 15 * k + 8, look = r.kind === "trained" ? "c0" : "c7";
        return s("g", { class: String(i) === state.reference ? "reference" : null },
          tip(`${r.method}: ${percent(value)} (${range(ci95)})`),
          word(106, y + 4, clipped(r.method, 17), { class: "row", "text-anchor": "end" }),
          ci95 && path(`bar ${look}`, `M${x(ci95[0])} ${y}H${x(ci95[1])}`), dot(look, x(value), y));
      })));
  };
  const logTicks = (low, high) => {
    const out = [], steps = Math.log10(high / low) < 2.2 ? [1, 2, 5] : [1];
    for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++) out.push(...steps.map((m) => m * 10 ** p));
    return out.filter((v) => v >= low && v <= high);
  };
  const linear = (low, high, from, size) => (v) => from + (size * (v - low)) / (high - low || 1);
  const log = (low, high, from, size) => (v) => linear(Math.log(low), Math.log(high), from, size)(Math.log(v));
  // Labels are beside their points, at the first place that no other label and no point has.
  const placer = (taken) => (x, y, text) => {
    const width = 6.2 * text.length, left = -8 - width;
    const places = [[8, 4], [8, 14], [8, -7], [left, 4], [left, 14], [8, 24], [8, -18]];
    const apart = (dx, dy) => ([l, t, r, b]) => x + dx > r || x + dx + width < l || y + dy - 9 > b || y + dy + 2 < t;
    const free = ([dx, dy]) => x + dx > 50 && taken.every(apart(dx, dy));
    const [dx, dy] = places.find(free) || places[0];
    taken.push([x + dx, y + dy - 9, x + dx + width, y + dy + 2]);
    return word(x + dx, y + dy, text, { class: "row" });
  };
  const scatter = () => {
    const { values, texts, title } = T().costs.find((column) => column.head === state.cost);
    const scored = rowsWith((r) => known(r.mean.value)), trained = scored.filter(([, i]) => values[i] > 0);
    if (!trained.length) return faint("No row has both values.");
    const costs = trained.map(([, i]) => values[i]), low = Math.min(...costs) / 1.3, high = Math.max(...costs) * 1.3;
    const ends = scored.flatMap(([r]) => [r.mean.value, ...(r.mean.ci95 || [])]);
    const bottom = Math.max(0, Math.min(...ends) - 0.03), top = Math.min(1, Math.max(...ends) + 0.03);
    const X = log(low, high, 50, 480), Y = linear(bottom, top, 270, -255);
    const at = ([r, i]) => [X(values[i]), Y(r.mean.value)];
    const place = placer(trained.map(at).map(([x, y]) => [x - 5, y - 5, x + 5, y + 5]));
    const words = ([r, i]) => tip(`${r.method}: ${percent(r.mean.value)}, ${state.cost} ${texts[i]}`);
    const baseline = (row) => s("g", null, words(row), path("baseline", `M50 ${at(row)[1]}H530`),
      place(528, at(row)[1], row[0].method));
    const point = (row) => s("g", null, words(row), row[0].mean.ci95
      && path(`bar ${colour(row[1])}`, `M${at(row)[0]} ${Y(row[0].mean.ci95[0])}V${Y(row[0].mean.ci95[1])}`),
    dot(colour(row[1]), ...at(row), 4), place(...at(row), row[0].method));
    return picture(680, 312, `mean against ${title}`,
      logTicks(low, high).map((v) => [path("axis", `M${X(v)} 15V270`), tick(X(v), 285, compact(v))]),
      [0, 1, 2, 3, 4].map((k) => bottom + (k * (top - bottom)) / 4)
        .map((v) => [path("axis", `M50 ${Y(v)}H530`), tick(44, Y(v) + 3, percent(v), "end")]),
      scored.filter(([r]) => r.kind !== "trained").map(baseline), trained.map(point), tick(290, 304, title));
  };
  const board = () => {
    drawTables();
    slot("panels").replaceChildren(...T().tasks.map(panel));
    slot("scatter").replaceChildren(scatter());
  };

  // ---- examples: outcomes -----------------------------------------------------------------------------------------
  const LISTS = {
    a: ["A right, B wrong", (x, y) => x.right && !y.right], b: ["B right, A wrong", (x, y) => y.right && !x.right],
    higher: ["A scores higher", (x, y) => x.score > y.score + 1e-9],
    lower: ["B scores higher", (x, y) => y.score > x.score + 1e-9],
    right: ["both right", (x, y) => x.right && y.right], wrong: ["both wrong", (x, y) => !x.right && !y.right],
    all: ["all examples", () => true],
  };
  const blockOf = (task) =>
    Object.keys(D.kept).find((id) => id.startsWith(`t${state.table}-`) && D.kept[id][2] === task);
  const firstRun = (i) => R().slice(0, i).reduce((n, r) => n + r.seeds.length, 0);
  // The positions of a row's runs: all, or the one of a seed; a row of one run has only that one.
  const runsOf = (i, seed) => R()[i].seeds.map((own, k) => [own, firstRun(i) + k])
    .filter(([own]) => seed === "all" || R()[i].seeds.length === 1 || String(own) === String(seed)).map(([, k]) => k);
  // A row on an example: in how many of its runs it is right, which is "right" for more than half of them.
  const outcome = (B, p, e, runs) => {
    const texts = runs.map((k) => B.predictions[e][k]).filter((t) => t >= 0);
    const n = texts.filter((t) => B.correct[p][e][t] === "1").length, scores = texts.map((t) => B.scores[p][e][t]);
    return { n, of: texts.length, right: 2 * n > texts.length, score: mean(scores.filter(known)), texts };
  };
  const pairs = (B, p, seedA, seedB) => {
    const one = runsOf(state.a, seedA), two = runsOf(state.b, seedB);
    return B.ids.map((_, e) => [e, outcome(B, p, e, one), outcome(B, p, e, two)]).filter(([, x, y]) => x.of && y.of);
  };
  const discordant = (B, p) => {
    const one = R()[state.a].seeds, two = R()[state.b].seeds, alone = one.length === 1 || two.length === 1;
    return one.flatMap((u) => two.filter((v) => alone || u === v).map((v) => {
      const found = pairs(B, p, u, v), n = (key) => found.filter(([, x, y]) => LISTS[key][1](x, y)).length;
      const [only_a, only_b] = [n("a"), n("b")];
      const value = D.mcnemar[[Math.min(only_a, only_b), Math.max(only_a, only_b)].join(",")];
      const seeds = u === v ? `seed ${u}` : `seeds ${u} and ${v}`;
      return h("li", null, `${seeds}: only A right ${only_a}, only B right ${only_b}, p ${digits(value)}`);
    }));
  };
  const passes = (B, p, e, texts) => {
    const parser = B.protocols[p].parser, some = (test) => texts.some(test), search = state.text.toLowerCase();
    if (state.only === "unparsed" && !some((t) => B.unparsed[parser][e][t] === "1")) return false;
    if (state.only === "truncated" && !some((t) => B.truncated[e][t])) return false;
    if (state.low !== "" && !some((t) => B.lengths[e][t] >= Number(state.low))) return false;
    if (state.high !== "" && !some((t) => B.lengths[e][t] <= Number(state.high))) return false;
    const where = [B.ids[e], B.prompts[e], B.targets[e], ...texts.map((t) => B.texts[e] && B.texts[e][t])];
    return !search || where.some((text) => text && text.toLowerCase().includes(search));
  };

  // ---- examples: one example --------------------------------------------------------------------------------------
  const KINDS = { found: "✓ ", missing: "− ", spurious: "+ " };
  const itemParts = (B, k) => B.items[k].flatMap((text, n, item) => (n % 2 && text ? [[item[n - 1], text]] : []));
  const chips = (B, form) => {
    if (!known(form)) return h("em", null, "unparsed");
    if (typeof form === "string") return h("span", { class: "chip" }, name(form || "(empty)"));
    const section = ([head, text]) => h("p", null, h("strong", null, name(head)), " ", name(text));
    if (form.sections) return Object.entries(form.sections).map(section);
    const items = Object.keys(KINDS).flatMap((kind) => (form[kind] || []).map((k) => {
      const parts = itemParts(B, k), title = parts.map(([head, text]) => (head ? `${head}: ${text}` : text)).join("; ");
      const words = parts.map(([, text], n) => [n ? " · " : "", name(text)]);
      const spoken = h("span", { class: "hidden" }, ` (${kind})`);
      return h("span", { class: `chip ${kind}`, title }, KINDS[kind], words, spoken);
    }));
    return items.length ? items : h("span", { class: "dim" }, "no items");
  };
  const partsOf = (B, form, kinds) => kinds.flatMap((kind) => ((form && form[kind]) || [])
    .flatMap((k) => itemParts(B, k).map(([, text]) => [text, kind])));
  const oneText = (B, p, e, t, seeds) => {
    if (t < 0) return faint("no prediction");
    const parser = B.protocols[p].parser, right = B.correct[p][e][t] === "1", form = (B.forms[parser][e] || [])[t];
    const facts = [`${B.lengths[e][t]} characters`, known(B.tokens[e][t]) ? `${B.tokens[e][t]} tokens` : null,
      B.truncated[e][t] ? "truncated" : null, B.unparsed[parser][e][t] === "1" ? "unparsed" : null];
    const scores = B.protocols.map((rule, k) => `${rule.name} ${rule.headline} ${percent(B.scores[k][e][t])}`);
    return [note(seeds, h("span", { class: right ? "up" : "down" }, right ? "✓ right" : "✗ wrong"), "; ",
      facts.filter(known).join(", ")),
    B.texts[e] ? [marked(B.texts[e][t], partsOf(B, form, ["found", "spurious"])),
      h("p", { class: "chips" }, "parsed: ", chips(B, form))] : null, note(scores.join("; "))];
  };
  const card = (B, p, e, i, letter) => {
    const r = R()[i], seedsOf = new Map(), all = outcome(B, p, e, runsOf(i, "all"));
    r.seeds.forEach((seed, k) => {
      const t = B.predictions[e][firstRun(i) + k];
      seedsOf.set(t, [...(seedsOf.get(t) || []), seed]);
    });
    return h("article", { class: "card" }, h("h3", null, letter, name(r.method), SIGNS[r.kind],
      all.of > 1 ? h("span", { class: "note" }, ` right in ${all.n} of ${all.of} seeds`) : null),
    [...seedsOf].map(([t, seeds]) => oneText(B, p, e, t, r.seeds.length > 1 ? `seed ${seeds.join(", ")}: ` : "")));
  };
  const question = (B, p, e) => {
    if (!known(B.prompts[e])) {
      return warning("The texts of this example are not in this file. Outcomes and scores are those of all examples.");
    }
    const parser = B.protocols[p].parser, t = outcome(B, p, e, runsOf(state.a, state.seed)).texts[0];
    const form = known(t) ? B.forms[parser][e][t] : null, prompt = B.prompts[e];
    const summary = h("summary", null, `Prompt, ${prompt.length} characters`);
    return [h("details", { open: prompt.length < 1200 }, summary, marked(prompt)), h("h3", null, "Gold"),
      marked(B.targets[e], partsOf(B, form, ["found", "missing"])),
      h("p", { class: "chips" }, "parsed: ", chips(B, B.gold[parser][e])),
      B.choices[e] ? note("choices: ", B.choices[e].map((c, k) => [k ? ", " : "", name(c)])) : null];
  };
  const exampleView = (B, p, list) => {
    const e = B.ids.indexOf(state.example), at = list.indexOf(e);
    if (e < 0) return warning("This report has no example ", name(state.example), " of ", name(state.task), ".");
    const others = R().map((_, i) => i).filter((i) => i !== state.a && i !== state.b);
    const step = (by, text) => h("button", { disabled: !known(list[at + by]), click: () => move(by) }, text);
    const cards = (...rows) => h("div", { class: "pair" }, rows.map(([i, letter]) => card(B, p, e, i, letter)));
    const both = cards([state.a, "A: "], ...(state.a === state.b ? [] : [[state.b, "B: "]]));
    return [h("div", { class: "controls" }, step(-1, "◂ previous (k)"), step(1, "next (j) ▸"),
      h("span", { class: "note" }, at < 0 ? "not in the list" : `${at + 1} of ${list.length} in the list`),
      h("a", { href: link(state.task, "", state.a, state.b) }, "close (Esc)")),
    h("h2", null, name(state.task), " ", name(state.example)), question(B, p, e),
    both, lazy(`The other ${others.length} rows`, () => cards(...others.map((i) => [i])))];
  };

  // ---- examples: the list -----------------------------------------------------------------------------------------
  const FILTERS = ["protocol", "seed", "list", "only", "low", "high", "text"];
  let move = () => {};
  const listItem = (B, [e, x, y]) => {
    const score = (o) => (B.one_label ? "" : ` ${percent(o.score)}`);
    const result = (o) => (o.of > 1 ? `${o.n}/${o.of}` : o.right ? "✓" : "✗") + score(o);
    const current = B.ids[e] === state.example ? "true" : null, href = link(state.task, B.ids[e], state.a, state.b);
    const text = known(B.prompts[e]) ? B.prompts[e] : "(the text is not in this file)";
    return h("li", { class: current && "current" }, h("a", { href, "aria-current": current }, name(B.ids[e]),
      h("span", { class: "outcome" }, `A ${result(x)}  B ${result(y)}`),
      h("span", { class: "excerpt", lang: language(text), dir: "auto" }, visible(text.slice(0, 120)))));
  };
  const examples = async () => {
    if (!field("task")) return;
    if (!blockOf(state.task)) state.task = T().tasks.find(blockOf);
    const id = blockOf(state.task), B = await unpack(id);
    if (blockOf(state.task) !== id) return;  // Another task was chosen while this one was decompressed.
    const p = Math.max(0, B.protocols.findIndex((rule) => rule.name === state.protocol));
    const all = pairs(B, p, state.seed, state.seed), fits = (x, y) => LISTS[state.list][1](x, y);
    const select = () => all.filter(([e, x, y]) => fits(x, y) && passes(B, p, e, [...x.texts, ...y.texts]));
    let found = select();
    if (state.example && !state.moved && !found.some(([e]) => B.ids[e] === state.example)) {
      state.list = "all";  // A link opens an example that the chosen list may not have.
      found = select();
    }
    const list = found.map(([e]) => e), tests = B.one_label ? discordant(B, p) : [];
    const rules = B.protocols.map((rule) => option(rule.name, `${rule.name} (${rule.headline})`));
    field("protocol").replaceChildren(...rules);
    field("list").replaceChildren(...Object.entries(LISTS).map(([key, [text, test]]) =>
      option(key, `${text} (${all.filter(([, x, y]) => test(x, y)).length})`)));
    for (const key of ["task", "a", "b", ...FILTERS]) field(key).value = state[key];
    field("protocol").value = B.protocols[p].name;
    slot("test").replaceChildren(...(tests.length ? [h("details", { open: tests.length < 7 },
      h("summary", null, "McNemar's exact test"), h("ul", { class: "note" }, tests))] : []));
    slot("matches").replaceChildren(`${found.length} of ${B.ids.length} examples. ${D.kept[id][3]}`);
    slot("list").replaceChildren(...found.slice(0, state.more).map((entry) => listItem(B, entry)));
    field("more").hidden = found.length <= state.more;
    slot("example").replaceChildren(...(state.example ? [exampleView(B, p, list)].flat(Infinity) : []));
    slot("example").parentNode.classList.toggle("open", Boolean(state.example));
    move = (by) => {
      const next = list[state.example ? list.indexOf(B.ids.indexOf(state.example)) + by : 0];
      if (known(next)) { state.moved = true; location.hash = link(state.task, B.ids[next], state.a, state.b); }
    };
    say(`${found.length} of ${B.ids.length} examples`);
  };

  // ---- training and structure -------------------------------------------------------------------------------------
  const curves = (title, lines, width = 280, height = 120) => {
    const top = Math.max(...lines.flatMap(([, , values]) => values)) || 1;
    const X = (k, n) => fixed(32 + ((width - 40) * (k + 0.5)) / n), Y = linear(0, top, height - 16, 26 - height);
    const curve = (values) => values.map((v, k) => `${k ? "L" : "M"}${X(k, values.length)} ${fixed(Y(v))}`).join("");
    return picture(width, height, title,
      [0, top / 2, top].map((v) => [path("axis", `M32 ${Y(v)}H${width - 8}`), tick(28, Y(v) + 3, digits(v, 2), "end")]),
      lines.map(([i, text, values]) => s("g", null, tip(text), path(`line ${colour(i)}`, curve(values)))),
      tick(width / 2 + 12, height - 3, "training →"));
  };
  const losses = () => {
    const rows = rowsWith((r) => r.losses.some((l) => l.length > 1));
    if (!rows.length) return [faint("No row was trained.")];
    const lines = rows.flatMap(([r, i]) => r.losses.map((l, k) => [i, `${r.method}, seed ${r.seeds[k]}`, l]));
    const of = (r, task) => r.task_losses[task] || [];
    const on = (task) => rows.filter(([r]) => of(r, task).length > 1).map(([r, i]) => [i, r.method, of(r, task)]);
    const tasks = T().tasks.filter((task) => on(task).length);
    const key = (i) => picture(22, 10, "", path(`line ${colour(i)}`, "M1 5H21"));
    const whole = curves("training loss of every row and seed", lines.filter(([, , l]) => l.length > 1), 660, 240);
    return [h("ul", { class: "legend" }, rows.map(([r, i]) => h("li", null, key(i), name(r.method)))),
      h("div", { class: "scroll" }, whole),
      note("Averages over equal parts of the training, every seed; stages follow one another."),
      tasks.length ? h("h3", null, "Each task, first seed") : note("These runs have no losses of single tasks."),
      h("div", { class: "panels" }, tasks.map((task) => figure(task, curves(`training loss on ${task}`, on(task)))))];
  };
  const noise = () => {
    const rows = rowsWith((r) => r.seed_means.filter(known).length > 1), n = rows.length;
    if (!n) return faint("No row has several seeds.");
    const ends = rows.flatMap(([r]) => r.seed_means.filter(known)), low = Math.min(...ends), high = Math.max(...ends);
    const X = linear(low, high, 190, 430), Y = (k) => 22 * k + 11;
    const mark = (r, i, y) => (v, k) =>
      known(v) && dot(`open c${i % 8}`, X(v), y, 4, tip(`seed ${r.seeds[k]}: ${percent(v)}`));
    return picture(660, 22 * n + 22, "means of the seeds of each row", rows.map(([r, i], k) => s("g", null,
      word(182, Y(k) + 4, clipped(r.method, 30), { class: "row", "text-anchor": "end" }),
      path("axis", `M190 ${Y(k)}H620`), r.seed_means.map(mark(r, i, Y(k))))),
    [low, high].map((v) => tick(X(v), 22 * n + 15, percent(v))));
  };
  const rates = (r) => {
    const tried = r.tuning.grid, xs = [...new Set(tried.map((t) => t.lr))].sort((a, b) => a - b);
    const best = (lr) => Math.max(...tried.filter((t) => t.lr === lr && known(t.mean)).map((t) => t.mean));
    const ys = tried.map((t) => t.mean).filter(known), bottom = Math.min(...ys), top = Math.max(...ys);
    const X = log(xs[0] / 1.5, xs[xs.length - 1] * 1.5, 38, 232), Y = linear(bottom, top, 92, -78);
    const line = xs.filter((lr) => best(lr) > -Infinity).map((lr) => `${X(lr)} ${Y(best(lr))}`);
    const chosen = (t) => t.lr === r.tuning.chosen && t.mean === best(t.lr);
    const point = (t) => s("g", null, tip(`${t.lr}: ${known(t.mean) ? percent(t.mean) : "diverged"}`),
      known(t.mean) ? dot("c0", X(t.lr), Y(t.mean)) : tick(X(t.lr), 108, "diverged"),
      tick(X(t.lr), 124, digits(t.lr, 2)),
      chosen(t) ? s("circle", { class: "ring", cx: X(t.lr), cy: Y(t.mean), r: 7 }) : null);
    return figure(r.method, picture(280, 130, `learning rates of ${r.method}`,
      line.length > 1 && path("axis", `M${line.join("L")}`),
      (ys.length ? [bottom, top] : []).map((v) => tick(34, Y(v) + 3, percent(v), "end")), tried.map(point)));
  };
  const gateMap = (task, lines, most) => {
    const cell = (v, x, y) => s("rect", { class: "cell", x: 14 * x + 1, y: 12 * y + 1, width: 13, height: 11,
      "fill-opacity": (Math.abs(v) / most).toFixed(3) }, tip(`block ${y + 1}, expert ${x + 1}: ${digits(v)}`));
    const n = lines.length, m = lines[0].length, words = `${task}: gate weights, ${n} blocks by ${m} experts`;
    const cells = lines.map((line, y) => line.map((v, x) => cell(v, x, y)));
    return figure(task, picture(2 + 14 * m, 2 + 12 * n, words, cells));
  };
  const gates = (r) => lazy(name(r.method), () => {
    const of_tasks = Object.entries(r.gates), every = of_tasks.flatMap(([, lines]) => lines.flat().map(Math.abs));
    const most = Math.max(1e-9, ...every);
    return h("div", { class: "panels small" }, of_tasks.map(([task, lines]) => gateMap(task, lines, most)));
  });
  const training = () => {
    slot("losses").replaceChildren(...losses());
    slot("noise").replaceChildren(noise());
    slot("rates").replaceChildren(...R().filter((r) => r.tuning).map(rates));
    slot("gates").replaceChildren(...R().filter((r) => Object.keys(r.gates).length).map(gates));
  };

  // ---- navigation -------------------------------------------------------------------------------------------------
  const VIEWS = { board, examples, training, runs: () => {} };
  const draw = (view) => {
    for (const tab of document.querySelectorAll("nav a")) {
      if (tab.getAttribute("href") === `#=${view}`) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    for (const node of document.querySelectorAll("[data-table]")) node.hidden = node !== root();
    for (const node of document.querySelectorAll("[data-view]")) node.hidden = node.dataset.view !== view;
    if (D.tables.length) VIEWS[view]();
  };
  const route = () => {
    const hash = location.hash.slice(1);
    state.example = null;
    if (!hash || hash.startsWith("=")) return draw(VIEWS[hash.slice(1)] ? hash.slice(1) : "board");
    let parts = [];
    try { parts = hash.split("/").map(decodeURIComponent); } catch (error) { say(`a damaged link: ${error.message}`); }
    const [task, example, a, b, table] = parts, index = Number(table || 1) - 1;
    if (D.tables[index] && index !== state.table) reset(index);
    if (task) state.task = task;
    state.example = example || null;
    if (rowNamed(a) >= 0) state.a = rowNamed(a);
    if (rowNamed(b) >= 0) state.b = rowNamed(b);
    return draw("examples");
  };
  const go = () => {
    const address = link(state.task, "", state.a, state.b);
    location.hash === address ? examples() : location.hash = address;
  };
  // The same row on both sides would leave nothing to compare: the other side takes the row that was there.
  const side = (own, other) => (v) => {
    if (state[other] === Number(v)) state[other] = state[own];
    state[own] = Number(v);
    go();
  };
  const shows = (key) => (v) => { state[key] = v; Object.assign(state, { more: PAGE, moved: true }); examples(); };
  const CHANGES = {
    table: (v) => { reset(Number(v)); location.hash === "#=board" ? route() : location.hash = "#=board"; },
    reference: (v) => { state.reference = v; board(); say(v === "" ? "no reference" : `differences to ${label(v)}`); },
    filter: (v) => { state.filter = v; drawTables(); },
    cost: (v) => { state.cost = v; slot("scatter").replaceChildren(scatter()); },
    task: (v) => { state.task = v; state.moved = false; go(); }, a: side("a", "b"), b: side("b", "a"),
    ...Object.fromEntries(FILTERS.map((key) => [key, shows(key)])),
  };
  const NEXT = { "": "light", light: "dark", dark: "" };
  const CLICKS = {
    theme: () => { const { dataset } = document.documentElement; dataset.theme = NEXT[dataset.theme || ""]; },
    swap: () => { [state.a, state.b] = [state.b, state.a]; go(); },
    more: () => { state.more += PAGE; examples(); },
    fold: () => {
      const parents = R().map((_, i) => i).filter((i) => ablations(i).length);
      state.folded = new Set(parents.every((i) => state.folded.has(i)) ? [] : parents);
      drawTables();
    },
  };
  document.addEventListener("input", (e) => { if (CHANGES[e.target.name]) CHANGES[e.target.name](e.target.value); });
  document.addEventListener("click", (e) => { if (CLICKS[e.target.name]) CLICKS[e.target.name](); });
  document.addEventListener("keydown", (e) => {
    const typing = /^(INPUT|SELECT)$/.test(e.target.tagName);
    const view = root() && root().querySelector("[data-view]:not([hidden])");
    if (e.ctrlKey || e.metaKey || e.altKey || !view || (typing && e.key !== "Escape")) return;
    const search = view.querySelector("[type=search]");
    if (e.key === "f" && search) { e.preventDefault(); search.focus(); }
    else if (e.key === "Escape" && typing) e.target.blur();
    else if (view.dataset.view !== "examples") return;
    else if (e.key === "j" || e.key === "k") move(e.key === "j" ? 1 : -1);
    else if (e.key === "Escape" && state.example) location.hash = link(state.task, "", state.a, state.b);
  });
  window.addEventListener("hashchange", route);
  reset(0);
  route();
  document.documentElement.dataset.ready = "true";
})();
