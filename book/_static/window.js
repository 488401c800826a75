// Window by window: a routing map on which the reader moves a window, a threshold and a cache.
// The measures are those of book/definitions.md, on so few tokens that a script can follow them;
// the tests compare them with lrc's.
(() => {
  const data = window.lrcWindowData;
  if (!data) return;
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // How often each expert is active in the segment of m tokens from `start` on.
  function counts(routing, start, m) {
    const found = Array(data.experts).fill(0);
    for (const token of routing.slice(start, start + m)) for (const expert of token) found[expert] += 1;
    return found;
  }

  // F1 of keeping on what is active at least `threshold` times, over segments' counts together.
  function score(many, m, threshold) {
    const on = many.filter((count) => count >= threshold);
    return (2 * sum(on)) / (m * on.length + sum(many));
  }

  function best(many, m) {
    const scores = Array.from({ length: m + 1 }, (_, threshold) => score(many, m, threshold));
    return { srp: Math.max(...scores), threshold: scores.indexOf(Math.max(...scores)) };
  }

  const starts = (routing, m) => [...Array(routing.length - m + 1).keys()];
  const largest = (found, size) =>
    [...found.keys()].sort((a, b) => found[b] - found[a] || a - b).slice(0, size);

  // A cache that runs over the text by the paper's rules: a token's experts are looked up together,
  // then enter one by one; first uses are hits until the cache is full. LRU sees 0 tokens ahead.
  function replay(routing, size, ahead) {
    const seen = new Set();
    let cache = [];
    return routing.map((token, at) => {
      const before = [...cache];
      let hits = 0;
      for (const expert of token) {
        hits += seen.has(expert) ? before.includes(expert) : seen.size < size;
        seen.add(expert);
      }
      token.forEach((expert, slot) => {
        if (!cache.includes(expert) && cache.length === size) {
          const soon = ahead ? [token.slice(slot + 1), ...routing.slice(at + 1, at + ahead)].flat() : [];
          const uses = cache.map((held) => soon.filter((other) => other === held).length);
          cache.splice(uses.indexOf(Math.min(...uses)), 1); // of equals the one used longest ago
        }
        cache = [...cache.filter((held) => held !== expert), expert];
      });
      return { before, hits };
    });
  }

  function measure({ routing, start, m, threshold, size, policy }) {
    const here = counts(routing, start, m);
    const on = [...here.keys()].filter((expert) => here[expert] >= threshold);
    const right = sum(on.map((expert) => here[expert]));
    const everywhere = starts(routing, m).flatMap((first) => counts(routing, first, m));
    const found = {
      here,
      on,
      right,
      spare: m * on.length - right,
      missed: sum(here) - right,
      f1: score(here, m, threshold),
      best: best(here, m),
      all: { f1: score(everywhere, m, threshold), ...best(everywhere, m) },
    };
    if (policy === "static") {
      const held = starts(routing, m).map((first) => {
        const uses = counts(routing, first, m);
        return sum(largest(uses, size).map((expert) => uses[expert]));
      });
      const cache = largest(here, size);
      const hits = routing.slice(start, start + m).map((token) => token.filter((e) => cache.includes(e)).length);
      found.cache = { before: cache, hits, first: start, rate: sum(held) / sum(everywhere) };
    } else {
      const steps = replay(routing, size, policy === "sch" ? m : 0);
      const hits = steps.map((step) => step.hits);
      const needs = sum(routing.map((token) => token.length));
      found.cache = { before: steps[start].before, hits, first: 0, rate: sum(hits) / needs };
    }
    return found;
  }
  window.lrcWindows = { measure };

  const place = document.getElementById("windows");
  if (!place) return;
  const POLICIES = [
    ["lru", "LRU"],
    ["sch", "SCH, look-ahead"],
    ["static", "SCH, static"],
  ];
  const state = { case: 0, start: 20, m: 16, threshold: 0, size: 4, policy: "lru" };
  const SVG = "http://www.w3.org/2000/svg";

  function make(name, attributes = {}, ...content) {
    const node = ["svg", "rect", "line", "text", "title"].includes(name)
      ? document.createElementNS(SVG, name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...content);
    return node;
  }

  function choice(name, legend, options) {
    const boxes = options.map(([value, text]) =>
      make("label", {}, make("input", { type: "radio", name, value }), text),
    );
    return make("fieldset", { class: "choice" }, make("legend", {}, legend), ...boxes);
  }

  function slider(name, legend, low) {
    const input = make("input", { type: "range", name, min: low, max: 64, id: `windows-${name}` });
    const told = make("output", { for: input.id });
    return make("div", { class: "slider" }, make("label", { for: input.id }, legend), input, told);
  }

  const routing = () => data.cases[state.case].routing;
  const current = () => measure({ ...state, routing: routing() });

  function bestThreshold() {
    state.threshold = best(counts(routing(), state.start, state.m), state.m).threshold;
  }

  function build() {
    const form = make(
      "form",
      { class: "controls", "aria-label": "Window, threshold and cache" },
      choice("case", "Routing", data.cases.map(({ label }, at) => [at, label])),
      slider("start", "First token of the window", 0),
      slider("m", "Tokens in the window, m", 1),
      slider("threshold", "Threshold a: experts active so often stay on", 0),
      make("button", { type: "button" }, "Best threshold for this window"),
      choice("policy", "Cache", POLICIES),
      slider("size", "Slots of the cache", 1),
    );
    const map = make("div", { class: "map" });
    const told = make("div", { class: "told" }, ...["window", "all", "cache"].map((name) => make("p", { "data-part": name })));
    told.querySelector("[data-part=window]").setAttribute("aria-live", "polite");
    const keys = [
      ["right", "active, and kept on"],
      ["missed", "active, but off"],
      ["spare", "kept on for nothing"],
      ["active", "active outside the window"],
    ].map(([name, text]) => make("span", { class: "key" }, make("i", { class: name }), text));
    place.replaceChildren(form, make("p", { class: "keys" }, ...keys), map, told);
    form.addEventListener("input", ({ target }) => {
      const { name, value } = target;
      state[name] = name === "policy" ? value : Number(value);
      if (name === "case") bestThreshold();
      show();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.querySelector("button").addEventListener("click", () => {
      bestThreshold();
      show();
    });
    const drag = (event) => {
      if (event.type === "pointermove" && !event.buttons) return;
      const { left, step } = layout();
      const token = (event.clientX - map.getBoundingClientRect().left - left) / step;
      state.start = Math.round(token - state.m / 2);
      show();
    };
    map.addEventListener("pointerdown", drag);
    map.addEventListener("pointermove", drag);
    new ResizeObserver(() => show()).observe(map);
  }

  function layout() {
    const width = Math.max(300, place.querySelector(".map").clientWidth);
    const [left, right, row] = [34, Math.min(130, width * 0.2), 14];
    return { width, left, right, row, step: (width - left - right) / routing().length };
  }

  function draw(found) {
    const { width, left, right, row, step } = layout();
    const tokens = routing();
    const below = row * data.experts;
    const drawing = make("svg", { width, height: below + 44, role: "img" });
    const box = (name, at, line, wide = step, high = row) =>
      make("rect", { class: name, x: left + at * step, y: line, width: Math.max(wide - 0.6, 0.6), height: high - 1 });
    const inside = (at) => at >= state.start && at < state.start + state.m;
    for (let expert = 0; expert < data.experts; expert += 1) {
      const line = below - (expert + 1) * row;
      const on = found.on.includes(expert);
      const held = found.cache.before.includes(expert);
      drawing.append(make("text", { class: `tick${held ? " held" : ""}`, x: left - 5, y: line + 11, "text-anchor": "end" }, `${held ? "● " : ""}${expert}`));
      tokens.forEach((token, at) => {
        const active = token.includes(expert);
        if (inside(at) && active) drawing.append(box(on ? "right" : "missed", at, line));
        else if (inside(at) && on) drawing.append(box("spare", at, line));
        else drawing.append(box(active ? "active" : "idle", at, line));
      });
      const scale = (right - 34) / state.m;
      const bar = { x: width - right + 8, y: line + 2, width: found.here[expert] * scale, height: row - 5 };
      drawing.append(
        make("rect", { class: on ? "right" : "missed", ...bar }),
        make("text", { class: "tick", x: width - 2, y: line + 11, "text-anchor": "end" }, String(found.here[expert])),
      );
    }
    const bound = width - right + 8 + state.threshold * ((right - 34) / state.m);
    drawing.append(
      make("line", { class: "bound", x1: bound, x2: bound, y1: 0, y2: below }),
      make("rect", { class: "frame-window", x: left + state.start * step - 1, y: 0, width: state.m * step + 1, height: below }),
      make("text", { class: "tick", x: left - 5, y: below + 15, "text-anchor": "end" }, "hits"),
      make("text", { class: "tick", x: left, y: below + 40 }, "token 0"),
      make("text", { class: "tick", x: width - right, y: below + 40, "text-anchor": "end" }, String(tokens.length - 1)),
      make("text", { class: "tick", x: width - 2, y: below + 15, "text-anchor": "end" }, right > 90 ? "times in window" : "times"),
    );
    found.cache.hits.forEach((hits, place) => {
      for (let slot = 0; slot < 2; slot += 1) {
        drawing.append(box(slot < hits ? "hit" : "idle", found.cache.first + place, below + 14 - slot * 8, step, 8));
      }
    });
    drawing.setAttribute(
      "aria-label",
      `Map of ${tokens.length} tokens and ${data.experts} experts, ${data.cases[state.case].label}; window of tokens ${state.start} to ${state.start + state.m - 1}; experts kept on: ${found.on.join(", ") || "none"}.`,
    );
    place.querySelector(".map").replaceChildren(drawing);
  }

  function tell(found) {
    const number = (name, value) => make("b", { "data-number": name }, typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : String(value));
    const exact = (name, value) => make("b", { "data-number": name }, value.toFixed(3));
    const part = (name) => place.querySelector(`[data-part=${name}]`);
    const { label, kind } = data.cases[state.case];
    part("window").replaceChildren(
      make("strong", {}, "This window. "), "Kept on: ", number("on", found.on.length), " experts, of which ",
      number("right", found.right), " uses are right, ", number("spare", found.spare), " for nothing, ",
      number("missed", found.missed), " missed: F1 ", exact("f1", found.f1), ". The best threshold, ",
      number("best", found.best.threshold), ", has ", exact("best-f1", found.best.srp), ".",
    );
    part("all").replaceChildren(
      make("strong", {}, `All ${routing().length - state.m + 1} windows of ${label} (${kind}). `),
      "F1 of this threshold ", exact("all-f1", found.all.f1), "; of the best one, which is SRP, ",
      exact("srp", found.all.srp), ", where chance gives ", exact("chance", data.chance[state.m - 1]), ".",
    );
    const needs = routing()[state.start];
    const name = POLICIES.find(([key]) => key === state.policy)[1];
    const held = [...found.cache.before].sort((a, b) => a - b).join(", ") || "nothing";
    part("cache").replaceChildren(
      make("strong", {}, `${name}, ${state.size} slots. `),
      state.policy === "static" ? "In this window it holds " : `Before token ${state.start} it holds `,
      number("held", held), `; token ${state.start} needs ${needs.join(" and ")}: `,
      number("hits", found.cache.hits[state.start - found.cache.first]), ` of ${needs.length} are hits. Over all ${state.policy === "static" ? "windows" : "tokens"} the hit rate is `,
      exact("rate", found.cache.rate), ".",
    );
  }

  function show() {
    const between = (value, low, high) => Math.min(Math.max(value, low), high);
    const tokens = routing().length;
    const ends = { m: 32, size: data.experts, start: tokens - state.m, threshold: state.m };
    for (const [name, end] of Object.entries(ends)) {
      const input = place.querySelector(`[name=${name}]`);
      state[name] = between(state[name], Number(input.min), end);
      input.max = end;
      input.value = state[name];
      place.querySelector(`output[for=${input.id}]`).textContent = state[name];
    }
    for (const input of place.querySelectorAll("input[type=radio]")) {
      input.checked = input.value === String(state[input.name]);
    }
    const found = current();
    draw(found);
    tell(found);
  }

  build();
  bestThreshold();
  show();
})();
