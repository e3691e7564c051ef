// The feature map: a canvas of thousands of points, with zoom, and images on hover.

function initMap() {
  const map = DATA.map, canvas = byId('map');
  if (!map || !canvas) return;
  const context = canvas.getContext('2d'), hover = byId('hover'), legend = byId('map-key');
  const view = {scale: 1, x: 0, y: 0}, hidden = new Set();  // classes or outcomes without points
  let drag = null, hasMoved = false;
  const isByError = () => byId('map-colour').value === 'error';
  const position = i => [view.x + view.scale * map.x[i] * canvas.clientWidth, view.y + view.scale * map.y[i] * canvas.clientHeight];

  // What the colour and the legend go by: the outcome, the class, or whether it has the label that is chosen.
  const keyOf = (row, ofRow) => isByError() ? ofRow.get(row) || 0 : HAS_LABELS ? Number(isOf(row, Number(byId('map-colour').value))) : IMAGES.label[row];

  // Outcomes of the selected model, by row: 1 correct, 2 wrong; absent rows are not evaluated.
  function outcomes() {
    const ofRow = new Map();
    if (!DATA.models.length) return ofRow;
    const model = currentModel(), decisions = decisionsOf(model);
    model.rows.forEach((row, i) => ofRow.set(row, isRight(decisions, i, row) ? 1 : 2));
    return ofRow;
  }

  function draw() {
    const density = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * density; canvas.height = height * density;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(document.body);
    const radius = Math.max(1.6, Math.min(5, 3.2 * Math.sqrt(1500 / map.rows.length) * Math.sqrt(view.scale)));
    const byError = isByError(), ofRow = outcomes(), order = map.rows.map((_, i) => i);
    const keyOfPoint = i => keyOf(map.rows[i], ofRow);
    if (byError || HAS_LABELS) order.sort((a, b) => keyOfPoint(a) - keyOfPoint(b) || a - b);  // errors, or the label, on top
    for (const i of order) {
      const key = keyOfPoint(i);
      if (hidden.has(key)) continue;
      const [x, y] = position(i);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      context.fillStyle = byError ? style.getPropertyValue(['--rest', '--good', '--error'][key])
        : HAS_LABELS ? style.getPropertyValue(['--rest', '--good'][key]) : classColour(key, N_CLASSES);
      context.globalAlpha = 0.8;
      context.beginPath(); context.arc(x, y, byError && key === 2 ? radius * 1.25 : radius, 0, 7); context.fill();
    }
    context.globalAlpha = 1;
    drawLegend(byError);
  }

  function drawLegend(byError) {
    const items = byError ? [['not evaluated', 'var(--rest)', 0], ['correct', 'var(--good)', 1], ['wrong', 'var(--error)', 2]]
      : HAS_LABELS ? [['without it', 'var(--rest)', 0], [`with ${DATA.classes[Number(byId('map-colour').value)]}`, 'var(--good)', 1]]
      : DATA.classes.map((name, c) => [name, classColour(c, N_CLASSES), c]);
    legend.replaceChildren(...items.map(([name, colour, key]) => {
      const item = element('button', {type: 'button', class: 'key', 'aria-pressed': String(!hidden.has(key)), onclick: () => {
        if (hidden.has(key)) hidden.delete(key); else hidden.add(key);
        draw();
      }}, element('i', {}), name);
      item.firstChild.style.background = colour;
      return item;
    }));
  }

  function nearest(x, y) {
    let best = -1, least = 14 ** 2;  // square of the largest distance, pixels
    const ofRow = isByError() ? outcomes() : null;
    map.rows.forEach((row, i) => {
      if (hidden.has(keyOf(row, ofRow))) return;
      const [pointX, pointY] = position(i), distance = (pointX - x) ** 2 + (pointY - y) ** 2;
      if (distance < least) { least = distance; best = i; }
    });
    return best;
  }

  function showImage(event) {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const i = nearest(x, y);
    hover.hidden = i < 0;
    if (i < 0) return;
    const row = map.rows[i], model = DATA.models.length ? currentModel() : null, k = model ? model.rows.indexOf(row) : -1;
    hover.replaceChildren(card(row, k >= 0 ? model : null, k, true));
    const left = Math.min(Math.max(0, x + 14), box.width - hover.offsetWidth - 4);
    hover.style.left = `${x + 14 > left ? Math.max(0, x - hover.offsetWidth - 14) : left}px`;
    hover.style.top = `${Math.min(Math.max(0, y - 30), Math.max(0, box.height - hover.offsetHeight))}px`;
  }

  function zoom(factor, x, y) {
    const scale = Math.min(60, Math.max(1, view.scale * factor)), f = scale / view.scale;
    view.x = x - f * (x - view.x); view.y = y - f * (y - view.y); view.scale = scale;
    if (scale === 1) { view.x = 0; view.y = 0; }
    canvas.style.touchAction = scale > 1 ? 'none' : ''; // a finger moves the map, not the page
    draw();
  }

  canvas.addEventListener('wheel', event => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - box.left, event.clientY - box.top);
  }, {passive: false});
  canvas.addEventListener('pointerdown', event => { drag = [event.clientX - view.x, event.clientY - view.y]; hasMoved = false; });
  for (const end of ['pointerup', 'pointercancel']) addEventListener(end, () => { drag = null; });
  canvas.addEventListener('pointermove', event => {
    if (drag && view.scale > 1) {
      view.x = event.clientX - drag[0]; view.y = event.clientY - drag[1]; hasMoved = true;
      hover.hidden = true;
      draw();
    } else showImage(event);
  });
  canvas.addEventListener('click', event => { if (!hasMoved) showImage(event); });
  canvas.addEventListener('pointerleave', () => { hover.hidden = true; });
  canvas.addEventListener('dblclick', event => {
    const box = canvas.getBoundingClientRect();
    zoom(2, event.clientX - box.left, event.clientY - box.top);
  });
  const zoomCentre = factor => () => zoom(factor, canvas.clientWidth / 2, canvas.clientHeight / 2);
  byId('map-in').addEventListener('click', zoomCentre(1.6));
  byId('map-out').addEventListener('click', zoomCentre(1 / 1.6));
  byId('map-reset').addEventListener('click', zoomCentre(1e-9));
  byId('map-colour').addEventListener('change', () => { hidden.clear(); draw(); });
  document.addEventListener('model', draw);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  addEventListener('resize', draw);
  draw();
}

initMap();
