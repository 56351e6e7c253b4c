// The viewer: two of photograph, labels and predictions in the frame, as classes or errors, with superpixels.
{
  const stage = $("stage");
  const word = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // as canvases hold it
  const HATCH = [word([40, 40, 40]), word([95, 95, 95])], PALETTE = DATA.palette.map(word);
  const RIGHT = [225, 225, 225], WRONG = [200, 30, 30];
  const WHO = { both: RIGHT, left: [0, 114, 178], right: [230, 159, 0], neither: [110, 20, 40] };
  const WORDS = Object.fromEntries(Object.entries({ ...WHO, right_: RIGHT, wrong: WRONG }).map(([key, rgb]) => [key, word(rgb)]));
  const state = { asked: 0, image: null, parts: {} };
  const sides = ["left", "right"];
  const canvasOf = (side) => $(`side-${side}`).firstElementChild;

  async function open(index) {
    const image = galleryOf().shown[index];
    stage.parentNode.hidden = stage.hidden = !image;
    if (!image) return;
    Images.current = index;
    const asked = ++state.asked, [width, height] = image.size, content = new Uint8Array(await bytes(image.maps));
    if (asked !== state.asked) return; // another image was chosen meanwhile
    let start = 0;
    state.parts = {};
    for (const name of image.parts) {
      const length = name.startsWith("set:") ? 2 * Math.ceil((width * height) / 8) : width * height;
      state.parts[name] = content.subarray(start, start + length);
      start += length;
    }
    state.image = image;
    $("photo").src = image.photo;
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.maxWidth = `calc(78vh * ${width / height})`;
    $("image-name").textContent = galleryOf().names[image.image];
    fill();
    Frame.fit();
    list();
  }

  function fill() {
    const choices = [["photo", "photograph"], ["labels", "labels"]];
    DATA.methods.forEach((method, index) => String(index) in state.parts && choices.push([String(index), method.name]));
    const best = String(telling(ofGallery(Images.gallery)).number);
    const usual = { left: choices[2]?.[0] ?? "photo", right: best in state.parts ? best : choices[3]?.[0] ?? "labels" };
    if (choices.length === 3) usual.left = "labels", usual.right = choices[2][0];
    for (const side of sides) {
      const before = $(side).value;
      $(side).replaceChildren(...choices.map(([value, text]) => option(text, value)));
      $(side).value = choices.some(([value]) => value === before) ? before : usual[side];
    }
    const sets = Object.keys(state.parts).filter((name) => name.startsWith("set:")), before = $("outline-set").value;
    $("outline-label").hidden = !sets.length;
    $("outline-set").replaceChildren(...sets.map((name) => option(name.slice(4), name)));
    if (sets.includes(before)) $("outline-set").value = before;
    $("outline-set").hidden = sets.length < 2;
    paint();
  }

  const isMethod = (source) => source !== "photo" && source !== "labels";

  // The colour of every pixel of one side, or null for the photograph.
  function colours(side) {
    const source = $(side).value, labels = state.parts.labels, own = state.parts[source], mode = chosen("show");
    if (source === "photo") return null;
    const other = state.parts[$(side === "left" ? "right" : "left").value];
    if (!isMethod(source) || mode === "classes") return (pixel) => PALETTE[own[pixel]];
    const wrong = (map, pixel) => map[pixel] !== labels[pixel];
    if (mode === "errors") return (pixel) => (labels[pixel] === VOID ? undefined : wrong(own, pixel) ? WORDS.wrong : WORDS.right_);
    const [left, right] = side === "left" ? [own, other] : [other, own];
    return (pixel) => labels[pixel] === VOID ? undefined
      : wrong(left, pixel) ? (wrong(right, pixel) ? WORDS.neither : WORDS.right) : wrong(right, pixel) ? WORDS.left : WORDS.both;
  }

  function paint() {
    if (!state.image) return;
    const [width, height] = state.image.size, two = sides.every((side) => isMethod($(side).value));
    const who = document.querySelector('input[name="show"][value="who"]');
    who.disabled = !two;
    if (!two && who.checked) document.querySelector('input[name="show"][value="errors"]').checked = true;
    for (const side of sides) {
      const canvas = canvasOf(side), colour = colours(side);
      canvas.hidden = !colour;
      canvas.width = width;
      canvas.height = height;
      if (!colour) continue;
      const pixels = new ImageData(width, height), words = new Uint32Array(pixels.data.buffer);
      for (let y = 0, pixel = 0; y < height; y++) {
        for (let x = 0; x < width; x++, pixel++) words[pixel] = colour(pixel) ?? HATCH[((x + y) >> 2) & 1];
      }
      canvas.getContext("2d").putImageData(pixels, 0, 0);
    }
    for (const side of sides) $(`tag-${side}`).textContent = $(side).selectedOptions[0].textContent;
    outlines();
    shine();
    legend();
    about();
  }

  // Thin lines on a larger canvas, so that they hide little of a small picture: the bits say which pixels begin
  // a superpixel on the left (first half) and above (second half).
  function outlines() {
    const [width, height] = state.image.size, canvas = $("outlines"), bits = state.parts[$("outline-set").value];
    canvas.hidden = !$("outline").checked || !bits;
    if (canvas.hidden) return;
    const scale = Math.max(1, Math.round(1000 / width)), thick = Math.max(1, Math.round(scale / 5)), half = bits.length / 2;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d");
    context.fillStyle = "rgb(255, 230, 0)";
    for (let pixel = 0; pixel < width * height; pixel++) {
      const mask = 128 >> (pixel & 7), x = (pixel % width) * scale, y = Math.floor(pixel / width) * scale;
      if (bits[pixel >> 3] & mask) context.fillRect(x, y, thick, scale + thick);
      if (bits[half + (pixel >> 3)] & mask) context.fillRect(x, y, scale + thick, thick);
    }
  }

  const shine = () => sides.forEach((side) => (canvasOf(side).style.opacity = 1 - $("shine").value / 100));

  // The share of labelled pixels that each side has right.
  function about() {
    const labels = state.parts.labels, words = [];
    for (const side of sides) {
      const own = state.parts[$(side).value];
      if (!isMethod($(side).value)) continue;
      let right = 0, all = 0;
      for (let pixel = 0; pixel < labels.length; pixel++) {
        if (labels[pixel] === VOID) continue;
        all += 1;
        right += labels[pixel] === own[pixel];
      }
      words.push(`${$(side).selectedOptions[0].textContent} ${percent(right / all, 1)} %`);
    }
    const [width, height] = state.image.full;
    $("image-about").textContent = `${width} × ${height}` + (words.length ? `; pixels right: ${words.join(", ")}` : "");
  }

  function legend() {
    const entries = [], mode = chosen("show"), colourOf = (rgb) => {
      const made = make("span", { className: "swatch" });
      made.style.background = `rgb(${rgb.join(",")})`;
      return made;
    };
    const sources = sides.map((side) => $(side).value).filter((source) => source !== "photo");
    const asClasses = sources.filter((source) => mode === "classes" || !isMethod(source));
    const seen = new Set(asClasses.flatMap((source) => [...new Set(state.parts[source])]));
    for (const index of [...seen].sort((one, two) => one - two)) if (index < DATA.classes.length) entries.push([swatch(index), DATA.classes[index]]);
    if (mode === "errors" && sources.some(isMethod)) entries.push([colourOf(RIGHT), "right"], [colourOf(WRONG), "wrong"]);
    if (mode === "who") {
      const [left, right] = sides.map((side) => $(side).selectedOptions[0].textContent);
      entries.push([colourOf(WHO.both), "both right"], [colourOf(WHO.left), `only ${left}`], [colourOf(WHO.right), `only ${right}`], [colourOf(WHO.neither), "both wrong"]);
    }
    if (seen.has(VOID) || mode !== "classes") entries.push([colourOf([68, 68, 68]), "striped: no label, not counted"]);
    $("legend").replaceChildren(...entries.map(([sample, text]) => make("li", {}, sample, text)));
  }

  // Names the classes at a place, given as shares of the picture's width and height.
  function point(across, down) {
    if (!state.image) return;
    const [width, height] = state.image.size, x = Math.floor(across * width), y = Math.floor(down * height);
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const name = (map) => (map[y * width + x] === VOID ? "no label" : DATA.classes[map[y * width + x]]);
    const shown = sides.filter((side) => isMethod($(side).value)).map((side) => `${$(side).selectedOptions[0].textContent}: ${name(state.parts[$(side).value])}`);
    $("readout").textContent = [`labels: ${name(state.parts.labels)}`, ...new Set(shown)].join(" · ");
  }

  $("shine").addEventListener("input", shine);
  for (const id of ["left", "right", "outline", "outline-set"]) $(id).addEventListener("change", paint);
  onChoice("show", paint);

  Frame.layers = [$("photo"), $("outlines"), ...sides.map(canvasOf)];
  Frame.point = point;
  Images.open = open;
  startImages();
  if (galleryOf().names.length) rank().then(() => {
    const first = Images.rows.find((row) => row.picture >= 0);
    return open(first ? first.picture : 0);
  });
}
