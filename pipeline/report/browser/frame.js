// The frame of the viewer: the divider between its two sides, zoom, and what pointer, wheel and keys do there.
const Frame = { layers: [], point: () => {}, fit: () => {} };
{
  const stage = $("stage"), slide = $("slide"), state = { zoom: 1, x: 0, y: 0 };

  function divide() {
    const place = Number(slide.value);
    $("side-left").style.clipPath = `inset(0 ${100 - place}% 0 0)`;
    $("side-right").style.clipPath = `inset(0 0 0 ${place}%)`;
    $("divider").style.left = `${place}%`;
    slide.setAttribute("aria-valuetext", `${place} percent`);
  }

  function move() {
    const area = stage.getBoundingClientRect();
    state.x = Math.min(0, Math.max(area.width * (1 - state.zoom), state.x));
    state.y = Math.min(0, Math.max(area.height * (1 - state.zoom), state.y));
    for (const layer of Frame.layers) layer.style.transform = `translate(${state.x}px, ${state.y}px) scale(${state.zoom})`;
    $("zoom-value").textContent = `${state.zoom.toFixed(state.zoom % 1 ? 1 : 0)}×`;
    stage.style.cursor = state.zoom > 1 ? "grab" : "ew-resize";
    stage.style.touchAction = state.zoom > 1 ? "none" : "pan-y"; // a finger scrolls the page until there is something to move
  }

  function zoom(factor, x, y) {
    const area = stage.getBoundingClientRect(), before = state.zoom;
    x ??= area.width / 2;
    y ??= area.height / 2;
    state.zoom = Math.max(1, Math.min(16, before * factor));
    state.x = x - ((x - state.x) * state.zoom) / before;
    state.y = y - ((y - state.y) * state.zoom) / before;
    move();
  }

  Frame.fit = () => {
    Object.assign(state, { zoom: 1, x: 0, y: 0 });
    move();
  };

  function slideTo(event) {
    const area = stage.getBoundingClientRect();
    slide.value = Math.round((100 * (event.clientX - area.left)) / area.width);
    divide();
  }

  // The place below the pointer, as shares of the picture's width and height.
  function point(event) {
    const area = stage.getBoundingClientRect();
    Frame.point((event.clientX - area.left - state.x) / state.zoom / area.width, (event.clientY - area.top - state.y) / state.zoom / area.height);
  }

  let dragged = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const area = stage.getBoundingClientRect(), near = Math.abs(event.clientX - area.left - (area.width * slide.value) / 100) < 22;
    dragged = state.zoom > 1 && !near ? { x: event.clientX - state.x, y: event.clientY - state.y } : "divider";
    stage.setPointerCapture(event.pointerId);
    if (dragged === "divider") slideTo(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (dragged === "divider") slideTo(event);
    else if (dragged) {
      state.x = event.clientX - dragged.x;
      state.y = event.clientY - dragged.y;
      move();
    }
    point(event);
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => (dragged = null));
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && state.zoom === 1) return; // the page scrolls
    event.preventDefault();
    const area = stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), event.clientX - area.left, event.clientY - area.top);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => {
    const area = stage.getBoundingClientRect();
    zoom(2, event.clientX - area.left, event.clientY - area.top);
  });
  stage.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.shiftKey && (dx || dy)) {
      state.x -= 40 * dx;
      state.y -= 40 * dy;
      move();
    } else if (dx) {
      slide.value = Number(slide.value) + 2 * dx;
      divide();
    } else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") Frame.fit();
    else return;
    event.preventDefault();
  });
  slide.addEventListener("input", divide);
  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  $("zoom-fit").addEventListener("click", () => Frame.fit());
  addEventListener("resize", move);
  divide();
}
