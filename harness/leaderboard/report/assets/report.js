// The pages of a report, built from the compressed data of the file. Every text of a user, a file or a model becomes a
// text node; nothing is ever parsed as markup. Hashes: "#=board", "#=examples", "#=training", "#=runs", and
// "#task/example/rowA/rowB", with "/2" at the end for the second table.
"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const MISSING = "–", SIGNS = { baseline: "†", untrained: "‡", trained: "" }, PAGE = 100;

  // ---- elements -------------------------------------------------------------------------------------------------
  const fill = (node, props, children) => {
    for (const [name, value] of Object.entries(props || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
    return node;
  };
  const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
  const s = (tag, props, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
  const picture = (width, height, label, ...children) =>
    s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, ...children);
  const tip = (text) => s("title", null, text);
  const select = (label, options, value, act, id) =>
    h("label", { class: "field" }, label, h("select", { id, on: { change: (e) => act(e.target.value) } },
      options.map(([key, text]) => h("option", { value: key, selected: String(key) === String(value) }, text))));
  const section = (title, ...children) => h("section", null, h("h2", null, title), ...children);

  // ---- numbers: scores in percent, differences in percentage points, as in the Markdown -----------------------------
  // Python rounds a tie to the even digit. A number has a tie at its first decimal only if it is an odd quarter.
  const fixed = (x) => {
    const low = Math.floor(10 * x);
    return Number.isInteger(4 * x) && (4 * x) % 2 ? ((low % 2 ? low + 1 : low) / 10).toFixed(1) : x.toFixed(1);
  };
  const known = (x) => x !== null && x !== undefined;
  const pct = (x) => (known(x) ? fixed(100 * x) : MISSING);
  const rounded = (x) => { const text = fixed(100 * x); return text === "-0.0" ? "0.0" : text; };
  const points = (x) => (known(x) ? (rounded(x).startsWith("-") ? "" : "+") + rounded(x) : MISSING);
  const range = (ends) => (ends ? `${pct(ends[0])} to ${pct(ends[1])}` : MISSING);
  const digits = (x, n = 3) => (known(x) ? String(Number(x.toPrecision(n))) : MISSING);
  const count = (n) => !known(n) ? MISSING : n >= 1e9 ? (n / 1e9).toFixed(2) + " G" : n >= 1e6 ? (n / 1e6).toFixed(2) + " M"
    : n >= 1e3 ? (n / 1e3).toFixed(1) + " k" : digits(n);
  const duration = (x) => !known(x) ? MISSING : x > 0 && x < 9.95 ? x.toFixed(1) + " s" : x < 90 ? x.toFixed(0) + " s"
    : x < 5370 ? Math.round(x / 60) + " min" : `${Math.floor(x / 3600)} h ${String(Math.round(x / 60) % 60).padStart(2, "0")} min`;
  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);

  // ---- text of unknown origin -----------------------------------------------------------------------------------
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const CHINESE = /[\u3400-\u9fff]/;
  // Characters that hide or reorder what follows them are printed as their code points.
  const shown = (text) => {
    const out = [];
    let from = 0;
    for (const found of text.matchAll(HIDDEN)) {
      const code = "U+" + found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      out.push(text.slice(from, found.index), h("span", { class: "code", title: "an invisible character" }, code));
      from = found.index + 1;
    }
    return [...out, text.slice(from)];
  };
  const name = (text) => h("bdi", { lang: CHINESE.test(text) ? "zh" : null }, shown(text));
  const prose = (...pieces) => h("div", { class: "text", dir: "auto", lang: pieces.some((p) => CHINESE.test(p.textContent || p)) ? "zh" : null }, pieces);
  // The text with the parts that a parser has read: parts are [text, class]; longer ones are found first.
  const marked = (text, parts) => {
    const cover = new Array(text.length).fill(0), kinds = ["", "found", "missing", "spurious"];
    for (const [part, kind] of [...parts].sort((a, b) => b[0].length - a[0].length)) {
      if (!part) continue;
      for (let at = text.indexOf(part); at >= 0; at = text.indexOf(part, at + part.length)) {
        if (cover.slice(at, at + part.length).every((k) => !k)) cover.fill(kinds.indexOf(kind), at, at + part.length);
      }
    }
    const out = [];
    for (let at = 0, end; at < text.length; at = end) {
      for (end = at; end < text.length && cover[end] === cover[at]; end++);
      const piece = shown(text.slice(at, end));
      out.push(cover[at] ? h("mark", { class: kinds[cover[at]], title: kinds[cover[at]] }, piece) : h("span", null, piece));
    }
    return prose(...out);
  };

  // ---- data -----------------------------------------------------------------------------------------------------
  const blocks = new Map();
  const unpack = (id) => {
    if (!blocks.has(id)) {
      const binary = atob($(id).textContent), bytes = new Uint8Array(binary.length);
      for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      blocks.set(id, new Response(stream).json());
    }
    return blocks.get(id);
  };
  if (typeof DecompressionStream === "undefined") {
    $("main").append(h("p", { class: "warning" }, "This browser cannot decompress the data. Use one from 2023 or later."));
    return;
  }
  const D = await unpack("board");
  const state = { table: 0, reference: "", filter: "", folded: new Set(), cost: "stored",
    task: null, example: null, a: 0, b: 1, protocol: D.protocol, seed: "all", list: "a", text: "", only: "", low: "", high: "", more: PAGE };
  const T = () => D.tables[state.table];
  const row = (label) => T().rows.findIndex((r) => r.method === label);
  const children = (i) => T().rows.some((r) => r.parent === i);
  const short = (task) => T().short[T().tasks.indexOf(task)] || task;
  const say = (text) => { $("live").textContent = text; };

  // ---- board ----------------------------------------------------------------------------------------------------
  const label = (r, i, redraw) => [
    children(i) && redraw ? h("button", { class: "fold", "aria-expanded": String(!state.folded.has(i)),
      "aria-label": `ablations of ${r.method}`, on: { click: () => {
        state.folded.has(i) ? state.folded.delete(i) : state.folded.add(i); redraw(); } } }, state.folded.has(i) ? "▸" : "▾") : null,
    name(r.method), SIGNS[r.kind], r.flags.map((flag) => h("small", null, ` (${flag})`))];
  // One table. columns: {head, title, get: row index -> number or text for sorting, cell: row index -> nodes}.
  const grid = (caption, columns, options = {}) => {
    const table = h("table", { class: options.class }), body = h("tbody"), order = { column: null, down: true };
    const heads = columns.map((column) => h("th", { scope: "col", title: column.title, class: column.text ? "text-column" : null },
      h("button", { on: { click: () => sort(column) } }, column.head)));
    const value = (column, i) => { const v = column.get(i); return known(v) && v === v ? v : null; };
    const sort = (column) => {
      order.down = order.column === column ? !order.down : !column.text;
      order.column = column;
      heads.forEach((th, k) => columns[k] === column ? th.setAttribute("aria-sort", order.down ? "descending" : "ascending") : th.removeAttribute("aria-sort"));
      draw();
      say(`sorted by ${column.title || column.head}`);
    };
    const compare = (i, j) => {
      const a = value(order.column, i), b = value(order.column, j);
      if (a === null || b === null) return (a === null) - (b === null);
      return (order.down ? -1 : 1) * (typeof a === "string" ? a.localeCompare(b) : a - b);
    };
    const draw = () => {
      const all = T().rows.map((_, i) => i), by = order.column ? compare : () => 0;
      const match = (i) => T().rows[i].method.toLowerCase().includes(state.filter.toLowerCase());
      const nested = (i) => all.filter((k) => T().rows[k].parent === i).sort(by);
      const visible = all.filter((i) => !known(T().rows[i].parent)).sort(by)
        .flatMap((i) => [i, ...(state.folded.has(i) ? [] : nested(i))])
        .filter((i) => match(i) || (known(T().rows[i].parent) && match(T().rows[i].parent)) || nested(i).some(match));
      body.replaceChildren(...visible.map((i) => h("tr", { class: [known(T().rows[i].parent) && "nested", String(i) === state.reference && "reference"].filter(Boolean).join(" ") },
        h("th", { scope: "row" }, label(T().rows[i], i, options.redraw)),
        columns.slice(1).map((column) => { const cell = column.cell(i); return cell instanceof HTMLTableCellElement ? cell : h("td", null, cell); }))));
    };
    draw();
    table.append(h("caption", null, caption), h("thead", null, h("tr", null, heads)), body);
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);
  };
  const METHOD = { head: "method", text: true, get: (i) => T().rows[i].method };
  const against = (i, k) => (state.reference === "" ? null : (T().against[state.reference][i] || [])[k]);
  const differenceWords = (i, k) => {
    const d = against(i, k);
    if (!d) return "";
    const seeds = `${T().rows[i].seeds.length} and ${T().rows[state.reference].seeds.length} seeds`;
    return `difference to ${T().rows[state.reference].method}: ${points(d[0])} (${rounded(d[1])} to ${rounded(d[2])}), ` +
      (d[7] ? `not tested: ${d[7]}` : `p ${digits(d[4])} after correction (${digits(d[3])} before), minimum detectable difference ${pct(d[5])}, ${seeds}`);
  };
  const sign = (d) => (!d || d[7] ? "" : d[6] ? (d[0] > 0 ? " ▲" : " ▼") : " ≈");
  const missing = (i, column) => h("td", { class: "missing", title: T().rows[i].missing[column] }, MISSING, h("span", { class: "hidden" }, T().rows[i].missing[column]));
  const rail = (cell) => {
    if (!known(cell.value)) return "";
    const x = (v) => 2 + 116 * v;
    return picture(120, 14, `${pct(cell.value)}, interval ${range(cell.ci95)}`, s("path", { class: "axis", d: "M2 7H118" }),
      cell.ci95 && s("path", { class: "bar", d: `M${x(cell.ci95[0])} 7H${x(cell.ci95[1])}` }), s("circle", { class: "dot", cx: x(cell.value), cy: 7, r: 3 }));
  };
  const meanTable = (redraw) => {
    const R = T().rows, columns = [METHOD,
      { head: "#", title: "rank", get: (i) => R[i].rank && -R[i].rank, cell: (i) => R[i].rank || MISSING },
      { head: "mean ± sd", get: (i) => R[i].mean.value, cell: (i) => known(R[i].mean.value)
        ? [h(R[i].mean.best ? "strong" : "span", null, pct(R[i].mean.value)), R[i].mean.tied_with_best ? "≈" : "", known(R[i].mean.sd) ? ` ± ${pct(R[i].mean.sd)}` : ""] : missing(i, "mean") },
      { head: "95 % interval", get: (i) => R[i].mean.ci95 && R[i].mean.ci95[0], cell: (i) => range(R[i].mean.ci95) },
      { head: "0 to 100", title: "mean and its interval between 0 and 100", get: (i) => R[i].mean.value, cell: (i) => rail(R[i].mean) }];
    if (state.reference !== "") {
      const d = (i) => against(i, 0);
      columns.push(
        { head: "Δ (95 % interval)", title: "difference to the reference", get: (i) => d(i) && d(i)[0], cell: (i) => d(i)
          ? h(d(i)[6] ? "strong" : "span", { title: differenceWords(i, 0) }, `${points(d(i)[0])} (${rounded(d(i)[1])} to ${rounded(d(i)[2])})${sign(d(i))}`) : MISSING },
        { head: "p", title: "p value after Holm's correction for all rows", get: (i) => d(i) && d(i)[4], cell: (i) => d(i) ? (d(i)[7] ? h("abbr", { title: d(i)[7] }, "not tested") : digits(d(i)[4])) : MISSING },
        { head: "MDD", title: "minimum detectable difference", get: (i) => d(i) && d(i)[5], cell: (i) => (d(i) ? pct(d(i)[5]) : MISSING) });
    } else if (R.some((r) => r.delta)) {
      columns.push({ head: "Δ to its method", title: "an ablation minus its method", get: (i) => R[i].delta && R[i].delta.value, cell: (i) => R[i].delta && known(R[i].delta.value)
        ? h(R[i].delta.significant ? "strong" : "span", { title: R[i].also_differs_in.join("; ") }, `${points(R[i].delta.value)} (${rounded(R[i].delta.ci95[0])} to ${rounded(R[i].delta.ci95[1])})`) : MISSING });
    }
    columns.push({ head: "seeds", get: (i) => R[i].seeds.length, cell: (i) => R[i].seeds.length },
      { head: "unparsed", title: "predictions that do not follow the task's format, in percent", get: (i) => mean(Object.values(R[i].unparsed)), cell: (i) => pct(mean(Object.values(R[i].unparsed))) },
      ...[...new Set(R.flatMap((r) => Object.keys(r.other_means)))].map((p) => ({ head: p, title: `mean under the protocol ${p}`, get: (i) => R[i].other_means[p], cell: (i) => pct(R[i].other_means[p]) })));
    return grid("Means, in percent", columns, { redraw });
  };
  const taskTable = (redraw) => grid("Scores on each task, in percent", [METHOD,
    ...T().tasks.map((task, k) => ({ head: name(short(task)), title: `${task}: ${T().headlines[task]}`, get: (i) => T().rows[i].tasks[task].value,
      cell: (i) => {
        const cell = T().rows[i].tasks[task], d = against(i, k + 1);
        if (!known(cell.value)) return missing(i, task);
        const other = state.reference !== "" && String(i) !== state.reference ? Number(state.reference) : i ? 0 : 1;
        return h("a", { href: link(task, "", i, other), title: `${task}: ${pct(cell.value)} (${range(cell.ci95)}) ${differenceWords(i, k + 1)}` },
          h(cell.best ? "strong" : "span", null, pct(cell.value)), cell.tied_with_best && state.reference === "" ? "≈" : "", cell.no_train ? "°" : "", h("span", { class: d && d[6] ? (d[0] > 0 ? "up" : "down") : "dim" }, sign(d)));
      } }))], { redraw });
  const costTable = () => {
    const R = T().rows, P = (i) => R[i].parameters, limit = D.parameter_limit;
    const plain = (head, title, get, print) => ({ head, title, get, cell: (i) => print(get(i)) });
    return grid("Costs", [METHOD, plain("stored", "parameters of the adapter", (i) => P(i).stored, count),
      plain("% of base", "stored, in percent of the base model's", (i) => P(i).percent, digits),
      ...(limit ? [plain(`≤ ${limit.percent} %`, limit.source, (i) => known(P(i).percent) ? Number(P(i).percent <= limit.percent) : null, (v) => known(v) ? (v ? "yes" : "no") : MISSING)] : []),
      plain("active", "parameters of one task's folded LoRA", (i) => P(i).active, count), plain("lr", "learning rate", (i) => R[i].lr, (v) => digits(v, 4)),
      plain("training", "time of one seed", (i) => R[i].seconds, duration), plain("tokens", "training tokens of one seed", (i) => R[i].tokens, count),
      plain("tokens/s", "training speed", (i) => R[i].tokens_per_second, count), plain("memory", "peak of the training", (i) => R[i].peak_memory_bytes, (v) => known(v) ? count(v / 1048576) + " MiB" : MISSING),
      plain("routing", "prompts routed to their own task, in percent", (i) => R[i].router_accuracy, pct)]);
  };
  const colour = (i) => `c${i % 8}`;
  const panel = (task) => {
    const rows = T().rows.map((r, i) => [r, i, r.tasks[task]]).filter(([, , cell]) => known(cell.value)), height = 16 + 15 * rows.length, x = (v) => 112 + 160 * v;
    return h("figure", null, h("figcaption", null, name(task)), picture(280, height, `${task}: scores of ${rows.length} rows`,
      [0, 0.5, 1].map((v) => [s("path", { class: "axis", d: `M${x(v)} 0V${height - 12}` }), s("text", { class: "tick", x: x(v), y: height - 2, "text-anchor": "middle" }, 100 * v)]),
      rows.map(([r, i, cell], k) => s("g", { class: String(i) === state.reference ? "reference" : null }, tip(`${r.method}: ${pct(cell.value)} (${range(cell.ci95)})`),
        s("text", { class: "row", x: 106, y: 15 * k + 12, "text-anchor": "end" }, r.method.length > 18 ? r.method.slice(0, 17) + "…" : r.method),
        cell.ci95 && s("path", { class: "bar " + colour(i), d: `M${x(cell.ci95[0])} ${15 * k + 8}H${x(cell.ci95[1])}` }), s("circle", { class: "dot " + colour(i), cx: x(cell.value), cy: 15 * k + 8, r: 3.5 })))));
  };
  // Evenly spaced powers of ten, with 2 and 5 on a short axis.
  const logTicks = (low, high) => { const out = []; for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) for (const m of Math.log10(high / low) < 1.5 ? [1, 2, 5] : [1]) if (m * 10 ** p >= low && m * 10 ** p <= high) out.push(m * 10 ** p); return out; };
  const COSTS = { stored: ["stored parameters", (r) => r.parameters.stored, count], active: ["active parameters", (r) => r.parameters.active, count],
    seconds: ["training time of one seed", (r) => r.seconds, duration], tokens: ["training tokens of one seed", (r) => r.tokens, count] };
  const scatter = () => {
    const [words, get, print] = COSTS[state.cost], points_ = T().rows.map((r, i) => [r, i, get(r)]).filter(([r, , x]) => x > 0 && known(r.mean.value));
    if (!points_.length) return h("p", { class: "dim" }, "No row has both values.");
    const xs = points_.map(([, , x]) => x), low = Math.min(...xs) / 1.3, high = Math.max(...xs) * 1.3;
    const ends = T().rows.filter((r) => known(r.mean.value)).flatMap((r) => r.mean.ci95 || [r.mean.value]), bottom = Math.max(0, Math.min(...ends) - 0.03), top = Math.min(1, Math.max(...ends) + 0.03);
    const X = (v) => 50 + 480 * Math.log(v / low) / Math.log(high / low), Y = (v) => 270 - 255 * (v - bottom) / (top - bottom || 1);
    const used = [];
    const place = (x, y) => { let at = y; while (used.some(([ux, uy]) => Math.abs(ux - x) < 110 && Math.abs(uy - at) < 11)) at += 11; used.push([x, at]); return at; };
    return picture(680, 310, `mean against ${words}`, logTicks(low, high).map((v) => [s("path", { class: "axis", d: `M${X(v)} 15V270` }), s("text", { class: "tick", x: X(v), y: 284, "text-anchor": "middle" }, print(v))]),
      [0, 1, 2, 3, 4].map((k) => bottom + k * (top - bottom) / 4).map((v) => [s("path", { class: "axis", d: `M50 ${Y(v)}H530` }), s("text", { class: "tick", x: 44, y: Y(v) + 3, "text-anchor": "end" }, pct(v))]),
      T().rows.filter((r) => r.kind !== "trained" && known(r.mean.value)).map((r) => s("g", null, tip(`${r.method}: ${pct(r.mean.value)}`), s("path", { class: "baseline", d: `M50 ${Y(r.mean.value)}H530` }), s("text", { class: "row", x: 536, y: place(640, Y(r.mean.value) + 3) }, r.method))),
      points_.sort((p, q) => q[0].mean.value - p[0].mean.value).map(([r, i, x]) => s("g", null, tip(`${r.method}: ${pct(r.mean.value)}, ${print(x)}`),
        r.mean.ci95 && s("path", { class: "bar " + colour(i), d: `M${X(x)} ${Y(r.mean.ci95[0])}V${Y(r.mean.ci95[1])}` }), s("circle", { class: "dot " + colour(i), cx: X(x), cy: Y(r.mean.value), r: 4 }), s("text", { class: "row", x: X(x) + 8, y: place(X(x), Y(r.mean.value) + 3) }, r.method))),
      s("text", { class: "tick", x: 290, y: 303, "text-anchor": "middle" }, words));
  };
  const board = () => {
    const R = T().rows, tables = h("div"), plot = h("div", { class: "plot scroll" }), pictures = h("div", { class: "panels" });
    const redraw = () => {
      tables.replaceChildren(meanTable(redraw), taskTable(redraw), costTable());
      pictures.replaceChildren(...T().tasks.map(panel));
      plot.replaceChildren(scatter());
    };
    redraw();
    const gaps = R.flatMap((r) => Object.entries(r.missing).map(([column, why]) => h("li", null, name(r.method), `, ${column}: `, shown(why))));
    return [
      h("div", { class: "controls" },
        select("Reference row", [["", "none"], ...R.map((r, i) => [i, r.method])], state.reference, (v) => { state.reference = v; redraw(); say(v === "" ? "no reference" : `differences to ${R[v].method}`); }, "reference"),
        h("label", { class: "field" }, "Filter rows", h("input", { type: "search", id: "filter", value: state.filter, on: { input: (e) => { state.filter = e.target.value; redraw(); } } })),
        h("button", { on: { click: () => { const parents = R.map((_, i) => i).filter(children); parents.every((i) => state.folded.has(i)) ? state.folded.clear() : parents.forEach((i) => state.folded.add(i)); redraw(); } } }, "Fold or unfold ablations")),
      tables, h("p", { class: "note" }, "Bold: the best trained row, or a significant difference; ≈: not significantly different; ▲ ▼: significantly above, below the reference (5 %, Holm's correction for all rows, or for all rows and tasks); † baseline without a language model; ‡ the base model without training; ° no training examples. A score on a task is a link to its examples."),
      R.some((r) => r.unranked) && h("ul", { class: "note" }, R.filter((r) => r.unranked).map((r) => h("li", null, name(r.method), " has no rank: ", shown(r.unranked)))),
      gaps.length ? h("details", { class: "note", open: true }, h("summary", null, `${gaps.length} missing values`), h("ul", null, gaps)) : null,
      section("Score against cost", select("Cost", Object.entries(COSTS).map(([key, [words]]) => [key, words]), state.cost, (v) => { state.cost = v; redraw(); }, "cost"), plot),
      section("Each task", h("p", { class: "note" }, "Scores with 95 % intervals, in percent."), pictures),
      section("What holds for all rows", h("dl", null, T().facts.map(([what, value]) => [h("dt", null, what), h("dd", null, shown(value))]))),
      T().verdicts.length ? section("Verdicts", h("ul", null, T().verdicts.map((v) => h("li", null, shown(v))))) : null,
      D.orientation.length ? section("For orientation", h("p", { class: "note" }, "Published figures and API models. Their settings differ, so they are not ranked or compared with the rows."),
        h("ul", null, D.orientation.map((o) => h("li", null, name(o.name || o.method), `: ${o.mean ? pct(o.mean.value) : o.value} `, shown(o.note || ""))))) : null,
      D.unfinished.length ? section("Runs without a row", h("ul", null, D.unfinished.map((u) => h("li", null, name(u.run), ": ", shown(u.reason))))) : null];
  };

  // ---- examples -------------------------------------------------------------------------------------------------
  const link = (task, example, a, b) => "#" + [task, example, T().rows[a].method, T().rows[b].method, ...(state.table ? [state.table + 1] : [])].map(encodeURIComponent).join("/");
  const first = (i) => T().rows.slice(0, i).reduce((n, r) => n + r.seeds.length, 0);
  const blockId = () => Object.keys(D.kept).find((id) => id.startsWith(`t${state.table}-`) && D.kept[id][2] === state.task);
  // The positions of a row's runs: all, or the one with the chosen seed; a row of one run has only that one.
  const runsOf = (i, seed) => { const seeds = T().rows[i].seeds; return seeds.map((_, k) => first(i) + k).filter((_, k) => seed === "all" || seeds.length === 1 || String(seeds[k]) === String(seed)); };
  const outcome = (B, e, i, seed, p) => {
    const texts = runsOf(i, seed).map((k) => B.predictions[e][k]).filter((t) => t >= 0), scores = texts.map((t) => B.scores[p][e][t]).filter(known);
    const n = texts.filter((t) => B.correct[p][e][t] === "1").length;
    return { n, of: texts.length, right: 2 * n > texts.length, score: mean(scores), texts };
  };
  const LISTS = { a: "A right, B wrong", b: "B right, A wrong", higher: "A scores higher", lower: "B scores higher", right: "both right", wrong: "both wrong", all: "all examples" };
  const inList = (key, x, y) => ({ a: x.right && !y.right, b: y.right && !x.right, higher: x.score > y.score + 1e-9, lower: y.score > x.score + 1e-9, right: x.right && y.right, wrong: !x.right && !y.right, all: true })[key] && x.of > 0 && y.of > 0;
  const protocolOf = (B) => Math.max(0, B.protocols.findIndex((p) => p.name === state.protocol));
  const discordant = (B, p) => {
    const A = T().rows[state.a].seeds, C = T().rows[state.b].seeds, alone = A.length === 1 || C.length === 1;
    return A.flatMap((one) => C.filter((two) => alone || one === two).map((two) => {
      let only_a = 0, only_b = 0;
      B.ids.forEach((_, e) => { const x = outcome(B, e, state.a, one, p), y = outcome(B, e, state.b, two, p); if (x.of && y.of && x.right !== y.right) x.right ? only_a++ : only_b++; });
      const value = D.mcnemar[[Math.min(only_a, only_b), Math.max(only_a, only_b)].join(",")];
      return { seeds: [one, two], only_a, only_b, p: value };
    }));
  };
  const listed = (B, p) => {
    const reads = state.text.toLowerCase();
    return B.ids.map((_, e) => e).filter((e) => {
      const x = outcome(B, e, state.a, state.seed, p), y = outcome(B, e, state.b, state.seed, p), texts = [...x.texts, ...y.texts], parser = B.protocols[p].parser;
      if (!inList(state.list, x, y)) return false;
      if (state.only === "unparsed" && !texts.some((t) => B.unparsed[parser][e][t] === "1")) return false;
      if (state.only === "truncated" && !texts.some((t) => B.truncated[e][t])) return false;
      if (state.low !== "" && !texts.some((t) => B.lengths[e][t] >= Number(state.low))) return false;
      if (state.high !== "" && !texts.some((t) => B.lengths[e][t] <= Number(state.high))) return false;
      return !reads || [B.ids[e], B.prompts[e], B.targets[e], ...texts.map((t) => (B.texts[e] || [])[t])].some((text) => text && text.toLowerCase().includes(reads));
    });
  };
  const words = (B, form) => {
    if (form === null || form === undefined) return [h("em", null, "unparsed")];
    if (typeof form === "string") return [h("span", { class: "chip" }, name(form || "(empty)"))];
    if (form.sections) return Object.entries(form.sections).map(([head, text]) => h("p", null, h("strong", null, name(head)), " ", name(text)));
    const chips = ["found", "missing", "spurious"].flatMap((kind) => (form[kind] || []).map((k) => {
      const item = B.items[k], pairs = item.filter((_, n) => n % 2).map((text, n) => [item[2 * n], text]).filter(([, text]) => text);
      return h("span", { class: `chip ${kind}`, title: pairs.map(([field, text]) => (field ? `${field}: ${text}` : text)).join("; ") }, { found: "✓ ", missing: "− ", spurious: "+ " }[kind], pairs.map(([, text], n) => [n ? " · " : "", name(text)]), h("span", { class: "hidden" }, ` (${kind})`));
    }));
    return chips.length ? chips : [h("span", { class: "dim" }, "no items")];
  };
  const partsOf = (B, form, kinds) => (form && typeof form === "object" && !form.sections ? kinds.flatMap((kind) => (form[kind] || []).flatMap((k) => B.items[k].filter((_, n) => n % 2).map((text) => [text, kind]))) : []);
  const card = (B, e, i, letter) => {
    const r = T().rows[i], p = protocolOf(B), byText = new Map(), parser = B.protocols[p].parser;
    r.seeds.forEach((seed, k) => { const t = B.predictions[e][first(i) + k]; byText.set(t, [...(byText.get(t) || []), seed]); });
    const result = outcome(B, e, i, "all", p);
    return h("article", { class: "card" }, h("h3", null, letter ? `${letter}: ` : "", name(r.method), SIGNS[r.kind], r.seeds.length > 1 ? ` right in ${result.n} of ${result.of} seeds` : result.n ? " right" : " not right"),
      [...byText].map(([t, seeds]) => t < 0 ? h("p", { class: "dim" }, "no prediction") : [
        h("p", { class: "note" }, r.seeds.length > 1 ? `seed ${seeds.join(", ")}; ` : "", B.correct[p][e][t] === "1" ? h("span", { class: "up" }, "✓ right") : h("span", { class: "down" }, "✗ not right"),
          `; ${B.lengths[e][t]} characters`, known(B.tokens[e][t]) ? `, ${B.tokens[e][t]} tokens` : "", B.truncated[e][t] ? h("strong", null, "; truncated") : "", B.unparsed[parser][e][t] === "1" ? h("strong", null, "; unparsed") : ""),
        known((B.texts[e] || [])[t]) ? marked(B.texts[e][t], partsOf(B, B.forms[parser][e][t], ["found", "spurious"])) : h("p", { class: "dim" }, "The text is not in this file."),
        B.forms[parser][e] ? h("p", { class: "chips" }, "parsed: ", words(B, B.forms[parser][e][t])) : null,
        h("p", { class: "note" }, B.protocols.map((rule, k) => `${k ? "; " : ""}${rule.name} ${rule.headline} ${pct(B.scores[k][e][t])}`))]));
  };
  const exampleView = (B, list) => {
    const e = B.ids.indexOf(state.example);
    if (e < 0) return [h("p", { class: "warning" }, "Task ", name(state.task), " has no example ", name(state.example), " in this report.")];
    const at = list.indexOf(e), p = protocolOf(B), parser = B.protocols[p].parser, rest = T().rows.map((_, i) => i).filter((i) => i !== state.a && i !== state.b);
    const step = (by) => h("button", { disabled: !known(list[at + by]) || at + by < 0, on: { click: () => move(by) } }, by < 0 ? "◂ previous (k)" : "next (j) ▸");
    const gold = B.gold[parser][e], ofA = outcome(B, e, state.a, state.seed, p).texts[0], form = (B.forms[parser][e] || [])[ofA];
    return [h("div", { class: "controls" }, step(-1), step(1), h("span", { class: "note" }, at >= 0 ? `${at + 1} of ${list.length} in the list` : "not in the list"), h("a", { href: link(state.task, "", state.a, state.b) }, "close (Esc)")),
      h("h2", { id: "example", tabindex: -1 }, name(state.task), " ", name(state.example)),
      known(B.prompts[e]) ? [h("details", { open: B.prompts[e].length < 1200 }, h("summary", null, `Prompt, ${B.prompts[e].length} characters`), prose(...shown(B.prompts[e]))),
        h("h3", null, "Gold"), marked(B.targets[e], partsOf(B, form, ["found", "missing"])), h("p", { class: "chips" }, "parsed: ", words(B, gold)),
        B.choices[e] ? h("p", { class: "note" }, "choices: ", B.choices[e].map((c, k) => [k ? ", " : "", name(c)])) : null] : h("p", { class: "warning" }, "The texts of this example are not in this file, which has those of a part of the examples to stay small (harness report --all keeps all). Its scores are."),
      h("div", { class: "pair" }, card(B, e, state.a, "A"), card(B, e, state.b, "B")),
      h("p", { class: "note" }, h("mark", { class: "found" }, "✓ found"), " ", h("mark", { class: "missing" }, "− missing"), " ", h("mark", { class: "spurious" }, "+ spurious"), " as the task's own parser and comparison decide; in the gold text: of A"),
      h("details", null, h("summary", null, `The other ${rest.length} rows`), h("div", { class: "pair" }, rest.map((i) => card(B, e, i))))];
  };
  let move = () => {};
  const examples = () => {
    const holder = h("div");
    const note = T().examples.reason, tasks = Object.entries(D.kept).filter(([id]) => id.startsWith(`t${state.table}-`)).map(([, kept]) => kept[2]);
    if (!tasks.length || T().rows.length < 1) return [h("p", { class: "warning" }, "No examples: ", shown(note || "the table has none"), ".")];
    if (!tasks.includes(state.task)) state.task = tasks[0];
    if (state.b >= T().rows.length) state.b = 0;
    const go = () => { location.hash = link(state.task, "", state.a, state.b); };
    // The same row on both sides would have nothing to compare, so the other side takes the row that was there.
    const choose = (side, other, i) => { if (state[other] === i) state[other] = state[side]; state[side] = i; };
    const R = T().rows.map((r, i) => [i, r.method]), seeds = [...new Set(T().rows.flatMap((r) => r.seeds))].sort((x, y) => x - y);
    const draw = async () => {
      const B = await unpack(blockId()), p = protocolOf(B), kept = D.kept[blockId()], list = listed(B, p);
      const counts = Object.fromEntries(Object.keys(LISTS).map((key) => [key, B.ids.filter((_, e) => inList(key, outcome(B, e, state.a, state.seed, p), outcome(B, e, state.b, state.seed, p))).length]));
      const set = (key) => (v) => { state[key] = v; state.more = PAGE; draw(); };
      move = (by) => { const at = list.indexOf(B.ids.indexOf(state.example)), next = list[state.example ? at + by : 0]; if (known(next)) location.hash = link(state.task, B.ids[next], state.a, state.b); };
      const focus = document.activeElement && document.activeElement.id, caret = focus === "text" ? document.activeElement.selectionStart : null;
      const filters = h("div", { class: "controls" },
        select("Protocol", B.protocols.map((rule) => [rule.name, `${rule.name} (${rule.headline})`]), B.protocols[p].name, set("protocol"), "protocol"),
        select("Seeds", [["all", "all (majority)"], ...seeds.map((x) => [x, x])], state.seed, set("seed"), "seed"),
        select("List", Object.entries(LISTS).map(([key, text]) => [key, `${text} (${counts[key]})`]), state.list, set("list"), "list"),
        select("Only", [["", "any prediction"], ["unparsed", "unparsed"], ["truncated", "truncated"]], state.only, set("only"), "only"),
        h("label", { class: "field" }, "Length", h("span", null, ["low", "high"].map((key) => h("input", { type: "number", min: 0, class: "length", id: key, placeholder: key === "low" ? "from" : "to", "aria-label": `characters of a prediction, ${key === "low" ? "from" : "to"}`, value: state[key], on: { change: (e) => set(key)(e.target.value) } })))),
        h("label", { class: "field" }, "Text (f)", h("input", { type: "search", id: "text", value: state.text, placeholder: "in prompt, gold, predictions", on: { input: (e) => set("text")(e.target.value) } })));
      const tests = B.one_label ? discordant(B, p) : [];
      const lines = list.slice(0, state.more).map((e) => {
        const x = outcome(B, e, state.a, state.seed, p), y = outcome(B, e, state.b, state.seed, p), show = (o) => (o.of > 1 ? `${o.n}/${o.of}` : o.right ? "✓" : "✗") + (B.one_label ? "" : ` ${pct(o.score)}`);
        const text = known(B.prompts[e]) ? B.prompts[e] : "(the text is not in this file)";
        return h("li", { class: state.example === B.ids[e] ? "current" : null }, h("a", { href: link(state.task, B.ids[e], state.a, state.b), "aria-current": state.example === B.ids[e] ? "true" : null }, name(B.ids[e]), h("span", { class: "outcome" }, `A ${show(x)} B ${show(y)}`), h("span", { class: "excerpt", lang: CHINESE.test(text) ? "zh" : null, dir: "auto" }, shown(text.slice(0, 120)))));
      });
      holder.replaceChildren(filters,
        tests.length ? h("details", { open: tests.length < 7 }, h("summary", null, "McNemar's exact test"), h("ul", { id: "mcnemar" }, tests.map((t) => h("li", null, `seed ${t.seeds[0]}${t.seeds[1] === t.seeds[0] ? "" : ` and ${t.seeds[1]}`}: only A right ${t.only_a}, only B right ${t.only_b}, p ${digits(t.p)}`)))) : "",
        kept[0] < kept[1] ? h("p", { class: "warning" }, `This file has the texts of ${kept[0]} of ${kept[1]} examples of this task, first those on which runs differ. Counts and scores are those of all; the search reads only the texts of this file.`) : "",
        h("div", { class: state.example ? "columns" : "" },
          h("div", null, h("p", { class: "note", id: "matches" }, `${list.length} of ${B.ids.length} examples`), h("ol", { class: "list", tabindex: 0 }, lines),
            list.length > state.more ? h("button", { on: { click: () => { state.more += PAGE; draw(); } } }, `${list.length - state.more} more`) : ""),
          state.example ? h("div", { class: "detail" }, exampleView(B, list)) : ""));
      if (focus && $(focus) && focus !== "main") { $(focus).focus(); if (caret !== null) $(focus).setSelectionRange(caret, caret); }
      say(`${list.length} of ${B.ids.length} examples`);
    };
    draw();
    return [h("div", { class: "controls" }, select("Task", tasks.map((t) => [t, t]), state.task, (v) => { state.task = v; go(); }, "task"),
      select("Row A", R, state.a, (v) => { choose("a", "b", Number(v)); go(); }, "rowA"), select("Row B", R, state.b, (v) => { choose("b", "a", Number(v)); go(); }, "rowB"),
      h("button", { id: "swap", on: { click: () => { [state.a, state.b] = [state.b, state.a]; go(); } } }, "swap")),
      T().examples.left_out.length ? h("ul", { class: "note" }, T().examples.left_out.map((why) => h("li", null, shown(why)))) : null,
      h("p", { class: "note" }, "Keys: j and k, the next and the previous example; f, search; Esc, close. The address of this page is a link to what it has open."), holder];
  };

  // ---- training and structure -----------------------------------------------------------------------------------
  const curves = (title, lines, width = 280, height = 120) => {
    const ys = lines.flatMap(([, , values]) => values), top = Math.max(...ys), X = (k, n) => 32 + (width - 40) * (k + 0.5) / n, Y = (v) => height - 16 - (height - 26) * v / (top || 1);
    return picture(width, height, title, [0, top / 2, top].map((v) => [s("path", { class: "axis", d: `M32 ${Y(v)}H${width - 8}` }), s("text", { class: "tick", x: 28, y: Y(v) + 3, "text-anchor": "end" }, digits(v, 2))]),
      lines.map(([i, words_, values]) => s("g", null, tip(words_), s("path", { class: "line " + colour(i) + (i > 7 ? " dashed" : ""), d: values.map((v, k) => `${k ? "L" : "M"}${X(k, values.length).toFixed(1)} ${Y(v).toFixed(1)}`).join("") }))),
      s("text", { class: "tick", x: width / 2 + 10, y: height - 3, "text-anchor": "middle" }, "training →"));
  };
  const legend = (rows) => h("ul", { class: "legend" }, rows.map((i) => h("li", null, picture(22, 10, "", s("path", { class: "line " + colour(i) + (i > 7 ? " dashed" : ""), d: "M1 5H21" })), name(T().rows[i].method))));
  // A table whose cells are coloured by their value; numbers: what is printed, where it is not the value itself.
  const heat = (caption, rows, columns, values, numbers, bold) => {
    const most = Math.max(1e-9, ...values.flat().filter(known).map(Math.abs));
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, h("table", { class: "heat" }, h("caption", null, caption),
      h("thead", null, h("tr", null, h("td"), columns.map((c) => h("th", { scope: "col" }, name(String(c)))))),
      h("tbody", null, rows.map((r, i) => h("tr", null, h("th", { scope: "row" }, name(String(r))), values[i].map((v, k) => {
        const cell = h("td", { class: known(v) ? (v < 0 ? "minus" : "plus") : "missing" }, h(bold && bold[i][k] ? "strong" : "span", null, known(numbers ? numbers[i][k] : v) ? digits(numbers ? numbers[i][k] : v) : MISSING));
        cell.style.setProperty("--weight", known(v) ? `${Math.round(70 * Math.abs(v) / most)}%` : "0%");
        return cell;
      }))))));
  };
  const gridChart = (r) => {
    const tried = r.tuning.grid, xs = tried.map((t) => t.lr), low = Math.min(...xs) / 1.5, high = Math.max(...xs) * 1.5, ys = tried.map((t) => t.mean).filter(known), bottom = Math.min(...ys, 1), top = Math.max(...ys, 0);
    const X = (v) => 38 + 232 * Math.log(v / low) / Math.log(high / low), Y = (v) => (known(v) ? 96 - 80 * (v - bottom) / (top - bottom || 1) : 108);
    return h("figure", null, h("figcaption", null, name(r.method)), picture(280, 132, `learning rates of ${r.method}`, [bottom, top].map((v) => s("text", { class: "tick", x: 34, y: Y(v) + 3, "text-anchor": "end" }, pct(v))),
      tried.map((t) => s("g", null, tip(`${t.lr}: ${known(t.mean) ? pct(t.mean) : "diverged"}`), known(t.mean) ? s("circle", { class: "dot c0", cx: X(t.lr), cy: Y(t.mean), r: 3.5 }) : s("text", { class: "tick", x: X(t.lr), y: 108, "text-anchor": "middle" }, "diverged"),
        t.lr === r.tuning.chosen && known(t.mean) && t.mean === Math.max(...tried.filter((o) => o.lr === t.lr && known(o.mean)).map((o) => o.mean)) ? s("circle", { class: "ring", cx: X(t.lr), cy: Y(t.mean), r: 7 }) : null, s("text", { class: "tick", x: X(t.lr), y: 126, "text-anchor": "middle" }, digits(t.lr, 2))))));
  };
  const noise = () => {
    const rows = T().rows.map((r, i) => [r, i]).filter(([r]) => r.values.mean.filter(known).length > 1), ends = rows.flatMap(([r]) => r.values.mean.filter(known)), low = Math.min(...ends), high = Math.max(...ends), X = (v) => 180 + 440 * (v - low) / (high - low || 1);
    if (!rows.length) return h("p", { class: "dim" }, "No row has several seeds.");
    return h("div", { class: "scroll" }, picture(660, 22 * rows.length + 22, "means of the seeds of each row", rows.map(([r, i], k) => s("g", null, s("text", { class: "row", x: 172, y: 22 * k + 15, "text-anchor": "end" }, r.method), s("path", { class: "axis", d: `M180 ${22 * k + 11}H620` }),
      r.values.mean.map((v, n) => known(v) && s("circle", { class: "dot open " + colour(i), cx: X(v), cy: 22 * k + 11, r: 4 }, tip(`${r.method}, seed ${r.seeds[n]}: ${pct(v)}`))))), [low, high].map((v) => s("text", { class: "tick", x: X(v), y: 22 * rows.length + 16, "text-anchor": "middle" }, pct(v)))));
  };
  const gateMap = (blocks_, task, most) => h("figure", null, h("figcaption", null, name(task)), picture(12 + 14 * blocks_[0].length, 12 * blocks_.length + 2, `${task}: gate weights, ${blocks_.length} blocks by ${blocks_[0].length} experts`,
    blocks_.map((line, y) => line.map((v, x) => s("rect", { class: "cell", x: 14 * x + 1, y: 12 * y + 1, width: 13, height: 11, "fill-opacity": (Math.abs(v) / most).toFixed(3) }, tip(`block ${y + 1}, expert ${x + 1}: ${digits(v)}`))))));
  const lazy = (summary, make) => { const box = h("details", { on: { toggle: () => { if (box.open && box.children.length === 1) box.append(...make()); } } }, h("summary", null, summary)); return box; };
  const training = () => {
    const R = T().rows, trained = R.map((_, i) => i).filter((i) => R[i].losses.some((l) => l.length > 1)), of_tasks = T().tasks.filter((t) => trained.some((i) => (R[i].task_losses[t] || []).length > 1));
    const labels = [...new Set(T().transfers.map((t) => t.method))], tuned = R.filter((r) => r.tuning), structure = R.filter((r) => Object.keys(r.gates).length || Object.keys(r.skills).length), matrices = [...D.matrices, ...R.flatMap((r) => r.matrices.map((m) => ({ ...m, of: r.method })))];
    return [
      trained.length ? section("Training loss", legend(trained), h("div", { class: "scroll" }, curves("training loss of every row and seed", trained.flatMap((i) => R[i].losses.filter((l) => l.length > 1).map((l, k) => [i, `${R[i].method}, seed ${R[i].seeds[k]}`, l])), 660, 240)),
        h("p", { class: "note" }, "Averages over equal parts of the training, every seed; stages follow one another."),
        of_tasks.length ? [h("h3", null, "Each task, first seed"), h("div", { class: "panels" }, of_tasks.map((t) => h("figure", null, h("figcaption", null, name(t)), curves(`training loss on ${t}`, trained.filter((i) => (R[i].task_losses[t] || []).length > 1).map((i) => [i, R[i].method, R[i].task_losses[t]])))))] : h("p", { class: "note" }, "The losses of each task are not in these records.")) : null,
      section("Noise between seeds", noise(), T().seed_noise && T().seed_noise.difference ? h("p", { class: "note" }, `The same method under other seeds: difference ${points(T().seed_noise.difference.value)} (${rounded(T().seed_noise.difference.ci95[0])} to ${rounded(T().seed_noise.difference.ci95[1])}); the true difference is 0.`) : null),
      tuned.length ? section("Learning rates", h("p", { class: "note" }, "Mean on dev, in percent, of every rate tried; ring: chosen."), h("div", { class: "panels" }, tuned.map(gridChart))) : null,
      labels.length ? section("Transfer", heat(`Gains in percentage points over ${T().transfers[0].reference}, which trains each task alone; bold: significant`, labels, T().short, T().transfers.map((t) => T().tasks.map((task) => t.gains[task] ? 100 * t.gains[task][0] : null)), null, T().sample ? null : T().transfers.map((t) => T().tasks.map((task) => t.gains[task] && t.gains[task][1])))) : null,
      matrices.length ? section("Matrices", matrices.map((m) => lazy([name(m.title || m.name), m.of ? [" of ", name(m.of), ", ", name(m.run)] : ""], () => [heat(m.note || m.title || m.name, m.rows, m.columns, m.values, m.numbers)]))) : null,
      R.some((r) => r.provenance.some((p) => Object.keys(p.clusters).length > 1)) ? section("Clusters", R.filter((r) => Object.keys(r.provenance[0].clusters).length > 1).map((r) => h("p", null, name(r.method), ": ", Object.entries(r.provenance[0].clusters).map(([cluster, tasks]) => h("span", { class: "chip" }, name(cluster), " ", name(tasks.join(", "))))))) : null,
      structure.length ? section("Gates and skills", h("p", { class: "note" }, "First seed; darker: a larger weight."), structure.map((r) => lazy(name(r.method), () => {
        const gates = Object.entries(r.gates), most = Math.max(1e-9, ...gates.flatMap(([, b]) => b.flat().map(Math.abs)));
        return [gates.length ? h("div", { class: "panels small" }, gates.map(([task, b]) => gateMap(b, task, most))) : "", Object.keys(r.skills).length ? heat(`skills of ${r.method}, averaged over layers`, Object.keys(r.skills), Object.values(r.skills)[0].map((_, k) => k + 1), Object.values(r.skills)) : ""];
      }))) : null,
      T().sweeps.map((sweep) => section(`Sweep: ${sweep.name} of ${sweep.method}`, h("ul", null, sweep.points.map((p) => h("li", null, Object.entries(p.at).map(([k, v]) => `${k}=${v} `), `mean ${pct(p.mean)} (${range(p.ci95)})`)))))];
  };

  // ---- runs -----------------------------------------------------------------------------------------------------
  const pairs = (object) => h("dl", null, Object.entries(object).map(([k, v]) => [h("dt", null, name(k)), h("dd", null, shown(String(v)))]));
  const runs = () => [h("p", { class: "note" }, "The command of a run makes it again, from the stated commit. Folders are given by their last part. To recompute the scores of a run from its predictions: harness verify RUN"),
    T().rows.map((r) => h("details", { class: "run" }, h("summary", null, name(r.method), SIGNS[r.kind], ` — ${r.seeds.length === 1 ? "1 run" : r.seeds.length + " runs"}`), r.provenance.map((p) => h("section", null, h("h3", null, name(p.name)),
      h("pre", { tabindex: 0, "aria-label": "command" }, h("code", null, shown(p.command))),
      pairs({ run_id: p.run_id, finished: p.finished, commit: p.commit ? p.commit + (p.dirty ? ", with uncommitted changes" : "") : "unknown", python: p.python, hardware: Object.entries(p.hardware).map((x) => x.join(" ")).join(", "), settings: Object.entries(p.settings).map((x) => x.join(" ")).join(", "),
        ...(p.training ? { training: `${p.training.steps} steps, ${p.training.tokens} tokens, ${duration(p.training.seconds)}` } : {}), packages: Object.entries(p.packages).map((x) => x.join(" ")).join(", ") }))))),
    h("p", { class: "note" }, `Written by mtlora-harness ${D.version}.`)];

  // ---- navigation -----------------------------------------------------------------------------------------------
  const VIEWS = { board: ["Board", board], examples: ["Examples", examples], training: ["Training and structure", training], runs: ["Runs", runs] };
  const summary = document.querySelector(".summary"), main = $("main"), content = h("div", { id: "content" });
  const route = () => {
    const hash = location.hash.slice(1);
    let view = hash.startsWith("=") ? hash.slice(1) : hash ? "examples" : "board";
    if (!VIEWS[view]) view = "board";
    if (hash && !hash.startsWith("=")) {
      let parts;
      try { parts = hash.split("/").map(decodeURIComponent); } catch { parts = []; } // A damaged link opens the examples.
      const [task, example, a, b, table] = parts, other = Number(table) - 1;
      state.table = D.tables[other] ? other : 0;
      if (task) state.task = task;
      state.example = example || null;
      if (a && row(a) >= 0) state.a = row(a);
      if (b && row(b) >= 0) state.b = row(b);
    } else state.example = null;
    draw(view);
    if (state.example === null) main.scrollTop = 0;
  };
  const draw = (view) => {
    const themes = ["", "light", "dark"], root = document.documentElement;
    $("nav").replaceChildren(...Object.entries(VIEWS).map(([key, [title]]) => h("a", { href: `#=${key}`, "aria-current": key === view ? "page" : null }, title)),
      ...(D.tables.length > 1 ? [select("Table", D.tables.map((t, i) => [i, t.title]), state.table, (v) => { Object.assign(state, { table: Number(v), reference: "", a: 0, b: 1, example: null, task: null }); state.folded.clear(); view === "examples" ? history.replaceState(null, "", "#=examples") : null; draw(view); }, "table")] : []),
      h("button", { id: "theme", on: { click: () => { root.dataset.theme = themes[(themes.indexOf(root.dataset.theme || "") + 1) % 3]; } } }, "light or dark"));
    summary.hidden = view !== "board";
    if (!D.tables.length) { content.replaceChildren(h("p", { class: "warning" }, "No finished runs."), ...D.unfinished.map((u) => h("p", null, name(u.run), ": ", shown(u.reason)))); return; }
    content.replaceChildren(h("p", { class: "title" }, shown(T().title)), ...VIEWS[view][1]().flat(Infinity).filter((node) => node !== null && node !== undefined && node !== false));
  };
  document.addEventListener("keydown", (e) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
    if (e.ctrlKey || e.metaKey || e.altKey || (typing && e.key !== "Escape")) return;
    if (e.key === "j" || e.key === "k") move(e.key === "j" ? 1 : -1);
    else if (e.key === "f" && $("text")) { e.preventDefault(); $("text").focus(); }
    else if (e.key === "f" && $("filter")) { e.preventDefault(); $("filter").focus(); }
    else if (e.key === "Escape" && typing) e.target.blur();
    else if (e.key === "Escape" && state.example) location.hash = link(state.task, "", state.a, state.b);
  });
  window.addEventListener("hashchange", route);
  main.append(content);
  route();
  document.documentElement.dataset.ready = "true";
})();
