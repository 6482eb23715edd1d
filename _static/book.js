/* What the pages do beyond being read: colours, the sidebars, search, copying code, and where you are. Nothing is needed to read. */
(() => {
  "use strict";
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const settings = document.documentElement.dataset;

  // Light, dark, or as the system is.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    settings.theme = settings.mode === "auto" ? (system.matches ? "dark" : "light") : settings.mode;
    const named = { auto: "as the system", light: "light", dark: "dark" }[settings.mode];
    all(".theme-switch-button").forEach((button) => {
      button.title = `Colours: ${named}`;
      button.setAttribute("aria-label", button.title);
    });
  };
  all(".theme-switch-button").forEach((button) =>
    button.addEventListener("click", () => {
      const order = system.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
      settings.mode = order[(order.indexOf(settings.mode) + 1) % 3];
      try { localStorage.setItem("mode", settings.mode); } catch { /* a page from disk may not be allowed to */ }
      show();
    }),
  );
  system.addEventListener("change", show);
  show();

  // A dialog closes with a press beside it; Escape it closes by itself.
  const closeOutside = (dialog) =>
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // The sidebars: on a narrow screen, dialogs; on a wide one, the left one folds away.
  const sidebar = (button, panel, dialog, folds) => {
    if (!button || !panel || !dialog) return;
    const move = (from, to) => {
      to.append(...from.childNodes);
      to.className = from.className;
      from.className = "";
    };
    button.addEventListener("click", () => {
      if (folds && matchMedia("(min-width: 992px)").matches) return void panel.classList.toggle("pst-sidebar-hidden");
      move(panel, dialog);
      dialog.showModal();
    });
    dialog.addEventListener("close", () => move(dialog, panel));
    dialog.addEventListener("click", (event) => { if (event.target.closest("a[href*='#']")) dialog.close(); });
    closeOutside(dialog);
  };
  sidebar(find(".primary-toggle"), find("#pst-primary-sidebar"), find("#pst-primary-sidebar-modal"), true);
  sidebar(find(".secondary-toggle"), find("#pst-secondary-sidebar"), find("#pst-secondary-sidebar-modal"), false);

  // The page that is being read stands in sight in the book's contents.
  const here = find(".bd-sidebar-primary .current.active");
  if (here) requestAnimationFrame(() => {
    if (here.getBoundingClientRect().bottom > innerHeight) find("#pst-primary-sidebar").scrollTop = here.offsetTop - innerHeight / 2;
  });

  // Search: the dialog leads to the page of results; on that page the field itself is meant.
  const dialog = find("#pst-search-dialog");
  const search = () => {
    const field = find(".bd-search-container input[type=search]");
    if (field) field.focus();
    else if (dialog.open) dialog.close();
    else dialog.showModal();
  };
  if (dialog) {
    all(".search-button__button").forEach((button) => button.addEventListener("click", search));
    closeOutside(dialog);
    addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey) {
        event.preventDefault();
        search();
      }
    });
  }

  // A section that was not near has a guessed height, and what follows it a wrong place: a jump within the page needs them all at once.
  addEventListener("click", (event) => {
    const link = event.target.closest("a[href*='#']");
    if (link && link.hash && link.pathname === location.pathname) settings.laidOut = "whole";
  }, true);

  // What follows waits for each element until its section is near and laid out, and is done again when its size changes.
  const sized = (selector, work) => {
    const observer = new ResizeObserver((entries) => work(entries.map((entry) => entry.target)));
    all(selector).forEach((one) => observer.observe(one));
  };

  // What scrolls by itself can be reached, and scrolled, by keyboard.
  sized("pre, .katex-display, div.math, .pst-scrollable-table-container, .cell_output > .output, .lora-figure, .lora-explorer .view", (near) => {
    const scrolling = near.map((one) => one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1);
    near.forEach((one, index) => {
      if (scrolling[index]) one.tabIndex = 0;
      else one.removeAttribute("tabindex");
    });
  });

  // Code can be copied, without the prompts of a console.
  const copyButton = (code) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy-code";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const copy = code.cloneNode(true);
      copy.querySelectorAll(".gp, .linenos").forEach((prompt) => prompt.remove());
      await navigator.clipboard.writeText(copy.textContent.replace(/\n$/, ""));
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    return button;
  };
  if (navigator.clipboard) sized("div.highlight > pre", (near) => near.forEach((code) => {
    if (!code.nextElementSibling && !code.closest(".cell_output")) code.after(copyButton(code));
  }));

  // Which section is being read.
  const links = new Map(all("#pst-page-toc-nav a").map((link) => [document.getElementById(decodeURIComponent(link.hash.slice(1))), link]));
  const headings = [...links.keys()].filter(Boolean).map((section) => section.querySelector("h1, h2, h3, h4") || section);
  if (headings.length) {
    const watcher = new IntersectionObserver((entries) => {
      const seen = entries.filter((entry) => entry.isIntersecting).pop();
      if (!seen) return;
      links.forEach((link, section) => {
        const reading = section === seen.target || (section && section.contains(seen.target) && section === seen.target.closest("section"));
        link.classList.toggle("active", Boolean(reading));
        if (reading) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    }, { rootMargin: "0px 0px -70% 0px" });
    headings.forEach((heading) => watcher.observe(heading));
  }

  // Back to the top, once there is a way to go, and on the way up.
  const up = find("#pst-back-to-top");
  if (up) {
    let last = 0;
    addEventListener("scroll", () => {
      up.hidden = !(scrollY > innerHeight && scrollY < last);
      last = scrollY;
    }, { passive: true });
    up.addEventListener("click", () => scrollTo({ top: 0 }));
  }

  // Paper has nothing to open: everything is open there.
  let closed = [];
  addEventListener("beforeprint", () => { closed = all("details:not([open])"); closed.forEach((one) => { one.open = true; }); });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
})();
