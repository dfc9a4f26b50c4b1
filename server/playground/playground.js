import { draw, inWords } from "./picture.js";
import * as server from "./server.js";
import * as snippets from "./snippets.js";
import { fromFile, record } from "./sound.js";
import { clearWords, showWords } from "./words.js";

const $ = (id) => document.getElementById(id);
const LONGEST_SECONDS = 30;
const VERDICTS = {
  listening: "Listening", partly_listening: "Partly listening", not_listening: "Not listening", unknown: "Unknown",
};
let sound = null; // {name, file, samples, seconds}
let heard = null; // the listening of the last answer
let stopRecording = null;
let choosing = 0; // the number of the last sound that was chosen: an earlier one that comes late is dropped

// ---- the server

async function look() {
  const { status, body } = await server.get("/listening-score").catch(() => ({ status: 0, body: {} }));
  const words = { 0: "no answer", 200: "ready", 401: "needs a key", 503: body.error?.code ?? "busy" };
  $("state").textContent = status === 200 ? `${body.profile?.model ?? "ready"}, ready` : words[status] ?? status;
  $("state").className = status === 200 ? "ready" : status === 503 || status === 401 ? "" : "failed";
  if (status === 401) $("key-row").hidden = false;
  if (status === 200 && body.profile?.max_strength) allow(body.profile.max_strength);
  if (status !== 200 && status !== 401) setTimeout(look, 2000);
}

function allow(strongest) {
  Object.assign($("strength"), { max: strongest, step: strongest / 20, value: strongest / 2 });
}

// ---- the sound

function show(at = 0) {
  draw($("wave"), sound, heard, at);
}

function take(found) {
  sound = found;
  heard = null;
  $("legend").hidden = true;
  $("sound-name").textContent = `${sound.name}${sound.seconds ? `, ${sound.seconds.toFixed(1)} s` : ""}`;
  $("wave").setAttribute("aria-label", inWords(sound));
  URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(sound.file);
  $("player").hidden = !sound.samples; // what the browser can't read it can't play
  $("silence").disabled = false;
  show();
}

async function takeFile(file, name, number = ++choosing) {
  complain(null);
  try {
    const found = await fromFile(file, name);
    if (number === choosing) take(found);
  } catch (error) {
    complain(error);
  }
}

async function listSamples() {
  const clips = await (await fetch("clips.json")).json();
  for (const clip of clips) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "chip", textContent: clip.file.replace(/\..*/, "") });
    button.addEventListener("click", () => takeSample(clip, button));
    $("samples").append(button);
  }
  if (!choosing && clips.length) await takeSample(clips[0], $("samples").firstElementChild);
}

async function takeSample(clip, button) {
  const number = ++choosing;
  $("question").value = clip.question;
  $("choices").value = clip.choices.join(", ");
  press(button);
  const response = await fetch(`clips/${clip.file}`);
  await takeFile(await response.blob(), clip.file, number);
}

function press(button) {
  for (const one of $("samples").children) one.setAttribute("aria-pressed", String(one === button));
}

async function toggleRecording() {
  if (stopRecording) return stopRecording();
  complain(null);
  try {
    stopRecording = await record(LONGEST_SECONDS, (found, error) => {
      stopRecording = null;
      $("record").textContent = "Record";
      $("record").setAttribute("aria-pressed", "false");
      press(null);
      choosing++;
      if (error) complain(error); else take(found);
    });
    $("record").textContent = "Stop";
    $("record").setAttribute("aria-pressed", "true");
  } catch (error) {
    complain(new Error(`The microphone can't be used: ${error.message}`));
  }
}

// ---- asking

function asked() {
  const choices = $("choices").value.split(/[\n,]/).map((choice) => choice.trim()).filter(Boolean);
  return {
    name: sound.name,
    question: $("question").value.trim(),
    choices,
    strength: $("adaptive").checked ? "adaptive" : Number($("strength").value),
    include: ["timeline", "unsteered", ...(choices.length ? [] : ["words"])],
    keyed: server.hasKey(),
  };
}

function formOf(wish, more) {
  const form = new FormData();
  form.append("audio", sound.file, sound.name);
  form.append("question", wish.question);
  for (const choice of wish.choices) form.append("choices", choice);
  for (const [name, value] of Object.entries(more)) form.append(name, value);
  return form;
}

async function askBoth() {
  const wish = asked();
  $("silent").hidden = true;
  for (const id of ["bare", "steered"]) empty($(id));
  const steering = JSON.stringify({ strength: wish.strength });
  const more = wish.choices.length ? "" : ",words"; // a choice as a whole has its effect
  const [bare, steered] = await Promise.all([
    server.ask(formOf(wish, { include: "timeline,effect" + more }), (piece) => grow("bare", piece)),
    server.ask(formOf(wish, { include: "timeline" + more, steer: "true", steering }), (piece) => grow("steered", piece)),
  ]);
  fill($("bare"), bare, `without steering, ${seconds(bare)}`);
  fill($("steered"), steered, steeringInWords(steered.steering) + `, ${seconds(steered)}`);
  showListening(bare.listening);
  $("words-legend").hidden = !document.querySelector("article mark");
  const list = [...new Set([...bare.warnings, ...steered.warnings])];
  $("warnings").replaceChildren(...list.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  $("said").textContent = `Bare: ${bare.answer}. Steered: ${steered.answer}. ${$("gauge-words").textContent}`;
  showCode(wish);
}

async function askAboutSilence() {
  const wish = asked();
  empty($("silent"));
  $("silent").hidden = false;
  const found = await server.ask(formOf(wish, { include: "timeline,silence,effect" }), () => {});
  $("silent").querySelector(".text").textContent = found.silent_answer || "(nothing)";
  const score = found.listening.silence_score;
  $("silent").querySelector(".small").textContent = "the same question about as many seconds of silence"
    + (score === null ? "" : `; it would score ${score.toFixed(2)}`);
  showListening(found.listening);
  $("said").textContent = `About silence: ${found.silent_answer}`;
}

async function busy(work) {
  complain(null);
  if (stopRecording) return complain(new Error("The recording still runs: stop it first."));
  if (!sound) return complain(new Error("There is no sound yet: take a sample, upload a file or record one."));
  if (!$("question").value.trim()) { $("question").focus(); return complain(new Error("There is no question yet.")); }
  $("go").disabled = $("silence").disabled = true;
  $("results").hidden = false;
  $("results").setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    if (error.status === 401) { $("key-row").hidden = false; $("key").focus(); }
    complain(error);
    $("results").hidden = !heard;
  } finally {
    $("go").disabled = $("silence").disabled = false;
    $("results").removeAttribute("aria-busy");
  }
}

function complain(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
}

// ---- what came back

function empty(card) {
  card.querySelector(".text").textContent = "…";
  card.querySelector("dl").replaceChildren();
  card.querySelector(".small").textContent = "";
  clearWords(card);
}

function grow(id, piece) {
  const text = $(id).querySelector(".text");
  text.textContent = (text.textContent === "…" ? "" : text.textContent) + piece;
}

function fill(card, found, note) {
  card.querySelector(".text").textContent = found.answer || "(nothing)";
  card.querySelector(".small").textContent = note;
  const words = found.listening.words ?? [];
  if (words.length) showWords(card, found.answer, words);
  const rows = found.choices.flatMap(({ text, probability }) => {
    const [name, bar, share] = ["dt", "dd", "dd"].map((tag) => document.createElement(tag));
    name.textContent = text;
    if (text === found.answer) name.className = "top";
    bar.className = "bar";
    bar.append(document.createElement("span"));
    bar.firstChild.style.width = `${100 * probability}%`;
    share.className = "share";
    share.textContent = `${(100 * probability).toFixed(1)} %`;
    return [name, bar, share];
  });
  card.querySelector("dl").replaceChildren(...rows);
}

function seconds(found) {
  const { prefill_seconds, silence_seconds, decode_seconds } = found.timings;
  return `${(prefill_seconds + silence_seconds + decode_seconds).toFixed(2)} s`;
}

function steeringInWords(steering) {
  if (!steering.applied) return `not steered: ${steering.reason}`;
  return `strength ${steering.strength.toFixed(2)} along ${steering.direction === "request" ? "audio minus silence" : "the calibrated direction"}`;
}

function showListening(listening) {
  heard = listening;
  const { score, threshold, percentile, verdict } = listening;
  const known = score !== null;
  $("verdict").textContent = known ? `${VERDICTS[verdict]} ${score.toFixed(2)}` : "No listening profile";
  $("verdict").className = `verdict ${verdict}`;
  $("gauge").className = `gauge ${verdict}`;
  $("fill").style.width = `${100 * (score ?? 0)}%`;
  $("threshold").hidden = threshold === null;
  $("threshold").style.left = `calc(${100 * (threshold ?? 0)}% - 1.5px)`;
  const words = known
    ? `Score ${score.toFixed(2)}; from ${threshold.toFixed(2)}, the mark, on, the model counts as listening.`
      + ` ${Math.round(100 * percentile)} % of the calibration clips score lower.`
    : "This server has no listening profile, so nothing is scored or steered.";
  const effect = effectInWords(listening.effect_bits);
  $("effect").hidden = !effect;
  $("effect").firstChild.textContent = effect ? `${listening.effect_bits.toFixed(2)} bits` : "";
  $("gauge-words").textContent = words + effect;
  $("gauge").setAttribute("aria-valuenow", String(score ?? 0));
  $("gauge").setAttribute("aria-valuetext", words);
  $("legend").hidden = !listening.timeline?.length;
  $("wave").setAttribute("aria-label", inWords(sound, listening.timeline, listening.hop_seconds));
  show();
}

function effectInWords(bits) {
  if (bits === null) return "";
  return ` The sound moved the bare answer ${bits.toFixed(2)} bits away from the one about silence.`;
}

function showCode(wish) {
  $("curl").textContent = snippets.curl(server.base, wish);
  $("python").textContent = snippets.python(server.base, wish);
  $("code").hidden = false;
}

async function copy(button) {
  const text = $(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren($(button.dataset.copy)); // plain http: at least it is marked
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// ---- wiring

$("ask").addEventListener("submit", (event) => { event.preventDefault(); busy(askBoth); });
$("silence").addEventListener("click", () => busy(askAboutSilence));
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) { press(null); takeFile(file, file.name); }
});
$("record").addEventListener("click", toggleRecording);
$("key").addEventListener("change", () => { server.useKey($("key").value); look(); });
$("adaptive").addEventListener("change", showStrength);
$("strength").addEventListener("input", showStrength);
function showStrength() {
  $("strength").disabled = $("adaptive").checked;
  $("strength-shown").textContent = $("adaptive").checked ? "adaptive" : Number($("strength").value).toFixed(2);
}
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
$("player").addEventListener("timeupdate", () => show($("player").currentTime));
addEventListener("resize", () => show());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) { press(null); takeFile(file, file.name); }
});
showStrength();
look();
listSamples();
