"use strict";
// The page's only script: the explorer looks up tiles that were made before, and nothing is ever fetched.

function tilePainter(data, picture) {
  return (canvas, number, label) => {
    const px = data.px;
    canvas.width = canvas.height = px;
    canvas.classList.toggle("smooth", px > 64);
    canvas.setAttribute("aria-label", label);
    const x = (number % data.columns) * px, y = Math.floor(number / data.columns) * px;
    canvas.getContext("2d").drawImage(picture, x, y, px, px, 0, 0, px, px);
  };
}

function recipe(data) {
  const [up, down] = data.moves;
  const scale = data.guidance_scale === 1 ? "" : ` --guidance-scale ${data.guidance_scale}`;
  return `--inversion-moves ${up} --moves ${down}${scale}`;
}

// Rows of the map that are taken, as numbers in order.
function taken(form, data) {
  const chosen = [...form.elements.unit].filter((input) => input.checked).map((input) => input.value);
  if (chosen[0] === "none") return [];
  if (chosen[0] === "all") return data.units.map((_, i) => i);
  return chosen.map(Number);
}

// A click anywhere in a row of the map is a click on its box; the keyboard has the box itself.
function clickableRows(form) {
  for (const cell of form.querySelectorAll("table.map td"))
    cell.addEventListener("click", () => cell.closest("tr").querySelector("input").click());
}

function exchange(place, data, paint) {
  const form = place.querySelector("form"), said = place.querySelector(".said");
  const canvas = (name) => place.querySelector(`[data-tile="${name}"]`);
  const show = () => {
    const pair = Number(form.elements.pair.value), direction = Number(form.elements.direction.value);
    const units = taken(form, data), moved = form.elements.moved.checked, scale = Number(form.elements.scale.value);
    const choice = data.choices.findIndex((c) => c.join() === units.join());
    const [a, b] = data.pairs[pair];
    const own = data.names[direction ? b : a], other = data.names[direction ? a : b];
    const names = units.length ? units.map((i) => data.unit_names[i]).join(", ") : "nothing of z";
    const told = `${own} with ${names} of ${other} at scale ${data.scales[scale]}, ` +
      (moved ? "x_T moved along" : "its own x_T");
    paint(canvas("a"), data.originals[a], `a: ${data.names[a]}`);
    paint(canvas("b"), data.originals[b], `b: ${data.names[b]}`);
    paint(canvas("result"), data.exchanged[pair][direction][choice][moved ? 1 : 0][scale], told);
    form.querySelector("output").textContent = data.scales[scale];
    form.elements.scale.setAttribute("aria-valuetext", data.scales[scale]);
    for (const input of form.elements.unit) input.closest("tr").classList.toggle("taken", input.checked);
    said.textContent = told;
    form.querySelector(".command").textContent =
      `diffsiam counterfactual ${data.run} -i ${data.numbers[a]} -i ${data.numbers[b]} ` +
      `--subsets ${data.named[choice]} --scales ${data.scales[scale]} ` +
      `${moved ? "" : "--fixed-x-T "}${recipe(data)}`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  clickableRows(form);
  show();
}

function push(place, data, paint) {
  const form = place.querySelector("form"), said = place.querySelector(".said");
  const canvas = (name) => place.querySelector(`[data-tile="${name}"]`);
  const show = () => {
    const image = Number(form.elements.image.value), attribute = Number(form.elements.attribute.value);
    const at = Number(form.elements.push.value), scale = data.pushes[at];
    const a = data.pairs[image][0], name = data.attributes[attribute];
    const told = `${data.names[a]} with ${name.replaceAll("_", " ")} pushed by ${scale}`;
    paint(canvas("a"), data.originals[a], `original: ${data.names[a]}`);
    paint(canvas("result"), data.pushed[image][attribute][at], told);
    form.querySelector("output").textContent = scale;
    form.elements.push.setAttribute("aria-valuetext", scale);
    said.textContent = told;
    form.querySelector(".command").textContent =
      `diffsiam manipulate ${data.run} -i ${data.numbers[a]} -a '${name.replaceAll("'", "'\\''")}' ` +
      `--scales=${scale} --samples ${data.learnt_from} ${recipe(data)}`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}

for (const [kind, start] of [["exchange", exchange], ["push", push]]) {
  for (const place of document.querySelectorAll(`[data-${kind}]`)) {
    const id = place.dataset[kind];
    const data = JSON.parse(document.getElementById(`${id}-data`).textContent);
    const picture = document.getElementById(`${id}-tiles`);
    picture.decode().then(() => start(place, data, tilePainter(data, picture)));
  }
}

const reload = document.getElementById("reload");
if (reload) {
  const kept = { get: () => { try { return sessionStorage.reload; } catch { return ""; } } };
  reload.checked = kept.get() === "yes";
  reload.addEventListener("change", () => {
    try { sessionStorage.reload = reload.checked ? "yes" : ""; } catch { /* files may not keep anything */ }
  });
  setInterval(() => { if (reload.checked) location.reload(); }, 60000);
}
