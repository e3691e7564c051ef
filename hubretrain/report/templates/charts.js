'use strict';
// Elements, thumbnails and charts. Text is only ever set as text, so no name can become markup.

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.flat().filter(child => child != null).map(
    child => child instanceof Node ? child : document.createTextNode(String(child))));
  return made;
}

function svg(tag, attributes, text) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  if (text != null) made.textContent = text;
  return made;
}

const count = n => n.toLocaleString('en-US');
const percent = (share, digits = 1) => share == null ? '–' : `${(100 * share).toFixed(digits)} %`;
const points = share => share == null ? '–' : (100 * share).toFixed(1);

function colour(c, n) {
  const few = ['#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377', '#ee8866',
    '#777777', '#44bb99', '#9966cc'];
  return n <= few.length ? few[c] : `hsl(${Math.round(360 * c / n)} ${c % 2 ? 55 : 75}% ${c % 3 ? 50 : 38}%)`;
}

// A thumbnail is a window onto a sheet of many; the sheets are CSS classes in the page's head.
function tile(place, size, kind, scale) {
  if (place < 0 || place == null) return el('span', {class: 'tile none'}, 'no picture');
  const each = size.columns * size.rows, at = place % each;
  const made = el('span', {class: `tile ${kind}${Math.floor(place / each)}`});
  const left = at % size.columns * size.width, top = Math.floor(at / size.columns) * size.height;
  made.style.width = `${size.width * scale}px`;
  made.style.height = `${size.height * scale}px`;
  made.style.backgroundSize = `${size.columns * size.width * scale}px auto`;
  made.style.backgroundPosition = `${-left * scale}px ${-top * scale}px`;
  return made;
}

function ticks(low, high, n, whole) {
  const raw = Math.max((high - low) / Math.max(1, n), whole ? 1 : 0), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(s => s * power).find(s => s >= raw * 0.999) || 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)) - 1; p <= Math.log10(high) + 1; p++) {
    for (const m of high / low > 30 ? [1, 3] : high / low > 6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8]) {
      const value = m * 10 ** p;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found;
}

const shown = value => {
  if (value && Math.abs(value) < 1e-3) return Number(value.toPrecision(3)).toExponential();
  return String(Number(value.toPrecision(6))).replace(/\B(?=(\d{3})+(?!\d)(?<!\.\d*))/g, ',');
};

/* A chart in a box: {title, x: {label, low, high, log, format}, y: {label, low, high, format}, height, series,
   square}. A series: {kind: line | points | bars | mark, x, y, low, high, names, class, colour}. */
function chart(box, spec) {
  const width = Math.max(240, Math.min(box.clientWidth || 480, spec.square ? 460 : 900));
  const height = spec.square ? Math.min(width, 420) : spec.height || 260;
  const margin = {left: 62, right: 24, top: 12, bottom: 44};
  const inner = {w: width - margin.left - margin.right, h: height - margin.top - margin.bottom};
  const root = svg('svg', {viewBox: `0 0 ${width} ${height}`, width, height, role: 'img',
    'aria-label': spec.title || `${spec.y.label} against ${spec.x.label}`});
  const scale = (axis, size, flip) => value => {
    const f = axis.log ? Math.log : v => v;
    const t = (f(value) - f(axis.low)) / ((f(axis.high) - f(axis.low)) || 1);
    return (flip ? 1 - t : t) * size;
  };
  const X = v => margin.left + scale(spec.x, inner.w, false)(v);
  const Y = v => margin.top + scale(spec.y, inner.h, true)(v);
  const few = Math.max(2, Math.floor(inner.w / 80));
  for (const value of spec.x.log ? logTicks(spec.x.low, spec.x.high) : ticks(spec.x.low, spec.x.high, few, spec.x.whole)) {
    root.append(svg('line', {class: 'grid', x1: X(value), x2: X(value), y1: margin.top, y2: margin.top + inner.h}));
    root.append(svg('text', {class: 'tick', x: X(value), y: margin.top + inner.h + 16, 'text-anchor': 'middle'},
      (spec.x.format || shown)(value)));
  }
  for (const value of ticks(spec.y.low, spec.y.high, 5)) {
    root.append(svg('line', {class: 'grid', x1: margin.left, x2: margin.left + inner.w, y1: Y(value), y2: Y(value)}));
    root.append(svg('text', {class: 'tick', x: margin.left - 6, y: Y(value) + 4, 'text-anchor': 'end'},
      (spec.y.format || shown)(value)));
  }
  root.append(svg('text', {class: 'axis', x: margin.left + inner.w / 2, y: height - 6, 'text-anchor': 'middle'}, spec.x.label));
  root.append(svg('text', {class: 'axis', 'text-anchor': 'middle',
    transform: `translate(13 ${margin.top + inner.h / 2}) rotate(-90)`}, spec.y.label));
  if (spec.diagonal) root.append(svg('line', {class: 'diagonal', x1: X(spec.x.low), y1: Y(spec.y.low), x2: X(spec.x.high), y2: Y(spec.y.high)}));
  for (const one of spec.series) drawSeries(root, one, X, Y, margin, inner);
  box.replaceChildren(root);
}

function drawSeries(root, one, X, Y, margin, inner) {
  const paint = one.colour ? `--c:${one.colour}` : '';
  const name = (node, text) => { if (text) node.append(svg('title', {}, text)); return node; };
  if (one.kind === 'line') {
    const path = one.x.map((x, i) => `${X(x).toFixed(2)},${Y(one.y[i]).toFixed(2)}`).join(' ');
    root.append(name(svg('polyline', {class: `line ${one.class || ''}`, points: path, style: paint}), one.name));
  } else if (one.kind === 'bars') {
    one.x.forEach((x, i) => root.append(name(svg('rect', {class: `bar ${one.class || ''}`, style: paint,
      x: X(x) + 1, width: Math.max(1, X(one.to[i]) - X(x) - 2), y: Math.min(Y(one.y[i]), Y(0)),
      height: Math.abs(Y(0) - Y(one.y[i]))}), one.names && one.names[i])));
  } else if (one.kind === 'mark') {
    root.append(svg('line', {class: 'mark', x1: X(one.x), x2: X(one.x), y1: margin.top, y2: margin.top + inner.h}));
    root.append(svg('text', {class: 'marked', x: X(one.x) + (X(one.x) > margin.left + inner.w / 2 ? -5 : 5), y: margin.top + 12,
      'text-anchor': X(one.x) > margin.left + inner.w / 2 ? 'end' : 'start'}, one.name));
  } else {
    const written = [];
    one.x.forEach((x, i) => {
      if (one.low && one.low[i] != null) {
        root.append(svg('line', {class: 'range', style: paint, x1: X(x), x2: X(x), y1: Y(one.low[i]), y2: Y(one.high[i])}));
      }
      const dot = svg('circle', {class: `dot ${one.class || ''}`, style: paint, cx: X(x), cy: Y(one.y[i]), r: one.r || 4});
      root.append(name(dot, one.names && one.names[i]));
      if (one.written) {
        const left = X(x) > margin.left + 0.6 * inner.w;
        let y = Y(one.y[i]) - 6;
        while (written.some(([px, py]) => Math.abs(px - X(x)) < 90 && Math.abs(py - y) < 13)) y += 2;
        written.push([X(x), y]);
        root.append(svg('text', {class: 'label', x: X(x) + (left ? -8 : 8), y,
          'text-anchor': left ? 'end' : 'start'}, one.names[i]));
      }
    });
  }
}
