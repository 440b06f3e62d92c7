// A request as people would write it in their own programs: exactly what the page sends.

const KEYWORDS: Record<string, string> = { null: "None", true: "True", false: "False" };
/** A JSON value in Python, whose strings and numbers are written the same. */
const literal = (value: unknown): string => JSON.stringify(value, null, 4).replace(/"(?:[^"\\]|\\.)*"|null|true|false/g, (token) => KEYWORDS[token] ?? token);

/** `call` is given the fields of `body` as its arguments; `then` is what the program does next. */
export const python = (call: string, body: object, then: string): string => `from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1")  # the key: OPENAI_API_KEY
${call}(
${Object.entries(body).flatMap(([name, value]) => (value === undefined ? [] : `    ${name}=${literal(value).replaceAll("\n", "\n    ")},`)).join("\n")}
)
${then}`;

/** In single quotes sh knows no escapes. */
export const curl = (path: string, body: object): string => `curl ${"stream" in body ? "-N " : ""}${location.origin}${path} \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`;
