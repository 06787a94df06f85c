"use strict";
// Draws the charts of a report as SVG, from the JSON in the page. All text is set as textContent.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const DASHES = ["", "6 3", "2 2", "8 3 2 3", "12 4", "4 4"];
  const LIMIT = 1e150;
  let counter = 0, isPrinting = false;

  function make(parent, name, attributes = {}, text = null) {
    const node = name.startsWith("svg:")
      ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    if (text !== null) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  }

  function format(value) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e7 || size < 1e-4)) return value.toExponential(2);
    return value.toLocaleString("en-US", { maximumSignificantDigits: size >= 1e4 ? 7 : 4 });
  }

  // Ticks

  function linearTicks(low, high, count) {
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough * 0.999);
    const first = Math.ceil(low / step - 1e-9), ticks = [];
    // Large numbers have few digits after the point, so that first + k may not change.
    for (let k = 0; k < 50 && (first + k) * step <= high + step * 1e-9; k++) {
      ticks.push(Number(((first + k) * step).toPrecision(12)));
    }
    return [...new Set(ticks)];
  }

  function logTicks(low, high, count) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const stride = Math.max(1, Math.ceil((last - first) / Math.max(count, 2)));
    let best = [];
    for (const [step, factors] of [[stride, [1]], [1, [1]], [1, [1, 3]], [1, [1, 2, 5]]]) {
      const ticks = [];
      for (let d = first; d <= last; d += step) {
        ticks.push(...factors.map((f) => Number(`${f}e${d}`)).filter((t) => t >= low && t <= high));
      }
      if (ticks.length >= 3) return ticks;
      if (ticks.length > best.length) best = ticks;
    }
    const linear = linearTicks(low, high, count);
    return best.length >= 2 && high / low > 10 ? best : linear;
  }

  const MINUTE = 60e3, HOUR = 3600e3, DAY = 86400e3;
  const TIME_STEPS = [1e3, 10e3, 30e3, MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 3 * HOUR,
    6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY];

  function timeTicks(low, high, count) {
    const rough = (high - low) / Math.max(count, 1);
    const step = TIME_STEPS.find((s) => s >= rough);
    const ticks = [];
    if (step) {
      for (let t = Math.ceil(low / step) * step; t <= high && ticks.length < 50; t += step) ticks.push(t);
      return ticks;
    }
    const months = [1, 3, 6, 12, 24, 60, 120, 600].find((m) => m * 30 * DAY >= rough) || 1200;
    const start = new Date(low);
    let month = Math.ceil((start.getUTCFullYear() * 12 + start.getUTCMonth()) / months) * months;
    for (; ticks.length < 100; month += months) {
      const t = Date.UTC(Math.floor(month / 12), month % 12);
      if (t > high) return ticks;
      if (t >= low) ticks.push(t);
    }
    return ticks;
  }

  function formatTime(value, span = 0) {
    if (Number.isNaN(new Date(value).getTime())) return String(value);
    const text = new Date(value).toISOString();
    if (span > 60 * DAY || (span === 0 && text.endsWith("T00:00:00.000Z"))) return text.slice(0, 10);
    if (span > 2 * DAY) return text.slice(5, 16).replace("T", " ").replace(" 00:00", "");
    return span ? text.slice(5, 16).replace("T", " ") : text.slice(0, 19).replace("T", " ");
  }

  // Puts a tooltip beside x, in pixels of the canvas, on the side that has more room.
  function placeTip(tip, root, canvas, x, top) {
    const isRight = x > canvas.clientWidth / 2;
    tip.style.left = isRight ? "" : `${x + 12}px`;
    tip.style.right = isRight ? `${root.clientWidth - x + 12}px` : "";
    tip.style.top = `${canvas.offsetTop + top}px`;
  }

  // Line charts

  function lineChart(root, spec) {
    const id = `chart${counter++}`;
    const isTime = spec.x.type === "time";
    const many = spec.series.length > 8;
    const shown = spec.series.map(() => true);
    let log = Boolean(spec.y.log), view = null, cursor = null, scales = null, chosen = null;
    const tools = make(root, "div", { class: "tools" });
    const canvas = make(root, "svg:svg", {
      tabindex: 0, role: "img",
      "aria-label": `${spec.label}. Arrow keys read values, plus and minus zoom, Escape resets.`,
    });
    const tip = make(root, "div", { class: "tip", hidden: "" });
    const live = make(root, "div", { class: "hidden", "aria-live": "polite" });
    const reset = make(tools, "button", { type: "button", class: "reset print-hidden" }, "Reset zoom");
    reset.addEventListener("click", () => { setView(null); canvas.focus(); });
    if (spec.y.log !== undefined) {
      const button = make(tools, "button", { type: "button", class: "print-hidden" });
      const label = () => { button.textContent = log ? "Use linear axis" : "Use log axis"; };
      button.addEventListener("click", () => { log = !log; label(); draw(); });
      label();
    }
    if (!many && spec.series.length > 1) {
      spec.series.forEach((series, index) => {
        const button = make(tools, "button", { type: "button", "aria-pressed": "true" });
        key(button, series);
        button.append(series.name);
        button.addEventListener("click", () => {
          shown[index] = !shown[index];
          button.setAttribute("aria-pressed", String(shown[index]));
          draw();
        });
      });
    }

    function key(parent, series) {
      const svg = make(parent, "svg:svg", { class: "key", viewBox: "0 0 22 10", "aria-hidden": "true" });
      if (series.points) make(svg, "svg:circle", { cx: 11, cy: 5, r: 3.5, class: `f${series.color % 8}` });
      else make(svg, "svg:line", { x1: 0, x2: 22, y1: 5, y2: 5, class: `series k${series.color % 8}`,
        "stroke-dasharray": DASHES[series.dash || 0] });
    }

    // Sums and ratios of values beyond LIMIT are not finite; such values are not drawn.
    function visible(x) { return Math.abs(x) < LIMIT && (view === null || (x >= view[0] && x <= view[1])); }
    function usable(y) { return y !== null && Math.abs(y) < LIMIT && (!log || y > 1 / LIMIT); }

    function ranges() {
      let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
      const add = (x, y) => {
        if (x === null || !usable(y) || !visible(x)) return;
        x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y);
      };
      spec.series.forEach((s, k) => { if (shown[k]) s.x.forEach((x, i) => add(x, s.y[i])); });
      for (const b of spec.bands || []) b.x.forEach((x, i) => { add(x, b.low[i]); add(x, b.high[i]); });
      if (x0 > x1) { [x0, x1, y0, y1] = [0, 1, log ? 0.1 : 0, 1]; }
      for (const mark of spec.marks || []) {
        if (mark.axis === "y" && usable(mark.value)) { y0 = Math.min(y0, mark.value); y1 = Math.max(y1, mark.value); }
      }
      if (view !== null) [x0, x1] = view;
      if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
      if (log) {
        if (y0 === y1) { y0 /= 2; y1 *= 2; }
        const pad = (y1 / y0) ** 0.05;
        return [x0, x1, y0 / pad, y1 * pad];
      }
      const pad = y0 === y1 ? Math.abs(y0) * 0.1 || 0.5 : (y1 - y0) * 0.06;
      return [x0, x1, y0 - pad, y1 + pad];
    }

    function draw() {
      const width = Math.max(isPrinting ? Math.min(root.clientWidth, root.closest(".grid") ? 360 : 700) : root.clientWidth, 240);
      const height = Math.round(Math.min(Math.max(width * 0.55, 210), spec.height || 300));
      const [x0, x1, y0, y1] = ranges();
      const yTicks = (log ? logTicks : linearTicks)(y0, y1, height / 55);
      const yTexts = yTicks.map(format);
      const left = 30 + 6.7 * Math.max(2, ...yTexts.map((text) => text.length));
      const box = { left, right: width - 14, top: 12, bottom: height - 42 };
      const toY = log ? Math.log10 : (v) => v;
      const sx = (x) => box.left + ((x - x0) / (x1 - x0)) * (box.right - box.left);
      const sy = (y) => box.bottom - ((toY(y) - toY(y0)) / (toY(y1) - toY(y0))) * (box.bottom - box.top);
      scales = { sx, sy, box, x0, x1, width };
      canvas.replaceChildren();
      canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const axis = make(canvas, "svg:g", { class: "axis" });
      yTicks.forEach((tick, k) => {
        make(axis, "svg:line", { class: "gridline", x1: box.left, x2: box.right, y1: sy(tick), y2: sy(tick) });
        make(axis, "svg:text", { x: box.left - 6, y: sy(tick) + 4, "text-anchor": "end" }, yTexts[k]);
      });
      const room = (box.right - box.left) / (isTime ? 95 : 80);
      const xTicks = isTime ? timeTicks(x0, x1, room) : linearTicks(x0, x1, room)
        .filter((tick) => !spec.x.integers || Number.isInteger(tick));
      for (const tick of xTicks) {
        make(axis, "svg:line", { x1: sx(tick), x2: sx(tick), y1: box.bottom, y2: box.bottom + 4 });
        const text = isTime ? formatTime(tick, x1 - x0) : format(tick);
        const half = text.length * 3.4;
        const x = Math.min(Math.max(sx(tick), half), width - half);
        make(axis, "svg:text", { x, y: box.bottom + 18, "text-anchor": "middle" }, text);
      }
      make(axis, "svg:path", { d: `M${box.left},${box.top}V${box.bottom}H${box.right}` });
      make(canvas, "svg:text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, spec.x.label);
      const middle = (box.top + box.bottom) / 2;
      const yLabel = make(canvas, "svg:text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, spec.y.label);
      if (yLabel.getComputedTextLength() > height - 8) {
        yLabel.setAttribute("y", height / 2);
        yLabel.setAttribute("transform", `rotate(-90 12 ${height / 2})`);
        yLabel.setAttribute("textLength", height - 8);
        yLabel.setAttribute("lengthAdjust", "spacingAndGlyphs");
      }
      const clip = make(make(canvas, "svg:defs"), "svg:clipPath", { id });
      make(clip, "svg:rect", { x: box.left, y: box.top - 4, width: box.right - box.left, height: box.bottom - box.top + 4 });
      const plot = make(canvas, "svg:g", { "clip-path": `url(#${id})` });
      for (const band of spec.bands || []) drawBand(plot, band, sx, sy);
      spec.series.forEach((series, k) => { if (shown[k]) drawSeries(plot, series, k, sx, sy); });
      for (const mark of spec.marks || []) drawMark(plot, mark);
      make(canvas, "svg:g", { class: "overlay" });
      reset.hidden = view === null;
      drawCursor();
    }

    function drawBand(plot, band, sx, sy) {
      const points = band.x.map((x, i) => [x, band.low[i], band.high[i]])
        .filter(([x, low, high]) => x !== null && usable(low) && usable(high));
      if (!points.length) return;
      const up = points.map(([x, , high]) => `${sx(x).toFixed(1)},${sy(high).toFixed(1)}`);
      const down = points.reverse().map(([x, low]) => `${sx(x).toFixed(1)},${sy(low).toFixed(1)}`);
      make(plot, "svg:path", { class: `band f${band.color % 8}`, d: `M${up.join("L")}L${down.join("L")}Z` });
    }

    function drawSeries(plot, series, index, sx, sy) {
      if (series.points) {
        const group = make(plot, "svg:g", { class: `f${series.color % 8}` });
        series.x.forEach((x, i) => {
          if (x === null || !usable(series.y[i]) || !visible(x)) return;
          make(group, "svg:circle", { cx: sx(x).toFixed(1), cy: sy(series.y[i]).toFixed(1), r: 3, "fill-opacity": 0.6 });
        });
        return;
      }
      let path = "", pen = "M", single = null;
      series.x.forEach((x, i) => {
        if (x === null || !usable(series.y[i])) { pen = "M"; return; }
        path += `${pen}${sx(x).toFixed(1)},${sy(series.y[i]).toFixed(1)}`;
        single = pen === "M" ? (single === null ? i : -1) : -1;
        pen = "L";
      });
      if (single !== null && single >= 0) {
        make(plot, "svg:circle", { cx: sx(series.x[single]), cy: sy(series.y[single]), r: 3.5, class: `f${series.color % 8}` });
      }
      const weight = series.strong ? "strong" : many ? "faint" : "";
      make(plot, "svg:path", { class: `series k${series.color % 8} ${weight}`, d: path || null,
        "data-series": index, "stroke-dasharray": many ? null : DASHES[series.dash || 0] });
    }

    function drawMark(plot, mark) {
      const { sx, sy, box } = scales;
      const label = { class: "halo" };
      let at;
      if (mark.axis === "y") {
        if (!usable(mark.value)) return;
        const y = sy(mark.value);
        make(plot, "svg:line", { class: "reference", x1: box.left, x2: box.right, y1: y, y2: y });
        at = { x: box.right - 4, y: y < box.top + 16 ? y + 14 : y - 5, "text-anchor": "end" };
      } else {
        if (!visible(mark.value)) return;
        const x = sx(mark.value), end = x > (box.left + box.right) / 2;
        make(plot, "svg:line", { class: "reference", x1: x, x2: x, y1: box.top, y2: box.bottom });
        at = { x: end ? x - 5 : x + 5, y: box.top + 10, "text-anchor": end ? "end" : "start" };
      }
      make(plot, "svg:text", { ...at, ...label }, mark.name);
      make(plot, "svg:text", at, mark.name);
    }

    // Reading values: the cursor is an x value, or a point for scatter plots and for many lines.
    function positions() {
      const all = new Set();
      spec.series.forEach((s, k) => {
        if (shown[k]) s.x.forEach((x, i) => { if (x !== null && usable(s.y[i]) && visible(x)) all.add(x); });
      });
      return [...all].sort((a, b) => a - b);
    }

    function nearest(values, x) {
      let best = -1;
      values.forEach((v, i) => { if (v !== null && (best < 0 || Math.abs(v - x) < Math.abs(values[best] - x))) best = i; });
      return best;
    }

    function nearestPoint(px, py) {
      let best = null, distance = Infinity;
      spec.series.forEach((s, k) => {
        if (!shown[k]) return;
        s.x.forEach((x, i) => {
          if (x === null || !usable(s.y[i]) || !visible(x)) return;
          const d = Math.hypot(scales.sx(x) - px, scales.sy(s.y[i]) - py);
          if (d < distance) { distance = d; best = { series: k, index: i }; }
        });
      });
      return best;
    }

    function textX(x) { return isTime ? formatTime(x) : format(x); }

    function drawCursor() {
      const overlay = canvas.querySelector(".overlay");
      if (!overlay) return;
      overlay.replaceChildren();
      for (const path of canvas.querySelectorAll("path.strong")) {
        if (!spec.series[path.dataset.series].strong) path.classList.remove("strong");
      }
      if (cursor === null && chosen === null) { tip.hidden = true; return; }
      const { sx, sy, box } = scales;
      const lines = [];
      let x = cursor;
      if (chosen !== null) {
        const s = spec.series[chosen.series], y = s.y[chosen.index];
        x = s.x[chosen.index];
        lines.push((s.texts && s.texts[chosen.index]) || s.name, `${spec.x.label}: ${textX(x)}`, `${spec.y.label}: ${format(y)}`);
        make(overlay, "svg:circle", { cx: sx(x), cy: sy(y), r: 5, class: `f${s.color % 8}` });
        const path = canvas.querySelector(`path[data-series="${chosen.series}"]`);
        if (path) path.classList.add("strong");
      } else {
        lines.push(`${spec.x.label}: ${textX(x)}`);
        make(overlay, "svg:line", { class: "cursor", x1: sx(x), x2: sx(x), y1: box.top, y2: box.bottom });
        spec.series.forEach((s, k) => {
          const i = shown[k] ? nearest(s.x, x) : -1;
          if (i < 0 || !usable(s.y[i]) || Math.abs(sx(s.x[i]) - sx(x)) > 12) return;
          const at = s.x[i] === x ? "" : ` (at ${textX(s.x[i])})`;
          lines.push(`${s.name}: ${format(s.y[i])}${at}`);
          make(overlay, "svg:circle", { cx: sx(s.x[i]), cy: sy(s.y[i]), r: 4, class: `f${s.color % 8}` });
        });
        for (const b of spec.bands || []) {
          const i = nearest(b.x, x);
          if (i >= 0) lines.push(`${b.name}: ${format(b.low[i])} to ${format(b.high[i])}`);
        }
      }
      tip.textContent = lines.join("\n");
      tip.hidden = false;
      placeTip(tip, root, canvas, (sx(x) * canvas.clientWidth) / scales.width, 8);
    }

    function point(event) {
      const r = canvas.getBoundingClientRect(), scale = scales.width / r.width;
      return [(event.clientX - r.left) * scale, (event.clientY - r.top) * scale];
    }
    function toX(px) {
      const { box, x0, x1 } = scales;
      return x0 + ((Math.min(Math.max(px, box.left), box.right) - box.left) / (box.right - box.left)) * (x1 - x0);
    }
    function setView(range) { view = range; cursor = chosen = null; draw(); }
    function isScatter() { return many || spec.series.some((s) => s.points); }

    let start = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = point(event)[0];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [px, py] = point(event), { box } = scales;
      if (start !== null && Math.abs(px - start) > 6) {
        cursor = chosen = null;
        drawCursor();
        const [a, b] = [start, px].map((v) => Math.min(Math.max(v, box.left), box.right)).sort((p, q) => p - q);
        make(canvas.querySelector(".overlay"), "svg:rect", { class: "selection", x: a, y: box.top, width: b - a, height: box.bottom - box.top });
        return;
      }
      read(px, py);
    });
    function read(px, py) {
      const xs = isScatter() ? [] : positions();
      chosen = isScatter() ? nearestPoint(px, py) : null;
      cursor = xs.length ? xs[nearest(xs, toX(px))] : null;
      drawCursor();
    }
    function release(event) {
      if (start === null) return;
      const [px, py] = point(event), from = start;
      start = null;
      if (event.type === "pointercancel") { drawCursor(); return; }
      if (Math.abs(px - from) > 6) {
        const range = [toX(from), toX(px)].sort((a, b) => a - b);
        if (range[1] > range[0]) setView(range);
      } else read(px, py);
    }
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => { if (start === null) { cursor = chosen = null; drawCursor(); } });
    canvas.addEventListener("dblclick", () => setView(null));
    canvas.addEventListener("blur", () => { cursor = chosen = null; drawCursor(); });
    canvas.addEventListener("keydown", (event) => {
      const { x0, x1 } = scales;
      if (event.key === "Escape") setView(null);
      else if (event.key === "+" || event.key === "=" || event.key === "-") {
        const factor = event.key === "-" ? 2 : 0.5, center = cursor === null ? (x0 + x1) / 2 : cursor;
        const kept = cursor;
        setView([center - (center - x0) * factor, center + (x1 - center) * factor]);
        cursor = kept;
        drawCursor();
      } else if (["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
        if (isScatter()) {
          const points = spec.series.flatMap((s, k) => (shown[k] ? s.x.map((_, i) => ({ series: k, index: i })) : []))
            .filter((p) => usable(spec.series[p.series].y[p.index]) && visible(spec.series[p.series].x[p.index]));
          const now = points.findIndex((p) => chosen && p.series === chosen.series && p.index === chosen.index);
          chosen = points[next(event.key, now, points.length)] || null;
        } else {
          const xs = positions();
          cursor = xs.length ? xs[next(event.key, cursor === null ? -1 : nearest(xs, cursor), xs.length)] : null;
        }
        drawCursor();
        live.textContent = tip.textContent;
      } else return;
      event.preventDefault();
    });
    draw();
    return draw;
  }

  function next(key, now, count) {
    if (key === "Home") return 0;
    if (key === "End") return count - 1;
    if (now < 0) return key === "ArrowLeft" ? count - 1 : 0;
    return Math.min(Math.max(now + (key === "ArrowLeft" ? -1 : 1), 0), count - 1);
  }

  // Heat maps and images

  const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
    [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
  const DIVERGING = [[33, 102, 172], [103, 169, 207], [209, 229, 240], [247, 247, 247],
    [253, 219, 199], [239, 138, 98], [178, 24, 43]];
  const GRAY = [[255, 255, 255], [0, 0, 0]];

  function color(map, fraction) {
    const position = fraction * (map.length - 1), k = Math.min(Math.floor(position), map.length - 2);
    return map[k].map((c, i) => Math.round(c + (map[k + 1][i] - c) * (position - k)));
  }

  function paint(canvas, rows, columns, at, map) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    for (let k = 0; k < rows * columns; k++) image.data.set([...color(map, at(k)), 255], 4 * k);
    context.putImageData(image, 0, 0);
  }

  function heatMap(root, spec) {
    const bytes = Uint8Array.from(atob(spec.data), (c) => c.charCodeAt(0));
    const map = { viridis: VIRIDIS, diverging: DIVERGING, gray: GRAY }[spec.map];
    const [rows, columns] = spec.shape;
    if (!rows || !columns) return null;
    root.classList.add(spec.map === "gray" ? "image" : "heat");
    const canvas = make(root, "canvas", { tabindex: 0, role: "img",
      "aria-label": `${spec.label}. Arrow keys read values.` });
    paint(canvas, rows, columns, (k) => bytes[k] / 255, map);
    if (spec.map === "gray") canvas.style.aspectRatio = `${columns} / ${rows}`;
    else canvas.style.height = `${Math.min(Math.max(rows * 4, 48), 200)}px`;
    const tip = make(root, "div", { class: "tip", hidden: "" });
    const live = make(root, "div", { class: "hidden", "aria-live": "polite" });
    if (spec.map !== "gray") {
      const scale = make(root, "div", { class: "scale" });
      make(scale, "span", {}, `${spec.xlabel} 0 to ${columns - 1} →, ${spec.ylabel} 0 to ${spec.total - 1} ↓`);
      make(scale, "span", {}, format(spec.low));
      const bar = make(scale, "canvas", { class: "bar", "aria-hidden": "true" });
      paint(bar, 1, 64, (k) => k / 63, map);
      make(scale, "span", {}, format(spec.high));
    }
    let cell = null;
    function show() {
      tip.hidden = cell === null;
      if (cell === null) return;
      const value = spec.low + (bytes[cell[0] * columns + cell[1]] / 255) * (spec.high - spec.low);
      tip.textContent = `${spec.xlabel} ${cell[1]}, ${spec.ylabel} ${cell[0]}: ${format(value)}`;
      const x = ((cell[1] + 0.5) / columns) * canvas.clientWidth;
      const isRight = x > canvas.clientWidth / 2;
      tip.style.left = isRight ? "" : `${x + 10}px`;
      tip.style.right = isRight ? `${root.clientWidth - x + 10}px` : "";
      tip.style.top = `${canvas.offsetTop + ((cell[0] + 0.5) / rows) * canvas.clientHeight + 8}px`;
    }
    const read = (event) => {
      const r = canvas.getBoundingClientRect();
      const part = (v, n) => Math.min(Math.max(Math.floor(v * n), 0), n - 1);
      cell = [part((event.clientY - r.top) / r.height, rows), part((event.clientX - r.left) / r.width, columns)];
      show();
    };
    canvas.addEventListener("pointermove", read);
    canvas.addEventListener("pointerdown", read);
    for (const name of ["pointerleave", "blur"]) canvas.addEventListener(name, () => { cell = null; show(); });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      cell = cell === null ? [0, 0]
        : [Math.min(Math.max(cell[0] + move[0], 0), rows - 1), Math.min(Math.max(cell[1] + move[1], 0), columns - 1)];
      show();
      live.textContent = tip.textContent;
    });
    return null;
  }

  // Parallel coordinates

  function parallel(root, spec) {
    make(root, "div", { class: "tools muted" },
      "One line is one run; drag along an axis to select a range, double-click to reset.");
    const canvas = make(root, "svg:svg", { tabindex: 0, role: "img", "aria-label": `${spec.label}. Arrow keys read the runs.` });
    const tip = make(root, "div", { class: "tip", hidden: "" });
    const live = make(root, "div", { class: "hidden", "aria-live": "polite" });
    const ranges = spec.axes.map(() => null);
    let current = null, layout = null, start = null;

    function scale(axis) {
      const values = axis.values.filter((v) => v !== null);
      if (axis.names) {
        const count = axis.names.length;
        return { at: (v) => (count < 2 ? 0.5 : v / (count - 1)), ticks: axis.names.map((name, v) => [v, name]) };
      }
      let low = Math.min(...values), high = Math.max(...values);
      const log = axis.log && low > 0;
      if (!values.length) [low, high] = [0, 1];
      if (low === high) return { at: () => 0.5, ticks: [[low, format(low)]] };
      const f = log ? Math.log10 : (v) => v;
      const distinct = [...new Set(values)];
      const ticks = (distinct.length <= 6 ? distinct : (log ? logTicks : linearTicks)(low, high, 5))
        .map((t) => [t, format(t)]);
      return { at: (v) => (f(v) - f(low)) / (f(high) - f(low)), ticks };
    }

    const isSelected = (run) => spec.axes.every((axis, k) => ranges[k] === null || (axis.values[run] !== null
      && layout.sy(k, axis.values[run]) >= ranges[k][0] && layout.sy(k, axis.values[run]) <= ranges[k][1]));

    function draw() {
      const count = spec.axes.length;
      const width = Math.max(root.clientWidth, 240, count * 92), height = 300;
      root.classList.toggle("wide", width > root.clientWidth);
      canvas.style.minWidth = `${width}px`;
      const top = 50, bottom = height - 16, left = 34, right = width - 44;
      const scales = spec.axes.map(scale);
      const sx = (k) => (count < 2 ? (left + right) / 2 : left + (k / (count - 1)) * (right - left));
      const sy = (k, v) => bottom - scales[k].at(v) * (bottom - top);
      layout = { width, sx, sy, top, bottom };
      canvas.replaceChildren();
      canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const lines = make(canvas, "svg:g");
      const order = spec.runs.map((_, run) => run).sort((a, b) => (a === spec.best) - (b === spec.best));
      for (const run of order) {
        const points = spec.axes.map((axis, k) => [k, axis.values[run]]).filter(([, v]) => v !== null);
        const isBest = run === spec.best, weight = spec.runs.length > 8 ? "faint" : "";
        make(lines, "svg:path", { "data-run": run, d: `M${points.map(([k, v]) => `${sx(k).toFixed(1)},${sy(k, v).toFixed(1)}`).join("L")}`,
          class: `series ${isBest ? "k0" : "other"} ${isBest || run === current ? "strong" : weight}`,
          visibility: isSelected(run) ? null : "hidden" });
      }
      spec.axes.forEach((axis, k) => {
        const group = make(canvas, "svg:g", { class: "axis" });
        make(group, "svg:line", { x1: sx(k), x2: sx(k), y1: top, y2: bottom });
        const room = (right - left) / Math.max(count - 1, 1) / 6.6;
        const anchor = k === 0 ? "start" : k === count - 1 ? "end" : "middle";
        const x = k === 0 ? 4 : k === count - 1 ? width - 4 : sx(k);
        const parts = axis.name.split(".");
        const shorten = (text) => (text.length > room ? `${text.slice(0, Math.max(room - 1, 4))}…` : text);
        make(make(group, "svg:text", { x, y: 30, "text-anchor": anchor }, shorten(parts[parts.length - 1])), "svg:title", {}, axis.name);
        const step = Math.max(1, Math.ceil(scales[k].ticks.length / 15));
        const drawn = [];
        for (const [value, text] of scales[k].ticks.filter((_, i) => i % step === 0)) {
          const y = sy(k, value) + 4;
          if (drawn.some((other) => Math.abs(other - y) < 12)) continue;
          drawn.push(y);
          make(group, "svg:text", { x: sx(k) + 5, y, class: "halo" }, shorten(text));
          make(group, "svg:text", { x: sx(k) + 5, y }, shorten(text));
        }
        if (ranges[k]) make(group, "svg:rect", { class: "selection", x: sx(k) - 7, width: 14, y: ranges[k][0], height: ranges[k][1] - ranges[k][0] });
      });
    }

    function describe(run) {
      return [spec.runs[run], ...spec.axes.map((axis) => {
        const v = axis.values[run];
        return `${axis.name}: ${v === null ? "–" : axis.names ? axis.names[v] : format(v)}`;
      })].join("\n");
    }
    function show(run, x = 0) {
      if (run !== current) { current = run; draw(); }
      tip.hidden = run === null;
      if (run === null) return;
      tip.textContent = describe(run);
      placeTip(tip, root, canvas, x, 36);
    }
    function point(event) {
      const r = canvas.getBoundingClientRect(), s = layout.width / r.width;
      return [(event.clientX - r.left) * s, (event.clientY - r.top) * s, event.clientX - r.left];
    }
    function nearestRun(px, py) {
      let best = null, distance = 25;
      spec.runs.forEach((_, run) => {
        if (!isSelected(run)) return;
        for (let k = 0; k + 1 < spec.axes.length; k++) {
          const [a, b] = [spec.axes[k].values[run], spec.axes[k + 1].values[run]];
          const [xa, xb] = [layout.sx(k), layout.sx(k + 1)];
          if (a === null || b === null || px < xa - 1 || px > xb + 1) continue;
          const y = layout.sy(k, a) + ((px - xa) / (xb - xa)) * (layout.sy(k + 1, b) - layout.sy(k, a));
          if (Math.abs(y - py) < distance) { distance = Math.abs(y - py); best = run; }
        }
      });
      return best;
    }
    canvas.addEventListener("pointerdown", (event) => {
      const [px, py] = point(event);
      const k = spec.axes.findIndex((_, index) => Math.abs(layout.sx(index) - px) < 12);
      if (event.button !== 0 || k < 0) return;
      start = [k, py];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [px, py, x] = point(event);
      if (start === null) { show(nearestRun(px, py), x); return; }
      if (Math.abs(py - start[1]) > 5) { ranges[start[0]] = [start[1], py].sort((a, b) => a - b); draw(); }
    });
    canvas.addEventListener("pointerup", () => { start = null; });
    canvas.addEventListener("pointercancel", () => { start = null; });
    canvas.addEventListener("dblclick", () => { ranges.fill(null); draw(); });
    for (const name of ["pointerleave", "blur"]) canvas.addEventListener(name, () => { if (start === null) show(null); });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { ranges.fill(null); draw(); return; }
      if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
      event.preventDefault();
      const runs = spec.runs.map((_, run) => run).filter(isSelected);
      if (!runs.length) return;
      show(runs[next(event.key, runs.indexOf(current), runs.length)], 0);
      live.textContent = tip.textContent;
    });
    draw();
    return draw;
  }

  // Panels and tables

  const redraws = new Map();
  const KINDS = { lines: lineChart, heat: heatMap, parallel };
  function drawCharts(parent) {
    for (const root of parent.querySelectorAll(".chart")) {
      if (redraws.has(root) || root.closest("[hidden]")) continue;
      const spec = specs[root.dataset.chart];
      redraws.set(root, KINDS[spec.kind](root, spec));
    }
  }

  for (const group of document.querySelectorAll(".panels")) {
    const panels = [...group.querySelectorAll(":scope > .panel")];
    if (panels.length > 1) {
      const label = make(null, "label", { class: "tools print-hidden" }, `${group.dataset.label}: `);
      const select = make(label, "select");
      panels.forEach((panel, k) => make(select, "option", { value: k }, panel.querySelector("h3").textContent));
      select.addEventListener("change", () => {
        panels.forEach((panel, k) => { panel.hidden = k !== Number(select.value); });
        drawCharts(group);
      });
      group.prepend(label);
      panels.forEach((panel, k) => { panel.hidden = k > 0; });
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = make(null, "button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => {
          const cell = row.cells[column];
          return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value;
        };
        const isMissing = (text) => text === "" || text === "–";
        const numeric = [...body.rows].every((row) => isMissing(value(row)) || Number.isFinite(Number(value(row))));
        const compare = (a, b) => {
          const [p, q] = [value(a), value(b)];
          if (isMissing(p) || isMissing(q)) return isMissing(p) - isMissing(q);
          return (down ? -1 : 1) * (numeric ? Number(p) - Number(q) : p.localeCompare(q, "en"));
        };
        body.append(...[...body.rows].sort(compare));
      });
    });
  }

  function redraw() {
    for (const [root, draw] of redraws) if (draw && root.clientWidth) draw();
  }

  drawCharts(document);
  window.addEventListener("beforeprint", () => { isPrinting = true; redraw(); });
  window.addEventListener("afterprint", () => { isPrinting = false; redraw(); });
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    redraw();
  });
})();
