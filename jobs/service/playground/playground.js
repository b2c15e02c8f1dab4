// The page's one script: asks the service's own API, and draws what it says. Texts are put in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const FOLDED_AFTER = 5;

const shown = (text) => (Array.isArray(text) ? text.join("  |  ") : text);

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ? answer.error.message : `${path} answered ${response.status}`);
  return answer;
}

function bar(name, share, value, before) {
  const track = make("span", { class: "track" }, make("i", { style: `width:${100 * share}%` }));
  if (before !== undefined) track.append(make("i", { class: "before", style: `width:${100 * before}%` }));
  return make("div", { class: "bar" }, make("span", {}, name), track, make("span", {}, value));
}

function drawAnswer(explanation) {
  const body = $("answer-body");
  if (explanation.labels) {
    $("answer-title").textContent = "Prediction";
    const { with: scores, without } = explanation.labels;
    const most = Math.max(1, ...Object.values(scores).map(Math.abs));
    const sorted = Object.entries(scores).sort((a, b) => b[1] - a[1]);
    body.replaceChildren(
      ...sorted.map(([label, score]) => bar(label, Math.abs(score) / most, score.toFixed(3), Math.abs(without[label]) / most)),
    );
    return;
  }
  $("answer-title").textContent = "Nearest stored texts";
  if (!explanation.nearest.length) {
    body.replaceChildren("The memory answered with none.");
    return;
  }
  body.replaceChildren(nearest(explanation, "cosine"));
}

function nearest(explanation, measure) {
  const sorted = [...explanation.nearest].sort((a, b) => b[measure] - a[measure]);
  const items = sorted.map((read) => make("li", {}, make("b", {}, read[measure].toFixed(2)), make("span", {}, shown(read.text))));
  return make("ol", { "aria-label": "by cosine of the student's vectors" }, ...items);
}

function drawTime(timing, totalMs) {
  const stages = [["look-up", timing.lookup], ["student", timing.student], ["queue", timing.queue]];
  const rest = Math.max(0, totalMs - timing.lookup - timing.student - timing.queue);
  stages.push(["network, proxy", rest]);
  $("time").replaceChildren(
    ...stages.map(([name, took]) => bar(name, took / Math.max(totalMs, 0.001), `${took.toFixed(1)} ms`)),
    make("p", { class: "total" }, `${totalMs.toFixed(1)} ms in all`),
  );
}

function massesOf(explanation, reference, layer, token) {
  // Of one token there is a matrix for the layer that looked most; of all tokens a mean for every layer.
  if (token === "") return reference.token_mass[layer] || [];
  const rank = explanation.references.indexOf(reference);
  return explanation.heat.mass[Number(token)].filter((_, column) => explanation.heat.ranks[column] === rank);
}

function folded(items) {
  // The first few, and the others behind a line that opens.
  const list = (some) => make("ol", { class: "weights", "aria-label": "references, by nearness" }, ...some);
  const rest = items.slice(FOLDED_AFTER);
  const more = make("details", {}, make("summary", {}, `${rest.length} more`), list(rest));
  return rest.length ? [list(items.slice(0, FOLDED_AFTER)), more] : [list(items)];
}

function drawCorrection(explanation) {
  // References that correct the answer have weights, not attention: as a share of the largest one.
  const { nearness, variance } = explanation.correction;
  const read = explanation.references.filter((reference) => reference.id);
  const most = Math.max(1e-9, ...read.map((reference) => Math.abs(reference.weight ?? 0)));
  const items = read.map((reference) => make("li", {},
    make("b", {}, (reference.weight ?? 0).toFixed(2)),
    make("span", {}, make("span", { class: "track" }, make("i", { style: `width:${100 * Math.abs(reference.weight ?? 0) / most}%` })),
      shown(reference.text), make("small", {}, ` cosine ${reference.score.toFixed(2)}; without it the answer moves by ${reference.without.cosine_distance.toFixed(4)}`))));
  const rung = explanation.references[0]?.rung ?? "null";
  const head = make("p", {}, make("span", { class: `rung ${rung}` }, rung), ` – ${read.length} references and their weights`);
  $("references").replaceChildren(make("div", { class: "reference" }, head, ...folded(items)));
  $("share").textContent = read.length
    ? `The nearest has a cosine of ${nearness.toFixed(2)}. Variance ${variance.toFixed(2)}: 0 is certain, 1 is as if nothing had been read.`
    : "Nothing was read: the answer is corrected by what all stored texts have in common.";
}

function drawReferences(explanation) {
  $("attention").hidden = Boolean(explanation.correction);
  if (explanation.correction) return drawCorrection(explanation);
  const layer = $("layer").value, token = $("token").value;
  const masses = explanation.references.map((reference) => massesOf(explanation, reference, layer, token));
  const most = Math.max(1e-9, ...masses.flat());
  $("references").replaceChildren(
    ...explanation.references.map((reference, rank) => {
      if (!reference.id) {
        const why = reference.rung === "null" ? "the memory did not answer: the learned null reference was read" : "no reference fits: the null reference was read";
        return make("p", { class: "reference" }, make("span", { class: `rung ${reference.rung}` }, reference.rung), ` – ${why}`);
      }
      const mass = reference.mass[layer] ?? 0;
      const head = make("p", {}, make("span", { class: `rung ${reference.rung}` }, reference.rung),
        ` reference, score ${reference.score.toFixed(2)}, attention mass ${mass.toFixed(3)}`);
      const tokens = reference.tokens.map((name, index) => {
        const heat = (masses[rank][index] ?? 0) / most;
        const piece = name.startsWith("##");
        const title = `${name}: ${(masses[rank][index] ?? 0).toFixed(4)}`;
        const style = `background:rgba(var(--heat),${(0.03 + 0.82 * heat).toFixed(3)})${heat > 0.62 ? ";color:var(--on-accent)" : ""}`;
        return make("span", { class: piece ? "piece" : "", title, style }, piece ? name.slice(2) : name);
      });
      return make("div", { class: "reference" }, head, make("div", { class: "tokens" }, ...tokens));
    }),
  );
  const divided = explanation.layers.find((one) => String(one.layer) === layer);
  $("share").textContent = divided
    ? `Of this attention ${percent(divided.references)} fell on references, ${percent(divided.null)} on the null slot, ${percent(divided.own)} on the text itself.`
    : "No layer of this student reads references.";
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function drawWithout(explanation) {
  const change = explanation.without_references;
  const parts = [
    make("p", {}, `The text's vector moves by a cosine distance of ${change.cosine_distance.toFixed(4)} when nothing is read.`),
  ];
  if (explanation.labels) {
    const { with: scores, without } = explanation.labels;
    const rows = Object.keys(scores).map((label) =>
      make("tr", {}, make("td", {}, label), make("td", {}, scores[label].toFixed(4)), make("td", {}, without[label].toFixed(4))));
    const head = make("tr", {}, ...["label", "with", "without"].map((name) => make("th", { scope: "col" }, name)));
    parts.push(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  } else {
    parts.push(make("p", {}, "Cosines of the same stored texts with that vector:"), nearest(explanation, "cosine_without"));
  }
  $("without").replaceChildren(...parts);
}

function fillChoices(explanation) {
  const option = (value, name) => make("option", { value }, name);
  const strongest = String(explanation.strongest_layer);
  $("layer").replaceChildren(...explanation.layers.map(({ layer }) => option(layer, layer === "read-out" ? "the read-out" : `layer ${layer}`)));
  if (explanation.layers.length) $("layer").value = strongest;
  $("token").replaceChildren(option("", "all tokens"), ...explanation.tokens.map((name, index) => option(index, `${index + 1}: ${name}`)));
  const update = () => {
    const one = $("layer").value === strongest && Boolean(explanation.heat);
    $("token").disabled = !one;
    if (!one) $("token").value = "";
    drawReferences(explanation);
  };
  $("layer").onchange = $("token").onchange = update;
  update();
}

async function readiness() {
  try {
    const service = await call("readyz"), state = service.models[service.model];  // of the student that the page asks
    $("memory").className = `pill ${state.memory}`;
    $("memory").textContent = { ok: "memory answers", away: "memory is away", refused: "memory is another teacher's", none: "no memory" }[state.memory];
    $("memory").title = state.reason || "";
    $("model").textContent = `${service.model}, a student that reads references`;
  } catch (error) {
    $("memory").textContent = error.message;
  }
}

async function read(event) {
  event.preventDefault();
  const button = document.querySelector("button"), second = $("second").value.trim();
  button.disabled = true;
  $("error").hidden = true;
  const text = second ? [$("text").value, second] : $("text").value;
  try {
    const started = performance.now();
    const plain = await call("v1/embeddings", { input: second ? [text] : text, encoding_format: "base64" });
    const tookMs = performance.now() - started;
    const explanation = await call("v1/explain", { input: text });
    drawAnswer(explanation);
    drawTime(plain.timing_ms, tookMs);
    fillChoices(explanation);
    drawWithout(explanation);
    $("results").hidden = false;
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
    $("results").hidden = true;
  }
  button.disabled = false;
  readiness();
}

$("form").addEventListener("submit", read);
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
readiness();
if (new URLSearchParams(location.search).has("text")) {
  $("text").value = new URLSearchParams(location.search).get("text");
  $("form").requestSubmit();
}
