// The list of images: the worst, the best, what a method gains or loses, for one class or the mean of an image's classes.

const PAGE = 10, SEEN = 0.005;
const Images = { gallery: 0, rows: [], first: 0, asked: 0, open: () => {} };

function galleryOf() {
  return DATA.galleries[Images.gallery];
}

const ofGallery = (index) => DATA.methods.map((method, number) => ({ ...method, number })).filter((method) => method.gallery === index);

async function numbers(blob) {
  return new Uint16Array(await bytes(blob));
}

const share = (value) => (value === NONE || value === undefined ? NaN : value / FULL);

// An image's score: the class's IoU, or the mean over the classes that are in its labels.
function score(iou, shares, image, wanted) {
  const K = DATA.classes.length;
  if (wanted >= 0) return share(iou[image * K + wanted]);
  let sum = 0, count = 0;
  for (let k = 0; k < K; k++) {
    const value = share(iou[image * K + k]);
    if (share(shares[image * K + k]) > 0 && Number.isFinite(value)) {
      sum += value;
      count += 1;
    }
  }
  return count ? sum / count : NaN;
}

async function rank() {
  const gallery = galleryOf(), K = DATA.classes.length, wanted = Number($("image-class").value);
  const method = DATA.methods[Number($("image-method").value)], other = DATA.methods[Number($("image-other").value)];
  const asked = ++Images.asked; // a later choice may be ready before this one
  const pictured = new Map(gallery.shown.map((image, index) => [image.image, index]));
  const order = $("image-order").value;
  let rows = gallery.names.map((name, image) => ({ name, image, picture: pictured.get(image) ?? -1, own: NaN, theirs: NaN, share: NaN }));
  if (method?.iou !== undefined) {
    const [own, theirs, shares] = await Promise.all([
      numbers(method.iou), other?.iou === undefined ? null : numbers(other.iou), numbers(gallery.shares)]);
    if (asked !== Images.asked) return;
    for (const row of rows) {
      row.own = score(own, shares, row.image, wanted);
      row.theirs = theirs ? score(theirs, shares, row.image, wanted) : NaN;
      row.share = wanted < 0 ? NaN : share(shares[row.image * K + wanted]);
    }
    rows = rows.filter((row) => Number.isFinite(row.own) && (wanted < 0 || !$("image-seen").checked || row.share >= SEEN));
  }
  if ($("image-pictured").checked) rows = rows.filter((row) => row.picture >= 0);
  const worth = { worst: (row) => row.own, best: (row) => -row.own, loses: (row) => row.own - row.theirs, gains: (row) => row.theirs - row.own,
    name: (row) => row.image }[order];
  rows.sort((one, two) => (Number.isNaN(worth(one)) - Number.isNaN(worth(two))) || worth(one) - worth(two) || one.image - two.image);
  Images.rows = rows;
  Images.first = 0;
  list();
}

function list() {
  const table = $("image-list"), focused = table.contains(document.activeElement), classed = Number($("image-class").value) >= 0;
  const method = DATA.methods[Number($("image-method").value)], other = DATA.methods[Number($("image-other").value)];
  const scored = method?.iou !== undefined, compared = scored && other?.iou !== undefined && other !== method;
  const heads = [["image", ""], ...(classed && scored ? [["% of image", "number"]] : []), ...(scored ? [["IoU,\u00a0%", "number"]] : []),
    ...(compared ? [["other", "number"], ["diff.", "number"]] : [])];
  table.tHead.replaceChildren(make("tr", {}, ...heads.map(([text, className]) => make("th", { scope: "col", className }, text))));
  const rows = Images.rows.slice(Images.first, Images.first + PAGE);
  table.tBodies[0].replaceChildren(...rows.map((row) => {
    const cells = [];
    if (classed && scored) cells.push(percent(row.share, 1));
    if (scored) cells.push(percent(row.own, 1));
    if (compared) cells.push(percent(row.theirs, 1), signed(row.own - row.theirs, 1));
    return make("tr", row.picture >= 0 && row.picture === Images.current ? { "aria-current": "true" } : {}, make("th", { scope: "row" }, named(row)),
      ...cells.map((text) => make("td", { className: "number" }, text)));
  }));
  if (focused) table.querySelector("tr[aria-current] button")?.focus(); // the rows are new ones
  const last = Math.min(Images.rows.length, Images.first + PAGE);
  $("image-range").textContent = Images.rows.length ? `${counted(Images.first + 1)}–${counted(last)} of ${counted(Images.rows.length)}` : "no image";
  $("image-before").disabled = Images.first === 0;
  $("image-after").disabled = last >= Images.rows.length;
}

// An image's name: a button with a thumbnail where the page has pictures of it.
function named(row) {
  if (row.picture < 0) return make("span", { title: "no pictures of it on this page" }, row.name);
  const thumbnail = make("img", { alt: "", src: galleryOf().shown[row.picture].photo, loading: "lazy" });
  const button = make("button", { type: "button" }, thumbnail, make("span", {}, row.name));
  button.addEventListener("click", () => Images.open(row.picture));
  return button;
}

// The method that is looked at first: of those after the baseline, the one with the highest score.
function telling(methods) {
  const others = methods.length > 1 ? methods.slice(1) : methods;
  return others.reduce((best, method) => ((method.miou ?? -1) > (best.miou ?? -1) ? method : best));
}

function fillChoices() {
  const methods = ofGallery(Images.gallery);
  for (const id of ["image-method", "image-other"]) $(id).replaceChildren(...methods.map((method) => option(method.name, method.number)));
  $("image-method").value = telling(methods).number;
  const gallery = galleryOf(), pictures = gallery.shown.length, all = gallery.names.length;
  const scored = methods.some((method) => method.iou !== undefined);
  $("images-missing").hidden = scored;
  $("images-missing").textContent = "These results have no record of single images, so none can be ranked: evaluate again, with uv run dvc repro.";
  for (const id of ["image-class", "image-method", "image-other", "image-order", "image-seen"]) $(id).closest("label").hidden = !scored;
  $("image-other").closest("label").hidden = !scored || methods.length < 2;
  for (const choice of $("image-order").options) choice.hidden = choice.disabled = methods.length < 2 && ["loses", "gains"].includes(choice.value);
  if ($("image-order").selectedOptions[0].disabled) $("image-order").value = "worst";
  $("images-note").textContent = `${counted(pictures)} of ${counted(all)} images have pictures on this page, at most 640 pixels wide or high; ` +
    "the numbers are of all images, multi-scale + flip, at full size. Predictions are those of the first seed.";
}

function startImages() {
  if (!DATA.galleries.some((gallery) => gallery.names.length)) return without("images");
  $("split").append(...DATA.galleries.map((gallery, index) => option(gallery.split, index)));
  $("split-label").hidden = DATA.galleries.length < 2;
  $("image-class").append(option("all (mean of the image's)", -1), ...DATA.classes.map((name, index) => option(name, index)));
  $("split").addEventListener("change", () => {
    Images.gallery = Number($("split").value);
    fillChoices();
    rank();
    Images.open(0);
  });
  for (const id of ["image-class", "image-method", "image-other", "image-order", "image-seen", "image-pictured"]) $(id).addEventListener("change", rank);
  $("image-before").addEventListener("click", () => {
    Images.first = Math.max(0, Images.first - PAGE);
    list();
  });
  $("image-after").addEventListener("click", () => {
    Images.first += PAGE;
    list();
  });
  fillChoices();
}
