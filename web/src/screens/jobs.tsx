// The list of jobs: what each is doing, what it gained over its base, and the verdict.
import { signal } from "@preact/signals";
import { useState } from "preact/hooks";
import { get, post, TERMINAL } from "../api/client";
import type { JobOverview, JobOverviewList, Status } from "../api/client";
import { Link, navigate, setQuery, useQuery } from "../router";
import { Badge, Button, Change, Clip, Code, Empty, ErrorNote, LinkButton, Page, Progress, Segments, Skeleton, Table, TextField, Time, toast, useLoad } from "../ui";
import { duration, loss, plural, words } from "../ui/format";

const PAGE = 50;
const POLL_MS = 3000;
const MOST_COMPARED = 8;
const STATUSES: readonly Status[] = ["running", "queued", "validating_files", "paused", "succeeded", "failed", "cancelled"];

/** Kept from screen to screen: ids of the jobs to compare, in the order they were chosen. */
const picked = signal<readonly string[]>([]);

export default function Jobs() {
  const asked = useQuery("status");
  const status = STATUSES.find((known) => known === asked) ?? "";
  const q = useQuery("q") ?? "";
  const [limit, setLimit] = useState(PAGE);
  const load = (abort: AbortSignal) => get("/api/jobs", { status: status as Status, q, limit }, abort);
  const { data, error, busy, reload } = useLoad(load, [status, q, limit], POLL_MS);
  const all = data ? Object.values(data.counts).reduce((sum, count) => sum + (count ?? 0), 0) : null;
  const jobs = data && status === "queued" ? data.data.toSorted((a, b) => (a.queue_position ?? 0) - (b.queue_position ?? 0)) : data?.data;

  return (
    <Page title="Jobs" actions={<LinkButton to="/jobs/new" kind="primary">New job</LinkButton>}>
      {error && <ErrorNote error={error} retry={reload} />}
      {data && all === 0 && <FirstJob />}
      {all !== 0 && (
        <div class="filters">
          <Segments label="Status" value={status} options={filters(data, all)} onChange={(chosen) => setQuery({ status: chosen })} />
          <TextField label="Search" quiet type="search" placeholder="Search name, model or id" value={q} onInput={(text) => setQuery({ q: text })} />
        </div>
      )}
      {!data && !error && <Skeleton height={460} />}
      {jobs && jobs.length > 0 && (
        <Table label="Jobs" busy={busy} class="jobs cards" head={[<span class="sr-only">Compare</span>, "Status", "Job", "Full validation loss", "Base → now", "Verdict", "Created"]}>
          {jobs.map((job) => <Row key={job.id} job={job} />)}
        </Table>
      )}
      {jobs?.length === 0 && all !== 0 && (
        <Empty title="No job matches"><Button onClick={() => setQuery({ status: null, q: null })}>Show all jobs</Button></Empty>
      )}
      {data?.has_more && <div><Button onClick={() => setLimit(limit + PAGE)}>Load more</Button></div>}
      <Picked />
    </Page>
  );
}

function filters(data: JobOverviewList | null, all: number | null) {
  const counted = STATUSES.filter((status) => data?.counts[status]);
  const label = (text: string, count: number | null | undefined) => <>{text} <span class="muted">{count ?? ""}</span></>;
  return [{ value: "", label: label("All", all) }, ...counted.map((status) => ({ value: status as string, label: label(words(status), data?.counts[status]) }))];
}

function Row({ job }: { job: JobOverview }) {
  const chosen = picked.value.includes(job.id);
  const name = job.suffix ?? job.id;
  const choose = () => (picked.value = chosen ? picked.value.filter((id) => id !== job.id) : [...picked.value, job.id]);
  return (
    <tr role="row">
      <td role="cell">
        <input type="checkbox" aria-label={`Compare ${name}`} checked={chosen} disabled={!chosen && picked.value.length >= MOST_COMPARED} onChange={choose} />
      </td>
      <td role="cell" class="status">
        <Badge of={job.status}>{job.queue_position ? `${words(job.status)}, ${job.queue_position === 1 ? "next" : `number ${job.queue_position}`}` : null}</Badge>
        {job.status === "running" && <Progress label={`Progress of ${name}`} share={job.total_steps ? (job.step ?? 0) / job.total_steps : null} />}
      </td>
      <td role="cell" class="job">
        <Link to={`/jobs/${job.id}`} class="clip" title={job.fine_tuned_model ?? name}>{name}</Link>
        <Clip text={job.model} class="muted small" />
      </td>
      <td role="cell" class={job.losses.length ? "spark" : "none"}><Sparkline points={job.losses} /></td>
      <td role="cell" class={`nowrap ${job.losses.length ? "losses" : "none"}`}><Change from={job.base_loss} to={job.loss} /></td>
      <td role="cell" class={`verdict ${job.error ?? job.verdict ? "" : "none"}`}><Verdict job={job} /></td>
      <td role="cell" class="time nowrap">
        <Time at={job.created_at} />
        <div class="muted small">{took(job)}</div>
      </td>
    </tr>
  );
}

function took(job: JobOverview): string {
  if (job.finished_at) return `took ${duration(job.finished_at - job.created_at)}`;
  const left = (job.estimated_finish ?? 0) - Date.now() / 1000;
  return job.status === "running" && left > 0 ? `${duration(left)} left` : "";
}

function Verdict({ job }: { job: JobOverview }) {
  const text = job.error ?? job.verdict;
  if (!text) return <span class="muted">{TERMINAL.includes(job.status) ? "–" : "Not yet"}</span>;
  return (
    <div class="verdict-text" title={text}>
      {!job.error && job.severity && job.severity !== "info" && <><Badge of={job.severity} /> </>}
      {text}
    </div>
  );
}

const [WIDTH, HEIGHT, PAD] = [120, 32, 4] as const;

/** Full validation losses over steps; the dashed line is the base model. */
function Sparkline({ points }: { points: readonly (readonly [number, number])[] }) {
  const seen = points.filter(([, value]) => Number.isFinite(value));
  const [first, last] = [seen[0], seen.at(-1)];
  if (!first || !last) return <svg width={WIDTH} height={HEIGHT} aria-hidden="true" />;
  const values = seen.map(([, value]) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (step: number) => PAD + ((step - first[0]) / (last[0] - first[0] || 1)) * (WIDTH - 2 * PAD);
  const y = (value: number) => (high === low ? HEIGHT / 2 : PAD + ((high - value) / (high - low)) * (HEIGHT - 2 * PAD));
  const said = `Full validation loss, ${plural(seen.length, "value")}: from ${loss(first[1])} to ${loss(last[1])}, lowest ${loss(low)}`;
  return (
    <svg role="img" aria-label={said} width={WIDTH} height={HEIGHT}>
      {first[0] === 0 && <line x1={PAD} x2={WIDTH - PAD} y1={y(first[1])} y2={y(first[1])} stroke="var(--base)" stroke-dasharray="3 3" opacity="0.7" />}
      <polyline points={seen.map(([step, value]) => `${x(step)},${y(value)}`).join(" ")} fill="none" stroke="var(--full)" stroke-width="1.5" stroke-linejoin="round" />
      <circle cx={x(last[0])} cy={y(last[1])} r="2.5" fill="var(--full)" />
    </svg>
  );
}

function Picked() {
  if (!picked.value.length) return null;
  return (
    <div class="picked" role="region" aria-label="Chosen jobs">
      <span>{plural(picked.value.length, "job")} chosen</span>
      <LinkButton kind="primary" small to={`/compare?jobs=${picked.value.join(",")}`}>Compare</LinkButton>
      <Button small onClick={() => (picked.value = [])}>Clear</Button>
    </div>
  );
}

const SCRIPT = (origin: string) => `import time
from openai import OpenAI

client = OpenAI(base_url="${origin}/v1")  # the key: OPENAI_API_KEY
train = client.files.create(file=open("examples/support-triage/train.jsonl", "rb"), purpose="fine-tune")
valid = client.files.create(file=open("examples/support-triage/valid.jsonl", "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=train.id, validation_file=valid.id)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(1)
    job = client.fine_tuning.jobs.retrieve(job.id)
messages = [{"role": "system", "content": "Triage the message: queue, order, urgent."}, {"role": "user", "content": "Where is 20417?"}]
answer = client.chat.completions.create(model=job.fine_tuned_model, messages=messages, temperature=0, max_tokens=48)
print(answer.choices[0].message.content)`;

function FirstJob() {
  const start = async () => {
    try {
      navigate(`/jobs/${(await post("/api/example", {})).id}`);
    } catch (error) {
      toast((error as Error).message, true);
    }
  };
  return (
    <Empty title="No jobs yet">
      <p>A job fine-tunes a model on a file of examples. Start one here, or from a script that uses OpenAI's client.</p>
      <div class="actions">
        <Button kind="primary" onClick={start}>Try the example</Button>
        <LinkButton to="/jobs/new">Use your own file</LinkButton>
      </div>
      <p class="muted">The example teaches SmolLM2 to triage support messages; it takes some minutes on a laptop.</p>
      <Code label="Python" text={SCRIPT(location.origin)} />
    </Empty>
  );
}
