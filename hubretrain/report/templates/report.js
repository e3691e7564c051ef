// The report's parts that move. DATA is what hubretrain/report/payload.py made.

const DATA = JSON.parse(document.getElementById('data').textContent);
const N = DATA.classes.length, IMAGES = DATA.images;
const state = {model: 0, threshold: 100, focus: 'macro', rule: true, cell: null};
const at = id => document.getElementById(id);
const model = () => DATA.models[state.model];
const byRule = one => state.rule || !one.adjust;
const decided = one => byRule(one) ? one.decided : one.top.map(top => top[0]);
const ratio = (a, b) => b > 0 ? a / b : null;
const mean = values => { const some = values.filter(v => v != null); return some.length ? some.reduce((a, b) => a + b, 0) / some.length : null; };

function card(row, one, i, big) {
  const large = IMAGES.large[row];
  const picture = big && large >= 0 ? tile(large, DATA.large, 'large', 1)
    : tile(IMAGES.place[row], DATA.thumbs, 'sheet', big ? DATA.large.width / DATA.thumbs.width : 1);
  const lines = [el('b', {}, DATA.classes[IMAGES.label[row]])];
  if (one) {
    const d = decided(one)[i], where = one.top[i].indexOf(d);
    lines.push(' → ', DATA.classes[d], where >= 0 ? ` ${(one.p[i][where] / 10).toFixed(1)} %` : '');
  }
  return el('figure', {class: 'card', title: IMAGES.path[row]}, picture, el('figcaption', {}, lines,
    el('span', {class: 'path'}, IMAGES.path[row]), IMAGES.hints[row] ? el('span', {class: 'hint'}, IMAGES.hints[row]) : null));
}

// -- the chosen model --------------------------------------------------------------------------
// What the decisions come to, class by class; counted here, for they change with the rule.
function byClass(one) {
  const said = decided(one), found = one.n_of.map(n => ({n, decided: 0, hits: 0}));
  one.rows.forEach((row, i) => { found[said[i]].decided++; if (said[i] === IMAGES.label[row]) found[said[i]].hits++; });
  return found.map(of => ({...of, recall: ratio(of.hits, of.n), precision: ratio(of.hits, of.decided),
    f1: of.n ? 2 * of.hits / (of.n + of.decided) : null}));
}

function drawFigures() {
  const one = model(), classes = byClass(one);
  const plain = byRule(one) ? {} : {balanced_accuracy: mean(classes.map(of => of.recall)), macro_f1: mean(classes.map(of => of.f1)),
    accuracy: classes.reduce((n, of) => n + of.hits, 0) / one.rows.length};
  at('figures').replaceChildren(...one.figures.map(([name, value, low, high, unit, metric]) => {
    if (metric in plain) [value, low, high] = [plain[metric], null, null];
    return el('div', {}, el('dt', {}, name), el('dd', {'data-figure': metric}, unit === '%' ? points(value) : value.toFixed(3),
      low == null ? null : el('small', {}, unit === '%' ? `${points(low)}–${points(high)}` : `${low.toFixed(3)}–${high.toFixed(3)}`)));
  }));
  at('about').textContent = one.about[byRule(one) ? 0 : 1];
  at('rule').parentElement.hidden = !one.adjust;
}

function drawConfusion() {
  const one = model(), said = decided(one), counts = Array.from({length: N}, () => new Array(N).fill(0));
  one.rows.forEach((row, i) => counts[IMAGES.label[row]][said[i]]++);
  const byPercent = at('confusion-percent').checked, small = N > 40;
  const head = el('tr', {}, el('th', {}), DATA.classes.map(name => el('th', {class: 'across', title: name}, el('span', {}, name))));
  const body = counts.map((line, r) => {
    const total = line.reduce((a, b) => a + b, 0);
    return el('tr', {}, el('th', {title: DATA.classes[r]}, DATA.classes[r]), line.map((n, c) => {
      const share = total ? n / total : 0;
      const cell = el('td', {class: r === c ? 'right' : n ? 'wrong' : 'zero', tabindex: n ? 0 : -1, role: 'button',
        'data-label': r, 'data-decision': c, title: `${DATA.classes[r]} → ${DATA.classes[c]}: ${count(n)} of ${count(total)}, ${percent(share)}`},
      small ? '' : byPercent ? (n ? (100 * share).toFixed(share < 0.0995 ? 1 : 0) : '·') : n ? count(n) : '·');
      cell.style.setProperty('--share', Math.sqrt(share).toFixed(3));
      if (state.cell && state.cell[0] === r && state.cell[1] === c) cell.classList.add('chosen');
      const choose = () => { state.cell = [r, c]; drawConfusion(); };
      cell.addEventListener('click', choose);
      cell.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); choose(); } });
      return cell;
    }));
  });
  const table = el('table', {class: `confusion ${small ? 'small' : N > 15 ? 'many' : ''}`}, el('thead', {}, head), el('tbody', {}, body));
  table.style.setProperty('--cell', `${Math.max(4, Math.min(20, Math.floor(900 / N)))}px`);
  at('confusion').replaceChildren(table);
  drawCell(said);
}

function drawCell(said) {
  const one = model(), box = at('cell');
  if (!state.cell) { box.replaceChildren(el('p', {class: 'more'}, 'Choose a cell to see its images.')); return; }
  const [r, c] = state.cell, most = 60;
  const found = one.rows.map((row, i) => [row, i]).filter(([row, i]) => IMAGES.label[row] === r && said[i] === c);
  found.sort(([, i], [, j]) => sure(one, j, c) - sure(one, i, c));
  box.replaceChildren(el('h4', {}, `${DATA.classes[r]} → ${DATA.classes[c]}: ${count(found.length)} images`,
    found.length > most ? `, the ${most} most confident` : ''),
  el('div', {class: 'cards'}, found.slice(0, most).map(([row, i]) => card(row, one, i, false))));
}

const sure = (one, i, c) => { const k = one.top[i].indexOf(c); return k < 0 ? 0 : one.p[i][k]; };

// -- thresholds --------------------------------------------------------------------------------
function countsAt(one, c, k) {
  const tp = one.tp[c][k], fp = one.fp[c][k], positive = one.n_of[c];
  return {tp, fp, fn: positive - tp, tn: one.rows.length - positive - fp};
}

function atThreshold(one, focus, k) {
  const every = DATA.classes.map((_, c) => countsAt(one, c, k));
  const rates = n => ({precision: ratio(n.tp, n.tp + n.fp), recall: ratio(n.tp, n.tp + n.fn), fpr: ratio(n.fp, n.fp + n.tn),
    f1: ratio(2 * n.tp, 2 * n.tp + n.fp + n.fn)});
  if (focus !== 'macro' && focus !== 'micro') return {...every[focus], ...rates(every[focus])};
  const total = every.reduce((a, b) => ({tp: a.tp + b.tp, fp: a.fp + b.fp, fn: a.fn + b.fn, tn: a.tn + b.tn}));
  if (focus === 'micro') return {...total, ...rates(total)};
  const each = every.filter((_, c) => one.n_of[c]).map(rates);
  return {...total, ...Object.fromEntries(Object.keys(rates(total)).map(name => [name, mean(each.map(e => e[name]))]))};
}

function drawThreshold() {
  const one = model(), k = state.threshold, now = atThreshold(one, state.focus, k);
  at('threshold-value').textContent = (k / DATA.n_steps).toFixed(3);
  const shownNow = {precision: percent(now.precision, 2), recall: percent(now.recall, 2), 'F1': percent(now.f1, 2),
    'false positive rate': percent(now.fpr, 2), 'true positives': count(now.tp), 'false positives': count(now.fp),
    'false negatives': count(now.fn), 'true negatives': count(now.tn)};
  at('threshold-figures').replaceChildren(...Object.entries(shownNow).map(([name, value]) =>
    el('div', {}, el('dt', {}, name), el('dd', {'data-figure': name}, value))));
  const pr = [], roc = [];
  if (typeof state.focus === 'number') {
    const curves = one.curves[state.focus];
    if (curves) {
      pr.push({kind: 'line', x: curves.recall, y: curves.precision});
      roc.push({kind: 'line', x: curves.fpr, y: curves.tpr});
    }
  } else {
    const steps = Array.from({length: DATA.n_steps + 1}, (_, i) => atThreshold(one, state.focus, i));
    if (N <= 12) one.curves.forEach((curves, c) => {
      if (!curves) return;
      pr.push({kind: 'line', class: 'thin', x: curves.recall, y: curves.precision, colour: colour(c, N), name: DATA.classes[c]});
      roc.push({kind: 'line', class: 'thin', x: curves.fpr, y: curves.tpr, colour: colour(c, N), name: DATA.classes[c]});
    });
    const some = steps.filter(s => s.precision != null && s.recall != null);
    pr.push({kind: 'line', x: some.map(s => s.recall), y: some.map(s => s.precision)});
    roc.push({kind: 'line', x: steps.map(s => s.fpr), y: steps.map(s => s.recall)});
  }
  if (now.precision != null && now.recall != null) pr.push({kind: 'points', class: 'now', x: [now.recall], y: [now.precision], r: 6});
  if (now.fpr != null && now.recall != null) roc.push({kind: 'points', class: 'now', x: [now.fpr], y: [now.recall], r: 6});
  const share = label => ({label, low: 0, high: 1, format: v => `${Math.round(100 * v)} %`});
  chart(at('pr'), {title: 'Precision against recall', x: share('recall'), y: share('precision'), series: pr, square: true});
  chart(at('roc'), {title: 'ROC', x: share('false positive rate'), y: share('true positive rate (recall)'), series: roc, square: true, diagonal: true});
  const legend = typeof state.focus === 'number' || N > 12 ? [] : DATA.classes.map((name, c) => key(name, colour(c, N)));
  at('curve-key').replaceChildren(...legend);
}

const key = (name, paint) => { const dot = el('i', {}); dot.style.background = paint; return el('span', {class: 'key'}, dot, name); };

// -- calibration, classes, top k ----------------------------------------------------------------
function drawCalibration() {
  const one = model(), share = label => ({label, low: 0, high: 1, format: v => `${Math.round(100 * v)} %`});
  chart(at('reliability'), {title: 'Reliability diagram', square: true, diagonal: true,
    x: share('probability of the likeliest class'), y: share('share that is right'),
    series: [{kind: 'bars', x: one.bins.map(b => b.low), to: one.bins.map(b => b.high), y: one.bins.map(b => b.accuracy), class: 'pale',
      names: one.bins.map(b => `${count(b.n)} images: ${percent(b.confidence)} sure, ${percent(b.accuracy)} right`)},
    {kind: 'points', x: one.bins.map(b => b.confidence), y: one.bins.map(b => b.accuracy), r: 4,
      names: one.bins.map(b => `${count(b.n)} images: ${percent(b.confidence)} sure, ${percent(b.accuracy)} right`)}]});
  const most = Math.max(...one.bins.map(b => b.n));
  chart(at('confidence'), {title: 'Images by confidence', height: 150, x: share('probability of the likeliest class'),
    y: {label: 'images', low: 0, high: most}, series: [{kind: 'bars', x: one.bins.map(b => b.low), to: one.bins.map(b => b.high),
      y: one.bins.map(b => b.n), names: one.bins.map(b => `${count(b.n)} images`)}]});
}

function interval(value, low, high) {
  if (value == null) return el('td', {}, '–');
  return el('td', {}, points(value), low == null ? null : el('small', {}, ` ${points(low)}–${points(high)}`));
}

function drawClasses() {
  const one = model(), classes = byClass(one), ends = byRule(one);
  const head = ['class', 'images', 'groups', 'recall', 'precision', 'F1', 'average precision', 'ROC AUC'];
  at('classes').replaceChildren(el('table', {}, el('thead', {}, el('tr', {}, head.map(name => el('th', {}, name)))),
    el('tbody', {}, one.classes.map((line, c) => el('tr', {}, el('td', {}, line.class), el('td', {}, count(classes[c].n)),
      el('td', {}, line.n_groups == null ? '–' : count(line.n_groups)),
      interval(classes[c].recall, ends ? line.recall_low : null, line.recall_high),
      el('td', {}, points(classes[c].precision)), el('td', {}, points(classes[c].f1)),
      interval(line.average_precision, line.average_precision_low, line.average_precision_high), el('td', {}, points(line.roc_auc)))))));
  const never = DATA.classes.filter((_, c) => classes[c].n && classes[c].decided === 0);
  at('never').textContent = never.length ? `Never decided on by this model: ${never.join(', ')}.` : '';
  at('topk').replaceChildren(el('table', {class: 'narrow'}, el('thead', {}, el('tr', {}, one.topk.map((_, k) => el('th', {}, `top ${k + 1}`)))),
    el('tbody', {}, el('tr', {}, one.topk.map(share => el('td', {}, points(share)))))));
}

// -- errors --------------------------------------------------------------------------------------
function drawErrors() {
  const one = model(), said = decided(one), pairs = new Map();
  one.rows.forEach((row, i) => {
    const r = IMAGES.label[row], c = said[i];
    if (r === c) return;
    const name = `${r} ${c}`;
    if (!pairs.has(name)) pairs.set(name, []);
    pairs.get(name).push([row, i, sure(one, i, c)]);
  });
  const order = [...pairs].sort((a, b) => b[1].length - a[1].length || (a[0] < b[0] ? -1 : 1));
  const wrong = order.reduce((n, [, found]) => n + found.length, 0);
  at('errors-count').textContent = wrong ? `${count(wrong)} of ${count(one.rows.length)} images are decided wrongly, in ${order.length} pairs of classes.`
    : 'No image is decided wrongly.';
  at('errors').replaceChildren(...order.slice(0, 12).map(([name, found]) => {
    const [r, c] = name.split(' ').map(Number);
    found.sort((a, b) => b[2] - a[2] || a[0] - b[0]);
    return el('div', {class: 'pair'}, el('h4', {}, `${DATA.classes[r]} taken for ${DATA.classes[c]}: ${count(found.length)}`),
      el('div', {class: 'cards'}, found.slice(0, 6).map(([row, i]) => card(row, one, i, true))));
  }), order.length > 12 ? el('p', {class: 'more'}, `and ${order.length - 12} more pairs; the confusion matrix shows all.`) : '');
}

function drawModel() {
  drawFigures(); drawConfusion(); drawThreshold(); drawCalibration(); drawClasses(); drawErrors();
  document.dispatchEvent(new Event('model'));
}

function drawStill() {
  for (const [id, spec] of Object.entries(DATA.charts)) if (at(id)) chart(at(id), spec);
}

function begin() {
  const choice = at('model');
  if (choice) {
    choice.append(...DATA.models.map((one, i) => el('option', {value: i}, one.title)));
    choice.addEventListener('change', () => { state.model = Number(choice.value); state.cell = null; drawModel(); });
    at('rule').addEventListener('change', event => { state.rule = event.target.checked; drawModel(); });
    at('confusion-percent').addEventListener('change', drawConfusion);
    const slider = at('threshold');
    slider.max = DATA.n_steps;
    slider.value = state.threshold;
    slider.addEventListener('input', () => { state.threshold = Number(slider.value); drawThreshold(); });
    const focus = at('focus');
    focus.append(el('option', {value: 'macro'}, 'all classes, each the same (macro)'), el('option', {value: 'micro'}, 'all images together (micro)'),
      ...DATA.classes.map((name, c) => el('option', {value: c}, name)));
    focus.addEventListener('change', () => { state.focus = /^\d+$/.test(focus.value) ? Number(focus.value) : focus.value; drawThreshold(); });
    drawModel();
  }
  drawStill();
  let width = innerWidth;
  addEventListener('resize', () => {
    if (innerWidth === width) return;
    width = innerWidth;
    drawStill();
    if (choice) { drawThreshold(); drawCalibration(); }
  });
}

for (const box of document.querySelectorAll(".doubtful")) box.append(tile(IMAGES.place[Number(box.dataset.row)], DATA.thumbs, "sheet", Math.min(1, 64 / DATA.thumbs.width)));
begin();
