"use strict";
// The closed forms: what is known before anything runs. Numbers in comments are those of docs/theory.md.

const Theory = (() => {
  // Largest stable learning rate (5.1, 5.2).
  function edge(top, depth, alpha) {
    return 2 / (depth * top ** (2 - 2 / depth) * alpha ** Math.min(1, 2 / depth));
  }

  // G(y) of 2.2: time, in units of target^(2/L - 2), until x = y target^(1/L), up to a constant.
  function elementaryTime(y, depth) {
    let sum = 0;
    for (let k = 0; k < depth; k++) {
      const angle = 2 * Math.PI * k / depth, re = 1 - y * Math.cos(angle), im = y * Math.sin(angle);
      const modulus = k === 0 ? Math.log1p(-y) : Math.log(Math.hypot(re, im));
      sum -= Math.cos(2 * angle) * modulus - Math.sin(2 * angle) * Math.atan2(im, re);
    }
    return sum / depth - y ** (2 - depth) / (depth - 2);
  }

  // Squares of the outer and the middle factor of a singular value under discrepant rates (2.5), by Newton's
  // method for the logarithm of the one that could vanish, in units of scale^2.
  function squaredFactors(logSigma, depth, scale, alpha) {
    const slow = alpha < 1, a = slow ? alpha : 1 / alpha;
    const p = slow ? depth / 2 - 1 : 1, q = depth / 2 - p, goal = logSigma - depth * Math.log(scale);
    let u = 2 / depth * goal;
    for (let turn = 0; turn < 12; turn++) {
      const other = 1 - a + a * Math.exp(u);
      const move = (p * u + q * Math.log(other) - goal) / (p + q * a * Math.exp(u) / other);
      u -= move;
      if (Math.abs(move) < 1e-15 * (1 + Math.abs(u))) break;
    }
    const vanishing = scale ** 2 * Math.exp(u), other = scale ** 2 * (1 - a + a * Math.exp(u));
    return slow ? [other, vanishing] : [vanishing, other];
  }

  // Nodes and weights of Gauss-Legendre quadrature on [0, 1].
  const [NODES, WEIGHTS] = ((count) => {  // 12 on panels of half a unit: to rounding
    const nodes = [], weights = [];
    for (let i = 0; i < count; i++) {
      let x = Math.cos(Math.PI * (i + 0.75) / (count + 0.5)), slope = 0;
      for (let turn = 0; turn < 100; turn++) {
        let now = 1, last = 0;
        for (let k = 1; k <= count; k++) [now, last] = [((2 * k - 1) * x * now - (k - 1) * last) / k, now];
        slope = count * (x * now - last) / (x * x - 1);
        const move = now / slope;
        x -= move;
        if (Math.abs(move) < 1e-16) break;
      }
      nodes.push((1 + x) / 2);
      weights.push(1 / ((1 - x * x) * slope * slope));
    }
    return [nodes, weights];
  })(12);

  // How a singular value moves under gradient flow: `time(sigma)` and its inverse `value(t)` (2.2, 2.3, 2.5).
  // Levels are to lie between start and target. The logit w = ln(sigma / (target - sigma)) is the variable of Newton's method.
  function flow(target, { depth, scale, alpha }) {
    const start = scale ** depth;
    if (depth === 1) {
      return {
        time: (sigma) => Math.log((start - target) / (sigma - target)) / alpha,
        value: (t) => target + (start - target) * Math.exp(-alpha * t),
      };
    }
    if (target === 0) {
      const p = 2 * depth - 2;
      const known = depth === 2 ? alpha : alpha === 1 ? 1 : NaN;  // no elementary form for other alpha
      return { time: () => Infinity, value: (t) => (scale ** -p + p * known * t) ** (-depth / p) };
    }
    if (depth === 2) {
      return {
        time: (sigma) => Math.log(sigma * (target - start) / (start * (target - sigma))) / (2 * target * alpha),
        value(t) {
          const s = 2 * target * alpha * t;
          return start / (Math.exp(-s) - start / target * Math.expm1(-s));
        },
      };
    }
    if (start >= target) throw new RangeError("the start is above the target");
    const sigmaOf = (w) => target / (1 + Math.exp(-w));
    const place = (sigma) => Math.log(sigma / (target - sigma));
    const speed = alpha === 1
      ? (w) => depth * target * (sigmaOf(w)) ** (1 - 2 / depth)
      : (w) => {
        const sigma = sigmaOf(w), [outer, middle] = squaredFactors(Math.log(sigma), depth, scale, alpha);
        return target * sigma * (2 * alpha / outer + (depth - 2) / middle);
      };
    const origin = place(start);
    const clock = alpha === 1 ? elementaryClock(target, depth, start, sigmaOf) : panelClock(speed, origin);
    function value(t) {
      if (t <= 0) return start;
      // Time is an increasing, concave function of w: from the left of the root Newton's method climbs to it.
      let w = clock.guess(t);
      for (let turn = 0; turn < 200; turn++) {
        const move = Math.max(origin - w, Math.min((t - clock.time(w)) * speed(w), 4));
        w += move;
        if (Math.abs(move) < 1e-8 || w > 40) break;  // it converges quadratically: what is left is its square
      }
      return sigmaOf(w);
    }
    return { time: (sigma) => clock.time(place(sigma)), value };
  }

  function elementaryClock(target, depth, start, sigmaOf) {
    const unit = target ** (2 / depth - 2), root = (sigma) => (sigma / target) ** (1 / depth);
    const zero = elementaryTime(root(start), depth), origin = Math.log(start / (target - start));
    // The last line of G is its asymptote w/L + c: c read off where rounding does not matter yet.
    const far = 12, atFar = elementaryTime(root(sigmaOf(far)), depth) - zero;
    return {
      time: (w) => unit * (w <= far ? elementaryTime(root(sigmaOf(w)), depth) - zero
        : atFar + beyond(w, depth) - beyond(far, depth)),
      guess(t) {  // the early asymptote while waiting, the late one afterwards
        const early = ((depth - 2) * Math.max(0, -(t / unit + zero)));
        const wait = early > 0 ? Math.log(early ** (-depth / (depth - 2))) : Infinity;
        const late = far + depth * (t / unit - atFar);
        return Math.max(origin, Math.min(wait, late));
      },
    };
  }

  // Time near the target: the integral of q^(2/L - 1) / L over w, where q = 1 - e^-w + ... .
  function beyond(w, depth) {
    const z = Math.exp(-w);
    return w / depth + (1 - 2 / depth) * -z / depth;
  }

  // Time as a function of w by quadrature: whole panels are summed once.
  function panelClock(speed, origin, width = 0.5) {
    const ends = [0];
    const piece = (from, length) => {
      let sum = 0;
      for (let i = 0; i < NODES.length; i++) sum += WEIGHTS[i] / speed(from + NODES[i] * length);
      return sum * length;
    };
    const upTo = (panel) => {
      while (ends.length <= panel) ends.push(ends.at(-1) + piece(origin + (ends.length - 1) * width, width));
      return ends[panel];
    };
    return {
      time(w) {
        const panel = Math.max(0, Math.floor((w - origin) / width)), from = origin + panel * width;
        return upTo(panel) + (w > from ? piece(from, w - from) : 0);
      },
      guess(t) {
        while (ends.at(-1) < t && origin + ends.length * width < 40) upTo(ends.length);
        let low = 0, high = ends.length - 1;
        while (high - low > 1) {
          const half = (low + high) >> 1;
          if (ends[half] <= t) low = half; else high = half;
        }
        const inside = ends.length > low + 1 ? (t - ends[low]) / (ends[low + 1] - ends[low]) : 0;
        return origin + (low + Math.min(1, inside)) * width;
      },
    };
  }

  // Time from which the loss of fitted component i no longer moves: a fraction of its target is reached.
  const fitTime = (target, settings, level = 0.95) =>
    scaleAbove(target, settings, level) ? 0 : flow(target, settings).time(level * target);
  const scaleAbove = (target, { depth, scale }, level) => scale ** depth >= level * target;

  // kappa_L of 3.7: how many times longer the original network waits; 1 at depth 1 and 2.
  function escapeRatio(depth) {
    if (depth <= 2) return 1;
    const odd = depth % 2 === 1;
    const miss = (k) => {
      let sum = odd ? Math.log((k + 1) / (k - 1)) / 2 : -Math.log(k * k - 1) / 2;
      for (let j = odd ? 1 : 2; j <= depth - 2; j += 2) sum -= k ** j / j;
      return sum;
    };
    let low = 1 + 1e-12, high = 2;  // decreasing
    for (let turn = 0; turn < 80; turn++) {
      const half = (low + high) / 2;
      if (miss(half) > 0) low = half; else high = half;
    }
    return ((low + high) / 2) ** (depth - 2);
  }

  // The two singular values between which a mode oscillates beyond its edge (5.3), by halving z.
  function twoCycle(target, depth, rate) {
    const lower = (z) => target * (1 + z ** (depth - 1)) / (1 + z ** (2 * depth - 1));
    let below = 1, above = 2 + rate * target ** (2 - 2 / depth);
    for (let turn = 0; turn < 110; turn++) {
      const z = (below + above) / 2, value = lower(z);
      if (rate * (target - value) * value ** (1 - 2 / depth) > z - 1) below = z; else above = z;
    }
    const z = (below + above) / 2;
    return [lower(z), lower(z) * z ** depth];
  }

  // Plateaus of the loss once 0, 1, ... r components are fitted (1.6).
  const plateaus = (targets) => targets.map((_, i) => half(targets.slice(i))).concat(0);
  const half = (values) => values.reduce((sum, s) => sum + s * s / 2, 0);

  // Iterations until also the original network has its last component, with some to spare.
  function horizon(settings) {
    const { depth, targets, alpha } = settings, last = targets.at(-1);
    const rate = settings.rate ?? settings.fraction * edge(targets[0], depth, alpha);
    const decay = depth * last ** (2 - 2 / depth) * alpha ** Math.min(1, 2 / depth);
    const wait = escapeRatio(depth) * fitTime(last, settings) + (depth === 2 ? Math.LN2 / (2 * last * alpha) : 0);
    return Math.max(60, Math.ceil((1.12 * wait + 2 / decay) / rate));
  }

  // The settings with the smallest scale, not below the one given, whose run has at most so many iterations.
  function feasible(settings, most) {
    if (horizon(settings) <= most) return settings;
    let low = Math.log(settings.scale), high = Math.log(0.5);
    for (let turn = 0; turn < 50; turn++) {
      const middle = (low + high) / 2;
      if (horizon({ ...settings, scale: Math.exp(middle) }) > most) low = middle; else high = middle;
    }
    return { ...settings, scale: Math.exp(high) };
  }

  return { edge, escapeRatio, feasible, fitTime, flow, horizon, plateaus, twoCycle };
})();
