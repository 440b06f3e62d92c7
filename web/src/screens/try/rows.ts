// What to ask: a row of a training file, or a prompt that was asked before.
import { called } from "./talk";
import type { Message } from "./talk";

export type Mode = "chat" | "text";
export type Prompt = { mode: Mode; system: string; prompt: string };
/** `messages` are the row's up to the expected answer, and `tools` its tools, sent as they are. */
type Taken = Prompt & { expected: string | null; messages: Message[]; tools?: unknown };

/** Return what a row asks and expects; null for one that is neither a conversation nor a prompt. */
export function taken({ prompt, completion, messages: all, tools }: { prompt?: unknown; completion?: unknown; messages?: unknown; tools?: unknown }): Taken | null {
  if (typeof prompt === "string") return { mode: "text", system: "", prompt, expected: typeof completion === "string" ? completion : null, messages: [] };
  if (!Array.isArray(all) || !all.every(isMessage)) return null;
  const answer = all.findLastIndex((message) => message.role === "assistant");
  const messages = answer < 0 ? all : all.slice(0, answer);
  const text = (message: Message | undefined, role: string) => (message?.role === role ? said(message) : "");
  return { mode: "chat", system: text(messages[0], "system"), prompt: text(messages.at(-1), "user"), expected: all[answer] ? said(all[answer]) : null, messages, tools };
}

/** Whether the parts of a message that are read here are as OpenAI has them; the server checks the rest. */
function isMessage(one: { role?: unknown; content?: unknown; tool_calls?: unknown } | null): one is Message {
  const { role, content, tool_calls: calls } = one ?? {};
  const parts = !Array.isArray(content) || content.every((part) => typeof part?.text === "string");
  return typeof role === "string" && parts && (!calls || (Array.isArray(calls) && calls.every((call) => typeof (call?.function ?? call)?.name === "string")));
}

function said({ content, tool_calls }: Message): string {
  if (Array.isArray(content)) return content.map((part) => part.text).join("");
  return typeof content === "string" ? content : called(tool_calls);
}

const [KEY, MOST] = ["prompts", 50];

/** The prompts asked before, newest first. */
export function history(): Prompt[] {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(kept) ? kept.filter((one) => typeof one?.prompt === "string" && typeof one.system === "string") : [];
  } catch {
    return []; // a browser that keeps nothing
  }
}

/** Put a prompt first; null forgets them all. */
export function remember(prompt: Prompt | null): void {
  const others = history().filter((other) => JSON.stringify(other) !== JSON.stringify(prompt));
  try {
    localStorage.setItem(KEY, JSON.stringify(prompt ? [prompt, ...others].slice(0, MOST) : []));
  } catch {
    // a browser that keeps nothing, or no more
  }
}
