// The confusion matrix of a method, on a canvas (150 classes are 22,500 cells), with a readout and the largest errors as a table.
{
  const methods = DATA.methods.map((method, index) => ({ ...method, index })).filter((method) => method.confusion !== undefined);
  const K = DATA.classes.length, canvas = $("matrix"), readout = $("matrix-readout"), LISTED = 15;
  let counts = null, at = null, shape = null;

  const look = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const count = (label, prediction) => counts[label * K + prediction];
  const total = (index, ofLabel) => {
    let sum = 0;
    for (let k = 0; k < K; k++) sum += ofLabel ? count(index, k) : count(k, index);
    return sum;
  };

  // The cell's size, and room for names where they can be read.
  function measured(context) {
    const named = K <= 40, font = "12px system-ui, sans-serif";
    context.font = font;
    const longest = named ? Math.min(150, Math.max(...DATA.classes.map((name) => context.measureText(name).width))) : 0;
    const room = named ? Math.ceil(longest) + 12 : 18;
    const cell = K <= 12 ? 46 : K <= 24 ? 34 : K <= 40 ? 22 : Math.max(3, Math.floor(720 / K));
    return { cell, room, top: named ? Math.ceil(longest * 0.75) + 16 : 18, font, named, numbers: cell >= 34 };
  }

  function shortened(context, text, width) {
    if (context.measureText(text).width <= width) return text;
    while (text && context.measureText(`${text}…`).width > width) text = text.slice(0, -1);
    return `${text}…`;
  }

  function drawMatrix() {
    if (!counts) return;
    const context = canvas.getContext("2d"), ratio = devicePixelRatio || 1;
    shape = measured(context);
    const { cell, room, top, font, named, numbers } = shape; // the last column's name leans out to the right as far as up
    const width = room + K * cell + (named ? top : 2), height = top + K * cell + 2;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    context.scale(ratio, ratio);
    context.font = font;
    const ofLabel = chosen("confusion-share") === "label";
    const ink = look("--ink"), warm = look("--warm"), wrong = look("--less"), line = look("--line"), totals = [];
    for (let k = 0; k < K; k++) totals.push(total(k, ofLabel));
    for (let label = 0; label < K; label++) {
      for (let prediction = 0; prediction < K; prediction++) {
        const whole = totals[ofLabel ? label : prediction], share = whole ? count(label, prediction) / whole : 0;
        const x = room + prediction * cell, y = top + label * cell;
        if (share > 0) {
          context.globalAlpha = Math.min(1, 0.08 + 0.92 * Math.sqrt(share));
          context.fillStyle = label === prediction ? warm : wrong;
          context.fillRect(x, y, cell, cell);
          context.globalAlpha = 1;
        }
        if (numbers && share >= 0.005) {
          context.fillStyle = ink;
          context.textAlign = "center";
          context.textBaseline = "middle";
          context.fillText(share >= 0.9995 ? "100" : (100 * share).toFixed(cell >= 44 ? 1 : 0), x + cell / 2, y + cell / 2 + 0.5);
        }
      }
    }
    context.strokeStyle = line;
    context.strokeRect(room + 0.5, top + 0.5, K * cell - 1, K * cell - 1);
    context.fillStyle = ink;
    if (named) drawNames(context);
    if (at) {
      context.strokeStyle = look("--focus");
      context.lineWidth = 2;
      context.strokeRect(room + at[1] * cell + 1, top + at[0] * cell + 1, Math.max(2, cell - 2), Math.max(2, cell - 2));
    }
  }

  function drawNames(context) {
    const { cell, room, top } = shape;
    DATA.classes.forEach((name, k) => {
      context.textAlign = "right";
      context.textBaseline = "middle";
      context.fillText(shortened(context, name, room - 12), room - 7, top + (k + 0.5) * cell);
      context.save();
      context.translate(room + (k + 0.5) * cell, top - 6);
      context.rotate(-Math.PI / 4);
      context.textAlign = "left";
      context.fillText(shortened(context, name, room - 12), 0, 0);
      context.restore();
    });
  }

  function tell() {
    if (!at) return;
    const [label, prediction] = at, pixels = count(label, prediction);
    const words = label === prediction ? "as itself" : `as ${DATA.classes[prediction]}`;
    readout.textContent =
      `${DATA.classes[label]} ${words}: ${percent(pixels / total(label, true))} % of the label, ` +
      `${percent(pixels / total(prediction, false))} % of the prediction, ${counted(pixels)} pixels`;
    drawMatrix();
  }

  function list() {
    const ofLabel = chosen("confusion-share") === "label", errors = [];
    let all = 0;
    for (let label = 0; label < K; label++) {
      for (let prediction = 0; prediction < K; prediction++) {
        if (label === prediction || !count(label, prediction)) continue;
        all += count(label, prediction);
        errors.push([count(label, prediction), label, prediction]);
      }
    }
    errors.sort((one, other) => other[0] - one[0] || one[1] - other[1]);
    $("confusions").caption.textContent = `Most frequent confusions of ${$("confusion-method").selectedOptions[0].textContent}`;
    $("confusions-share").textContent = ofLabel ? "% of the label" : "% of the prediction";
    $("confusions").tBodies[0].replaceChildren(...errors.slice(0, LISTED).map(([pixels, label, prediction]) =>
      make("tr", {},
        make("th", { scope: "row" }, swatch(label), DATA.classes[label]),
        make("td", {}, swatch(prediction), DATA.classes[prediction]),
        make("td", {}, percent(pixels / total(ofLabel ? label : prediction, ofLabel), 1)),
        make("td", {}, percent(pixels / all, 1)))));
  }

  async function show() {
    const wanted = $("confusion-method").value, content = await bytes(Number(wanted));
    if (wanted !== $("confusion-method").value) return; // another one was chosen meanwhile
    counts = new Float64Array(content);
    list();
    drawMatrix();
    tell();
  }

  function cellAt(event) {
    const { cell, room, top } = shape, area = canvas.getBoundingClientRect();
    const label = Math.floor((event.clientY - area.top - top) / cell), prediction = Math.floor((event.clientX - area.left - room) / cell);
    return label >= 0 && prediction >= 0 && label < K && prediction < K ? [label, prediction] : null;
  }

  if (methods.length) {
    $("confusion-method").append(...methods.map((method) => option(method.name, method.confusion)));
    $("confusion-method").addEventListener("change", show);
    onChoice("confusion-share", () => {
      list();
      drawMatrix();
    });
    canvas.addEventListener("pointermove", (event) => {
      const found = counts && cellAt(event);
      if (found && String(found) !== String(at)) {
        at = found;
        tell();
      }
    });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move || !counts) return;
      event.preventDefault();
      at = at ? at.map((place, axis) => Math.max(0, Math.min(K - 1, place + move[axis]))) : [0, 0];
      tell();
    });
    redraws.push(drawMatrix);
    show();
  } else {
    $("confusion-missing").hidden = false;
    $("confusion-body").hidden = true;
  }
}
