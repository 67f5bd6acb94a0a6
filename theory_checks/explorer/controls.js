"use strict";
// Settings, their controls, and the link that carries them.

const Controls = (() => {
  const { number } = Charts;
  const MOST_COMPONENTS = 5, MOST_ITERATIONS = 40000, LEAST = 0.05, MOST = 1.2, GAP = 0.01;
  const DEFAULTS = { depth: 3, scale: 0.02, targets: [1, 0.75, 0.55, 0.4, 0.28], fraction: 0.5, alpha: 1, d: 1000, rank: 5, seed: 1 };
  const PRESETS = [
    ["Step by step", {}],
    ["One layer: no steps", { depth: 1, fraction: 0.05 }],
    ["Two layers", { depth: 2, scale: 0.001, fraction: 0.1 }],
    ["Deeper", { depth: 4, scale: 0.12, targets: [1, 0.7, 0.48, 0.32], rank: 4 }],
    ["Neighbours", { targets: [1, 0.93, 0.45, 0.41], rank: 4 }],
    ["Guessed rank too high", { rank: 9 }],
    ["Too low", { rank: 3 }],
    ["A million wide", { d: 1e6, scale: 0.01 }],
    ["Faster outer layers", { alpha: 5 }],
    ["Past the edge", { fraction: 1.12, scale: 0.05, targets: [1, 0.45, 0.25], rank: 3 }],
  ];
  const round = (value, digits) => Number(value.toPrecision(digits));
  const SLIDERS = [
    { key: "depth", short: "L", label: "Depth <i>L</i>", low: 1, high: 6, step: 1 },
    { key: "scale", short: "e", label: "Start <i>ε</i>", low: 0.001, high: 0.3, log: true, digits: 2, hint: "smaller: longer waits, sharper steps" },
    { key: "fraction", short: "n", label: "Learning rate <i>η</i>, of the edge", low: 0.05, high: 1.25, step: 0.01, hint: "above 1 gradient descent is unstable" },
    { key: "alpha", short: "a", label: "Outer layers faster by <i>α</i>", low: 0.2, high: 10, log: true, digits: 2 },
    { key: "d", short: "d", label: "Original width <i>d</i>", low: 10, high: 1e6, log: true, digits: 2 },
    { key: "rank", short: "rh", label: "Compressed width <i>r̂</i>", low: 1, high: 10, step: 1 },
  ];

  // --- Links ------------------------------------------------------------------------------------

  function toHash(settings, place, theme) {
    const parts = SLIDERS.map(({ key, short }) => `${short}=${+settings[key].toPrecision(6)}`);
    parts.push(`s=${settings.targets.map((value) => +value.toFixed(3)).join(",")}`, `seed=${settings.seed}`);
    if (place < 1) parts.push(`t=${place.toFixed(3)}`);
    if (theme) parts.push(`theme=${theme}`);
    return "#" + parts.join("&");
  }

  // What a link says, everything out of range or unreadable replaced by the default.
  function fromHash(hash) {
    const given = new URLSearchParams(hash.replace(/^#/, "")), settings = structuredClone(DEFAULTS);
    for (const { key, short, low, high, step } of SLIDERS) {
      const value = Number(given.get(short));
      if (given.get(short) && value >= low && value <= high) settings[key] = step === 1 || key === "d" ? Math.round(value) : value;
    }
    const targets = (given.get("s") ?? "").split(",").map(Number);
    const fine = (value, i) => value >= LEAST && value <= MOST && (i === 0 || value <= targets[i - 1] - GAP / 2);
    if (given.get("s") && targets.length <= MOST_COMPONENTS && targets.every(fine)) settings.targets = targets;
    const seed = Number(given.get("seed"));
    if (Number.isInteger(seed) && seed > 0 && seed < 2 ** 31) settings.seed = seed;
    const place = given.get("t") === null ? null : Math.min(1, Math.max(0, Number(given.get("t")) || 0));
    const theme = ["light", "dark"].includes(given.get("theme")) ? given.get("theme") : null;
    return { settings, place, theme };
  }

  // --- Sliders ----------------------------------------------------------------------------------

  function makeSlider(spec, change) {
    const field = document.createElement("div");
    field.className = "field";
    field.innerHTML = `<div class="label"><label for="s-${spec.key}">${spec.label}</label><output for="s-${spec.key}"></output></div>
      <input type="range" id="s-${spec.key}">`;
    const input = field.querySelector("input"), output = field.querySelector("output");
    const [low, high] = spec.log ? [Math.log(spec.low), Math.log(spec.high)] : [spec.low, spec.high];
    Object.assign(input, { min: low, max: high, step: spec.log ? (high - low) / 400 : spec.step, title: spec.hint ?? "" });
    input.addEventListener("input", () => {
      const value = Number(input.value);
      change(spec.key, spec.log ? round(Math.exp(value), spec.digits) : value);
    });
    return {
      field,
      show(value) {
        const at = String(spec.log ? Math.log(value) : value);
        if (document.activeElement !== input || Math.abs(input.value - at) > 0.02) input.value = at;
        output.textContent = number(value);
        input.setAttribute("aria-valuetext", number(value));
      },
    };
  }

  // --- Bars of singular values --------------------------------------------------------------------

  function makeBars(root, change) {
    let targets = [];
    const within = (i, value) => {
      const above = i > 0 ? targets[i - 1] - GAP : MOST, below = i + 1 < targets.length ? targets[i + 1] + GAP : LEAST;
      return Math.round(Math.min(above, Math.max(below, value)) * 1000) / 1000;
    };
    const set = (i, value) => {
      const next = targets.slice();
      next[i] = within(i, value);
      change("targets", next);
    };
    root.addEventListener("pointerdown", (event) => {
      const bar = event.target.closest(".bar");
      if (!bar) return;
      event.preventDefault();
      bar.focus();
      const i = Number(bar.dataset.index), box = root.getBoundingClientRect();
      const move = (e) => set(i, (box.bottom - e.clientY) / (box.height - 18) * MOST);
      const stop = () => {
        for (const [name, handler] of [["pointermove", move], ["pointerup", stop], ["pointercancel", stop]]) root.removeEventListener(name, handler);
      };
      root.setPointerCapture(event.pointerId);
      root.addEventListener("pointermove", move);
      root.addEventListener("pointerup", stop);
      root.addEventListener("pointercancel", stop);
      move(event);
    });
    root.addEventListener("keydown", (event) => {
      const bar = event.target.closest(".bar");
      const size = { ArrowUp: 0.01, ArrowRight: 0.01, ArrowDown: -0.01, ArrowLeft: -0.01, PageUp: 0.1, PageDown: -0.1 }[event.key];
      if (!bar || !size) return;
      event.preventDefault();
      event.stopPropagation();
      set(Number(bar.dataset.index), targets[bar.dataset.index] + size);
    });
    return {
      show(values) {
        targets = values;
        while (root.children.length > values.length) root.lastChild.remove();
        while (root.children.length < values.length) {
          const bar = document.createElement("div"), i = root.children.length;
          bar.className = "bar";
          bar.dataset.index = i;
          bar.tabIndex = 0;
          bar.style.setProperty("--colour", `var(--c${i + 1})`);
          bar.innerHTML = "<b></b><i></i>";
          for (const [name, value] of [["role", "slider"], ["aria-orientation", "vertical"], ["aria-label", `Singular value ${i + 1}`], ["aria-valuemin", LEAST], ["aria-valuemax", MOST]])
            bar.setAttribute(name, value);
          root.append(bar);
        }
        values.forEach((value, i) => {
          const bar = root.children[i], height = `calc((100% - 18px) * ${value / MOST})`;
          bar.style.setProperty("--height", height);
          bar.querySelector("i").style.height = height;
          bar.querySelector("b").textContent = value.toFixed(2);
          bar.setAttribute("aria-valuenow", value);
        });
      },
    };
  }

  // --- All of them --------------------------------------------------------------------------------

  // Builds the controls; `changed(settings, note)` hears of every new setting.
  function make(initial, changed) {
    const find = (id) => document.getElementById(id);
    let settings = initial;
    // The wait grows as scale^-(L-2): a scale whose run would be too long to watch is raised, and said so.
    function apply(next) {
      const asked = next.scale;
      settings = Model.feasible(next, MOST_ITERATIONS);
      let note = "";
      if (settings.scale !== asked) {
        settings = { ...settings, scale: Math.ceil(settings.scale * 1000) / 1000 };
        note = `ε raised from ${number(asked)} to ${number(settings.scale)}: here the wait grows as ε to the power −(L−2), and ${number(asked)} would take ${number(round(Model.horizon({ ...next }), 2))} iterations.`;
      }
      show();
      changed(settings, note);
    }
    const change = (key, value) => apply({ ...settings, [key]: value });
    const sliders = SLIDERS.map((spec) => makeSlider(spec, change));
    find("sliders").append(...sliders.map(({ field }) => field));
    const bars = makeBars(find("bars"), change);
    const chips = PRESETS.map(([name, part]) => {
      const chip = document.createElement("button");
      Object.assign(chip, { type: "button", textContent: name });
      chip.addEventListener("click", () => {
        apply({ ...structuredClone(DEFAULTS), ...structuredClone(part), seed: settings.seed });
        changed.replay();
      });
      return chip;
    });
    find("presets").append(...chips);
    find("fewer").addEventListener("click", () => change("targets", settings.targets.slice(0, -1)));
    find("more").addEventListener("click", () => {
      const last = settings.targets.at(-1), next = Math.max(LEAST, Math.round(last * 720) / 1000);
      change("targets", [...settings.targets.map((value, i, all) => Math.max(value, LEAST + GAP * (all.length - i))), next]);
    });
    find("draw").addEventListener("click", () => change("seed", settings.seed % 9999 + 1));

    function show() {
      SLIDERS.forEach(({ key }, i) => sliders[i].show(settings[key]));
      bars.show(settings.targets);
      find("fewer").disabled = settings.targets.length === 1;
      find("more").disabled = settings.targets.length === MOST_COMPONENTS;
      PRESETS.forEach(([, part], i) => {
        const same = Object.entries({ ...DEFAULTS, ...part }).every(([key, value]) => key === "seed" || String(settings[key]) === String(value));
        chips[i].setAttribute("aria-pressed", same);
      });
    }
    return { apply, change, get settings() { return settings; } };
  }

  return { fromHash, make, toHash };
})();
