"use strict";
// Both networks, without a page: with theory.js this also runs under Node, where tests compare it with the
// Python library. Numbers in comments are those of docs/theory.md.

const Model = (() => {
  const { edge, horizon } = Theory;

  // --- Random overlap of the original network (3.4) -------------------------------------------

  // mulberry32: a generator of 32 bits of state in integer arithmetic, the same on every machine.
  function generator(seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
      return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
    };
    const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
    return { uniform, normal, chi: (degrees) => chi(degrees, uniform, normal) };
  }

  // Root of a chi-squared number: its gamma variate by Marsaglia and Tsang's method.
  function chi(degrees, uniform, normal) {
    if (degrees <= 1) return degrees < 1 ? 0 : Math.abs(normal());
    const a = degrees / 2 - 1 / 3, c = 1 / Math.sqrt(9 * a);
    for (;;) {
      const x = normal(), v = (1 + c * x) ** 3;
      if (v > 0 && Math.log(uniform()) < x * x / 2 + a - a * v + a * Math.log(v)) return Math.sqrt(2 * a * v);
    }
  }

  // Left singular vectors of the target in the basis [V*, N] of 3.4: the 2r x r matrix [C^T; K], by rows.
  // A = Gamma R^-1 with R^T R = Gamma^T Gamma is uniform; Gamma has r normal rows and a Bartlett root below.
  function overlap(seed, d, r) {
    if (d < 2 * r) throw new RangeError(`d is ${d}, expected at least 2r = ${2 * r}`);
    const random = generator(seed), gamma = new Float64Array(2 * r * r);
    for (let i = 0; i < r * r; i++) gamma[i] = random.normal();
    for (let row = 0; row < r; row++)  // the transpose of Bartlett's lower triangle
      for (let column = row; column < r; column++)
        gamma[(r + row) * r + column] = row === column ? random.chi(d - r - row) : random.normal();
    return orthonormalize(gamma, 2 * r, r);
  }

  // Gram-Schmidt, twice, with positive diagonal: the Q of a QR factorization, in place.
  function orthonormalize(a, rows, columns) {
    for (let j = 0; j < columns; j++) {
      for (let pass = 0; pass < 2; pass++)
        for (let k = 0; k < j; k++) {
          let dot = 0;
          for (let i = 0; i < rows; i++) dot += a[i * columns + k] * a[i * columns + j];
          for (let i = 0; i < rows; i++) a[i * columns + j] -= dot * a[i * columns + k];
        }
      let norm = 0;
      for (let i = 0; i < rows; i++) norm = Math.hypot(norm, a[i * columns + j]);
      for (let i = 0; i < rows; i++) a[i * columns + j] /= norm;
    }
    return a;
  }

  // --- Small matrices, by rows in typed arrays --------------------------------------------------

  function multiply(out, a, b, n) {
    for (let i = 0; i < n; i++) {
      const row = i * n;
      for (let j = 0; j < n; j++) out[row + j] = 0;
      for (let k = 0; k < n; k++) {
        const factor = a[row + k], from = k * n;
        for (let j = 0; j < n; j++) out[row + j] += factor * b[from + j];
      }
    }
  }

  function transpose(out, a, n) {
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) out[j * n + i] = a[i * n + j];
  }

  // Singular value decomposition of an n x n matrix by one-sided Jacobi rotations; `left` and `right` hold
  // the vectors as rows, in the descending order of `values`.
  function svd(a, n, work) {
    const g = work.g, v = work.v;
    transpose(g, a, n);  // row j of g is column j of the matrix
    v.fill(0);
    for (let i = 0; i < n; i++) v[i * n + i] = 1;
    for (let sweep = 0, rotated = true; rotated && sweep < 40; sweep++) {
      rotated = false;
      for (let p = 0; p < n - 1; p++)
        for (let q = p + 1; q < n; q++) {
          let alpha = 0, beta = 0, dot = 0;
          for (let i = 0, x = p * n, y = q * n; i < n; i++, x++, y++) {
            alpha += g[x] * g[x]; beta += g[y] * g[y]; dot += g[x] * g[y];
          }
          if (Math.abs(dot) <= 1e-16 * Math.sqrt(alpha * beta) || dot === 0) continue;
          rotated = true;
          const zeta = (beta - alpha) / (2 * dot);
          const t = (zeta >= 0 ? 1 : -1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
          const c = 1 / Math.sqrt(1 + t * t), s = c * t;
          for (let i = 0, x = p * n, y = q * n; i < n; i++, x++, y++) {
            let low = g[x], high = g[y];
            g[x] = c * low - s * high; g[y] = s * low + c * high;
            low = v[x]; high = v[y];
            v[x] = c * low - s * high; v[y] = s * low + c * high;
          }
        }
    }
    const { values, left, right, order } = work;
    for (let j = 0; j < n; j++) {
      let square = 0;
      for (let i = 0; i < n; i++) square += g[j * n + i] ** 2;
      values[j] = Math.sqrt(square);
      order[j] = j;
    }
    order.sort((x, y) => values[y] - values[x] || x - y);
    const sorted = order.map((j) => values[j]);
    for (let place = 0; place < n; place++) {
      const j = order[place], norm = sorted[place] || 1;
      for (let i = 0; i < n; i++) {
        left[place * n + i] = g[j * n + i] / norm;
        right[place * n + i] = v[j * n + i];
      }
      values[place] = sorted[place];
    }
    return work;
  }

  function svdWork(n) {
    const matrix = () => new Float64Array(n * n);
    return {
      g: matrix(), v: matrix(), left: matrix(), right: matrix(),
      values: new Float64Array(n), order: Array.from({ length: n }, (_, i) => i),
    };
  }

  // --- The two networks under gradient descent ---------------------------------------------------

  // Relative learning rate of layer l of L: alpha for the outer layers.
  const relativeRate = (l, depth, alpha) => (l === 0 || l === depth - 1 ? alpha : 1);

  // One mode of the compressed network, exactly: an outer and a middle factor (2.1, 2.5).
  function modeStep(state, i, target, depth, rate, alpha) {
    const outer = state.outer[i], middle = state.middle[i];
    const outers = Math.min(2, depth);
    let product = outers === 1 ? outer : outer * outer;
    for (let l = 2; l < depth; l++) product *= middle;
    const push = rate * (target - product);
    let others = outers === 1 ? 1 : outer;  // product of the other factors, without a division
    for (let l = 2; l < depth; l++) others *= middle;
    state.outer[i] = outer + alpha * push * others;
    if (depth > 2) {
      others = outer * outer;
      for (let l = 3; l < depth; l++) others *= middle;
      state.middle[i] = middle + push * others;
    }
  }

  function modeValue(state, i, depth) {
    let product = depth === 1 ? state.outer[i] : state.outer[i] ** 2;
    for (let l = 2; l < depth; l++) product *= state.middle[i];
    return product;
  }

  // The compressed network: r-hat modes; those beyond the target's rank have target 0.
  function compressed({ depth, scale, targets, rank, rate, alpha }) {
    const state = { outer: new Float64Array(rank).fill(scale), middle: new Float64Array(rank).fill(scale) };
    const goal = Float64Array.from({ length: rank }, (_, i) => targets[i] ?? 0);
    let missed = 0;
    for (let i = rank; i < targets.length; i++) missed += targets[i] ** 2 / 2;
    return {
      step() { for (let i = 0; i < rank; i++) modeStep(state, i, goal[i], depth, rate, alpha); },
      observe(sigma) {
        let loss = missed;
        for (let i = 0; i < rank; i++) {
          sigma[i] = modeValue(state, i, depth);
          loss += (goal[i] - sigma[i]) ** 2 / 2;
        }
        return loss;
      },
    };
  }

  // The original network of width d, exactly: a core of width 2r and two scalars of bulk (3.2).
  function original({ depth, scale, targets, d, rate, alpha, frame }) {
    const r = targets.length, n = 2 * r, matrix = () => new Float64Array(n * n);
    const layers = Array.from({ length: depth }, () => {
      const layer = matrix();
      for (let i = 0; i < n; i++) layer[i * n + i] = scale;
      return layer;
    });
    const target = matrix();  // [C^T; K] diag(s) [I 0]
    for (let i = 0; i < n; i++) for (let j = 0; j < r; j++) target[i * n + j] = frame[i * r + j] * targets[j];
    const before = layers.map(matrix), pulled = layers.map(matrix);
    const flipped = matrix(), product = matrix(), work = svdWork(n), modes = new Float64Array(r * r);
    let outer = scale, middle = scale;

    function forward() {  // before[l] = W_l ... W_1
      before[0].set(layers[0]);
      for (let l = 1; l < depth; l++) multiply(before[l], layers[l], before[l - 1], n);
      return before[depth - 1];
    }

    function step() {
      const end = forward(), residual = pulled[depth - 1];
      for (let i = 0; i < n * n; i++) residual[i] = end[i] - target[i];
      for (let l = depth - 1; l > 0; l--) {  // pulled[l] = (W_L ... W_{l+1})^T residual
        transpose(flipped, layers[l], n);
        multiply(pulled[l - 1], flipped, pulled[l], n);
      }
      for (let l = 0; l < depth; l++) {
        const size = rate * relativeRate(l, depth, alpha), layer = layers[l];
        let gradient = pulled[l];
        if (l > 0) {
          transpose(flipped, before[l - 1], n);
          multiply(product, pulled[l], flipped, n);
          gradient = product;
        }
        for (let i = 0; i < n * n; i++) layer[i] -= size * gradient[i];
      }
      const outers = Math.min(2, depth), bulk = outer ** outers * middle ** (depth - outers);
      const nextOuter = outer - rate * alpha * bulk * outer ** (outers - 1) * middle ** (depth - outers);
      if (depth > 2) middle -= rate * bulk * outer ** 2 * middle ** (depth - 3);
      outer = nextOuter;
    }

    // Loss, leading singular values, alignments with the target's vectors, bulk, and U*^T W V*.
    function observe(sigma, left, right) {
      const end = forward(), parts = svd(end, n, work);
      const bulk = outer ** Math.min(2, depth) * middle ** Math.max(0, depth - 2);
      let loss = (d - n) * bulk * bulk / 2;
      for (let i = 0; i < n * n; i++) loss += (end[i] - target[i]) ** 2 / 2;
      const leftOverlap = (j, i) => {  // |<u_j, u*_i>|
        let dot = 0;
        for (let k = 0; k < n; k++) dot += parts.left[j * n + k] * frame[k * r + i];
        return Math.abs(dot);
      };
      const rightOverlap = (j, i) => Math.abs(parts.right[j * n + i]);
      // Component i is singular value i, but where a two-cycle carries one past another: there it is the one
      // whose vectors are plainly those of the target.
      const place = Array.from({ length: r }, (_, i) => i);
      for (let i = 0; i < r; i++)
        for (let j = 0; j < r; j++)
          if (place[i] !== j && leftOverlap(j, i) * rightOverlap(j, i) > 0.9) {
            place[place.indexOf(j)] = place[i];
            place[i] = j;
          }
      for (let i = 0; i < r; i++) {
        sigma[i] = parts.values[place[i]];
        left[i] = leftOverlap(place[i], i);
        right[i] = rightOverlap(place[i], i);
      }
      for (let i = 0; i < r; i++)
        for (let j = 0; j < r; j++) {
          let sum = 0;
          for (let k = 0; k < n; k++) sum += frame[k * r + i] * end[k * n + j];
          modes[i * r + j] = sum;
        }
      return { loss, bulk, modes };
    }
    return { step, observe };
  }

  // --- A run of both, recorded, in slices of time ------------------------------------------------

  class Run {
    constructor(settings, { records = 420 } = {}) {
      const s = this.settings = { ...settings };
      s.edge = edge(s.targets[0], s.depth, s.alpha);
      s.rate = s.fraction * s.edge;
      s.frame = overlap(s.seed, s.d, s.targets.length);
      this.steps = settings.steps ?? horizon(s);
      this.stride = Math.max(1, Math.ceil(this.steps / records));
      if (this.stride > 1 && this.stride % 2 === 0) this.stride++;  // an even one would hide a two-cycle
      this.size = Math.floor(this.steps / this.stride) + 1;
      this.steps = (this.size - 1) * this.stride;
      const r = s.targets.length, table = (width) => new Float64Array(this.size * width).fill(NaN);
      this.compressed = { network: compressed(s), done: 0, sigma: table(s.rank), loss: table(1) };
      this.original = {
        network: original(s), done: 0, sigma: table(r), left: table(r), right: table(r),
        loss: table(1), bulk: table(1), modes: table(r * r),
      };
      this.divergedAt = null;
      while (this.compressed.done < this.size) this._recordCompressed();
    }

    get done() { return this.original.done === this.size || this.divergedAt !== null; }

    _recordCompressed() {
      const { network, sigma, loss } = this.compressed, width = this.settings.rank;
      const row = this.compressed.done++;
      if (row > 0) for (let k = 0; k < this.stride; k++) network.step();
      loss[row] = network.observe(sigma.subarray(row * width, (row + 1) * width));
    }

    _recordOriginal() {
      const o = this.original, r = this.settings.targets.length, row = o.done;
      if (row > 0) for (let k = 0; k < this.stride; k++) o.network.step();
      const part = (array) => array.subarray(row * r, (row + 1) * r);
      const seen = o.network.observe(part(o.sigma), part(o.left), part(o.right));
      if (!(seen.loss < 1e12)) { this.divergedAt = row * this.stride; return; }
      o.loss[row] = seen.loss;
      o.bulk[row] = seen.bulk;
      o.modes.set(seen.modes, row * r * r);
      o.done++;
    }

    // Goes on with the original network for so many milliseconds; returns whether all is done.
    advance(milliseconds = Infinity) {
      const end = Date.now() + milliseconds;
      while (!this.done && Date.now() < end) this._recordOriginal();
      return this.done;
    }

    // First recorded iteration at which the compressed network's error is the larger one (1.5); null if none is.
    behind() {
      const { compressed, original } = this, rounding = 1e-13 * compressed.loss[0];
      for (let row = 0; row < original.done; row++)
        if (compressed.loss[row] > original.loss[row] * (1 + 1e-9) + rounding) return row * this.stride;
      return null;
    }

    // Iterations at which component i first reaches the fraction `level` of its target, between records
    // linearly; infinite if it does not.
    fitted(which, i, level = 0.95) {
      const { sigma, done } = this[which], width = sigma.length / this.size;
      if (i >= width) return Infinity;
      const goal = level * this.settings.targets[i];
      for (let row = 0; row < done; row++) {
        const high = sigma[row * width + i];
        if (!(high >= goal)) continue;
        if (row === 0) return 0;
        const low = sigma[(row - 1) * width + i];
        return (row - 1 + (high > low ? (goal - low) / (high - low) : 0)) * this.stride;
      }
      return Infinity;
    }
  }

  // --- Every learning rate ------------------------------------------------------------------------

  // Values that the top mode (target 1) visits in the long run, for fractions of the edge: [fraction, value] pairs.
  function longRun(depth, alpha, fractions, { rest = 600, keep = 48 } = {}) {
    const points = new Float32Array(2 * keep * fractions.length);
    let at = 0;
    for (const fraction of fractions) {
      const rate = fraction * edge(1, depth, alpha), middle = (0.8 / (depth > 2 ? alpha : 1)) ** (1 / depth);
      const state = { outer: [depth > 2 ? Math.sqrt(alpha) * middle : middle], middle: [middle] };
      for (let k = 0; k < rest; k++) modeStep(state, 0, 1, depth, rate, alpha);
      for (let k = 0; k < keep; k++) {
        modeStep(state, 0, 1, depth, rate, alpha);
        points[at++] = fraction;
        points[at++] = modeValue(state, 0, depth);
      }
    }
    return points;
  }

  return { ...Theory, Run, generator, longRun, overlap, svd, svdWork };
})();
