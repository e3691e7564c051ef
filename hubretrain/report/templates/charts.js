'use strict';
// Elements, thumbnails and charts. Text is only ever set as text, so no name can become markup.

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter(child => child != null).map(
    child => child instanceof Node ? child : document.createTextNode(String(child))));
  return node;
}

function svg(tag, attributes, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text != null) node.textContent = text;
  return node;
}

const formatCount = n => n.toLocaleString('en-US');
const formatPercent = (share, digits = 1) => share == null ? '–' : `${(100 * share).toFixed(digits)} %`;
const formatPoints = share => share == null ? '–' : (100 * share).toFixed(1);
const formatNumber = value => {
  if (value && Math.abs(value) < 1e-3) return Number(value.toPrecision(3)).toExponential();
  return String(Number(value.toPrecision(6))).replace(/\B(?=(\d{3})+(?!\d)(?<!\.\d*))/g, ',');
};
const formatTick = share => `${Math.round(100 * share)} %`;

function classColour(c, nClasses) {
  const palette = ['#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377', '#ee8866',
    '#777777', '#44bb99', '#9966cc'];
  return nClasses <= palette.length ? palette[c]
    : `hsl(${Math.round(360 * c / nClasses)} ${c % 2 ? 55 : 75}% ${c % 3 ? 50 : 38}%)`;
}

// A thumbnail is a window onto a sheet of many; the sheets are CSS classes in the page's head.
function tile(index, layout, kind, scale) {
  if (index < 0 || index == null) return element('span', {class: 'tile none'}, 'no image');
  const perSheet = layout.columns * layout.rows, position = index % perSheet;
  const node = element('span', {class: `tile ${kind}${Math.floor(index / perSheet)}`});
  const left = position % layout.columns * layout.width;
  const top = Math.floor(position / layout.columns) * layout.height;
  node.style.width = `${layout.width * scale}px`;
  node.style.height = `${layout.height * scale}px`;
  node.style.backgroundSize = `${layout.columns * layout.width * scale}px auto`;
  node.style.backgroundPosition = `${-left * scale}px ${-top * scale}px`;
  return node;
}

function linearTicks(low, high, n, areWhole) {
  const raw = Math.max((high - low) / Math.max(1, n), areWhole ? 1 : 0), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(s => s * power).find(s => s >= raw * 0.999) || 10 * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [], ratio = high / low;
  const multiples = ratio > 30 ? [1, 3] : ratio > 6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  for (let p = Math.floor(Math.log10(low)) - 1; p <= Math.log10(high) + 1; p++) {
    for (const multiple of multiples) {
      const value = multiple * 10 ** p;
      if (value >= low * 0.999 && value <= high * 1.001) ticks.push(value);
    }
  }
  return ticks;
}

/* A chart in a box: {title, x: {label, low, high, log, whole, format}, y: {label, low, high, format}, height, series,
   square, diagonal}. A series: {kind: line | points | bars | mark, x, y, low, high, names, class, colour}. */
function drawChart(box, chart) {
  const width = Math.max(240, Math.min(box.clientWidth || 480, chart.square ? 460 : 900));
  const height = chart.square ? Math.min(width, 420) : chart.height || 260;
  const margin = {left: 62, right: 24, top: 12, bottom: 44};
  const inner = {width: width - margin.left - margin.right, height: height - margin.top - margin.bottom};
  const root = svg('svg', {viewBox: `0 0 ${width} ${height}`, width, height, role: 'img',
    'aria-label': chart.title || `${chart.y.label} against ${chart.x.label}`});
  const scale = (axis, size, isFlipped) => value => {
    const f = axis.log ? Math.log : v => v;
    const t = (f(value) - f(axis.low)) / ((f(axis.high) - f(axis.low)) || 1);
    return (isFlipped ? 1 - t : t) * size;
  };
  const X = v => margin.left + scale(chart.x, inner.width, false)(v);
  const Y = v => margin.top + scale(chart.y, inner.height, true)(v);
  drawAxes(root, chart, X, Y, margin, inner, width, height);
  if (chart.diagonal) root.append(svg('line', {class: 'diagonal', x1: X(chart.x.low), y1: Y(chart.y.low), x2: X(chart.x.high), y2: Y(chart.y.high)}));
  for (const series of chart.series) drawSeries(root, series, X, Y, margin, inner);
  box.replaceChildren(root);
}

function drawAxes(root, chart, X, Y, margin, inner, width, height) {
  const bottom = margin.top + inner.height, right = margin.left + inner.width;
  const nTicks = Math.max(2, Math.floor(inner.width / 80));
  for (const value of chart.x.log ? logTicks(chart.x.low, chart.x.high) : linearTicks(chart.x.low, chart.x.high, nTicks, chart.x.whole)) {
    root.append(svg('line', {class: 'grid', x1: X(value), x2: X(value), y1: margin.top, y2: bottom}));
    root.append(svg('text', {class: 'tick', x: X(value), y: bottom + 16, 'text-anchor': 'middle'},
      (chart.x.format || formatNumber)(value)));
  }
  for (const value of linearTicks(chart.y.low, chart.y.high, 5)) {
    root.append(svg('line', {class: 'grid', x1: margin.left, x2: right, y1: Y(value), y2: Y(value)}));
    root.append(svg('text', {class: 'tick', x: margin.left - 6, y: Y(value) + 4, 'text-anchor': 'end'},
      (chart.y.format || formatNumber)(value)));
  }
  root.append(svg('text', {class: 'axis', x: margin.left + inner.width / 2, y: height - 6, 'text-anchor': 'middle'}, chart.x.label));
  root.append(svg('text', {class: 'axis', 'text-anchor': 'middle',
    transform: `translate(13 ${margin.top + inner.height / 2}) rotate(-90)`}, chart.y.label));
}

function drawSeries(root, series, X, Y, margin, inner) {
  const style = series.colour ? `--c:${series.colour}` : '';
  const withTooltip = (node, text) => { if (text) node.append(svg('title', {}, text)); return node; };
  if (series.kind === 'line') {
    const path = series.x.map((x, i) => `${X(x).toFixed(2)},${Y(series.y[i]).toFixed(2)}`).join(' ');
    root.append(withTooltip(svg('polyline', {class: `line ${series.class || ''}`, points: path, style}), series.name));
  } else if (series.kind === 'bars') {
    series.x.forEach((x, i) => root.append(withTooltip(svg('rect', {class: `bar ${series.class || ''}`, style,
      x: X(x) + 1, width: Math.max(1, X(series.to[i]) - X(x) - 2), y: Math.min(Y(series.y[i]), Y(0)),
      height: Math.abs(Y(0) - Y(series.y[i]))}), series.names && series.names[i])));
  } else if (series.kind === 'mark') {
    const isRight = X(series.x) > margin.left + inner.width / 2;
    root.append(svg('line', {class: 'mark', x1: X(series.x), x2: X(series.x), y1: margin.top, y2: margin.top + inner.height}));
    root.append(svg('text', {class: 'marked', x: X(series.x) + (isRight ? -5 : 5), y: margin.top + 12,
      'text-anchor': isRight ? 'end' : 'start'}, series.name));
  } else {
    const labels = [];  // positions of those that are drawn
    series.x.forEach((x, i) => {
      if (series.low && series.low[i] != null) {
        root.append(svg('line', {class: 'range', style, x1: X(x), x2: X(x), y1: Y(series.low[i]), y2: Y(series.high[i])}));
      }
      const dot = svg('circle', {class: `dot ${series.class || ''}`, style, cx: X(x), cy: Y(series.y[i]), r: series.r || 4});
      root.append(withTooltip(dot, series.names && series.names[i]));
      if (series.labelled) {
        const isRight = X(x) > margin.left + 0.6 * inner.width;
        let y = Y(series.y[i]) - 6;
        while (labels.some(([labelX, labelY]) => Math.abs(labelX - X(x)) < 90 && Math.abs(labelY - y) < 13)) y += 2;
        labels.push([X(x), y]);
        root.append(svg('text', {class: 'label', x: X(x) + (isRight ? -8 : 8), y,
          'text-anchor': isRight ? 'end' : 'start'}, series.names[i]));
      }
    });
  }
}
