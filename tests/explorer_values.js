"use strict";
// Everything that the explorer shows for settings S: evaluated under Node and in a browser.
function evaluate(S) {
  const run = new Model.Run(S), list = (array) => Array.from(array);
  run.advance();
  const { rate, edge, frame } = run.settings, rising = S.targets.map((s) => S.scale ** S.depth < 0.9 * s);
  return {
    rate, edge, frame: list(frame), steps: run.steps, stride: run.stride, size: run.size,
    compressed: { sigma: list(run.compressed.sigma), loss: list(run.compressed.loss) },
    original: Object.fromEntries(
      ["sigma", "left", "right", "loss", "bulk", "modes"].map((name) => [name, list(run.original[name])]),
    ),
    fitted: S.targets.map((_, i) => [run.fitted("compressed", i), run.fitted("original", i)].map(String)),
    fitTimes: S.targets.map((s) => Model.fitTime(s, S)),
    flow: S.targets.map((s, i) => {
      const mode = Model.flow(s, S), levels = [0.4, 0.5, 0.95, 0.999];
      const times = [0, 0.3, 0.8, 1, 1.2, 2].map((share) => share * run.steps * rate);
      const reached = levels.map((level) => mode.time(level * s));
      return rising[i] ? { times, values: times.map(mode.value), levels, reached } : null;
    }),
    cycle: S.depth > 1 ? Model.twoCycle(S.targets[0], S.depth, rate) : null,
    plateaus: Model.plateaus(S.targets),
  };
}
