// An answer's words, each shaded by what the sound did to it.

const GUESSED_BITS = 0.1; // below: silence would do as well
const DEEPEST_BITS = 10; // from here on the shade is full
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

const guessed = (word) => word.effect_bits < GUESSED_BITS;

/** 0 to 1 on a logarithmic scale: the words of an answer differ by orders of magnitude. */
function depth(bits) {
  const share = Math.log(bits / GUESSED_BITS) / Math.log(DEEPEST_BITS / GUESSED_BITS);
  return Math.min(1, Math.max(0, share));
}

function inWords(word) {
  const score = word.score === null ? "" : `, score ${word.score.toFixed(2)}`;
  return `${guessed(word) ? "guessed" : "heard"}, ${word.effect_bits.toFixed(2)} bits${score}`;
}

/** Takes away what was shown of an answer before. */
export function clearWords(card) {
  for (const part of card.querySelectorAll(".about, details")) part.hidden = true;
  for (const name of ["role", "aria-label"]) card.querySelector(".text").removeAttribute(name);
}

/** Puts words over a card's text. One of them is a tab stop; arrow keys go on from there. */
export function showWords(card, answer, words) {
  const text = card.querySelector(".text"), about = card.querySelector(".about");
  const count = `${words.filter(guessed).length} of ${words.length} words guessed`;
  const describe = (word) => { about.textContent = word ? `${word.text}: ${inWords(word)}` : count; };
  const marks = words.map((word) => marked(word, describe));
  const letters = [...answer]; // places are in characters, those of a string in UTF-16 units
  const between = words.map((word, i) => letters.slice(i ? words[i - 1].end : 0, word.start).join(""));
  text.replaceChildren(...marks.flatMap((mark, i) => [between[i], mark]), letters.slice(words.at(-1).end).join(""));
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "The answer's words; arrow keys go from one to the next");
  marks[0].tabIndex = 0;
  marks.forEach((mark, i) => mark.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const next = marks[Math.min(marks.length - 1, Math.max(0, i + STEPS[event.key]))];
    mark.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }));
  describe(null);
  card.querySelector("tbody").replaceChildren(...words.map(row));
  for (const part of card.querySelectorAll(".about, details")) part.hidden = false;
}

function marked(word, describe) {
  const mark = document.createElement("mark");
  Object.assign(mark, { textContent: word.text, tabIndex: -1, className: guessed(word) ? "guessed" : "" });
  mark.style.setProperty("--depth", depth(word.effect_bits).toFixed(3));
  mark.setAttribute("aria-description", inWords(word));
  for (const seen of ["pointerenter", "focus"]) mark.addEventListener(seen, () => describe(word));
  for (const left of ["pointerleave", "blur"]) mark.addEventListener(left, () => describe(null));
  return mark;
}

function row(word) {
  const line = document.createElement("tr");
  const cells = [word.text, word.effect_bits.toFixed(2), word.score?.toFixed(2) ?? "unknown", guessed(word) ? "guessed" : "heard"];
  line.append(...cells.map((content, i) => {
    const cell = document.createElement(i ? "td" : "th");
    cell.textContent = content;
    if (!i) cell.scope = "row";
    return cell;
  }));
  return line;
}
