// What was just done, as a person would type it.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const named = (file) => `"${file.replace(/["\\]/g, "\\$&")}"`; // for curl, to which , and ; mean more else

export function curl(base, asked) {
  const lines = [`curl -s ${base}/v1/audio-chat`];
  if (asked.keyed) lines.push(`-H "Authorization: Bearer $ALLEARS_API_KEY"`);
  lines.push(`-F ${quoted("audio=@" + named(asked.name))}`, `--form-string ${quoted("question=" + asked.question)}`);
  for (const choice of asked.choices) lines.push(`--form-string ${quoted("choices=" + choice)}`);
  lines.push("-F steer=true");
  if (asked.strength !== "adaptive") lines.push(`-F ${quoted(`steering={"strength": ${asked.strength}}`)}`);
  lines.push(`-F include=${asked.include.join(",")}`);
  return lines.join(" \\\n  ");
}

export function python(base, asked) {
  const list = (words) => `[${words.map((word) => JSON.stringify(word)).join(", ")}]`;
  const key = asked.keyed ? `, api_key=os.environ["ALLEARS_API_KEY"]` : "";
  const more = [JSON.stringify(asked.name), JSON.stringify(asked.question)];
  if (asked.choices.length) more.push(`choices=${list(asked.choices)}`);
  more.push("steer=True");
  if (asked.strength !== "adaptive") more.push(`strength=${asked.strength}`);
  more.push(`include=${list(asked.include)}`);
  return [
    ...(asked.keyed ? ["import os", ""] : []),
    "from allears_client import AllEars",
    "",
    `with AllEars(${JSON.stringify(base)}${key}) as ears:`,
    "    answer = ears.ask(",
    ...more.map((one) => `        ${one},`),
    "    )",
    "print(answer.text, answer.listening.score, answer.steering.unsteered_answer)",
  ].join("\n");
}
