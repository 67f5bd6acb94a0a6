"use strict";
// The page: draws a run of both networks over its predictions, and plays it.

const View = (() => {
  const { Chart, colour, labels, number, picture, subscript } = Charts;
  const find = (id) => document.getElementById(id);
  const component = (i) => colour(`c${i % 5 + 1}`);
  const COMPRESSED = { width: 4.5, alpha: 0.5 }, ORIGINAL = { width: 1.8 }, PREDICTED = { width: 1.7, dash: [1.5, 4] };
  const SIDE = 48, SECONDS = 9, SLICE = 8;

  const charts = {
    sigma: new Chart(find("p-sigma"), { xLabel: "iteration", yLabel: "σ" }),
    loss: new Chart(find("p-loss"), { xLabel: "iteration", yLabel: "loss", logY: true }),
    error: new Chart(find("p-error"), { xLabel: "iteration", yLabel: "error" }),
    align: new Chart(find("p-align"), { xLabel: "iteration", yLabel: "alignment" }),
    fit: new Chart(find("p-fit"), { xLabel: "iterations predicted, compressed network", yLabel: "measured" }),
    edge: new Chart(find("p-edge"), { xLabel: "η, as a fraction of the edge", yLabel: "σ₁ / σ₁*" }),
  };
  const timed = ["sigma", "loss", "error", "align"].map((name) => charts[name]);

  let run = null, forecast = null, place = 0, playing = false, stale = true, before = null, longRun = null;
  let printing = false;

  // --- What is predicted ---------------------------------------------------------------------------

  // Singular values, loss and fit times of the compressed network from the closed forms, on a grid of iterations.
  function predict({ settings, steps }) {
    const { targets, rank, rate, depth, alpha } = settings, count = alpha === 1 || depth < 3 ? 361 : 181;
    const at = (i) => i / (count - 1) * steps;
    const sigma = targets.slice(0, rank).map((target) => {
      if (settings.scale ** depth >= target) return new Float64Array(count).fill(NaN);
      const mode = Model.flow(target, settings);
      return Float64Array.from({ length: count }, (_, i) => mode.value(rate * at(i)));
    });
    const loss = Float64Array.from({ length: count }, (_, i) =>
      targets.reduce((sum, target, j) => sum + (target - (sigma[j]?.[i] ?? 0)) ** 2 / 2, 0));
    const fits = targets.map((target) => Model.fitTime(target, settings) / rate);
    const ratio = Model.escapeRatio(depth);
    const originals = alpha !== 1 ? null
      : fits.map((fit, i) => depth === 2 ? fit + Math.LN2 / (2 * targets[i] * rate) : ratio * fit);
    return { count, at, sigma, loss, fits, originals, plateaus: Model.plateaus(targets) };
  }

  // --- Layers of the charts --------------------------------------------------------------------------

  function drawBases() {
    const { settings, steps } = run, { targets } = settings, total = forecast.plateaus[0], norm = Math.sqrt(2 * total);
    for (const chart of timed) chart.x = [0, steps];
    const highest = run.compressed.sigma.reduce((most, value) => Math.max(most, value || 0), targets[0]);
    charts.sigma.y = [0, Math.min(1.7, Math.max(1.1, 1.04 * highest / targets[0])) * targets[0]];
    charts.sigma.drawBase((c) => {
      targets.forEach((target, i) => charts.sigma.curve(c, 2, (k) => k * steps, () => target, { stroke: component(i), width: 1, alpha: 0.45 }));
      predictedSigma(c);
    });
    charts.loss.y = [forecast.plateaus.at(-2) * 0.04, total * (settings.fraction > 1 ? 4 : 1.7)];
    charts.loss.drawBase((c) => {
      let free = -Infinity;
      forecast.plateaus.slice(0, settings.depth === 1 ? 1 : -1).forEach((level, i) => {
        charts.loss.curve(c, 2, (k) => k * steps, () => level, { stroke: component(i), width: 1, alpha: 0.7 });
        const at = charts.loss.py(level);
        if (at - free < 14) return;  // no room for its name
        free = at;
        Object.assign(c, { fillStyle: colour("soft"), textAlign: "right", textBaseline: "bottom" });
        c.fillText(i === 0 ? "none fitted" : `${i} fitted`, charts.loss.width - charts.loss.margin.right - 5, at - 1);
      });
      predictedLoss(c, charts.loss, (value) => value);
    });
    charts.error.y = [0, 1.08];
    charts.error.drawBase((c) => predictedLoss(c, charts.error, (value) => Math.sqrt(2 * value) / norm));
    charts.align.y = [0, 1.05];
    charts.align.drawBase(() => {});
    const far = 1.06 * Math.max(...forecast.fits, ...(forecast.originals ?? []));
    charts.fit.x = [0, 1.06 * Math.max(...forecast.fits)];
    charts.fit.y = [0, far];
    charts.fit.drawBase(drawFitBase);
    charts.edge.x = [0, 1.3];
    charts.edge.y = [0, 1.65];
    charts.edge.drawBase(drawEdgeBase);
  }

  function predictedSigma(c) {
    for (const values of forecast.sigma)
      charts.sigma.curve(c, forecast.count, forecast.at, (k) => values[k], { stroke: colour("predicted"), ...PREDICTED });
  }

  function predictedLoss(c, chart, scaled) {
    chart.curve(c, forecast.count, forecast.at, (k) => scaled(forecast.loss[k]), { stroke: colour("predicted"), ...PREDICTED });
  }

  function drawFitBase(c) {
    const chart = charts.fit, far = chart.x[1], { depth } = run.settings;
    const slope = (ratio) => chart.curve(c, 2, (k) => k * far, (k) => k * far * ratio, { stroke: colour("predicted"), ...PREDICTED });
    slope(1);
    if (forecast.originals && depth > 2) slope(Model.escapeRatio(depth));
    const cross = (x, y) => {
      const px = chart.px(x), py = chart.py(y);
      chart.line(c, [[px - 4, py], [px + 4, py]]);
      chart.line(c, [[px, py - 4], [px, py + 4]]);
    };
    c.strokeStyle = colour("predicted");
    forecast.fits.forEach((fit, i) => {
      if (i < run.settings.rank) cross(fit, fit);
      if (forecast.originals) cross(fit, forecast.originals[i]);
    });
  }

  function drawEdgeBase(c) {
    const chart = charts.edge, { depth, alpha } = run.settings;
    const key = `${depth} ${alpha}`;
    if (longRun?.key !== key) {
      const fractions = Array.from({ length: 181 }, (_, i) => 0.95 + 0.35 * i / 180);
      longRun = { key, points: Model.longRun(depth, alpha, fractions) };
    }
    c.fillStyle = colour("rest");
    for (let i = 0; i < longRun.points.length; i += 2) {
      const y = chart.py(longRun.points[i + 1]);
      if (y > 0) c.fillRect(chart.px(longRun.points[i]) - 0.6, y - 0.6, 1.3, 1.3);
    }
    chart.curve(c, 2, (k) => k, () => 1, { stroke: colour("predicted"), ...PREDICTED });
    if (depth > 1 && alpha === 1) {
      const fraction = (k) => 1 + 0.3 * k / 120, top = run.settings.targets[0];
      for (const side of [0, 1])
        chart.curve(c, 121, fraction, (k) => Model.twoCycle(top, depth, fraction(k) * run.settings.edge)[side] / top,
          { stroke: colour("predicted"), ...PREDICTED });
    }
    c.strokeStyle = colour("soft");
    c.fillStyle = colour("soft");
    chart.line(c, [[chart.px(1), 0], [chart.px(1), chart.height]]);
    c.textAlign = "right";
    c.textBaseline = "top";
    c.fillText("edge", chart.px(1) - 5, chart.margin.top + 5);
  }

  function drawTops() {
    const { settings, stride, compressed, original } = run, { targets, rank } = settings, r = targets.length;
    const x = (row) => row * stride, norm = Math.sqrt(2 * forecast.plateaus[0]);
    charts.sigma.drawTop((c) => {
      for (let i = rank - 1; i >= 0; i--)
        charts.sigma.curve(c, compressed.done, x, (row) => compressed.sigma[row * rank + i], { stroke: i < r ? component(i) : colour("rest"), ...COMPRESSED });
      charts.sigma.curve(c, original.done, x, (row) => original.bulk[row], { stroke: colour("rest"), ...ORIGINAL });
      for (let i = r - 1; i >= 0; i--)
        charts.sigma.curve(c, original.done, x, (row) => original.sigma[row * r + i], { stroke: component(i), ...ORIGINAL });
      predictedSigma(c);
    });
    const both = (chart, scaled) => chart.drawTop((c) => {
      chart.curve(c, compressed.done, x, (row) => scaled(compressed.loss[row]), { stroke: colour("c1"), ...COMPRESSED });
      chart.curve(c, original.done, x, (row) => scaled(original.loss[row]), { stroke: colour("c1"), ...ORIGINAL });
      predictedLoss(c, chart, scaled);
    });
    both(charts.loss, (value) => value);
    both(charts.error, (value) => Math.sqrt(2 * value) / norm);
    charts.align.drawTop((c) => {
      charts.align.curve(c, compressed.done, x, () => 1, { stroke: colour("c1"), ...COMPRESSED });
      for (let i = r - 1; i >= 0; i--)
        charts.align.curve(c, original.done, x, (row) => aligned(row, i), { stroke: component(i), ...ORIGINAL });
    });
    charts.fit.drawTop(() => {});
    charts.edge.drawTop(() => {});
  }

  // The smaller alignment of component i; not a number while its singular value is not alone.
  function aligned(row, i) {
    const { sigma, left, right } = run.original, r = run.settings.targets.length, at = row * r + i;
    const near = (j) => j >= 0 && j < r && Math.abs(sigma[row * r + j] - sigma[at]) < 1e-9 * sigma[row * r];
    return near(i - 1) || near(i + 1) ? NaN : Math.min(left[at], right[at]);
  }

  // --- The present ---------------------------------------------------------------------------------

  function drawFrame() {
    const { settings, steps, stride, compressed, original } = run, { targets, rank, depth } = settings, r = targets.length;
    const now = place * steps, row = Math.min(run.size - 1, Math.round(now / stride));
    const there = Math.min(row, original.done - 1), seen = there === row, cursor = printing ? null : now;
    const sigma = (i) => compressed.sigma[row * rank + i];
    charts.sigma.frame(cursor, (c) => {
      for (let i = r - 1; i >= 0; i--) {
        if (i < rank) charts.sigma.dot(c, row * stride, sigma(i), { fill: component(i), radius: 5 });
        if (seen) charts.sigma.dot(c, row * stride, original.sigma[row * r + i], { fill: component(i), radius: 3.5, open: true });
      }
      labels(c, charts.sigma, targets.map((y, i) => ({ text: `σ${subscript(i + 1)}*`, y, fill: component(i) })));
    });
    const norm = Math.sqrt(2 * forecast.plateaus[0]);
    for (const [chart, scaled] of [[charts.loss, (v) => v], [charts.error, (v) => Math.sqrt(2 * v) / norm]])
      chart.frame(cursor, (c) => chart.inside(c, () => {
        chart.dot(c, row * stride, scaled(compressed.loss[row]), { fill: colour("c1"), radius: 5 });
        if (seen) chart.dot(c, row * stride, scaled(original.loss[row]), { fill: colour("c1"), radius: 3.5, open: true });
      }));
    charts.align.frame(cursor, (c) => {
      if (!seen) return;
      const entries = [];
      for (let i = r - 1; i >= 0; i--) {
        const y = aligned(row, i);
        if (!Number.isFinite(y)) continue;
        charts.align.dot(c, row * stride, y, { fill: component(i), radius: 3.5, open: true });
        entries.push({ text: `${i + 1}`, y, fill: component(i) });
      }
      labels(c, charts.align, entries);
    });
    charts.fit.frame(null, (c) => forecast.fits.forEach((fit, i) => {
      const mine = run.fits.compressed[i], theirs = run.fits.original[i];
      if (theirs <= now) charts.fit.dot(c, fit, theirs, { fill: component(i), radius: 4.5, open: true });
      if (mine <= now) charts.fit.dot(c, fit, mine, { fill: component(i), radius: 5 });
    }));
    charts.edge.frame(settings.fraction, (c) => charts.edge.inside(c, () => {
      for (let back = Math.min(row, 12); back >= 0; back--) {
        c.globalAlpha = back === 0 ? 1 : 0.35;
        charts.edge.dot(c, settings.fraction, compressed.sigma[(row - back) * rank] / targets[0], { fill: component(0), radius: 5 });
        if (seen) charts.edge.dot(c, settings.fraction, original.sigma[(row - back) * r] / targets[0], { fill: component(0), radius: 3, open: true });
      }
      c.globalAlpha = 1;
    }));
    drawMatrices(row, there);
    find("clock").textContent = `${number(row * stride)} of ${number(steps)}`;
    if (document.activeElement !== find("scrub") || playing) find("scrub").value = Math.round(1000 * place);
    tell(row, there, depth);
  }

  // Waves in place of the target's singular vectors, coarse to fine: orthonormal, as those are.
  const waves = (counts) => counts.map((count) =>
    Float64Array.from({ length: SIDE }, (_, j) => Math.sqrt(2 / SIDE) * Math.cos(Math.PI * count * (j + 0.5) / SIDE)));
  const LEFT = waves([1, 2, 3, 4, 5]), RIGHT = waves([1, 3, 2, 5, 4]);

  const pixels = new Float64Array(SIDE * SIDE), half = new Float64Array(SIDE);
  function drawMatrices(row, there) {
    const { settings, compressed, original } = run, { targets, rank } = settings, r = targets.length;
    const paint = (id, entry, limit) => {
      pixels.fill(0);
      for (let i = 0; i < r; i++) {
        half.fill(0);
        for (let j = 0; j < r; j++) {
          const factor = entry(i, j);
          if (factor !== 0) for (let x = 0; x < SIDE; x++) half[x] += factor * RIGHT[j][x];
        }
        for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) pixels[y * SIDE + x] += LEFT[i][y] * half[x];
      }
      const most = limit ?? pixels.reduce((high, value) => Math.max(high, Math.abs(value)), 0);
      picture(find(id), SIDE, pixels, most);
      return most;
    };
    const limit = paint("matrix-target", (i, j) => (i === j ? targets[i] : 0));
    paint("matrix-compressed", (i, j) => (i === j && i < rank ? compressed.sigma[row * rank + i] : 0), limit);
    if (there >= 0) paint("matrix-original", (i, j) => original.modes[there * r * r + i * r + j], limit);
  }

  function tell(row, there, depth) {
    const { settings, compressed } = run, { targets, rank } = settings, reached = Math.min(rank, targets.length);
    const share = (i) => compressed.sigma[row * rank + i] / targets[i];
    let fitted = 0;
    while (fitted < reached && Math.abs(share(fitted) - 1) <= 0.05) fitted++;
    const rising = targets.findIndex((_, i) => i < reached && share(i) > 0.05 && share(i) < 0.95);
    const name = (i) => `σ${subscript(i + 1)}`;
    let text;
    if (settings.fraction > 1 && Math.abs(share(0) - 1) > 0.05 && row > run.size / 4)
      text = `Past its edge σ₁ never settles: it jumps over its target and back at every step.`;
    else if (fitted === targets.length) text = `All ${fitted} components are fitted. What is left decays by a fixed factor an iteration.`;
    else if (fitted === reached) text = `All ${fitted} that fit into width ${rank} are found; ${targets.length - fitted} cannot be: the error stays.`;
    else if (rising >= 0) text = `${name(rising)} is rising${depth === 1 ? ", with all the others: one layer has no order" : ""}. ${fitted === 0 ? "None is" : fitted === 1 ? "One is" : `${fitted} are`} fitted so far.`;
    else if (fitted > 0) text = `${fitted} fitted. ${name(fitted)} waits: the loss rests on its plateau.`;
    else text = `Everything waits near zero. The larger its target, the sooner a component wakes.`;
    find("story").textContent = `Iteration ${number(row * run.stride)}. ${text}`;
  }

  // Who is ahead, as measured in this run.
  function compared(r, rank, d) {
    const behind = run.behind(), wide = rank > Math.max(r, d - r), room = `wider than <i>d</i> − <i>r</i> = ${d - r}`;
    if (behind === null && !run.done) return "The compressed network is ahead at every iteration so far.";
    if (behind === null && wide) return `The compressed network is ahead at every iteration shown; ${room}, it can fall behind later.`;
    if (behind === null) return `The compressed network is ahead at every iteration${rank < d ? ", with a fraction of the parameters" : ""}.`;
    return wide
      ? `From iteration ${number(behind)} on the compressed network is behind: ${room}, it keeps more idle directions than the original.`
      : `The compressed network is ahead, but not at iteration ${number(behind)}.`;
  }

  // --- Captions, facts -------------------------------------------------------------------------------

  function captions() {
    const { settings } = run, { rate, depth, alpha, d, rank, targets, fraction } = settings;
    const ratio = Model.escapeRatio(depth);
    find("hidden-width").textContent = rank;
    find("full-width").textContent = number(d);
    find("fit-caption").innerHTML = "Crosses and dotted lines were predicted; filled dots are the compressed network, open ones the original. " +
      (alpha !== 1 ? "" : depth > 2 ? `A wide network from a tiny start waits <i>κ</i><sub>${depth}</sub> = ${ratio.toFixed(3)} times as long.`
        : depth === 2 ? "With two layers the original is later by ln 2 / 2<i>σ</i>*, whatever <i>ε</i>." : "With one layer they take the same time.");
    find("sigma-caption").innerHTML = depth === 1 ? "One layer: all rise at once, at one rate. It takes a product of layers to bring them into order."
      : "Each waits near zero, then rises to its target <i>σ</i>*. Larger ones go first.";
    find("loss-caption").textContent = depth === 1 ? "No component waits for another, so there are no plateaus."
      : "It rests on a plateau while the next component waits: half the squares of those still missing (thin lines).";
    find("error-caption").innerHTML = rank < targets.length
      ? `Width ${rank} is too narrow for ${targets.length} components: what is missing stays.`
      : fraction > 1 ? "Past the edge the error never settles."
        : depth === 1 ? "The original network also has to forget its random start."
          : compared(targets.length, rank, d);
    const cycle = depth > 1 && alpha === 1 && fraction > 1 ? Model.twoCycle(targets[0], depth, rate).map((v) => number(v)) : null;
    const diverged = run.divergedAt === null ? "" : ` <b>The original network diverged at iteration ${number(run.divergedAt)}.</b>`;
    find("edge-caption").innerHTML = `The edge is <i>η</i> = ${number(settings.edge)}. ` +
      (depth === 1 ? "Below it every run converges, above it every run diverges: one layer has no cycle." :
        fraction <= 1 ? `Below it every run converges; above it a run jumps between two values${alpha === 1 ? " (dotted: predicted)" : ""}, then between four.` :
        cycle ? `Here <i>σ</i><sub>1</sub> jumps between ${cycle[0]} and ${cycle[1]} (predicted).` : "Here gradient descent does not converge.") +
      diverged + " Drag to set <i>η</i>.";
    const full = depth * d * d, small = depth === 1 ? d * d : 2 * d * rank + (depth - 2) * rank * rank;
    const facts = [
      ["learning rate η", number(rate)],
      ["parameters, original", number(full)],
      ["compressed", number(small)],
      ["that is", depth === 1 || small >= full ? "no fewer" : `${number(full / small)}× fewer`],
    ];
    find("facts").innerHTML = facts.map(([term, value]) => `<dt>${term}</dt><dd>${value}</dd>`).join("");
    for (const [name, text] of Object.entries({
      sigma: "Singular values against iteration", loss: "Loss against iteration", error: "Recovery error against iteration",
      align: "Alignment against iteration", fit: "Measured against predicted fit times", edge: "Long-run values against learning rate",
    })) charts[name].canvas.setAttribute("aria-label", `${text}. ${find("story").textContent}`);
  }

  // --- Time ------------------------------------------------------------------------------------------

  function start(settings) {
    run = new Model.Run(settings);
    run.advance(SLICE);
    measureFits();
    forecast = predict(run);
    stale = true;
    captions();
  }

  function measureFits() {
    const all = (which) => run.settings.targets.map((_, i) => run.fitted(which, i));
    run.fits = { compressed: all("compressed"), original: all("original") };
  }

  // One frame: more of the run if it is not complete, then what has changed.
  function tick(now) {
    const resized = Object.values(charts).map((chart) => chart.resize()).some(Boolean);
    let grown = false;
    if (!run.done) {
      run.advance(SLICE);
      grown = true;
      measureFits();
      if (run.done) captions();
    }
    if (playing) {
      if (before !== null) place = Math.min(1, place + (now - before) / 1000 / SECONDS * Number(find("speed").value));
      if (place >= 1) play(false);
    }
    if (stale || resized) drawBases();
    if (stale || resized || grown) drawTops();
    drawFrame();
    stale = false;
    before = playing ? now : null;
    if (playing || !run.done) request();
  }

  let requested = false;
  function request() {
    if (requested) return;
    requested = true;
    requestAnimationFrame((now) => { requested = false; tick(now); });
  }

  function play(on) {
    playing = on;
    if (on && place >= 1) place = 0;
    find("play").textContent = on ? "❚❚" : "▶";
    find("play").setAttribute("aria-label", on ? "Pause" : "Play");
    if (!on) remember();
    request();
  }

  function seek(to) {
    place = Math.min(1, Math.max(0, to));
    before = null;
    request();
  }

  let waiting = null;
  function remember() {  // browsers refuse more than a few hundred addresses a minute
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      try { history.replaceState(null, "", address()); } catch { /* an address that may not change */ }
    }, 300);
  }
  const address = () => Controls.toHash(controls.settings, place, chosenTheme);

  // --- Colours -----------------------------------------------------------------------------------------

  let chosenTheme = null;
  const darkWanted = window.matchMedia("(prefers-color-scheme: dark)");
  function paintTheme(theme = chosenTheme ?? (darkWanted.matches ? "dark" : "light")) {
    document.documentElement.dataset.theme = theme;
    find("theme").textContent = theme === "dark" ? "Light" : "Dark";
    Charts.forgetColours();
    stale = true;
    if (run) request();
  }

  // --- Events ------------------------------------------------------------------------------------------

  function follow(chart, use) {
    let held = false;
    const at = (event) => use(chart.xAt(event.clientX - chart.canvas.getBoundingClientRect().left));
    chart.canvas.addEventListener("pointerdown", (event) => {
      held = true;
      chart.canvas.setPointerCapture(event.pointerId);
      at(event);
    });
    chart.canvas.addEventListener("pointermove", (event) => held && at(event));
    for (const name of ["pointerup", "pointercancel"]) chart.canvas.addEventListener(name, () => { held = false; remember(); });
  }

  function listen() {
    for (const chart of timed) follow(chart, (x) => { play(false); seek(x / run.steps); });
    follow(charts.edge, (x) => controls.change("fraction", Math.round(100 * Math.min(1.25, Math.max(0.05, x))) / 100));
    find("play").addEventListener("click", () => play(!playing));
    find("scrub").addEventListener("input", (event) => { play(false); seek(event.target.value / 1000); });
    find("theme").addEventListener("click", () => {
      chosenTheme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      paintTheme();
      remember();
    });
    find("link").addEventListener("click", async () => {
      const link = location.href.replace(/#.*$/, "") + address();
      try { await navigator.clipboard.writeText(link); find("link").textContent = "Copied"; }
      catch { location.hash = address(); find("link").textContent = "Now in the address bar"; }
      setTimeout(() => { find("link").textContent = "Copy link"; }, 1800);
    });
    window.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, .bar")) return;
      const free = event.target.tagName !== "BUTTON";
      const moves = { ArrowLeft: place - 0.01, ArrowRight: place + 0.01, PageUp: place + 0.1, PageDown: place - 0.1, Home: 0, End: 1 };
      if (event.key === " " && free) play(!playing);
      else if (event.key in moves && (event.target.tagName === "CANVAS" || event.key.startsWith("Arrow"))) { play(false); seek(moves[event.key]); }
      else return;
      event.preventDefault();
    });
    window.addEventListener("resize", request);
    new ResizeObserver(request).observe(document.querySelector("main"));
    darkWanted.addEventListener("change", () => paintTheme());
    window.addEventListener("hashchange", () => {
      const next = Controls.fromHash(location.hash);
      controls.apply(next.settings);
      if (next.place !== null) seek(next.place);
    });
    const print = (on) => {
      printing = on;
      paintTheme(on ? "light" : undefined);
      run.advance();
      tick(performance.now());
    };
    window.addEventListener("beforeprint", () => print(true));
    window.addEventListener("afterprint", () => print(false));
  }

  const changed = (settings, note) => {
    find("note").textContent = note;
    start(settings);
    remember();
    request();
  };
  changed.replay = () => { place = 0; play(true); };

  const linked = Controls.fromHash(location.hash);
  chosenTheme = linked.theme;
  paintTheme();
  const controls = Controls.make(linked.settings, changed);
  controls.apply(linked.settings);
  listen();
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (linked.place !== null || still) seek(linked.place ?? 1);
  else play(true);

  return { tick, seek, get run() { return run; }, get place() { return place; }, controls };
})();
