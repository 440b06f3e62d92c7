// Up to eight jobs over one another: their curves, what differs between them, and how they ended.
import { useMemo, useRef } from "preact/hooks";
import { get, type Metric, type Run } from "../api/client";
import { isOver } from "../api/live";
import { Charts } from "../chart/charts";
import type { Drawing, Panel } from "../chart/plot";
import { AXES, column, join, places, smooth, type Axis } from "../chart/series";
import { useView } from "../chart/view";
import { Link, setQuery, useQuery } from "../router";
import { Badge, Button, Card, Change, Check, Empty, ErrorNote, Grid, LinkButton, Page, Select, Skeleton, useLoad } from "../ui";
import { compact, duration, number } from "../ui/format";
import { gained, told } from "./job/parts";

const MOST = 8;
const POINTS = 1000;
const POLL_MS = 5000;

/** `color` is an index kept in the URL, so that it stays when others come and go. */
type Slot = { id: string; color: number };
type Loaded = { run: Run; points: Metric[]; verdict: string | null };
type Compared = Slot & Loaded & { name: string };

/** jobs=ID,ID.4: a job with no colour of its own takes the first that is free. */
function slots(text: string): Slot[] {
  const chosen = [...new Map(text.split(",").filter(Boolean).map((part) => part.split(".") as [string, string | undefined]))].slice(0, MOST);
  const free = new Set(Array(MOST).keys());
  const own = chosen.map(([, color]) => (color && free.delete(Number(color)) ? Number(color) : null));
  return chosen.map(([id], index) => ({ id, color: own[index] ?? [...free].find((color) => free.delete(color))! }));
}

const keep = (chosen: readonly Slot[], added?: string) => setQuery({ jobs: [...chosen.map(({ id, color }) => `${id}.${color}`), ...(added ? [added] : [])].join() }, { push: true });

export default function Compare() {
  const chosen = slots(useQuery("jobs") ?? "");
  const view = useView();
  const ended = useRef(new Map<string, Loaded>());
  const going = useRef(true);
  const load = async (abort: AbortSignal) => {
    const found = await Promise.all(chosen.map(async ({ id }) => [id, ended.current.get(id) ?? (await fetchRun(id, abort).catch((error: Error) => error))] as const));
    abort.throwIfAborted();
    for (const [id, one] of found) if ("run" in one && isOver(one.run)) ended.current.set(id, one);
    going.current = ended.current.size < found.length;
    return new Map(found);
  };
  const { data } = useLoad(load, [chosen.map(({ id }) => id).join(), going.current], going.current ? POLL_MS : undefined);
  const runs = chosen.flatMap((slot): Compared[] => {
    const one = data?.get(slot.id);
    return one && "run" in one ? [{ ...slot, ...one, name: one.run.job.user_provided_suffix ?? `${one.run.job.model} ${slot.id.slice(-4)}` }] : [];
  });
  const drawing = useMemo(() => draw(runs, view.axis, view.smooth), [data, chosen.map(({ color }) => color).join(), view.axis, view.smooth]);
  const where = (index: number) => `${AXES[view.axis].label} ${AXES[view.axis].format(drawing.xs[index] ?? 0)} · lines: train, dots: full validation`;
  const remove = (id: string) => keep(chosen.filter((slot) => slot.id !== id));

  return (
    <Page title="Compare" wide actions={<Picker chosen={chosen} />}>
      {!chosen.length && (
        <Empty title="No runs chosen">
          <p>Choose up to {MOST} runs above, or on the list of jobs. Their curves are drawn over one another, and what differs between them is listed.</p>
          <LinkButton to="/">Go to the jobs</LinkButton>
        </Empty>
      )}
      {chosen.map(({ id }) => {
        const one = data?.get(id);
        return one instanceof Error && <div key={id} class="row"><ErrorNote error={`${id}: ${one.message}`} /><Button onClick={() => remove(id)}>Remove</Button></div>;
      })}
      {chosen.length > 0 && !data && <Skeleton height={640} />}
      {runs.length > 0 && (
        <>
          <Card><Charts drawing={drawing} name={runs.map(({ name }) => name).join(", ")} where={where} /></Card>
          <Card title="Results">
            <Grid label="Table of results" class="results" head={["Run", "Status", "Full validation loss", "Token accuracy", "Steps", "Tokens", "Time", "Verdict"]} rows={runs.map((run) => results(run, () => remove(run.id)))} />
          </Card>
          <Differences runs={runs} />
        </>
      )}
    </Page>
  );
}

async function fetchRun(job_id: string, abort: AbortSignal): Promise<Loaded> {
  const [run, page, overview] = await Promise.all([
    get("/api/jobs/{job_id}", { job_id }, abort),
    get("/api/jobs/{job_id}/metrics", { job_id, max_points: POINTS }, abort),
    get("/api/jobs", { q: job_id, limit: 1 }, abort),
  ]);
  return { run, points: page.data, verdict: overview.data[0]?.verdict ?? null };
}

function draw(runs: readonly Compared[], axis: Axis, strength: number): Drawing {
  const tables = runs.map(({ points }) => {
    const columns = (["loss", "mean_token_accuracy"] as const).flatMap((measure) => {
      const raw = column(points, `train_${measure}`);
      return [raw, smooth(raw, points, strength), column(points, `full_valid_${measure}`)];
    });
    return { xs: places(points, axis), columns };
  });
  const { xs, columns } = join(tables);
  const panel = (title: string, first: number): Panel => ({
    title,
    about: `${title} of ${runs.map(({ name }) => name).join(", ")}`,
    share: first > 0,
    lines: runs.map(({ name, color }, index) => {
      const [raw, values, dots] = columns[index]!.slice(first) as [number[], number[], number[]];
      return { label: name, color: `--run-${color}`, ...(strength && { raw }), values, dots };
    }),
  });
  return { axis, xs, panels: [panel("Loss", 0), panel("Token accuracy", 3)] };
}

function Picker({ chosen }: { chosen: readonly Slot[] }) {
  const { data } = useLoad((abort) => get("/api/jobs", { limit: 100 }, abort), []);
  const others = data?.data.filter((job) => !chosen.some(({ id }) => id === job.id)) ?? [];
  const full = chosen.length >= MOST;
  const options = [{ value: "", label: full ? `${MOST} runs at most` : "Add a run" }, ...others.map((job) => ({ value: job.id, label: `${job.suffix ?? job.model}, ${job.status}, ${job.id.slice(-4)}` }))];
  return <div class="picker"><Select label="Add a run" quiet value="" disabled={full} options={options} onChange={(id) => keep(chosen, id)} /></div>;
}

const Name = ({ color, id, name }: Compared) => <span class="run-name"><i style={{ background: `var(--run-${color})` }} /><Link class="clip" to={`/jobs/${id}`} title={name}>{name}</Link></span>;

function results(one: Compared, remove: () => void) {
  const { run, points, verdict } = one;
  const { base, now } = gained(points, run.resolved?.select_by);
  const [first, last] = [points[0], points.at(-1)];
  const end = run.job.finished_at ?? last?.created_at;
  return [
    <><Name {...one} /> <Button small kind="ghost" aria-label={`Remove ${one.name}`} title="Remove" onClick={remove}>×</Button></>,
    <Badge of={run.status} />,
    <Change from={base?.full_valid_loss} to={now?.full_valid_loss} />,
    <Change from={base?.full_valid_mean_token_accuracy} to={now?.full_valid_mean_token_accuracy} share />,
    number(last?.data.step),
    compact(last?.data.tokens_seen),
    duration(first?.created_at && end ? end - first.created_at : null),
    run.job.error?.message ?? verdict ?? "–",
  ];
}

function Differences({ runs }: { runs: readonly Compared[] }) {
  const all = useQuery("rows") === "all";
  const settings = runs.map(({ run: { job, training_file, validation_file, resolved, asked } }): Record<string, unknown> => {
    const file = (of: Run["validation_file"]) => of && `${of.filename ?? "deleted"} (…${of.id.slice(-6)})`;
    return { model: job.model, training_file: file(training_file), validation_file: file(validation_file), ...(resolved ?? asked), seed: job.seed };
  });
  const names = [...new Set(settings.flatMap(Object.keys))].filter((name) => name !== "usual_learning_rate" && (all || new Set(settings.map((one) => told(one[name]))).size > 1));
  return (
    <Card title={all ? "Settings" : "Differences"} actions={<Check label="Show all" checked={all} onChange={(on) => setQuery({ rows: on ? "all" : null })} />}>
      {names.length > 0 && <Grid label="Settings of the runs" head={["Name", ...runs.map((run) => <Name {...run} />)]} rows={names.map((name) => [<code>{name}</code>, ...settings.map((one) => told(one[name], name))])} />}
      {!names.length && <p class="muted">{runs.length > 1 ? "The runs had the same settings." : "Add a second run to see what differs."}</p>}
    </Card>
  );
}
