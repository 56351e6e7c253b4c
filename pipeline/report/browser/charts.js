// The charts, drawn by Vega-Lite from what stands in the page; nothing is loaded.

const CHARTS = { mode: "vega-lite", actions: false, renderer: "svg", tooltip: true };
const refused = { load: () => Promise.reject(new Error("this page loads nothing")) };

// Draws a chart; where the results have none, its chapter goes.
async function draw(name, place) {
  const spec = DATA.charts[name];
  if (!spec) return null;
  try {
    return (await vegaEmbed($(place), spec, { ...CHARTS, loader: refused })).view;
  } catch (error) {
    $(place).replaceChildren(make("p", { className: "missing" }, `This chart cannot be drawn: ${error.message}`));
    return null;
  }
}

function without(chapter) {
  $(chapter).hidden = true;
  const link = links.get(chapter);
  if (link) link.hidden = true;
}

// Names one line of a chart and makes the others faint, as a click into the legend does.
function highlighting(chart, names, view) {
  const select = $(`${chart}-highlight`);
  select.append(option("all", ""), ...names.map((name) => option(name, name)));
  select.addEventListener("change", async () => (await view)?.signal("highlight", select.value).run());
}

if (DATA.charts.boundary) {
  const view = draw("boundary", "chart-boundary");
  highlighting("boundary", DATA.methods.map((method) => method.name), view);
  for (const key of ["protocol", "convention"]) {
    onChoice(`boundary-${key}`, async () => (await view)?.signal(key, chosen(`boundary-${key}`)).run());
  }
} else without("boundaries");

if (DATA.charts.training) highlighting("training", [...new Set(DATA.methods.map((method) => method.of))], draw("training", "chart-training"));
else without("training");

const axes = [...document.querySelectorAll('input[name="cost-axis"]')];
for (const axis of axes) axis.disabled = !DATA.charts[`cost-${axis.value}`];
const usable = axes.find((axis) => !axis.disabled);
if (usable) {
  usable.checked = true;
  let last = Promise.resolve();
  const show = () => (last = last.then(() => draw(`cost-${chosen("cost-axis")}`, "chart-cost"))); // one after the other
  onChoice("cost-axis", show);
  show();
} else without("costs");
