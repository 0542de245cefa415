"use strict";
(() => {
  const config = {responsive: true, displayModeBar: false, displaylogo: false};
  const boxes = [...document.querySelectorAll("[data-figure]")];

  // what of a figure depends on the page's colours
  function colours({data, layout}) {
    const style = getComputedStyle(document.documentElement);
    const [text, line, panel, cells] = ["--text", "--line", "--panel", "--cells"].map((name) =>
      style.getPropertyValue(name).trim(),
    );
    const changes = {
      "font.color": text,
      "hoverlabel.bgcolor": panel,
      "hoverlabel.bordercolor": line,
      "hoverlabel.font.color": text,
    };
    // cells without a value show the ground, and no colour of a scale looks like it
    if (data.some((trace) => trace.type === "heatmap")) changes.plot_bgcolor = cells;
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      changes[axis + ".gridcolor"] = line;
      changes[axis + ".zerolinecolor"] = line;
      changes[axis + ".linecolor"] = line;
    }
    return changes;
  }

  function put(layout, changes) {
    for (const [path, value] of Object.entries(changes)) {
      const keys = path.split(".");
      const last = keys.pop();
      keys.reduce((at, key) => (at[key] ??= {}), layout)[last] = value;
    }
    return layout;
  }

  for (const box of boxes) {
    const figure = JSON.parse(document.getElementById(box.dataset.figure).textContent);
    Plotly.newPlot(box, figure.data, put(figure.layout, colours(figure)), config);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const box of boxes) Plotly.relayout(box, colours(box));
  });
})();
