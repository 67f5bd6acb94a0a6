"use strict";
// Charts on canvases, each of three layers: axes and predictions (drawn when the settings change), what was
// measured (drawn when there is more of it), and the present moment. A frame only copies the first two.

const Charts = (() => {
  const known = new Map();  // asking for a style takes longer than drawing a line
  function colour(name) {
    if (!known.has(name)) known.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
    return known.get(name);
  }
  const SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉";
  const subscript = (n) => String(n).replace(/\d/g, (digit) => SUBSCRIPTS[digit]);
  const superscript = (n) => String(n).replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]);

  // Round numbers that divide a range into at most `most` parts.
  function ticks(low, high, most) {
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
    const all = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) all.push(i * step);
    return all;
  }

  function decades(low, high) {
    const from = Math.ceil(Math.log10(low) - 1e-9), to = Math.floor(Math.log10(high) + 1e-9), all = [];
    const every = Math.max(1, Math.ceil((to - from) / 5));
    for (let e = from; e <= to; e += every) all.push(10 ** e);
    return all;
  }

  function number(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-3) {
      const e = Math.floor(Math.log10(size) + 1e-9), m = value / 10 ** e;
      return (Math.abs(m - 1) < 1e-6 ? "" : `${+m.toPrecision(3)}·`) + `10${superscript(e)}`;
    }
    return size >= 1000 ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f") : String(+value.toPrecision(3));
  }

  class Chart {
    constructor(section, { xLabel, yLabel, logY = false }) {
      this.section = section;
      this.canvas = section.querySelector("canvas");
      this.base = document.createElement("canvas");
      this.top = document.createElement("canvas");
      Object.assign(this, { xLabel, yLabel, logY, x: [0, 1], y: [0, 1], margin: { left: 46, right: 34, top: 10, bottom: 34 } });
    }

    // Fits the bitmaps to the page; true if that changed anything.
    resize() {
      const ratio = Math.min(3, window.devicePixelRatio || 1);
      const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
      if (this.width === width && this.height === height && this.ratio === ratio) return false;
      Object.assign(this, { width, height, ratio });
      for (const canvas of [this.canvas, this.base, this.top]) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      return true;
    }

    context(canvas) {
      const context = canvas.getContext("2d");
      context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      return context;
    }

    px(x) { return this.margin.left + (x - this.x[0]) / (this.x[1] - this.x[0]) * (this.width - this.margin.left - this.margin.right); }
    py(y) {
      const { top, bottom } = this.margin, [low, high] = this.logY ? this.y.map(Math.log) : this.y;
      const at = this.logY ? Math.log(Math.max(y, 1e-300)) : y;
      return top + (1 - (at - low) / (high - low)) * (this.height - top - bottom);
    }
    xAt(px) { return this.x[0] + (px - this.margin.left) / (this.width - this.margin.left - this.margin.right) * (this.x[1] - this.x[0]); }

    // The base layer: axes, then what `paint(context)` adds inside them.
    drawBase(paint) {
      const c = this.context(this.base), { left, right, top, bottom } = this.margin;
      c.clearRect(0, 0, this.width, this.height);
      c.font = "12px system-ui, sans-serif";
      c.lineWidth = 1;
      c.strokeStyle = colour("grid");
      c.fillStyle = colour("soft");
      c.textBaseline = "middle";
      c.textAlign = "right";
      for (const value of this.logY ? decades(...this.y) : ticks(...this.y, 5)) {
        const y = Math.round(this.py(value)) + 0.5;
        this.line(c, [[left, y], [this.width - right, y]]);
        c.fillText(number(value), left - 6, y);
      }
      c.textBaseline = "top";
      c.textAlign = "center";
      for (const value of ticks(...this.x, Math.max(3, Math.floor(this.width / 75)))) {
        const x = Math.round(this.px(value)) + 0.5;
        this.line(c, [[x, top], [x, this.height - bottom]]);
        c.fillText(number(value), x, this.height - bottom + 5);
      }
      c.textAlign = "right";
      c.textBaseline = "bottom";
      c.fillText(this.xLabel, this.width - right, this.height - 1);
      c.strokeStyle = colour("line");
      c.strokeRect(left + 0.5, top + 0.5, this.width - left - right - 1, this.height - top - bottom - 1);
      this.inside(c, () => paint(c));
    }

    drawTop(paint) {
      const c = this.context(this.top);
      c.clearRect(0, 0, this.width, this.height);
      this.inside(c, () => paint(c));
    }

    inside(c, paint, until = this.width) {
      const { left, right, top, bottom } = this.margin;
      c.save();
      c.beginPath();
      c.rect(left, top - 4, Math.max(0, Math.min(until, this.width - right) - left), this.height - top - bottom + 8);
      c.clip();
      paint();
      c.restore();
    }

    // Copies the layers up to the cursor, then lets `paint(context)` mark the present.
    frame(cursor, paint) {
      const c = this.context(this.canvas), whole = [0, 0, this.width, this.height];
      c.clearRect(...whole);
      c.drawImage(this.base, ...whole);
      if (cursor === null) c.drawImage(this.top, ...whole);
      else {
        this.inside(c, () => c.drawImage(this.top, ...whole), this.px(cursor));
        c.strokeStyle = colour("soft");
        c.lineWidth = 1;
        const x = this.px(cursor);
        this.line(c, [[x, this.margin.top], [x, this.height - this.margin.bottom]]);
      }
      c.font = "600 12px system-ui, sans-serif";
      paint(c);
    }

    line(c, points) {
      c.beginPath();
      for (const [x, y] of points) c.lineTo(x, y);
      c.stroke();
    }

    // A curve of values by index; missing ones break it.
    curve(c, count, x, y, { stroke, width, dash = [], alpha = 1 }) {
      c.save();
      Object.assign(c, { strokeStyle: stroke, lineWidth: width, globalAlpha: alpha, lineJoin: "round", lineCap: dash.length ? "round" : "butt" });
      c.setLineDash(dash);
      c.beginPath();
      let pen = false;
      for (let i = 0; i < count; i++) {
        const value = y(i);
        if (!Number.isFinite(value)) { pen = false; continue; }
        const px = this.px(x(i)), py = Math.max(-1e4, Math.min(1e4, this.py(value)));
        if (pen) c.lineTo(px, py); else c.moveTo(px, py);
        pen = true;
      }
      c.stroke();
      c.restore();
    }

    dot(c, x, y, { fill, radius = 4, open = false }) {
      c.beginPath();
      c.arc(this.px(x), this.py(y), radius, 0, 2 * Math.PI);
      c.fillStyle = open ? colour("card") : fill;
      c.fill();
      c.lineWidth = open ? 2 : 1;
      c.strokeStyle = open ? fill : colour("card");
      c.stroke();
    }
  }

  // Names at the right end of curves, moved apart where they would touch.
  function labels(c, chart, entries) {
    const sorted = entries.map((entry) => ({ ...entry, at: chart.py(entry.y) })).sort((a, b) => a.at - b.at);
    for (let i = 1; i < sorted.length; i++) sorted[i].at = Math.max(sorted[i].at, sorted[i - 1].at + 13);
    c.textAlign = "left";
    c.textBaseline = "middle";
    for (const { text, at, fill } of sorted) {
      c.fillStyle = fill;
      c.fillText(text, chart.width - chart.margin.right + 5, at);
    }
  }

  // A matrix as a picture: negative, zero and positive in three colours.
  function picture(canvas, side, value, limit) {
    const parse = (name) => colour(name).match(/[\da-f]{2}/gi).map((part) => parseInt(part, 16));
    const low = parse("low"), middle = parse("middle"), high = parse("high");
    const c = canvas.getContext("2d"), image = c.createImageData(side, side);
    for (let i = 0; i < side * side; i++) {
      const x = Math.max(-1, Math.min(1, value[i] / limit)), end = x < 0 ? low : high, share = Math.abs(x) ** 0.8;
      for (let k = 0; k < 3; k++) image.data[4 * i + k] = middle[k] + share * (end[k] - middle[k]);
      image.data[4 * i + 3] = 255;
    }
    c.putImageData(image, 0, 0);
  }

  return { Chart, colour, forgetColours: () => known.clear(), labels, number, picture, subscript, ticks };
})();
