"use strict";
// Charts come as data, with every string escaped; colours follow the theme.
const { charts, styles } = JSON.parse(document.getElementById("charts").textContent);
const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const HEIGHT = 330; // of the axes, in pixels
const chosen = charts.map(() => 0);
const toggled = charts.map((chart) => chart.views.map(() => ({}))); // series that a reader switched on or off

function bars(points, axis, value, interval) {
  if (!points.some((p) => p[interval])) return undefined;
  const side = (end, sign) => points.map((p) => (p[interval] ? Math.max(0, sign * (p[interval][end] - p[value])) : 0));
  return { type: "data", symmetric: false, array: side(1, 1), arrayminus: side(0, -1), thickness: 1.3, width: 4 };
}

function traces(view, off, ground) {
  const found = view.series.map((series) => {
    const style = styles[series.method];
    const color = isDark() ? style.dark : style.light;
    const points = series.points;
    const common = {
      name: series.name,
      x: points.map((p) => p.x),
      y: points.map((p) => p.y),
      error_x: bars(points, "x", "x", "x_interval"),
      error_y: bars(points, "y", "y", "y_interval"),
      hoverinfo: "text",
      hovertext: points.map((p) => p.text),
      visible: off[series.name] ?? true,
    };
    if (view.bars) {
      if (common.error_y) common.error_y.color = ground.ink;
      const pattern = { shape: style.hatch, fillmode: "overlay", fgcolor: ground.paper, fgopacity: 0.7, size: 7 };
      return { ...common, type: "bar", marker: { color, pattern, opacity: 0.75 } };
    }
    return {
      ...common,
      type: "scatter",
      mode: series.line ? "lines+markers" : "markers",
      marker: { symbol: style.marker, size: 11, color, line: { width: 1, color: ground.paper } },
      line: { color, width: 1.6 },
    };
  });
  if (view.front.length)
    found.unshift({
      type: "scatter",
      mode: "lines",
      name: "Pareto front",
      x: view.front.map((p) => p[0]),
      y: view.front.map((p) => p[1]),
      line: { shape: "hv", dash: "dot", width: 1.6, color: ground.soft },
      hoverinfo: "skip",
      visible: off["Pareto front"] ?? true,
    });
  return found;
}

// Titles break where the axis is too short for them.
const wrapped = (text, letters) => text.split(" ").reduce((lines, word) => {
  const last = lines[lines.length - 1];
  return last && last.length + word.length < letters ? [...lines.slice(0, -1), `${last} ${word}`] : [...lines, word];
}, []).join("<br>");

// 1, 2 and 5 of every decade, or the decades alone where there are many.
function logTicks(values, narrow) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const decades = Math.log10(high / low);
  const steps = decades > (narrow ? 1.5 : 3) ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power += 1)
    ticks.push(...steps.map((step) => Number(`${step}e${power}`)));
  const units = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [0, ""]];
  const text = (value) => {
    const [unit, letter] = units.find(([least]) => value >= least);
    return `${value / (unit || 1)}${letter}`;
  };
  return { tickvals: ticks, ticktext: ticks.map(text) };
}

function yRange(view) {
  const ys = view.series.flatMap((series) => series.points.flatMap((p) => [p.y, ...(p.y_interval ?? [])]));
  if (view.level_fits) ys.push(view.level);
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const room = 0.08 * (high - low || 1);
  return [low - room, high + room];
}

function layout(view, names, width, ground) {
  const entry = Math.min(width - 20, 44 + 8 * Math.max(...names.map((name) => name.length), 4));
  const rows = Math.ceil(names.length / Math.max(1, Math.floor((width - 70) / entry)));
  const xTitle = wrapped(view.x_title, (width - 72) / 7.5);
  const below = 64 + 18 * (xTitle.split("<br>").length - 1) + (view.categories.join("").length * 9 > width - 70 ? 50 : 0);
  const made = {
    width,
    height: 24 + HEIGHT + below + 21 * rows,
    margin: { l: 58, r: 14, t: 24, b: below + 21 * rows },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: ground.ink },
    hoverlabel: { bgcolor: ground.panel, bordercolor: ground.soft, font: { color: ground.ink }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ground.soft, activecolor: ground.ink },
    legend: { orientation: "h", x: 0, y: -below / HEIGHT, yanchor: "top", entrywidth: entry - 34 },
    showlegend: true,
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    barmode: "group",
    bargap: 0.3,
    bargroupgap: 0.06,
    xaxis: { title: { text: xTitle, standoff: 8 }, gridcolor: ground.line, zeroline: false, linecolor: ground.line },
    yaxis: { title: { text: wrapped(view.y_title, HEIGHT / 7.5), standoff: 6 }, gridcolor: ground.line, zeroline: false, linecolor: ground.line },
    shapes: [],
    annotations: [],
  };
  const xs = view.series.flatMap((series) => series.points.map((p) => p.x));
  if (view.categories.length) {
    Object.assign(made.xaxis, { type: "category", categoryorder: "array", categoryarray: view.categories });
    made.xaxis.showgrid = false;
    if (!view.bars) {
      Object.assign(made, { scattermode: "group", scattergap: 0.8 }); // beside each other
      made.yaxis.range = yRange(view); // grouped, they would start at 0
    }
  } else if (view.log) Object.assign(made.xaxis, { type: "log", ...logTicks(xs.filter((x) => x > 0), width < 500) });
  else {
    made.xaxis.rangemode = xs.some((x) => x < 0) ? "normal" : "tozero";
    if (view.x_title === "epoch") made.xaxis.dtick = Math.max(1, Math.ceil(Math.max(...xs) / 10)); // no halves
  }
  if (view.bars) made.yaxis.rangemode = "tozero";
  if (view.level !== null) {
    const at = { xref: "paper", x: 1, xanchor: "right", showarrow: false, yanchor: "bottom", bgcolor: ground.paper, borderpad: 1, font: { size: 12, color: ground.soft } };
    const text = view.level_name + (view.level ? `: ${view.level.toFixed(1)}` : "");
    if (view.level_fits) {
      made.shapes.push({
        type: "line", xref: "paper", x0: 0, x1: 1, y0: view.level, y1: view.level, layer: "below",
        line: { dash: "dash", width: 1.3, color: ground.soft },
      });
      made.annotations.push({ ...at, y: view.level, text });
    } else made.annotations.push({ ...at, yref: "paper", y: 1, text: `${text}, outside the chart` });
  }
  return made;
}

function draw(index) {
  const view = charts[index].views[chosen[index]];
  const box = document.getElementById(`plot-${index}`);
  const ground = isDark()
    ? { paper: "#14171a", panel: "#1d2125", ink: "#e8eaed", soft: "#a3acb6", line: "#363c43" }
    : { paper: "#ffffff", panel: "#f5f6f8", ink: "#1c2126", soft: "#57606a", line: "#d5d9de" };
  const data = traces(view, toggled[index][chosen[index]], ground);
  const names = data.map((trace) => trace.name);
  Plotly.react(box, data, layout(view, names, box.clientWidth, ground), {
    displaylogo: false,
    // plotly.js 7 has a button by default that sends a chart to its maker's server: results stay here.
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { filename: charts[index].name, scale: 2 },
  });
  for (const table of document.querySelectorAll(`[data-table="${index}"]`))
    table.hidden = Number(table.dataset.view) !== chosen[index];
}

charts.forEach((chart, index) => {
  draw(index);
  const box = document.getElementById(`plot-${index}`);
  box.on("plotly_restyle", () => {
    for (const trace of box.data) toggled[index][chosen[index]][trace.name] = trace.visible;
  });
});
const redraw = () => charts.forEach((chart, index) => draw(index));

for (const button of document.querySelectorAll("[data-chart][data-view]"))
  button.addEventListener("click", () => {
    chosen[button.dataset.chart] = Number(button.dataset.view);
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
    draw(Number(button.dataset.chart));
  });

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  redraw();
});
systemDark.addEventListener("change", redraw);

let waiting;
let width = innerWidth; // phones change the height alone when their bars come and go
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(redraw, 150);
});

for (const table of document.querySelectorAll("table.sortable"))
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const cell = (row) => row.cells[head.cellIndex];
    const compare = (a, b) => {
      const [x, y] = [cell(a), cell(b)];
      if (!x.textContent || !y.textContent) return Number(!x.textContent) - Number(!y.textContent); // empty ones last
      if (x.dataset.value && y.dataset.value) return sign * (x.dataset.value - y.dataset.value);
      return sign * x.textContent.localeCompare(y.textContent, "en", { numeric: true });
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  });
