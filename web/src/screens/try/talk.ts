// One model's side of the page: its conversation, and the answer that is arriving.
import { signal } from "@preact/signals";
import { ApiError, isAbort, lines, open, sending } from "../../api/client";
import { announce } from "../../ui";

type Called = { name: string; arguments: string };
type Call = { function: Called } | Called;
/** As OpenAI has it. */
export type Message = { role: string; content?: unknown; tool_calls?: Call[] | null };
/** A request, exactly as it is sent. */
export interface Ask {
  path: "/v1/chat/completions" | "/v1/completions";
  body: { model: string; messages?: Message[] } & Record<string, unknown>;
}
/** A token as the model has it, bytes that are no whole character escaped. */
type Likely = { token: string; logprob: number };
export type Token = Likely & { top_logprobs: Likely[] };

export type Question = { ask: Ask; prompt: string; expected: string | null };
export interface Turn extends Question {
  text: string;
  tokens: Token[];
  /** OpenAI's finish reason, or "stopped" by the reader. */
  finish: string | null;
  error: Error | null;
  usage: { completion_tokens: number } | null;
  /** Milliseconds on the page's clock, as the next three: `first` and `last` are when text came. */
  begun: number;
  first: number | null;
  last: number | null;
  ended: number | null;
}

/** Of either endpoint's stream. */
type Columns = { tokens: string[]; token_logprobs: number[]; top_logprobs: Record<string, number>[] };
type Choice = { delta?: { content?: string; tool_calls?: Call[] }; text?: string; logprobs: { content: Token[] } | Columns | null; finish_reason: string | null };
type Chunk = { choices?: Choice[]; usage?: Turn["usage"]; error?: { message: string } };

const FLUSH_MS = 50;

export class Talk {
  readonly turns = signal<readonly Turn[]>([]);
  readonly busy = signal(false);
  private abort = new AbortController();

  constructor(readonly model: string) {}

  /** Ask, after the turns `before`. */
  async start(question: Question, before: readonly Turn[] = []): Promise<void> {
    this.stop();
    const abort = (this.abort = new AbortController());
    const turn: Turn = { ...question, text: "", tokens: [], finish: null, error: null, usage: null, begun: performance.now(), first: null, last: null, ended: null };
    const show = () => abort === this.abort && (this.turns.value = [...before, { ...turn }]);
    let shown = 0;
    this.busy.value = true;
    show();
    try {
      for await (const line of lines(await open(turn.ask.path, sending(turn.ask.body, abort.signal)))) {
        if (line.startsWith("data: {")) read(JSON.parse(line.slice(6)), turn);
        if (performance.now() - shown < FLUSH_MS) continue;
        shown = performance.now();
        show();
      }
      if (!turn.finish) throw new ApiError("The answer ended in the middle.", 0);
    } catch (error) {
      if (isAbort(error)) turn.finish = "stopped";
      else turn.error = error as Error;
    }
    turn.ended = performance.now();
    if (!show()) return;
    this.busy.value = false;
    announce(`${this.model}: ${turn.error?.message ?? turn.text}`);
  }

  /** Go on after the last answer; the question has the new message only. */
  more(question: Question): Promise<void> {
    const turns = this.turns.peek();
    const last = turns.at(-1)!;
    const { path, body } = question.ask;
    const messages = [...last.ask.body.messages!, { role: "assistant", content: last.text }, ...body.messages!];
    return this.start({ ...question, ask: { path, body: { ...body, messages } } }, turns);
  }

  /** Ask the last question again. */
  again(): Promise<void> {
    const turns = this.turns.peek();
    const { ask, prompt, expected } = turns.at(-1)!;
    return this.start({ ask, prompt, expected }, turns.slice(0, -1));
  }

  stop(): void {
    this.abort.abort();
  }

  reset(): void {
    this.stop();
    this.abort = new AbortController();
    this.busy.value = false;
    this.turns.value = [];
  }
}

function read({ choices, usage, error }: Chunk, turn: Turn): void {
  if (error) throw new ApiError(error.message, 200);
  turn.usage = usage ?? turn.usage;
  const choice = choices?.[0];
  if (!choice) return;
  const { delta, logprobs } = choice;
  const text = choice.text ?? delta?.content ?? called(delta?.tool_calls);
  if (text) turn.last = performance.now();
  turn.first ??= turn.last;
  turn.text += text;
  turn.finish = choice.finish_reason ?? turn.finish;
  if (logprobs) turn.tokens = [...turn.tokens, ...("tokens" in logprobs ? rows(logprobs) : logprobs.content)];
}

const rows = ({ tokens, token_logprobs, top_logprobs }: Columns): Token[] =>
  tokens.map((token, index) => ({ token, logprob: token_logprobs[index]!, top_logprobs: sorted(top_logprobs[index]!) }));

const sorted = (top: Record<string, number>): Likely[] =>
  Object.entries(top).map(([token, logprob]) => ({ token, logprob })).sort((a, b) => b.logprob - a.logprob).slice(0, 5);

/** Tool calls as text: name and arguments, one a line. */
export const called = (calls: Call[] | null | undefined): string => (calls || []).map((call) => ("function" in call ? call.function : call)).map((one) => `${one.name} ${one.arguments}`).join("\n");

const NEAR = 16;

/** Cut `text` where its tokens begin; what none of them spells (half a character, a special token) goes to the one before. */
export function cut(text: string, tokens: readonly Token[]): string[] {
  let place = 0;
  const starts = tokens.map(({ token }) => {
    const at = text.indexOf(token, place);
    const found = at >= 0 && at <= place + NEAR;
    const start = found ? at : place;
    if (found) place = at + token.length;
    return start;
  });
  starts[0] = 0;
  return starts.map((start, index) => text.slice(start, starts[index + 1]));
}
