// The interactive parts of the report. DATA is made by hubretrain/report/payload.py.

const DATA = JSON.parse(document.getElementById('data').textContent);
const N_CLASSES = DATA.classes.length, IMAGES = DATA.images;
const HAS_LABELS = DATA.multi_label === true;  // of which an image may have several, or none
const state = {model: 0, other: null, threshold: 100, from: 100, focus: 'macro', isAdjusted: true, cell: null};
const byId = id => document.getElementById(id);
const currentModel = () => DATA.models[state.model];
const isAdjusted = model => state.isAdjusted || !model.adjust;
const isOf = (row, c) => HAS_LABELS ? IMAGES.label[row].includes(c) : IMAGES.label[row] === c;
const isDecided = (decisions, i, c) => HAS_LABELS ? decisions[i].includes(c) : decisions[i] === c;
const isRight = (decisions, i, row) => String(decisions[i]) === String(IMAGES.label[row]);  // labels are in class order
const namesOf = labels => [labels].flat().map(c => DATA.classes[c]).join(', ') || 'no label';
const decisionsOf = model => isAdjusted(model) ? model.decisions : model.top_classes.map(top => top[0]);
const ratio = (a, b) => b > 0 ? a / b : null;
const mean = values => {
  const known = values.filter(v => v != null);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
};
const shareAxis = label => ({label, low: 0, high: 1, format: formatTick});

// `i` is the index of the image among those of the model.
function card(row, model, i, isLarge) {
  const large = IMAGES.large[row];
  const picture = isLarge && large >= 0 ? tile(large, DATA.large, 'large', 1)
    : tile(IMAGES.thumbnail[row], DATA.thumbnails, 'sheet', isLarge ? DATA.large.width / DATA.thumbnails.width : 1);
  const caption = [element('b', {}, namesOf(IMAGES.label[row]))];
  if (model && HAS_LABELS) caption.push(' → ', namesOf(model.decisions[i]));
  else if (model) {
    const decision = decisionsOf(model)[i], k = model.top_classes[i].indexOf(decision);
    caption.push(' → ', DATA.classes[decision], k >= 0 ? ` ${(model.top_thousandths[i][k] / 10).toFixed(1)} %` : '');
  }
  return element('figure', {class: 'card', title: IMAGES.path[row]}, picture, element('figcaption', {}, caption,
    element('span', {class: 'path'}, IMAGES.path[row]), IMAGES.hints[row] ? element('span', {class: 'hint'}, IMAGES.hints[row]) : null));
}

// -- metrics of the model ----------------------------------------------------------------------
// Counts of decisions per class; counted here because they change with the adjustment.
function countsPerClass(model) {
  const decisions = decisionsOf(model), counts = model.n_per_class.map(n => ({n, nDecided: 0, nCorrect: 0}));
  model.rows.forEach((row, i) => {
    for (const c of [decisions[i]].flat()) {
      counts[c].nDecided++;
      if (isOf(row, c)) counts[c].nCorrect++;
    }
  });
  return counts.map(c => ({...c, recall: ratio(c.nCorrect, c.n), precision: ratio(c.nCorrect, c.nDecided),
    f1: c.n ? 2 * c.nCorrect / (c.n + c.nDecided) : null}));
}

function drawMetrics() {
  const model = currentModel(), classes = countsPerClass(model);
  const unadjusted = isAdjusted(model) ? {} : {balanced_accuracy: mean(classes.map(c => c.recall)), macro_f1: mean(classes.map(c => c.f1)),
    accuracy: classes.reduce((n, c) => n + c.nCorrect, 0) / model.rows.length};
  byId('metrics').replaceChildren(...model.metrics.map(([name, value, low, high, unit, metric]) => {
    if (metric in unadjusted) [value, low, high] = [unadjusted[metric], null, null];
    const format = unit === '%' ? formatPoints : v => v.toFixed(3);
    return element('div', {}, element('dt', {}, name), element('dd', {'data-metric': metric}, format(value),
      low == null ? null : element('small', {}, `${format(low)}–${format(high)}`)));
  }));
  byId('about').textContent = model.about[isAdjusted(model) ? 0 : 1];
  byId('rule').parentElement.hidden = !model.adjust;
}

function drawConfusion() {
  if (HAS_LABELS) { drawLabelCounts(); return; }
  const model = currentModel(), decisions = decisionsOf(model);
  const counts = Array.from({length: N_CLASSES}, () => new Array(N_CLASSES).fill(0));
  model.rows.forEach((row, i) => counts[IMAGES.label[row]][decisions[i]]++);
  const inPercent = byId('confusion-percent').checked, isSmall = N_CLASSES > 40;
  const text = (n, share) => isSmall ? '' : !n ? '·' : inPercent ? (100 * share).toFixed(share < 0.0995 ? 1 : 0) : formatCount(n);
  const head = element('tr', {}, element('th', {}), DATA.classes.map(name => element('th', {class: 'across', title: name}, element('span', {}, name))));
  const body = counts.map((ofRow, r) => {
    const total = ofRow.reduce((a, b) => a + b, 0);
    return element('tr', {}, element('th', {title: DATA.classes[r]}, DATA.classes[r]), ofRow.map((n, c) => {
      const share = total ? n / total : 0;
      const cell = element('td', {class: r === c ? 'correct' : n ? 'wrong' : 'zero', tabindex: n ? 0 : -1, role: 'button',
        'data-label': r, 'data-decision': c,
        title: `${DATA.classes[r]} → ${DATA.classes[c]}: ${formatCount(n)} of ${formatCount(total)}, ${formatPercent(share)}`}, text(n, share));
      cell.style.setProperty('--share', Math.sqrt(share).toFixed(3));
      if (state.cell && state.cell[0] === r && state.cell[1] === c) cell.classList.add('chosen');
      const choose = () => { state.cell = [r, c]; drawConfusion(); };
      cell.addEventListener('click', choose);
      cell.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); choose(); } });
      return cell;
    }));
  });
  const size = isSmall ? 'small' : N_CLASSES > 15 ? 'many' : '';
  const table = element('table', {class: `confusion ${size}`}, element('thead', {}, head), element('tbody', {}, body));
  table.style.setProperty('--cell', `${Math.max(4, Math.min(20, Math.floor(900 / N_CLASSES)))}px`);
  byId('confusion').replaceChildren(table);
  drawCell(decisions);
}

function drawCell(decisions) {
  const model = currentModel(), box = byId('cell');
  if (!state.cell) { box.replaceChildren(element('p', {class: 'more'}, 'Select a cell to see its images.')); return; }
  const [r, c] = state.cell, nMax = 60;
  const images = model.rows.map((row, i) => [row, i]).filter(([row, i]) => IMAGES.label[row] === r && decisions[i] === c);
  images.sort(([, i], [, j]) => confidence(model, j, c) - confidence(model, i, c));
  box.replaceChildren(element('h4', {}, `${DATA.classes[r]} → ${DATA.classes[c]}: ${formatCount(images.length)} images`,
    images.length > nMax ? `, the ${nMax} most confident` : ''),
  element('div', {class: 'cards'}, images.slice(0, nMax).map(([row, i]) => card(row, model, i, false))));
}

// Probability of a class in thousandths, 0 for one that is not among the top classes.
const confidence = (model, i, c) => { const k = model.top_classes[i].indexOf(c); return k < 0 ? 0 : model.top_thousandths[i][k]; };

// -- thresholds --------------------------------------------------------------------------------
function countsAt(model, c, step) {
  const tp = model.true_positives[c][step], fp = model.false_positives[c][step], n = model.n_per_class[c];
  return {tp, fp, fn: n - tp, tn: model.rows.length - n - fp};
}

function ratesAt(model, focus, step) {
  const perClass = DATA.classes.map((_, c) => countsAt(model, c, step));
  const rates = n => ({precision: ratio(n.tp, n.tp + n.fp), recall: ratio(n.tp, n.tp + n.fn), fpr: ratio(n.fp, n.fp + n.tn),
    f1: ratio(2 * n.tp, 2 * n.tp + n.fp + n.fn)});
  if (focus !== 'macro' && focus !== 'micro') return {...perClass[focus], ...rates(perClass[focus])};
  const total = perClass.reduce((a, b) => ({tp: a.tp + b.tp, fp: a.fp + b.fp, fn: a.fn + b.fn, tn: a.tn + b.tn}));
  if (focus === 'micro') return {...total, ...rates(total)};
  const ratesOfClasses = perClass.filter((_, c) => model.n_per_class[c]).map(rates);
  return {...total, ...Object.fromEntries(Object.keys(rates(total)).map(name => [name, mean(ratesOfClasses.map(r => r[name]))]))};
}

function drawThreshold() {
  const model = currentModel(), now = ratesAt(model, state.focus, state.threshold);
  byId('threshold-value').textContent = (state.threshold / DATA.n_steps).toFixed(3);
  const texts = {precision: formatPercent(now.precision, 2), recall: formatPercent(now.recall, 2), 'F1': formatPercent(now.f1, 2),
    'false positive rate': formatPercent(now.fpr, 2), 'true positives': formatCount(now.tp), 'false positives': formatCount(now.fp),
    'false negatives': formatCount(now.fn), 'true negatives': formatCount(now.tn)};
  byId('threshold-metrics').replaceChildren(...Object.entries(texts).map(([name, text]) =>
    element('div', {}, element('dt', {}, name), element('dd', {'data-metric': name}, text))));
  const [pr, roc] = curvesOf(model, state.focus), other = state.other == null ? null : DATA.models[state.other];
  if (other) {
    const [prOfOther, rocOfOther] = curvesOf(other, state.focus, false);
    pr.push(...prOfOther);
    roc.push(...rocOfOther);
  }
  if (HAS_LABELS) markThresholds(model, state.focus, pr, roc);
  if (now.precision != null && now.recall != null) pr.push({kind: 'points', class: 'now', x: [now.recall], y: [now.precision], r: 6});
  if (now.fpr != null && now.recall != null) roc.push({kind: 'points', class: 'now', x: [now.fpr], y: [now.recall], r: 6});
  drawChart(byId('pr'), {title: 'Precision against recall', x: shareAxis('recall'), y: shareAxis('precision'), series: pr, square: true});
  drawChart(byId('roc'), {title: 'ROC', x: shareAxis('false positive rate'), y: shareAxis('true positive rate (recall)'), series: roc, square: true, diagonal: true});
  const legend = typeof state.focus === 'number' || N_CLASSES > 12 ? [] : DATA.classes.map((name, c) => legendItem(name, classColour(c, N_CLASSES)));
  if (other) legend.push(element('span', {class: 'key'}, `solid: ${model.title}; dashed: ${other.title}`));
  byId('curve-key').replaceChildren(...legend);
  drawByThreshold();
}

// What the threshold makes of the images of a class: those nearest to it first, which change side next.
function drawByThreshold() {
  const model = currentModel(), c = state.focus, box = byId('by-threshold'), nMax = 8;
  if (typeof c !== 'number') { box.replaceChildren(element('p', {class: 'more'}, `Select a ${HAS_LABELS ? 'label' : 'class'} to see its images.`)); return; }
  const at = 1000 * state.threshold / DATA.n_steps, from = 1000 * state.from / DATA.n_steps;
  const images = model.rows.map((row, i) => ({row, i, p: confidence(model, i, c), isOfClass: isOf(row, c)}));
  images.sort((a, b) => Math.abs(a.p - at) - Math.abs(b.p - at) || a.row - b.row);
  const changed = images.filter(({p}) => (p >= at) !== (p >= from));
  const group = (name, chosen, n) => element('div', {class: 'pair', 'data-group': name},
    element('h4', {}, `${name}: ${formatCount(n)}`, chosen.length > nMax ? `, the ${nMax} nearest to the threshold` : ''),
    element('div', {class: 'cards'}, chosen.slice(0, nMax).map(({row, p}) =>
      element('div', {}, card(row, null, null, false), element('small', {}, `${(p / 10).toFixed(1)} %`)))));
  const {tp, fp, fn, tn} = countsAt(model, c, state.threshold);
  const groups = [['True positives', true, true, tp], ['False positives', false, true, fp], ['False negatives', true, false, fn], ['True negatives', false, false, tn]];
  const [low, high] = [state.from, state.threshold].sort((a, b) => a - b).map(step => (step / DATA.n_steps).toFixed(3));
  box.replaceChildren(...(low === high ? [] : [group(`Change side between ${low} and ${high}`, changed, changed.length)]),
    ...groups.map(([name, isOfClass, isPositive, n]) =>
      group(name, images.filter(image => image.isOfClass === isOfClass && (image.p >= at) === isPositive), n)));
}

// The threshold that keeps most of the other rate: the lowest for a precision, the highest for a recall.
function suggestThreshold() {
  const model = currentModel(), name = byId('wish').value, wish = Number(byId('wish-percent').value) / 100;
  const steps = Array.from({length: DATA.n_steps + 1}, (_, step) => step), out = byId('suggested');
  const isMet = step => (ratesAt(model, state.focus, step)[name] ?? -1) >= wish;
  const step = (name === 'recall' ? steps.reverse() : steps).find(isMet);
  if (step === undefined) { out.textContent = `No threshold gives a ${name} of ${formatPercent(wish)}.`; return; }
  setThreshold(step);
  state.from = step;
  drawThreshold();
  const rates = ratesAt(model, state.focus, step);
  out.textContent = `${(step / DATA.n_steps).toFixed(3)}: precision ${formatPercent(rates.precision)}, recall ${formatPercent(rates.recall)}, on the images that it was chosen on.`;
}

function setThreshold(step) {
  state.threshold = step;
  byId('threshold').value = step;
}

// The series of the precision-recall and the ROC chart; those of another model are dashed.
function curvesOf(model, focus, isFirst = true) {
  const pr = [], roc = [], dashed = isFirst ? {} : {class: 'dashed', colour: 'var(--wrong)', name: model.title};
  const add = (curve, more) => {
    if (!curve) return;  // of a class with all or none of the images
    pr.push({kind: 'line', x: curve.recall, y: curve.precision, ...more});
    roc.push({kind: 'line', x: curve.fpr, y: curve.tpr, ...more});
  };
  if (typeof focus === 'number') {
    add(model.curves[focus], dashed);
    return [pr, roc];
  }
  if (N_CLASSES <= 12 && isFirst) model.curves.forEach((curve, c) => add(curve, {class: 'thin', colour: classColour(c, N_CLASSES), name: DATA.classes[c]}));
  const steps = Array.from({length: DATA.n_steps + 1}, (_, step) => ratesAt(model, focus, step));
  const known = steps.filter(s => s.precision != null && s.recall != null);
  pr.push({kind: 'line', x: known.map(s => s.recall), y: known.map(s => s.precision), ...dashed});
  roc.push({kind: 'line', x: steps.map(s => s.fpr), y: steps.map(s => s.recall), ...dashed});
  return [pr, roc];
}

const legendItem = (name, colour) => {
  const dot = element('i', {});
  dot.style.background = colour;
  return element('span', {class: 'key'}, dot, name);
};

// -- calibration, classes, top-k ----------------------------------------------------------------
function drawCalibration() {
  const words = HAS_LABELS ? ['probability of a label', 'share with the label', 'labels'] : ['confidence (top-1 probability)', 'accuracy', 'images'];
  const bins = currentModel().bins, xAxis = shareAxis(words[0]);
  const tooltips = bins.map(b => `${formatCount(b.n)} ${words[2]}: mean ${HAS_LABELS ? 'probability' : 'confidence'} ${formatPercent(b.confidence)}, ${words[1]} ${formatPercent(b.accuracy)}`);
  const bars = {kind: 'bars', x: bins.map(b => b.low), to: bins.map(b => b.high)};
  drawChart(byId('reliability'), {title: 'Reliability diagram', square: true, diagonal: true, x: xAxis, y: shareAxis(words[1]), series: [
    {...bars, y: bins.map(b => b.accuracy), class: 'pale', names: tooltips},
    {kind: 'points', x: bins.map(b => b.confidence), y: bins.map(b => b.accuracy), r: 4, names: tooltips}]});
  drawChart(byId('confidence'), {title: HAS_LABELS ? 'Labels per probability' : 'Images per confidence', height: 150, x: xAxis,
    y: {label: words[2], low: 0, high: Math.max(...bins.map(b => b.n))},
    series: [{...bars, y: bins.map(b => b.n), names: bins.map(b => `${formatCount(b.n)} ${words[2]}`)}]});
}

function intervalCell(value, low, high) {
  if (value == null) return element('td', {}, '–');
  return element('td', {}, formatPoints(value), low == null ? null : element('small', {}, ` ${formatPoints(low)}–${formatPoints(high)}`));
}

function drawClasses() {
  const model = currentModel(), classes = countsPerClass(model), hasIntervals = isAdjusted(model);
  const head = [HAS_LABELS ? 'label' : 'class', 'images', 'groups', 'recall', 'precision', 'F1', 'average precision', 'ROC AUC'];
  byId('classes').replaceChildren(element('table', {}, element('thead', {}, element('tr', {}, head.map(name => element('th', {}, name)))),
    element('tbody', {}, model.classes.map((row, c) => element('tr', {}, element('td', {}, row.class), element('td', {}, formatCount(classes[c].n)),
      element('td', {}, row.n_groups == null ? '–' : formatCount(row.n_groups)),
      intervalCell(classes[c].recall, hasIntervals ? row.recall_low : null, row.recall_high),
      intervalCell(classes[c].precision, row.precision_low, row.precision_high), intervalCell(classes[c].f1, row.f1_low, row.f1_high),
      intervalCell(row.average_precision, row.average_precision_low, row.average_precision_high),
      element('td', {}, formatPoints(row.roc_auc)))))));
  const never = DATA.classes.filter((_, c) => classes[c].n && classes[c].nDecided === 0);
  byId('never').textContent = never.length ? `Never predicted by this model: ${never.join(', ')}.` : '';
  if (byId('topk')) byId('topk').replaceChildren(element('table', {class: 'narrow'},
    element('thead', {}, element('tr', {}, model.top_k.map((_, k) => element('th', {}, `top-${k + 1}`)))),
    element('tbody', {}, element('tr', {}, model.top_k.map(share => element('td', {}, formatPoints(share)))))));
}

// -- errors --------------------------------------------------------------------------------------
function drawErrors() {
  if (HAS_LABELS) { drawLabelErrors(); return; }
  const model = currentModel(), decisions = decisionsOf(model), imagesOfPair = new Map();
  model.rows.forEach((row, i) => {
    const r = IMAGES.label[row], c = decisions[i];
    if (r === c) return;
    const pair = `${r} ${c}`;
    if (!imagesOfPair.has(pair)) imagesOfPair.set(pair, []);
    imagesOfPair.get(pair).push([row, i, confidence(model, i, c)]);
  });
  const pairs = [...imagesOfPair].sort((a, b) => b[1].length - a[1].length || (a[0] < b[0] ? -1 : 1));
  const nWrong = pairs.reduce((n, [, images]) => n + images.length, 0), nMax = 12;
  byId('errors-count').textContent = nWrong
    ? `${formatCount(nWrong)} of ${formatCount(model.rows.length)} images are misclassified, in ${pairs.length} pairs of classes.`
    : 'No image is misclassified.';
  byId('error-pairs').replaceChildren(...pairs.slice(0, nMax).map(([pair, images]) => {
    const [r, c] = pair.split(' ').map(Number);
    images.sort((a, b) => b[2] - a[2] || a[0] - b[0]);
    return element('div', {class: 'pair'}, element('h4', {}, `${DATA.classes[r]} misclassified as ${DATA.classes[c]}: ${formatCount(images.length)}`),
      element('div', {class: 'cards'}, images.slice(0, 6).map(([row, i]) => card(row, model, i, true))));
  }), pairs.length > nMax ? element('p', {class: 'more'}, `and ${pairs.length - nMax} more pairs; the confusion matrix shows all.`) : '');
}

function drawModel() {
  drawMetrics(); drawConfusion(); drawThreshold(); drawCalibration(); drawClasses(); drawErrors();
  document.dispatchEvent(new Event('model'));
}

// Charts that do not depend on the selected model.
function drawFixedCharts() {
  for (const [id, chart] of Object.entries(DATA.charts)) if (byId(id)) drawChart(byId(id), chart);
}

function initModel(select) {
  select.append(...DATA.models.map((model, i) => element('option', {value: i}, model.title)));
  select.addEventListener('change', () => { state.model = Number(select.value); state.cell = null; drawModel(); });
  byId('rule').addEventListener('change', event => { state.isAdjusted = event.target.checked; drawModel(); });
  byId('confusion-percent')?.addEventListener('change', drawConfusion);
  const slider = byId('threshold');
  slider.max = DATA.n_steps;
  slider.value = state.threshold;
  // Images that change side are those between where a drag of the slider began and where it is.
  slider.addEventListener('pointerdown', () => { state.from = state.threshold; });
  slider.addEventListener('keydown', () => { state.from = state.threshold; });
  slider.addEventListener('input', () => { state.threshold = Number(slider.value); byId('suggested').textContent = ''; drawThreshold(); });
  byId('suggest').addEventListener('click', suggestThreshold);
  const other = byId('other');
  other.append(...DATA.models.map((model, i) => element('option', {value: i}, model.title)));
  other.addEventListener('change', () => { state.other = other.value === '' ? null : Number(other.value); drawThreshold(); });
  const focus = byId('focus');
  const all = HAS_LABELS ? 'all labels' : 'all classes';
  focus.append(element('option', {value: 'macro'}, `${all}, macro average`), element('option', {value: 'micro'}, `${all}, micro average`),
    ...DATA.classes.map((name, c) => element('option', {value: c}, name)));
  focus.addEventListener('change', () => { state.focus = /^\d+$/.test(focus.value) ? Number(focus.value) : focus.value; byId('suggested').textContent = ''; if (HAS_LABELS) toThreshold(state.focus); drawThreshold(); });
  drawModel();
}

function initReport() {
  const select = byId('model');
  if (select) initModel(select);
  drawFixedCharts();
  for (const box of document.querySelectorAll('.doubtful')) {
    box.append(tile(IMAGES.thumbnail[Number(box.dataset.row)], DATA.thumbnails, 'sheet', Math.min(1, 64 / DATA.thumbnails.width)));
  }
  let width = innerWidth;
  addEventListener('resize', () => {
    if (innerWidth === width) return;
    width = innerWidth;
    drawFixedCharts();
    if (select) { drawThreshold(); drawCalibration(); }
  });
}

initReport();
