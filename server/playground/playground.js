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
let running = null; // the AbortController of the question that is being answered
let stopRecording = null;
let permission = false; // whether the microphone is being asked for
let choosing = 0; // the number of the last sound that was chosen: an earlier one that comes late is dropped

// ---- the server

async function look() {
  const get = (path) => server.get(path).catch(() => ({ status: 0, body: {} }));
  let { status, body } = await get("/readyz"); // a probe: that it waits is no error of the server's
  if (status === 200) ({ status, body } = await get("/listening-score"));
  const words = { 0: "no answer", 401: "needs a key", 503: body.error?.message?.split(";")[0] ?? "busy" };
  const state = String(status === 200 ? `${body.profile?.model ?? "ready"}, ready` : words[status] ?? status);
  if ($("state").textContent !== state) $("state").textContent = state; // who hears it hears it once
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
  $("silence").disabled = running !== null;
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
  if (permission) return;
  permission = true;
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
  } finally {
    permission = false;
  }
}

// ---- asking

function asked() {
  const choices = $("choices").value.split(/[\n,]/).map((choice) => choice.trim()).filter(Boolean);
  return {
    sound,
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
  form.append("audio", wish.sound.file, wish.name);
  form.append("question", wish.question);
  for (const choice of wish.choices) form.append("choices", choice);
  for (const [name, value] of Object.entries(more)) form.append(name, value);
  return form;
}

/** The answers to two requests: at once, or one after the other where a key may have one at a time. */
async function both(...asks) {
  const first = asks.map((ask) => ask());
  return Promise.all(first.map((answer, i) => answer.catch(async (error) => {
    if (error.code !== "too_many_concurrent") throw error;
    await first[1 - i];
    return asks[i]();
  })));
}

async function askBoth(signal) {
  const wish = asked();
  $("silent").hidden = true;
  for (const id of ["bare", "steered"]) empty($(id));
  const steering = JSON.stringify({ strength: wish.strength });
  const more = wish.choices.length ? "" : ",words"; // a choice as a whole has its effect
  const ask = (id, fields) => () => server.ask(formOf(wish, fields), (piece) => grow(id, piece), signal);
  const [bare, steered] = await both(
    ask("bare", { include: "timeline,effect" + more }),
    ask("steered", { include: "timeline" + more, steer: "true", steering }),
  );
  fill($("bare"), bare, `without steering, ${seconds(bare)}`);
  fill($("steered"), steered, steeringInWords(steered.steering) + `, ${seconds(steered)}`);
  showListening(bare.listening, wish.sound);
  $("words-legend").hidden = !document.querySelector("article mark");
  const list = [...new Set([...bare.warnings, ...steered.warnings])];
  $("warnings").replaceChildren(...list.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  $("said").textContent = `Bare: ${bare.answer}. Steered: ${steered.answer}. ${$("gauge-words").textContent}`;
  showCode(wish);
}

async function askAboutSilence(signal) {
  const wish = asked();
  empty($("silent"));
  $("silent").hidden = false;
  const found = await server.ask(formOf(wish, { include: "timeline,silence,effect" }), () => {}, signal);
  $("silent").querySelector(".text").textContent = found.silent_answer || "(nothing)";
  const score = found.listening.silence_score;
  $("silent").querySelector(".small").textContent = "the same question about as many seconds of silence"
    + (score === null ? "" : `; it would score ${score.toFixed(2)}`);
  showListening(found.listening, wish.sound);
  $("said").textContent = `About silence: ${found.silent_answer}`;
}

async function busy(work) {
  complain(null);
  if (stopRecording) return complain(new Error("The recording still runs: stop it first."));
  if (!sound) return complain(new Error("There is no sound yet: take a sample, upload a file or record one."));
  if (!$("question").value.trim()) { $("question").focus(); return complain(new Error("There is no question yet.")); }
  running?.abort(); // Ctrl+Enter asks anew, and the cards are the new question's
  const mine = running = new AbortController();
  $("go").disabled = $("silence").disabled = true;
  $("results").hidden = false;
  $("results").setAttribute("aria-busy", "true");
  try {
    await work(mine.signal);
  } catch (error) {
    mine.abort(); // of two requests the other one
    if (running !== mine) return;
    if (error.status === 401) { $("key-row").hidden = false; $("key").focus(); }
    complain(error);
    $("results").hidden = !heard;
  } finally {
    if (running === mine) {
      running = null;
      $("go").disabled = $("silence").disabled = false;
      $("results").removeAttribute("aria-busy");
    }
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

function showListening(listening, about) {
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
  $("gauge-words").textContent = (about === sound ? "" : `About ${about.name}. `) + words + effect;
  $("gauge").setAttribute("aria-valuenow", String(score ?? 0));
  $("gauge").setAttribute("aria-valuetext", words);
  if (about !== sound) return; // another was chosen meanwhile, and the picture is of that one
  heard = listening;
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
