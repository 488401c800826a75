// The explorer: models, segment length and cache chosen by the reader, kept in the address.
// It only shows numbers; they are computed from lrc's tables in book/interactive.py.
(() => {
  const place = document.getElementById("explore");
  if (!place || !window.lrcExplorerData) return;
  const data = window.lrcExplorerData;
  const model = new Map(data.models.map((entry) => [entry.key, entry]));
  const REACH = 4; // the published curves end here; all are drawn this far

  // What is chosen, and its place in the address. A value that cannot be is left as it was.
  const state = {
    models: [...data.shown.models],
    m: data.shown.length,
    show: "srp",
    ratio: 2,
    target: 80,
    policy: "lru",
  };
  const within = (low, high) => (text) => {
    const value = Number(text);
    return text !== "" && value >= low && value <= high ? value : undefined;
  };
  const oneOf = (values) => (text) => values.find((value) => String(value) === text);
  const READ = {
    models: (text) => text.split(",").filter((key) => model.has(key)),
    m: oneOf(data.lengths),
    show: oneOf(["srp", "excess"]),
    ratio: within(0.1, REACH),
    target: within(50, 99),
    policy: oneOf(data.policies.map((policy) => policy.key)),
  };

  function readAddress() {
    const told = new URLSearchParams(location.hash.slice(1));
    for (const [name, read] of Object.entries(READ)) {
      const value = told.has(name) ? read(told.get(name)) : undefined;
      if (value !== undefined) state[name] = value;
    }
  }

  function writeAddress() {
    const told = Object.keys(READ).map((name) => `${name}=${encodeURIComponent(state[name])}`);
    history.replaceState(null, "", `#${told.join("&").replaceAll("%2C", ",").replaceAll("%3A", ":")}`);
  }

  // Reading a curve, as lrc.curves does.
  const lineOf = (entry, policy) => entry.curves[policy === "sch" ? `sch${state.m}` : policy];

  function rateAt(line, ratio) {
    const ratios = data.grids[line.grid];
    const after = ratios.findIndex((known) => known >= ratio);
    if (after < 0) return line.rates.at(-1) / data.unit;
    const [x0, y0] = after ? [ratios[after - 1], line.rates[after - 1]] : [0, 0];
    const part = (ratio - x0) / (ratios[after] - x0);
    return (y0 + part * (line.rates[after] - y0)) / data.unit;
  }

  function smallest(line, percent) {
    const found = line.rates.findIndex((rate) => rate >= (percent * data.unit) / 100);
    return found < 0 ? undefined : data.grids[line.grid][found];
  }

  // Making elements.
  function make(name, attributes = {}, ...content) {
    const svg = ["svg", "path", "line", "circle", "text", "g", "rect"].includes(name);
    const node = svg
      ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...content);
    return node;
  }
  const decimals = (value, digits = 3) => (value == null ? "–" : value.toFixed(digits));
  const times = (value) => (value == null ? "–" : `${Number(value.toFixed(2))}×`);
  const badge = (kind) =>
    make("span", { class: `badge-kind ${kind}` }, data.kinds.find((known) => known.key === kind).label);

  function choice(name, legend, options) {
    const boxes = options.map(([value, text]) =>
      make(
        "label",
        {},
        make("input", { type: "radio", name, value, ...(state[name] === value && { checked: "" }) }),
        text,
      ),
    );
    return make("fieldset", { class: "choice" }, make("legend", {}, legend), ...boxes);
  }

  function slider(name, legend, low, high, step, unit) {
    const input = make("input", { type: "range", name, min: low, max: high, step, value: state[name] });
    input.id = `explore-${name}`;
    const told = make("output", { for: input.id });
    input.tell = () => {
      told.textContent = `${state[name]}${unit}`;
      input.setAttribute("aria-valuetext", told.textContent);
    };
    input.tell();
    return make("div", { class: "slider" }, make("label", { for: input.id }, legend), input, told);
  }

  function build() {
    const form = make(
      "form",
      { class: "controls", "aria-label": "What to show" },
      choice("m", "Segment length, tokens", data.lengths.map((m) => [m, String(m)])),
      choice("show", "Consistency as", [
        ["srp", "raw SRP"],
        ["excess", "share above chance"],
      ]),
      choice("policy", "Cache to size", data.policies.map(({ key, label }) => [key, label])),
      slider("ratio", "Cache slots / active experts", 0.1, REACH, 0.1, "×"),
      slider("target", "Hit rate wanted", 50, 99, 1, " %"),
    );
    const lists = data.kinds.map((kind) => {
      const about = make("p", { class: "about" }, kind.about);
      const legend = make("legend", {}, badge(kind.key));
      return make("fieldset", { class: "models", "data-kind": kind.key }, legend, about);
    });
    const part = (name, title, ...content) =>
      make("section", { "aria-label": title }, make("h2", {}, title), ...content);
    place.replaceChildren(
      form,
      part(
        "consistency",
        "Consistency against chance",
        make("p", { id: "explore-scale", class: "about" }),
        make("div", { class: "lists" }, ...lists),
      ),
      part(
        "curves",
        "Hit rate against cache size",
        make("p", { class: "keys" }),
        make("div", { class: "panels" }),
      ),
      part("sizes", "Which cache is large enough?", make("p", { id: "explore-advice", "aria-live": "polite" }), make("div", { class: "frame", tabindex: "0", role: "region", "aria-label": "Sizes, as a table" })),
    );
    place.querySelector(".keys").append(
      ...data.policies.flatMap((policy) => [
        make("span", { class: "key" }, mark(policy), policy.label),
        " ",
      ]),
    );
    form.addEventListener("input", ({ target }) => {
      state[target.name] = READ[target.name](target.value) ?? state[target.name];
      show();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    place.addEventListener("change", ({ target }) => {
      if (target.name !== "models") return;
      state.models = state.models.filter((key) => key !== target.value);
      if (target.checked) state.models.push(target.value);
      show();
    });
  }

  function mark(policy) {
    const drawing = make("svg", { width: 22, height: 8, "aria-hidden": "true" });
    drawing.append(make("line", { x1: 0, x2: 22, y1: 4, y2: 4, ...stroke(policy) }));
    return drawing;
  }
  const stroke = ({ color, dashed }) => ({
    class: "line",
    style: `--hue: ${color}`,
    "stroke-dasharray": dashed ? "5 3" : "none",
  });

  // Consistency: a row for each model, with chance and SRP on a common scale from 0 to 1.
  function showConsistency() {
    const at = data.lengths.indexOf(state.m);
    const raw = state.show === "srp";
    place.querySelector("#explore-scale").textContent = raw
      ? `SRP in segments of ${state.m} tokens (dot) / what chance gives at the same activation rates (line), from 0 to 1.`
      : `Share of the way from chance (0) to perfect consistency (1) in segments of ${state.m} tokens.`;
    const focused = document.activeElement?.name === "models" && document.activeElement.value;
    for (const list of place.querySelectorAll(".models")) {
      const rows = data.models
        .filter((entry) => entry.kind === list.dataset.kind)
        .sort((a, b) => (b[state.show][at] ?? -1) - (a[state.show][at] ?? -1))
        .map((entry) => {
          const value = entry[state.show][at];
          const chance = raw ? entry.chance[at] : 0;
          const box = make("input", { type: "checkbox", name: "models", value: entry.key });
          box.checked = state.models.includes(entry.key);
          const scale = make("span", { class: "scale", "aria-hidden": "true" });
          if (value != null) {
            const [low, high] = [chance, value].sort((a, b) => a - b);
            scale.append(
              make("i", { class: "way", style: `left:${100 * low}%; width:${100 * (high - low)}%` }),
              make("i", { class: "chance", style: `left:${100 * chance}%` }),
              make("i", { class: "dot", style: `left:${100 * value}%` }),
            );
          }
          const told = make("span", { class: "value" }, value == null ? "not published" : decimals(value));
          if (raw && value != null) told.append(make("small", {}, ` / ${decimals(chance)}`));
          return make("label", { class: "model" }, box, make("span", { class: "name" }, entry.label), scale, told);
        });
      list.replaceChildren(...[...list.children].slice(0, 2), ...rows);
    }
    if (focused) place.querySelector(`[name=models][value="${CSS.escape(focused)}"]`).focus();
  }

  // Hit rates: a panel for each chosen model, which is of one kind of evidence.
  function panel(entry) {
    const [width, height, left, bottom, top, right] = [340, 220, 34, 34, 8, 10];
    const x = (ratio) => left + (ratio / REACH) * (width - left - right);
    const y = (rate) => height - bottom - rate * (height - bottom - top);
    const told = data.policies.map((policy) => {
      const line = lineOf(entry, policy.key);
      return `${policy.label} ${decimals(line && rateAt(line, state.ratio))}`;
    });
    const drawing = make("svg", {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `${entry.label}: hit rates of a cache of ${state.ratio} times the active experts: ${told.join(", ")}.`,
    });
    for (const rate of [0, 0.25, 0.5, 0.75, 1]) {
      drawing.append(
        make("line", { class: "grid", x1: left, x2: width - right, y1: y(rate), y2: y(rate) }),
        make("text", { class: "tick", x: left - 5, y: y(rate) + 4, "text-anchor": "end" }, String(rate)),
      );
    }
    for (const ratio of [0, 1, 2, 3, 4]) {
      drawing.append(
        make("text", { class: "tick", x: x(ratio), y: height - bottom + 15, "text-anchor": "middle" }, `${ratio}×`),
      );
    }
    const full = entry.experts / entry.top_k;
    drawing.append(
      make("text", { class: "tick", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "cache slots / active experts"),
      make("line", { class: "target", x1: left, x2: width - right, y1: y(state.target / 100), y2: y(state.target / 100) }),
      make("line", { class: "here", x1: x(state.ratio), x2: x(state.ratio), y1: top, y2: height - bottom }),
      make("line", { class: "size", x1: x(0), y1: y(0), x2: x(Math.min(full, REACH)), y2: y(Math.min(1, REACH / full)) }),
    );
    for (const policy of data.policies) {
      const line = lineOf(entry, policy.key);
      if (!line) continue;
      const ratios = [0, ...data.grids[line.grid].filter((ratio) => ratio < REACH), REACH];
      const path = ratios.map((ratio) => `${x(ratio).toFixed(1)} ${y(rateAt(line, ratio)).toFixed(1)}`);
      drawing.append(
        make("path", { ...stroke(policy), d: `M${path.join("L")}`, "data-policy": policy.key }),
        make("circle", { class: "point", style: `--hue: ${policy.color}`, cx: x(state.ratio), cy: y(rateAt(line, state.ratio)), r: 3.5 }),
      );
    }
    const wanted = lineOf(entry, state.policy);
    const size = wanted && smallest(wanted, state.target);
    if (size <= REACH) {
      drawing.append(make("circle", { class: "found", cx: x(size), cy: y(rateAt(wanted, size)), r: 7 }));
    }
    const title = make("figcaption", {}, make("strong", {}, entry.label), " ", badge(entry.kind));
    return make("figure", { class: `panel ${entry.kind}`, "data-model": entry.key }, title, drawing);
  }

  function showCurves() {
    const chosen = state.models.map((key) => model.get(key));
    const none = make("p", {}, "Choose a model in the lists above.");
    place.querySelector(".panels").replaceChildren(...(chosen.length ? chosen.map(panel) : [none]));
  }

  // Sizes: what the chosen cache needs to be, by the hit rate wanted and by two criteria of a bend.
  function showSizes() {
    const { label } = data.policies.find(({ key }) => key === state.policy);
    const name = state.policy === "sch" ? `SCH (${state.m} tokens ahead)` : label;
    const heads = ["model", `hit rates at ${state.ratio}×: ${data.policies.map((p) => p.label).join(", ")}`, `${label} for ${state.target} %`, "experts a layer", "share of all", "bend by chord", "bend by gain"];
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)))));
    const advice = [];
    for (const kind of data.kinds) {
      const chosen = state.models.map((key) => model.get(key)).filter((entry) => entry.kind === kind.key);
      if (!chosen.length) continue;
      const body = make("tbody", {}, make("tr", {}, make("th", { scope: "rowgroup", colspan: heads.length }, badge(kind.key))));
      for (const entry of chosen) {
        const line = lineOf(entry, state.policy);
        const size = line && smallest(line, state.target);
        // Published curves are known up to REACH, and where all experts have a slot.
        const known = kind.key !== "published" || size <= REACH;
        const experts = size && size * entry.top_k;
        const rates = data.policies.map(({ key }) => {
          const curve = lineOf(entry, key);
          return curve ? decimals(rateAt(curve, state.ratio)) : "–";
        });
        const cells = [rates.join("  "), ...(size && known ? [times(size), `${Number(experts.toFixed(1))} of ${entry.experts}`, `${Number(((100 * experts) / entry.experts).toFixed(1))} %`] : [line ? `more than ${REACH}×` : "–", "–", "–"]), times(line?.chord), times(line?.gain)];
        body.append(make("tr", { "data-model": entry.key }, make("th", { scope: "row" }, entry.label), ...cells.map((text) => make("td", {}, text))));
        if (line) {
          advice.push(
            size && known
              ? `${entry.label}: ${name} serves ${state.target} % from ${times(size)} the active experts on, ${Number(experts.toFixed(1))} of a layer's ${entry.experts}.`
              : `${entry.label}: no cache of up to ${REACH}× the active experts serves ${state.target} % with ${name}.`,
          );
        }
      }
      table.append(body);
    }
    place.querySelector("#explore-advice").textContent = advice.join(" ");
    place.querySelector(".frame").replaceChildren(...(advice.length ? [table] : []));
  }

  function show() {
    for (const input of place.querySelectorAll("input[type=range]")) {
      input.value = state[input.name];
      input.tell();
    }
    for (const input of place.querySelectorAll("input[type=radio]")) {
      input.checked = String(state[input.name]) === input.value;
    }
    showConsistency();
    showCurves();
    showSizes();
    writeAddress();
  }

  readAddress();
  build();
  show();
  window.addEventListener("hashchange", () => {
    readAddress();
    show();
  });
})();
