/* Shows the picture and the words of the slider's position. */
whenNear((frames) => {
  const slider = find("input");
  const show = () => {
    const frame = frames[slider.value];
    find(".view").innerHTML = frame.picture;
    find("output").textContent = frame.text;
    slider.setAttribute("aria-valuetext", frame.text);
  };
  slider.addEventListener("input", show);
  find(".controls").hidden = false;
  show();
});
