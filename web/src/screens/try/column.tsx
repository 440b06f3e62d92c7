// What one model answers: its turns, each token's probability, how fast it came, and the request to copy.
import { useEffect, useRef, useState } from "preact/hooks";
import type { ModelOverview } from "../../api/client";
import { Link } from "../../router";
import { announce, Button, Copy, ErrorNote, Select } from "../../ui";
import { number, percent, plural } from "../../ui/format";
import { curl, python } from "../code";
import { cut } from "./talk";
import type { Ask, Talk, Token, Turn } from "./talk";

/** `names` are in use; other columns' cannot be chosen. */
type ColumnProps = { talk: Talk; models: ModelOverview[]; names: string[]; onStart: (() => void) | null; onChange: (name: string) => void; onRemove: () => void };

export function Column({ talk, models, names, onStart, onChange, onRemove }: ColumnProps) {
  const [turns, { model }] = [talk.turns.value, talk];
  const last = turns.at(-1);
  const known = models.find(({ name }) => name === model);
  const options = models.map(({ name, is_checkpoint }) => ({ value: name, label: is_checkpoint ? `↳ ${name}` : name, disabled: name !== model && names.includes(name) }));
  if (!known) options.push({ value: model, label: `${model} (not here)`, disabled: false });
  return (
    <article class="card column" aria-label={model}>
      <header title={model}>
        <div class="row">
          <div class="grow"><Select label="Model" quiet value={model} options={options} onChange={onChange} /></div>
          {names.length > 1 && <Button small kind="ghost" aria-label={`Remove ${model}`} onClick={onRemove}>Remove</Button>}
        </div>
        <p class="muted small wrap">{known?.kind === "base" ? "Base" : known && <>{known.is_checkpoint ? "Checkpoint" : "Tuned"} from {known.base}, <Link to={`/jobs/${known.job_id}`}>step {number(known.step)}</Link></>}</p>
      </header>
      {turns.map((turn, index) => <Said key={index} turn={turn} talk={talk} />)}
      {!last && <p class="muted">Nothing asked yet.</p>}
      <footer class="row">
        {talk.busy.value ? <Button small onClick={() => talk.stop()}>Stop</Button> : <Button small disabled={!onStart} onClick={() => onStart?.()}>{last ? "Run again" : "Run"}</Button>}
        {last && <Button small onClick={() => talk.reset()}>Reset</Button>}
        {last && <><Copy label="Copy Python" text={() => program(last.ask)} /><Copy label="Copy curl" text={() => curl(last.ask.path, last.ask.body)} /></>}
      </footer>
    </article>
  );
}

/** A program that prints the answer as it arrives. */
function program({ path, body }: Ask): string {
  const [method, text] = path === "/v1/completions" ? ["completions", "choice.text"] : ["chat.completions", 'choice.delta.content or ""'];
  const print = `for chunk in stream:
    for choice in chunk.choices:
        print(${text}, end="", flush=True)`;
  return python(`stream = client.${method}.create`, body, print);
}

function Said({ turn, talk }: { turn: Turn; talk: Talk }) {
  const { prompt, expected, text, error, first, ended, finish } = turn;
  const same = expected?.trim() === text.trim();
  return (
    <div class="turn">
      <p class="asked" title={prompt}>{prompt || <span class="muted">(the row's messages)</span>}</p>
      {first === null && ended === null ? <Waiting /> : (text || !error) && <Answer turn={turn} model={talk.model} />}
      {error && <ErrorNote error={error} retry={() => void talk.again()} />}
      {expected !== null && finish && finish !== "stopped" && <p><span class={`badge ${same ? "green" : "amber"}`}>{same ? "Matches" : "Differs"}</span></p>}
      {!error && <p class="muted small speed">{figures(turn)}</p>}
    </div>
  );
}

const LATE_MS = 3000;

function Waiting() {
  const [late, setLate] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setLate(true), LATE_MS);
    return () => clearTimeout(timer);
  }, []);
  return <p class="answer muted">{late ? "Loading the model. A base that is not here yet is fetched first, which may take minutes." : "Waiting for the first token …"}</p>;
}

const SHORTEST_S = 0.05;

/** Tokens, their speed after the first unless they came in one piece, the first one's delay, and why it ended. */
function figures({ tokens, usage, begun, first, last, ended, finish }: Turn): string {
  if (first === null && ended === null) return "";
  const count = usage?.completion_tokens ?? tokens.length;
  const seconds = ((last ?? 0) - (first ?? 0)) / 1000;
  const speed = count > 1 && seconds >= SHORTEST_S && `${number(Number(((count - 1) / seconds).toPrecision(3)))} tokens/s`;
  return [plural(count, "token"), speed, first && `first after ${((first - begun) / 1000).toFixed(2)} s`, finish && `finish reason ${finish}`].filter(Boolean).join(" · ");
}

const [WIDTH, HEIGHT] = [232, 190];
type Place = { index: number; left: number; top: number; above: boolean };

/** The answer's tokens; the one under the pointer, or chosen with arrow keys, shows what else was likely. */
function Answer({ turn: { text, tokens, ended }, model }: { turn: Turn; model: string }) {
  const ref = useRef<HTMLDivElement>(null);
  const [at, setAt] = useState<Place | null>(null);
  const token = at && tokens[at.index];
  const show = (index: number, aloud: boolean) => {
    const span = ref.current!.children[index]!;
    const [outer, inner] = [ref.current!.getBoundingClientRect(), span.getClientRects()[0] ?? span.getBoundingClientRect()];
    const above = inner.bottom + HEIGHT > innerHeight && inner.top > HEIGHT;
    setAt({ index, left: Math.max(0, Math.min(inner.left - outer.left, outer.width - WIDTH)), top: (above ? inner.top : inner.bottom) - outer.top, above });
    if (aloud) announce(`${JSON.stringify(tokens[index]!.token)}, ${chance(tokens[index]!)}`);
  };
  const keys = (event: KeyboardEvent) => {
    const index = at?.index ?? -1;
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (event.key === "Escape") setAt(null);
    if (to === undefined || !tokens.length) return;
    event.preventDefault();
    show(Math.max(0, Math.min(to, tokens.length - 1)), true);
  };
  const point = ({ target }: Event) => {
    const index = [...ref.current!.children].indexOf(target as Element);
    if (index >= 0 && tokens[index]) show(index, false);
  };
  return (
    <div ref={ref} class="answer" role="group" tabIndex={0} aria-busy={ended === null} aria-label={`Answer of ${model}; arrow keys show each token's probability`}
      onPointerOver={point} onPointerLeave={() => setAt(null)} onKeyDown={keys} onFocus={() => ref.current!.matches(":focus-visible") && tokens.length && show(0, true)} onBlur={() => setAt(null)}>
      {cut(text, tokens).map((piece, index) => <span key={index} class={`${level(tokens[index])} ${at?.index === index ? "at" : ""}`}>{piece}</span>)}
      {at && token && (
        <div class={at.above ? "popover above" : "popover"} aria-hidden="true" style={{ left: `${at.left}px`, top: `${at.top}px` }}>
          <Chance token={token} />
          {token.top_logprobs.map((other) => <Chance key={other.token} token={other} bar drawn={other.token === token.token} />)}
        </div>
      )}
    </div>
  );
}

type Likely = Pick<Token, "token" | "logprob">;
const chance = ({ logprob }: Likely): string => percent(Math.exp(logprob), Math.exp(logprob) < 0.01 ? 2 : 1);
/** From likely (p0) to a surprise (p4). */
const level = (token: Likely | undefined): string => `p${[0.9, 0.6, 0.3, 0.1].filter((bound) => token && Math.exp(token.logprob) < bound).length}`;

function Chance({ token, bar, drawn }: { token: Likely; bar?: boolean; drawn?: boolean }) {
  return <p class={drawn ? "drawn" : ""}>{bar && <i style={{ width: `${100 * Math.exp(token.logprob)}%` }} />}<code class="clip">{JSON.stringify(token.token)}</code> <span>{chance(token)}</span></p>;
}
