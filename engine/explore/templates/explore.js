"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const form = $("form"), chosen = {}, choosing = new Set();
let job = null, made = null;

function fail(text) { $("error").textContent = text; }

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is `diffsiam explore` still running?");
  }
  const told = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(told.error || `the server answered ${answer.status}`);
  return told;
}

// Images.

function choose(slot, request) {
  fail("");
  const choice = settle(slot, request).finally(() => choosing.delete(choice));
  choosing.add(choice);
}

async function settle(slot, request) {
  try {
    const kept = await request();
    chosen[slot.dataset.slot] = kept.id;
    const image = slot.querySelector(".preview");
    image.src = `images/${kept.id}.png`;
    image.alt = `Image ${slot.dataset.slot}: ${kept.name}`;
    image.classList.toggle("smooth", data.px > 64);
    image.hidden = false;
    slot.querySelector(".name").textContent = kept.name;
  } catch (error) {
    fail(error.message);
  }
}

function send(file) {
  return ask("images", { method: "POST", body: file, headers: { "X-Name": encodeURIComponent(file.name) } });
}

function take(number) {
  return ask("numbers", { method: "POST", body: JSON.stringify(Number(number)) });
}

for (const slot of document.querySelectorAll(".slot")) {
  const file = slot.querySelector("input[type=file]"), number = slot.querySelector("input[type=number]");
  file.addEventListener("change", () => file.files.length && choose(slot, () => send(file.files[0])));
  if (!number) continue;
  const taking = () => choose(slot, () => take(number.value));
  slot.querySelector(".take").addEventListener("click", taking);
  number.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); taking(); }
  });
  taking();
}

// What is asked for.

function kind() { return form.elements.kind.value; }

form.addEventListener("input", () => {
  for (const part of document.querySelectorAll("[data-kind]")) part.hidden = part.dataset.kind !== kind();
  for (const input of document.querySelectorAll("input[name=unit]"))
    input.closest("tr").classList.toggle("taken", input.checked);
});
form.dispatchEvent(new Event("input"));
// A click anywhere in a row of the map is a click on its box; the keyboard has the box itself.
for (const cell of form.querySelectorAll("table.map td"))
  cell.addEventListener("click", () => cell.closest("tr").querySelector("input").click());

function asked() {
  const value = (name) => Number(form.elements[name].value);
  const common = {
    kind: kind(), a: chosen.a, guidance_scale: value("guidance_scale"),
    inversion_moves: value("inversion_moves"), moves: value("moves"),
  };
  if (kind() === "push") {
    const { attribute, dims, push_scales: scales } = form.elements;
    return { ...common, attribute: attribute.value, dims: dims.value.trim(), scales: scales.value };
  }
  const units = [...document.querySelectorAll("input[name=unit]:checked")].map((input) => Number(input.value));
  const { moved, exchange_scales: scales } = form.elements;
  return { ...common, b: chosen.b, units, moved: moved.checked, scales: scales.value };
}

// The job and its progress.

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  fail("");
  working(true);
  await Promise.all(choosing); // what was chosen a moment ago may still be on its way
  if (chosen.a === undefined || (kind() === "exchange" && chosen.b === undefined)) {
    if (!$("error").textContent) fail("Choose the images first.");
    working(false);
    return;
  }
  try {
    job = await ask("jobs", { method: "POST", body: JSON.stringify(asked()) });
    while (job.state === "waiting" || job.state === "running") {
      tell(job);
      await new Promise((done) => setTimeout(done, 250));
      job = await ask(`jobs/${job.id}`);
    }
    if (job.state === "failed") fail(job.error);
    if (job.state === "done") finish(job);
  } catch (error) {
    fail(error.message);
  }
  working(false);
});

$("stop").addEventListener("click", () => {
  if (job) ask(`jobs/${job.id}`, { method: "DELETE" }).catch((error) => fail(error.message));
});

function working(yes) {
  $("working").hidden = $("stop").hidden = !yes;
  $("make").disabled = yes;
  if (yes) tell({ state: "waiting", done: 0, total: 1 });
}

function tell(now) {
  $("progress").value = now.total ? now.done / now.total : 0;
  const left = now.seconds_left == null ? "" : `, ${Math.ceil(now.seconds_left)} s to go`;
  $("pace").textContent = now.state === "waiting" ? "Waiting"
    : now.done ? `${Math.round(100 * now.done / now.total)} %${left}` : "Getting ready";
}

// The result.

function finish(now) {
  made = { ...now.made, id: now.id };
  $("result").hidden = false;
  $("directions").hidden = made.told.length < 2;
  $("directions").querySelector("input").checked = true;
  $("scale").max = made.scales.length - 1;
  $("scale").value = made.scales.length - 1;
  $("sheet").href = `jobs/${made.id}/sheet.png`;
  $("command").textContent = made.command;
  $("copied").textContent = "";
  show();
  $("result").querySelector("h2").focus();
}

function show() {
  const at = Number($("scale").value);
  const direction = Number($("directions").querySelector("input:checked").value) % made.told.length;
  const told = made.told[direction].replace("{}", made.scales[at]);
  $("shown").src = `jobs/${made.id}/${direction}/${at}.png`;
  $("shown").alt = told;
  $("shown").classList.toggle("smooth", data.px > 64);
  $("at").textContent = made.scales[at];
  $("scale").setAttribute("aria-valuetext", made.scales[at]);
  $("said").textContent = told;
}

$("scale").addEventListener("input", show);
$("directions").addEventListener("input", show);
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(made.command);
    $("copied").textContent = "copied";
  } catch {
    $("copied").textContent = "the browser does not allow it: select the text instead";
  }
});
