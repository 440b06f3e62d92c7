// One prompt to up to four models, side by side. What is asked and how is in the URL; what was answered is not.
import { signal } from "@preact/signals";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { get } from "../api/client";
import type { ModelOverview } from "../api/client";
import { Link, setQuery, useQuery } from "../router";
import { Button, Check, Dialog, ErrorNote, Note, NumberField, Page, Segments, Select, Skeleton, TextField, useLoad } from "../ui";
import { plural } from "../ui/format";
import { Column } from "./try/column";
import { history, remember, taken } from "./try/rows";
import type { Mode, Prompt } from "./try/rows";
import { Talk } from "./try/talk";
import type { Ask, Message } from "./try/talk";
import "./try.css";

const MOST_MODELS = 4;
const LONGEST_IN_URL = 2000;
const [TEMPERATURE, MAX_TOKENS] = [0, 256];

/** Texts too long for an address last as long as the page. */
const long = signal({ system: "", prompt: "" });
const short = (text: string): string | null => (new URLSearchParams({ text }).toString().length <= LONGEST_IN_URL ? text : null);
const typed = (name: "system" | "prompt"): string => useQuery(name) ?? long.value[name];
function figure(name: string): number | null {
  const value = parseFloat(useQuery(name) ?? "");
  return Number.isNaN(value) ? null : value;
}

/** Make a prompt the page's; it is no row then. */
function write({ mode, system, prompt }: Prompt): void {
  long.value = { system: short(system) === null ? system : "", prompt: short(prompt) === null ? prompt : "" };
  setQuery({ mode: mode === "text" ? mode : null, system: short(system), prompt: short(prompt), line: null });
}

export default function Try() {
  const { data, error, reload } = useLoad((abort) => get("/api/models", {}, abort), []);
  return (
    <Page title="Try" wide>
      {error && <ErrorNote error={error} retry={reload} />}
      {data ? <Bench models={data.data} /> : !error && <Skeleton height={460} />}
    </Page>
  );
}

function Bench({ models }: { models: ModelOverview[] }) {
  const talks = useMemo(() => new Map<string, Talk>(), []);
  const wanted = [...new Set(useQuery("models")?.split(",").filter(Boolean))].slice(0, MOST_MODELS);
  const names = wanted.length ? wanted : usual(models);
  const shown = names.map((name) => talks.get(name) ?? talks.set(name, new Talk(name)).get(name)!);
  const other = models.find(({ name }) => !names.includes(name));
  const choose = (next: string[]) => setQuery({ models: next.join() });
  useEffect(() => talks.forEach((talk) => names.includes(talk.model) || talk.reset()), [names.join()]);
  useEffect(() => () => talks.forEach((talk) => talk.stop()), []);

  const [file, line] = [useQuery("file"), figure("line")];
  const place = useRef(1);
  place.current = line ?? place.current;
  const rows = useLoad(async (abort) => file && get("/api/files/{file_id}/rows", { file_id: file, offset: place.current - 1, limit: 1 }, abort), [file, line]);
  const found = (file && line && rows.data && rows.data.data[0]) || null;
  const row = found?.data ? taken(found.data) : null;

  const { mode, system, prompt }: Prompt = row ?? { mode: useQuery("mode") === "text" ? "text" : "chat", system: typed("system"), prompt: typed("prompt") };
  const edit = (changes: Partial<Prompt>) => write({ mode, system, prompt, ...changes });
  const user = (content: string): Message => ({ role: "user", content });
  const messages = row?.messages ?? [...(system ? [{ role: "system", content: system }] : []), user(prompt)];
  const earlier = messages.length - (system ? 1 : 0) - (prompt ? 1 : 0);
  const ask = (model: string, messages: Message[]): Ask =>
    mode === "text"
      ? { path: "/v1/completions", body: { model, prompt, ...sampling(), logprobs: 5 } }
      : { path: "/v1/chat/completions", body: { model, messages, ...(row?.tools ? { tools: row.tools } : {}), ...sampling(), logprobs: true, top_logprobs: 5 } };
  const start = (talk: Talk) => void talk.start({ ask: ask(talk.model, messages), prompt, expected: row?.expected ?? null });
  const ready = !rows.busy && Boolean(row || prompt);
  const run = () => {
    if (!ready) return;
    remember({ mode, system, prompt });
    shown.forEach(start);
  };
  const keys = (event: KeyboardEvent) => enters(event) && run();
  const tinted = useQuery("tint") !== "0";

  return (
    <>
      {models.every((model) => model.kind === "base") && <Note><p>There is no fine-tuned model yet; the bases answer already. <Link to="/jobs/new">Start a job</Link> to compare them with yours.</p></Note>}
      <div class="try">
        <section class="stack" aria-label="Request">
          <div class="row">
            <Segments<Mode> label="Mode" value={mode} options={[{ value: "chat", label: "Conversation" }, { value: "text", label: "Plain prompt" }]} onChange={(mode) => edit({ mode })} />
            <History />
          </div>
          <RowPicker file={file} place={place.current} edited={!line} total={rows.data ? rows.data.total : 0} />
          {rows.error && <ErrorNote error={rows.error} retry={rows.reload} />}
          {found && !row && <ErrorNote error={`Line ${line} ${found.error ?? "is neither a conversation nor a prompt."}`} />}
          {mode === "chat" && <TextField label="System" rows={2} value={system} onInput={(system) => edit({ system })} onKeyDown={keys} />}
          <TextField label={mode === "chat" ? "User message" : "Prompt"} rows={5} value={prompt} onInput={(prompt) => edit({ prompt })} onKeyDown={keys}
            hint={row && mode === "chat" && earlier > 0 && `Sent with the row's ${plural(earlier, "earlier message")}, until you edit it.`} />
          <div class="row">
            <Button kind="primary" disabled={!ready} onClick={run}>Run</Button>
            <Button disabled={!shown.some((talk) => talk.busy.value)} onClick={() => shown.forEach((talk) => talk.stop())}>Stop all</Button>
            <span class="muted small">Ctrl+Enter runs</span>
          </div>
          <Settings />
        </section>
        <section class="stack" aria-label="Answers">
          {row?.expected != null && <div class="card expected"><h2>Expected answer</h2><p class="answer">{row.expected}</p></div>}
          <div class={tinted ? "columns tinted" : "columns"}>
            {shown.map((talk, index) => (
              <Column key={talk.model} talk={talk} models={models} names={names} onStart={ready ? () => start(talk) : null}
                onChange={(name) => choose(names.with(index, name))} onRemove={() => choose(names.toSpliced(index, 1))} />
            ))}
          </div>
          <div class="row">
            {names.length < MOST_MODELS && other && <Button onClick={() => choose([...names, other.name])}>Add a model</Button>}
            <Check label="Colour tokens by probability" checked={tinted} onChange={(on) => setQuery({ tint: on ? null : 0 })} />
          </div>
          {mode === "chat" && <More talks={shown} onSay={(talk, prompt) => talk.more({ ask: ask(talk.model, [user(prompt)]), prompt, expected: null })} />}
        </section>
      </div>
    </>
  );
}

/** The newest fine-tuned model after its base; else the first base. */
function usual(models: ModelOverview[]): string[] {
  const tuned = models.find((model) => model.kind !== "base" && !model.is_checkpoint);
  return tuned ? [tuned.base, tuned.name] : models.slice(0, 1).map((model) => model.name);
}

/** The URL's settings, as a request has them. */
function sampling() {
  const stop = (useQuery("stop") ?? "").split("\n").filter(Boolean).map((text) => text.replaceAll("\\n", "\n"));
  const [top_p, seed] = [figure("top_p"), figure("seed")];
  return {
    temperature: figure("temperature") ?? TEMPERATURE, ...(top_p !== null && { top_p }), max_tokens: figure("max_tokens") ?? MAX_TOKENS,
    ...(stop.length && { stop }), ...(seed !== null && { seed }), stream: true, stream_options: { include_usage: true },
  };
}

const enters = ({ key, ctrlKey, metaKey }: KeyboardEvent): boolean => key === "Enter" && (ctrlKey || metaKey);

function Settings() {
  const field = (name: string, label: string, usual: string | number, step: number, max?: number) => (
    <NumberField label={label} placeholder={`${usual}`} value={figure(name)} onChange={(value) => setQuery({ [name]: value })} min={0} step={step} {...(max && { max })} />
  );
  return (
    <details open={innerWidth > 1000}>
      <summary>Settings</summary>
      <div class="settings">
        {field("temperature", "Temperature", TEMPERATURE, 0.1, 2)}
        {field("top_p", "Top-p", 1, 0.05, 1)}
        {field("max_tokens", "Max tokens", MAX_TOKENS, 1)}
        {field("seed", "Seed", "None", 1)}
        <TextField label="Stop" hint="Up to four, one a line; \n is a line break." rows={1} value={useQuery("stop") ?? ""} onInput={(stop) => setQuery({ stop })} spellcheck={false} />
      </div>
    </details>
  );
}

function RowPicker({ file, place, edited, total }: { file: string | null; place: number; edited: boolean; total: number }) {
  const { data, error } = useLoad((abort) => get("/api/files", { purpose: "fine-tune", limit: 100 }, abort), []);
  if (error) return <ErrorNote error={error} />;
  const options = [{ value: "", label: "No file" }, ...(data?.data ?? []).map(({ id, filename }) => ({ value: id, label: filename }))];
  if (file && !options.some(({ value }) => value === file)) options.push({ value: file, label: file });
  const take = (line: number | null, from = file) => setQuery({ file: from, line, mode: null, system: null, prompt: null });
  return (
    <>
      <Select label="Take a row of" value={file ?? ""} options={options} onChange={(id) => take(id ? 1 : null, id)} />
      {file && (
        <div class="row">
          <NumberField label="Line" quiet class="line" min={1} max={total} step={1} value={place} onChange={(line) => line && take(Math.min(line, total))} />
          <span class="muted">of {total || "…"}</span>
          <Button small disabled={place <= 1} onClick={() => take(place - 1)}>Prev</Button>
          <Button small disabled={place >= total} onClick={() => take(place + 1)}>Next</Button>
          <Button small disabled={total < 2} onClick={() => take(1 + Math.floor(Math.random() * total))}>Random</Button>
          {edited && <Button small onClick={() => take(place)}>Undo edits</Button>}
        </div>
      )}
    </>
  );
}

function History() {
  const [prompts, setPrompts] = useState<Prompt[] | null>(null);
  const close = () => setPrompts(null);
  const clear = () => (remember(null), close());
  const take = (prompt: Prompt) => (write(prompt), close());
  return (
    <>
      <Button small onClick={() => setPrompts(history())}>History</Button>
      {prompts && (
        <Dialog title="Prompts you ran" onClose={close} actions={<><Button disabled={!prompts.length} onClick={clear}>Clear</Button><Button kind="primary" onClick={close}>Close</Button></>}>
          {!prompts.length && <p class="muted">This browser keeps none.</p>}
          <ul class="history">
            {prompts.map((one, index) => (
              <li key={index}>
                <button type="button" onClick={() => take(one)}>
                  <span>{one.prompt || "(no user message)"}</span>
                  <span class="muted small">{one.mode === "text" ? "Plain prompt" : one.system || "No system message"}</span>
                </button>
              </li>
            ))}
          </ul>
        </Dialog>
      )}
    </>
  );
}

/** The next message of the conversations that were answered. */
function More({ talks, onSay }: { talks: Talk[]; onSay: (talk: Talk, said: string) => void }) {
  const [said, setSaid] = useState("");
  const answered = talks.filter((talk) => talk.turns.value.at(-1)?.finish && talk.turns.value.at(-1)!.ask.body.messages);
  const ready = said && !talks.some((talk) => talk.busy.value);
  if (!answered.length) return null;
  const say = () => {
    if (!ready) return;
    answered.forEach((talk) => onSay(talk, said));
    setSaid("");
  };
  return (
    <div class="go-on">
      <TextField label="Go on" rows={2} value={said} placeholder="The next message; each model is sent its own answers so far" onInput={setSaid} onKeyDown={(event) => enters(event) && say()} />
      <Button kind="primary" disabled={!ready} onClick={say}>Send</Button>
    </div>
  );
}
