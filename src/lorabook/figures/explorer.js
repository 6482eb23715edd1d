/* Puts a Vega-Lite chart in the place of its picture. */
const book = document.querySelector("script[src*='_static/book.js']");
const vega = async (sources) => {
  for (const source of book ? [book.src.replace(/book\.js.*/, "vega.js")] : sources) await fetched(source);
};

// On a phone, views stand below each other and no wider than the page, so that their letters keep their size.
const narrow = (part) => {
  if (part.columns) part.columns = 1;
  if (part.width > 300) part.width = Math.max(200, root.clientWidth - 150);
  [...(part.concat || []), ...(part.vconcat || [])].forEach(narrow);
};

whenNear(async ({ spec, params, texts, sources }) => {
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
});
