// Sounds in the browser: decoded for the picture, recorded, and written as WAV for the server.

const RATE_HZ = 16000;
const HEARD_AS_IS = ["RIFF", "fLaC", "OggS", "ID3"]; // by every server
const PERHAPS_HEARD = ["FORM", "caff", ".snd", "RF64", "riff", "\x1aE\xdf\xa3"]; // and MP4: by servers with the extra `av`

/** A sound of a file: {name, file, samples, seconds}; the server hears `file`. */
export async function fromFile(file, name) {
  const bytes = await file.arrayBuffer();
  const start = String.fromCharCode(...new Uint8Array(bytes.slice(0, 8)));
  const plain = isMpeg(start) || HEARD_AS_IS.some((mark) => start.startsWith(mark));
  const perhaps = start.endsWith("ftyp") || PERHAPS_HEARD.some((mark) => start.startsWith(mark));
  let samples = null;
  try {
    samples = await mono(bytes);
  } catch {
    if (!plain && !perhaps) throw new Error(`${name}: this is no sound that is known here. Send WAV, FLAC, OGG, MP3, M4A or WebM.`);
  }
  if (plain || !samples) return { name, file, samples, seconds: samples ? samples.length / RATE_HZ : null };
  return { name: name.replace(/\.[^.]*$/, "") + ".wav", file: wav(samples), samples, seconds: samples.length / RATE_HZ };
}

function isMpeg(start) {
  const [first, second] = [start.charCodeAt(0), start.charCodeAt(1)];
  return first === 0xff && second >> 5 === 7 && ((second >> 1) & 3) !== 0;
}

/** (S,) samples of the mean over channels, at 16 kHz. */
async function mono(bytes) {
  const decoded = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(bytes);
  const mixed = new Float32Array(decoded.length);
  for (let c = 0; c < decoded.numberOfChannels; c++) {
    const channel = decoded.getChannelData(c);
    for (let i = 0; i < mixed.length; i++) mixed[i] += channel[i] / decoded.numberOfChannels;
  }
  return mixed;
}

/** A WAV file of 16-bit samples. */
export function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE_HZ, true); view.setUint32(28, 2 * RATE_HZ, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

/** Starts recording; call the result to stop, and await it for the sound. */
export async function record(longestSeconds, onEnd) {
  if (!navigator.mediaDevices) throw new Error("Recording needs https or localhost.");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const leave = () => stream.getTracks().forEach((track) => track.stop());
  const pieces = [];
  let recorder, ended;
  try {
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    ended = new Promise((resolve) => { recorder.onstop = resolve; });
    recorder.start();
  } catch (error) {
    leave();
    throw error;
  }
  const stop = () => { if (recorder.state === "recording") recorder.stop(); };
  setTimeout(stop, 1000 * longestSeconds);
  ended.then(() => {
    leave();
    return fromFile(new Blob(pieces, { type: recorder.mimeType }), "recording.webm");
  }).then((sound) => onEnd(sound, null), (error) => onEnd(null, error));
  return stop;
}
