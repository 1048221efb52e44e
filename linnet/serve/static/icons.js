// The pictures on the buttons: strokes on a field of 24 x 24, made as elements, as markup strings are never parsed here.

const PATHS = {
  copy: ["M9 9h11v11H9z", "M5 15H4V4h11v1"],
  done: ["M5 13l4.5 4.500L19 7"],
  edit: ["M4 20l1-4L16.5 4.500l3 3L8 19z"],
  moon: ["M20 14.500A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.500z"],
  new: ["M12 5v14", "M5 12h14"],
  down: ["M12 5v14", "M6 13l6 6 6-6"],
  retry: ["M20 12a8 8 0 1 1-2.4-5.700L20 8.5", "M20 4v4.500h-4.5"],
  send: ["M12 20V5", "M5.5 11.500L12 5l6.5 6.5"],
  settings: ["M4 7h9", "M19 7h1", "M4 17h1", "M11 17h9", "M16 4.500v5", "M8 14.500v5"],
  stop: ["M7 7h10v10H7z"],
  close: ["M6 6l12 12", "M18 6L6 18"],
  curves: ["M4 4v16h16", "M7 8c3 7 6 8 12 8.5"],
};
const SVG = "http://www.w3.org/2000/svg";

/** The picture `name`, hidden from screen readers: its button has a label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon icon-" + name);
  for (const strokes of PATHS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", strokes);
    svg.append(path);
  }
  return svg;
}

/** Put its picture into each element that names one in data-icon. */
export function addIcons() {
  for (const element of document.querySelectorAll("[data-icon]")) element.prepend(icon(element.dataset.icon));
}
