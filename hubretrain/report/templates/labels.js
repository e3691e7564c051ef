// What the report shows where images may have several labels: how often each is decided on, which are mistaken
// together, and the thresholds on the curves. Used by report.js.

const MAX_SHOWN = 60, MAX_MISTAKEN = 40;

// Images of the model with a property, `has(i, row)`, the most probable of a label first; the least of one that is missed.
function imagesWith(model, c, isMissed, has) {
  const images = model.rows.map((row, i) => [row, i]).filter(([row, i]) => has(i, row));
  const sign = isMissed ? 1 : -1;
  return images.sort(([, i], [, j]) => sign * (confidence(model, i, c) - confidence(model, j, c)));
}

function drawLabelCounts() {
  const model = currentModel(), decisions = decisionsOf(model), n = model.rows.length;
  const kinds = [['true positives', true, true], ['false positives', false, true], ['false negatives', true, false], ['true negatives', false, false]];
  const choose = (title, images) => { state.cell = {title, images}; drawChosenImages(); };
  const rows = countsPerClass(model).map(({n: nOf, nDecided, nCorrect}, c) => {
    const counts = [nCorrect, nDecided - nCorrect, nOf - nCorrect, n - nOf - nDecided + nCorrect];
    return element('tr', {}, element('td', {}, DATA.classes[c]), element('td', {}, formatPercent(model.thresholds[c], 2)), kinds.map(([name, has, decided], k) => {
      const button = element('button', {type: 'button', class: 'count', 'data-label': c, 'data-kind': name}, formatCount(counts[k]));
      button.addEventListener('click', () => choose(`${DATA.classes[c]}, ${name}: ${formatCount(counts[k])} images`,
        imagesWith(model, c, !decided, (i, row) => isOf(row, c) === has && isDecided(decisions, i, c) === decided)));
      return element('td', {}, button);
    }));
  });
  byId('confusion').replaceChildren(element('table', {},
    element('thead', {}, element('tr', {}, ['label', 'threshold', ...kinds.map(([name]) => name)].map(name => element('th', {}, name)))),
    element('tbody', {}, rows)));
  drawMistakes(model, decisions, choose);
  drawChosenImages();
}

// Which missed label goes with which false one, in how many images; the last row and column: with none.
function drawMistakes(model, decisions, choose) {
  const none = N_CLASSES, nMistakes = new Array(N_CLASSES).fill(0);
  const missed = i => IMAGES.label[model.rows[i]].filter(c => !decisions[i].includes(c));
  const falsely = i => decisions[i].filter(c => !isOf(model.rows[i], c));
  const orNone = labels => labels.length ? labels : [none];
  model.rows.forEach((_, i) => { for (const c of [...missed(i), ...falsely(i)]) nMistakes[c]++; });
  const mostMistaken = [...nMistakes.keys()].sort((a, b) => nMistakes[b] - nMistakes[a] || a - b).slice(0, MAX_MISTAKEN);
  const shown = [...mostMistaken.sort((a, b) => a - b), none], at = new Map(shown.map((c, k) => [c, k]));
  const counts = shown.map(() => new Array(shown.length).fill(0));
  model.rows.forEach((_, i) => {
    for (const r of orNone(missed(i))) for (const c of orNone(falsely(i))) if (at.has(r) && at.has(c)) counts[at.get(r)][at.get(c)]++;
  });
  counts[at.get(none)][at.get(none)] = 0;  // images without a mistake
  const names = [...DATA.classes, 'none'], most = Math.max(1, ...counts.flat());
  const head = element('tr', {}, element('th', {}), shown.map(c => element('th', {class: 'across', title: names[c]}, element('span', {}, names[c]))));
  const body = counts.map((ofRow, k) => element('tr', {}, element('th', {title: names[shown[k]]}, names[shown[k]]), ofRow.map((n, l) => {
    const r = shown[k], c = shown[l], title = `${names[r]} missed, ${names[c]} given falsely: ${formatCount(n)} images`;
    const cell = element('td', {class: n ? 'wrong' : 'zero', tabindex: n ? 0 : -1, role: 'button', 'data-missed': names[r], 'data-false': names[c], title},
      n ? formatCount(n) : '·');
    cell.style.setProperty('--share', Math.sqrt(n / most).toFixed(3));
    const show = () => choose(title, imagesWith(model, Math.min(r, c), false,
      i => n > 0 && orNone(missed(i)).includes(r) && orNone(falsely(i)).includes(c)));
    cell.addEventListener('click', show);
    cell.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); show(); } });
    return cell;
  })));
  const table = element('table', {class: `confusion ${shown.length > 15 ? 'many' : ''}`}, element('thead', {}, head), element('tbody', {}, body));
  byId('mistakes').replaceChildren(table, N_CLASSES > MAX_MISTAKEN ? element('p', {class: 'more'}, `The ${MAX_MISTAKEN} labels with most mistakes.`) : '');
}

function drawChosenImages() {
  const box = byId('cell'), model = currentModel();
  if (!state.cell) { box.replaceChildren(element('p', {class: 'more'}, 'Select a number to see its images.')); return; }
  const {title, images} = state.cell;
  box.replaceChildren(element('h4', {}, title, images.length > MAX_SHOWN ? `, ${MAX_SHOWN} of them` : ''),
    element('div', {class: 'cards'}, images.slice(0, MAX_SHOWN).map(([row, i]) => card(row, model, i, false))));
}

// Where the threshold of each label that is shown lies on its curves.
function markThresholds(model, focus, pr, roc) {
  const shown = typeof focus === 'number' ? [focus] : N_CLASSES <= 12 ? DATA.classes.map((_, c) => c) : [];
  model.marks.forEach(({recall, precision, fpr}, c) => {
    if (!shown.includes(c) || recall == null) return;
    const mark = {kind: 'points', r: 4, colour: typeof focus === 'number' ? undefined : classColour(c, N_CLASSES),
      names: [`${DATA.classes[c]}, threshold ${formatPercent(model.thresholds[c], 2)}: precision ${formatPercent(precision)}, recall ${formatPercent(recall)}`]};
    if (precision != null) pr.push({...mark, x: [recall], y: [precision]});
    if (fpr != null) roc.push({...mark, x: [fpr], y: [recall]});
  });
}

// Moves the slider to the threshold of a label.
function toThreshold(focus) {
  if (typeof focus !== 'number') return;
  setThreshold(Math.round(currentModel().thresholds[focus] * DATA.n_steps));
  state.from = state.threshold;
}

function drawLabelErrors() {
  const model = currentModel(), decisions = decisionsOf(model), nMax = 12;
  const nWrong = model.rows.filter((row, i) => !isRight(decisions, i, row)).length;
  const mistakes = DATA.classes.flatMap((name, c) => [
    [`${name}: missed`, imagesWith(model, c, true, (i, row) => isOf(row, c) && !isDecided(decisions, i, c))],
    [`${name}: given falsely`, imagesWith(model, c, false, (i, row) => !isOf(row, c) && isDecided(decisions, i, c))]]);
  const made = mistakes.filter(([, images]) => images.length).sort((a, b) => b[1].length - a[1].length);
  const nMistakes = made.reduce((n, [, images]) => n + images.length, 0);
  byId('errors-count').textContent = nWrong
    ? `Of ${formatCount(model.rows.length)} images ${formatCount(nWrong)} have other labels than those decided on; ${formatCount(nMistakes)} labels are missed or given falsely.`
    : 'All labels of all images are right.';
  byId('error-pairs').replaceChildren(...made.slice(0, nMax).map(([title, images]) => element('div', {class: 'pair'},
    element('h4', {}, `${title}: ${formatCount(images.length)}`),
    element('div', {class: 'cards'}, images.slice(0, 6).map(([row, i]) => card(row, model, i, true))))),
  made.length > nMax ? element('p', {class: 'more'}, `and ${made.length - nMax} more; the counts of each label show all.`) : '');
}
