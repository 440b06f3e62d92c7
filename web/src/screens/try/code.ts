// A request as people would write it in their own program.
import type { Ask } from "./talk";

export const curl = ({ path, body }: Ask): string => `curl -N ${location.origin}${path} \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${JSON.stringify(body).replaceAll("'", `'\\''`)}'`; // in single quotes sh knows no escapes

export function python({ path, body }: Ask): string {
  const chat = path === "/v1/chat/completions";
  return `from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1")  # the key: OPENAI_API_KEY
stream = client.${chat ? "chat.completions" : "completions"}.create(
${Object.entries(body).map(([name, value]) => `    ${name}=${literal(value)},`).join("\n")}
)
for chunk in stream:
    for choice in chunk.choices:
        print(${chat ? 'choice.delta.content or ""' : "choice.text"}, end="", flush=True)
`;
}

/** A JSON value in Python, whose strings and numbers are written the same; objects in a list get a line each. */
function literal(value: unknown): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (!Array.isArray(value)) return `{${Object.entries(value).map(([name, inner]) => `${JSON.stringify(name)}: ${literal(inner)}`).join(", ")}}`;
  return typeof value[0] === "object" ? `[\n${value.map((inner) => `        ${literal(inner)},\n`).join("")}    ]` : `[${value.map(literal).join(", ")}]`;
}
