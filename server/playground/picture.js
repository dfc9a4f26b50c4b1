// The waveform, and behind it where the model listened.

/**
 * Draws a sound; `listening` is an answer's, `at` the playing position in seconds.
 * The heat is as strong as the score is close to the threshold: who does not listen leaves it pale.
 */
export function draw(canvas, sound, listening, at) {
  const timeline = listening?.timeline?.length ? listening.timeline : null;
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const paint = canvas.getContext("2d");
  paint.scale(ratio, ratio);
  paint.clearRect(0, 0, width, height);
  const colour = (name) => getComputedStyle(canvas).getPropertyValue(name).trim();
  const seconds = sound?.seconds || (timeline ? timeline.length * listening.hop_seconds : 0);
  if (!seconds) return;
  if (timeline) {
    const top = Math.min(1, Math.max(0.3, listening.score / (listening.threshold || 1)));
    heat(paint, timeline, listening.hop_seconds * width / seconds, height, colour("--heat"), top);
  }
  if (sound.samples) wave(paint, sound.samples, width, height, colour("--wave"));
  if (at > 0) { paint.fillStyle = colour("--accent"); paint.fillRect(at / seconds * width - 1, 0, 2, height); }
}

function heat(paint, timeline, step, height, rgb, top) {
  const largest = Math.max(...timeline) || 1;
  timeline.forEach((mass, i) => {
    const from = Math.round(i * step), to = Math.round((i + 1) * step);
    paint.fillStyle = `rgba(${rgb}, ${top * (0.05 + 0.95 * mass / largest)})`;
    paint.fillRect(from, 0, to - from, height);
  });
}

function wave(paint, samples, width, height, colour) {
  const bars = Math.floor(width / 3), peaks = new Float32Array(bars);
  for (let b = 0; b < bars; b++) {
    const end = Math.floor((b + 1) * samples.length / bars);
    for (let i = Math.floor(b * samples.length / bars); i < end; i++) peaks[b] = Math.max(peaks[b], Math.abs(samples[i]));
  }
  const loudest = Math.max(...peaks) || 1;
  paint.fillStyle = colour;
  peaks.forEach((peak, b) => {
    const tall = Math.max(1, peak / loudest * 0.86 * height);
    paint.fillRect(b * width / bars, (height - tall) / 2, 1.8, tall);
  });
}

/** The same in words, for those who do not see it. */
export function inWords(sound, timeline, hopSeconds) {
  const length = sound.seconds ? `Waveform of ${sound.seconds.toFixed(1)} seconds` : "A sound";
  if (!timeline?.length) return length;
  const largest = Math.max(...timeline);
  const often = timeline.map((mass, i) => [mass, i]).filter(([mass]) => mass > 0.6 * largest).map(([, i]) => i);
  const from = (often[0] * hopSeconds).toFixed(1), to = ((often.at(-1) + 1) * hopSeconds).toFixed(1);
  return `${length}; the model listened most between ${from} and ${to} seconds`;
}
