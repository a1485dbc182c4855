"use strict";
// Fills the list of images, opens one of them, sorts tables and draws the curve of a class.

const data = JSON.parse(document.getElementById("data").textContent);
const FINE = data.kinds.length, ASIDE = FINE + 1, MISSED = FINE - 1, PAGE = 24;
const byId = (id) => document.getElementById(id);

function element(name, attributes, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

function svg(name, attributes, ...content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

// --- the images ---------------------------------------------------------------------------------------------

const images = data.rows.map(([name, objects, found, flat], index) => {
  const mistakes = [];
  for (let i = 0; i < flat.length; i += 4) {
    mistakes.push({kind: flat[i], object: flat[i + 1], detected: flat[i + 2], times: flat[i + 3]});
  }
  const total = mistakes.reduce((sum, m) => sum + m.times, 0);
  const missed = mistakes.reduce((sum, m) => sum + (m.kind === MISSED ? m.times : 0), 0);
  const all = objects + found + total - missed;
  return {index, name, objects, mistakes, total, missed, false: total - missed, f1: all ? 2 * found / all : 1,
          drawing: data.drawings[index]};
});
const orders = {
  mistakes: (a, b) => b.fitting - a.fitting, f1: (a, b) => a.f1 - b.f1, missed: (a, b) => b.missed - a.missed,
  false: (a, b) => b.false - a.false, objects: (a, b) => b.objects - a.objects,
  name: (a, b) => a.name.localeCompare(b.name, undefined, {numeric: true}),
};
let list = [], at = 0;

const chosen = (id) => byId(id).value === "" ? null : Number(byId(id).value);
const fits = (kind, ...classes) => (chosen("by-kind") === null || kind === chosen("by-kind"))
  && (chosen("by-class") === null || classes.includes(chosen("by-class")));
const filtered = () => chosen("by-kind") !== null || chosen("by-class") !== null;
const isMistake = (state) => state < FINE;

function choose() {
  for (const image of images) {
    image.fitting = image.mistakes.reduce((sum, m) => sum + (fits(m.kind, m.object, m.detected) ? m.times : 0), 0);
  }
  list = images.filter((image) => !filtered() || image.fitting).sort(orders[byId("by").value]);
  byId("gallery").replaceChildren();
  showMore();
  byId("count").textContent = `${list.length} of ${images.length} images`;
}

function showMore() {
  const from = byId("gallery").childElementCount;
  byId("gallery").append(...list.slice(from, from + PAGE).map(card));
  byId("more").hidden = from + PAGE >= list.length;
}

function card(image) {
  const button = element("button", {type: "button", class: "card", "data-index": image.index});
  if (image.drawing) button.append(element("span", {class: "pair"}, ...pair(image, false)));
  button.append(element("span", {class: "name"}, image.name), element("span", {class: "said"}, summary(image)));
  button.addEventListener("click", () => open(list.indexOf(image)));
  return element("li", {}, button);
}

const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

function summary(image) {
  const times = data.kinds.map((_, kind) =>
    image.mistakes.reduce((sum, m) => sum + (m.kind === kind ? m.times : 0), 0));
  const said = data.kinds.map((kind, i) => times[i] ? `${times[i]} ${kind}` : "").filter(Boolean);
  return `${counted(image.objects, "object")}; ${said.length ? said.join(", ") : "no mistake"}`;
}

// ground truth and prediction: the same image under two sets of outlines
function pair(image, onlyMistakes) {
  const {width, height, objects, detections, image: source} = image.drawing;
  const drawn = (shapes) => {
    const whole = svg("svg", {viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"},
                      svg("image", {href: source, width, height}));
    for (const {state, classes, path} of shapes) {
      if (onlyMistakes && !isMistake(state)) continue;
      const dim = filtered() && !(isMistake(state) && fits(state, ...classes)) ? " dim" : "";
      whole.append(svg("path", {d: path, class: "halo" + dim}), svg("path", {d: path, class: `k${state}${dim}`}));
    }
    return whole;
  };
  return [
    drawn(objects.map(([label, state, path]) => ({state, classes: [label], path}))),
    drawn(detections.map(([label, , state, meant, , path]) => ({state, classes: [label, meant], path}))),
  ];
}

// --- one image, large -----------------------------------------------------------------------------------------

function open(place) {
  at = place;
  byId("viewer").showModal();
  show();
}

function show() {
  const image = list[at], viewer = byId("viewer");
  byId("viewer-name").textContent = image.name;
  byId("viewer-place").textContent = `${at + 1} of ${list.length}`;
  // not disabled: a button that has the focus would lose it, and with it the keys
  byId("previous").setAttribute("aria-disabled", at === 0);
  byId("next").setAttribute("aria-disabled", at === list.length - 1);
  const frame = viewer.querySelector(".pair");
  frame.replaceChildren();
  if (!image.drawing) {
    const lines = image.mistakes.map((m) => said(m.kind, m.object, m.detected) + (m.times > 1 ? ` (${m.times}x)` : ""));
    frame.append(element("p", {}, `This image is not in the page. ${summary(image)}.`));
    byId("viewer-list").replaceChildren(...lines.map((line) => element("li", {}, line)));
    return;
  }
  const captions = [`ground truth: ${counted(image.objects, "object")}`,
                    `prediction: ${counted(image.drawing.detections.length, "detection")}`];
  pair(image, byId("only").checked).forEach((drawing, i) => {
    frame.append(element("figure", {}, drawing, element("figcaption", {}, captions[i])));
  });
  byId("viewer-list").replaceChildren(...numbered(image, frame));
}

// a line for each mistake, and its number at the outline
function numbered(image, frame) {
  const {objects, detections} = image.drawing, lines = [];
  const add = (drawing, path, text) => {
    const line = element("li", {}, text);
    lines.push(line);
    const drawn = [...drawing.querySelectorAll("path:not(.halo)")].find((one) => one.getAttribute("d") === path);
    line.addEventListener("pointerenter", () => drawn.classList.add("lit"));
    line.addEventListener("pointerleave", () => drawn.classList.remove("lit"));
    const box = drawn.getBBox(), inside = Math.min(box.width, box.height) > 30; // else it would hide the object
    const y = inside ? box.y + box.height / 2 + 6 : box.y > 20 ? box.y - 4 : box.y + box.height + 16;
    drawing.append(svg("text", {x: box.x + box.width / 2, y, "text-anchor": "middle"}, String(lines.length)));
  };
  const [truth, prediction] = frame.querySelectorAll("svg");
  for (const [label, state, path] of objects) {
    if (state === MISSED && fits(state, label)) add(truth, path, said(MISSED, label, -1));
  }
  for (const [label, score, state, meant, iou, path] of detections) {
    if (isMistake(state) && fits(state, label, meant)) {
      const overlap = meant < 0 ? "" : `, IoU ${(iou / 100).toFixed(2)}`;
      add(prediction, path, `${said(state, meant, label)}, score ${(score / 100).toFixed(2)}${overlap}`);
    }
  }
  return lines;
}

function said(kind, object, detected) {
  const name = data.kinds[kind];
  if (kind === MISSED) return `${name}: ${data.classes[object]}`;
  return `${name}: ${data.classes[detected]}` + (object < 0 || object === detected ? "" : ` on ${data.classes[object]}`);
}

function step(by) {
  const place = at + by;
  if (place < 0 || place >= list.length) return;
  at = place;
  show();
}

function closed() {
  const cards = byId("gallery").children;
  while (at >= cards.length) showMore();
  cards[at].firstElementChild.focus();
}

// --- tables and curves ------------------------------------------------------------------------------------------

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const valueOf = (row, i) => {
    const text = row.cells[i].querySelector("data")?.value ?? row.cells[i].textContent.replaceAll(",", "");
    return text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
  };
  heads.forEach((head, i) => {
    const button = element("button", {type: "button"}, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => {
        const [x, y] = [valueOf(a, i), valueOf(b, i)];
        if (x === null || y === null) return (x === null) - (y === null); // unknown ones last
        if (typeof x === "number" && typeof y === "number") return direction * (x - y);
        return direction * String(x).localeCompare(String(y), undefined, {numeric: true});
      }));
    });
  });
}

function drawCurve() {
  const part = byId("curve"), values = data.curves[chosen("curve-class")], name = data.classes[chosen("curve-class")];
  const [x0, x1, y0, y1] = part.dataset.corners.split(" ").map(Number), line = part.querySelector(".curve");
  const points = (values ?? []).map((value, i) =>
    `${x0 + (x1 - x0) * i / (values.length - 1)},${y0 + (y1 - y0) * value / 1000}`);
  line.setAttribute("points", points.join(" "));
  line.querySelector("title").textContent = name;
  part.querySelector("svg").setAttribute("aria-label", `precision over recall: ${name}`);
  byId("curve-said").textContent = values ? `${name}, at IoU 0.5.` : `${name}: there is no object of this class.`;
}

// --- begin --------------------------------------------------------------------------------------------------------

document.querySelectorAll("[data-script]").forEach((part) => { part.hidden = false; });
document.querySelectorAll("table[data-sortable]").forEach(sortable);
byId("curve-class")?.addEventListener("change", drawCurve);
for (const id of ["by-kind", "by-class", "by"]) byId(id).addEventListener("change", choose);
byId("more").addEventListener("click", showMore);
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => byId("viewer").close());
byId("only").addEventListener("change", show);
byId("viewer").addEventListener("close", closed);
byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });
byId("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
});
choose();
