/* What every explorer does: it takes its data when the reader comes near. */
const find = (selector) => root.querySelector(selector);

const fetched = (source) => new Promise((loaded, failed) => {
  const script = document.createElement("script");
  script.src = source;
  script.onload = loaded;
  script.onerror = () => failed(Object.assign(new Error(`not loaded: ${source}`), { file: source.split("/").pop() }));
  document.head.append(script);
});

// A notebook holds the data; for a page of the book they are a file, named in the page.
const data = async () => {
  const held = find("script[type='application/json']");
  const file = held.dataset.chart;
  if (!file) return JSON.parse(held.textContent);
  await fetched(file);
  return window.lorabookCharts[file.split("/").pop()];
};

const whenNear = (show) => {
  const watcher = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    data().then(show).catch((error) => {
      if (!error.file) throw error;
      find("output").textContent += ` (The controls need ${error.file}, which could not be loaded.)`;
    });
  }, { rootMargin: "600px" });
  watcher.observe(root);
};
