/* Puts a Vega-Lite chart in the place of its picture when the reader comes near. Self-contained: it also runs in a notebook. */
((root) => {
  "use strict";
  const find = (selector) => root.querySelector(selector);

  const book = document.querySelector("script[src*='_static/book.js']");
  const fetched = (source) => new Promise((loaded, failed) => {
    const script = document.createElement("script");
    script.src = source;
    script.onload = loaded;
    script.onerror = () => failed(Object.assign(new Error(`not loaded: ${source}`), { file: source.split("/").pop() }));
    document.head.append(script);
  });

  // A notebook holds the chart and says where Vega is; on a page of the book both are files, the chart's named in the page.
  const chart = async () => {
    const held = find("script[type='application/json']");
    const file = held.dataset.chart;
    if (!file) return JSON.parse(held.textContent);
    await fetched(file);
    return window.lorabookCharts[file.split("/").pop()];
  };
  const vega = async (sources) => {
    for (const source of book ? [book.src.replace(/book\.js.*/, "vega.js")] : sources) await fetched(source);
  };

  // On a phone, views stand below each other and no wider than the page, so that their letters keep their size.
  const narrow = (part) => {
    if (part.columns) part.columns = 1;
    if (part.width > 300) part.width = Math.max(200, root.clientWidth - 150);
    [...(part.concat || []), ...(part.vconcat || [])].forEach(narrow);
  };

  const show = async () => {
    const { spec, params, texts, sources } = await chart();
    if (!window.vegaEmbed) await (window.lorabookVega ||= vega(sources));
    if (root.clientWidth < 640) narrow(spec);
    const drawn = document.createElement("div");
    const controls = document.createElement("div");
    const tooltip = { theme: document.documentElement.dataset.theme === "dark" ? "dark" : "light" };
    const { view } = await window.vegaEmbed(drawn, spec, { actions: false, bind: controls, defaultStyle: false, renderer: "svg", tooltip });

    // What is seen is what is heard, by whoever moves a control.
    const say = () => {
      const words = [...drawn.querySelectorAll(".said_marks [aria-label]")].map((one) => one.getAttribute("aria-label")).join("; ");
      const text = texts ? texts[params.map((name) => view.signal(name)).join("|")] : words;
      find("output").textContent = text;
      root.querySelectorAll("input[type='range']").forEach((slider) => slider.setAttribute("aria-valuetext", texts ? text : view.signal(params[0])));
    };
    find(".controls").replaceChildren(...controls.childNodes);
    find(".view").replaceChildren(drawn);
    drawn.querySelector("svg").style.cssText = "max-width: 100%; height: auto";
    root.querySelectorAll("input[type='range'] + span").forEach((number) => number.remove()); // a position, not a value
    find(".controls").addEventListener("input", () => view.runAsync().then(say));
    say();
    root.classList.add("live");
  };

  const watcher = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    show().catch((error) => {
      if (!error.file) throw error;
      find("output").textContent += ` (The controls need ${error.file}, which could not be loaded.)`;
    });
  }, { rootMargin: "600px" });
  watcher.observe(root);
})(document.currentScript.parentElement);
