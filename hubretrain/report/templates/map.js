// The feature map: a canvas of thousands of points, with zoom, and pictures on hover.

function beginMap() {
  const map = DATA.map, canvas = at('map');
  if (!map || !canvas) return;
  const pen = canvas.getContext('2d'), hover = at('hover'), legend = at('map-key');
  const view = {scale: 1, x: 0, y: 0}, hidden = new Set();
  let drag = null, moved = false;
  const colouring = () => at('map-colour').value;
  const place = i => [view.x + view.scale * map.x[i] * canvas.clientWidth, view.y + view.scale * map.y[i] * canvas.clientHeight];

  function verdicts() {
    const one = model(), said = decided(one), of = new Map();
    one.rows.forEach((row, i) => of.set(row, [said[i] === IMAGES.label[row], i]));
    return of;
  }

  function draw() {
    const sharp = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
    canvas.width = w * sharp; canvas.height = h * sharp;
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    pen.clearRect(0, 0, w, h);
    const ink = getComputedStyle(document.body), r = Math.max(1.6, Math.min(5, 3.2 * Math.sqrt(1500 / map.rows.length) * Math.sqrt(view.scale)));
    const byError = colouring() === 'error', of = DATA.models.length ? verdicts() : new Map();
    const order = map.rows.map((_, i) => i);
    if (byError) order.sort((a, b) => rank(of.get(map.rows[a])) - rank(of.get(map.rows[b])) || a - b);
    for (const i of order) {
      const row = map.rows[i], c = IMAGES.label[row], verdict = of.get(row);
      if (hidden.has(byError ? rank(verdict) : c)) continue;
      const [x, y] = place(i);
      if (x < -9 || y < -9 || x > w + 9 || y > h + 9) continue;
      pen.fillStyle = byError ? ink.getPropertyValue(['--rest', '--good', '--error'][rank(verdict)]) : colour(c, N);
      pen.globalAlpha = 0.8;
      pen.beginPath(); pen.arc(x, y, byError && rank(verdict) === 2 ? r * 1.25 : r, 0, 7); pen.fill();
    }
    pen.globalAlpha = 1;
    drawKey(byError);
  }

  const rank = verdict => verdict ? verdict[0] ? 1 : 2 : 0;

  function drawKey(byError) {
    const names = byError ? [['not judged by this model', 'var(--rest)', 0], ['right', 'var(--good)', 1], ['wrong', 'var(--error)', 2]]
      : DATA.classes.map((name, c) => [name, colour(c, N), c]);
    legend.replaceChildren(...names.map(([name, paint, which]) => {
      const item = el('button', {type: 'button', class: 'key', 'aria-pressed': String(!hidden.has(which)), onclick: () => {
        if (hidden.has(which)) hidden.delete(which); else hidden.add(which);
        draw();
      }}, el('i', {}), name);
      item.firstChild.style.background = paint;
      return item;
    }));
  }

  function nearest(x, y) {
    let best = -1, least = 14 ** 2;
    const byError = colouring() === 'error', of = byError && DATA.models.length ? verdicts() : null;
    map.rows.forEach((row, i) => {
      if (hidden.has(byError ? rank(of && of.get(row)) : IMAGES.label[row])) return;
      const [px, py] = place(i), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < least) { least = d; best = i; }
    });
    return best;
  }

  function point(event) {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const i = nearest(x, y);
    hover.hidden = i < 0;
    if (i < 0) return;
    const row = map.rows[i], one = DATA.models.length ? model() : null, k = one ? one.rows.indexOf(row) : -1;
    hover.replaceChildren(card(row, k >= 0 ? one : null, k, true));
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
  canvas.addEventListener('pointerdown', event => { drag = [event.clientX - view.x, event.clientY - view.y]; moved = false; });
  for (const end of ['pointerup', 'pointercancel']) addEventListener(end, () => { drag = null; });
  canvas.addEventListener('pointermove', event => {
    if (drag && view.scale > 1) {
      view.x = event.clientX - drag[0]; view.y = event.clientY - drag[1]; moved = true;
      hover.hidden = true;
      draw();
    } else point(event);
  });
  canvas.addEventListener('click', event => { if (!moved) point(event); });
  canvas.addEventListener('pointerleave', () => { hover.hidden = true; });
  canvas.addEventListener('dblclick', event => {
    const box = canvas.getBoundingClientRect();
    zoom(2, event.clientX - box.left, event.clientY - box.top);
  });
  const middle = factor => () => zoom(factor, canvas.clientWidth / 2, canvas.clientHeight / 2);
  at('map-in').addEventListener('click', middle(1.6));
  at('map-out').addEventListener('click', middle(1 / 1.6));
  at('map-whole').addEventListener('click', middle(1e-9));
  at('map-colour').addEventListener('change', () => { hidden.clear(); draw(); });
  document.addEventListener('model', draw);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  addEventListener('resize', draw);
  draw();
}

beginMap();
