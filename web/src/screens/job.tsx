// A job: how it goes, its curves and what they mean, and below all there is to know of it.
import { useComputed } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { get, post, type Run } from "../api/client";
import { isOver, useLive, type LiveJob } from "../api/live";
import { Badge, Button, Card, Change, confirm, Copy, ErrorNote, LinkButton, Note, Page, Progress, Skeleton, Time, toast, useLoad } from "../ui";
import { compact, dateTime, duration, number } from "../ui/format";
import { Curves } from "./job/curves";
import { Checkpoints, Events, Files, Rows, Settings } from "./job/details";
import { Interpretation } from "./job/interpretation";
import { gained, tryLink } from "./job/parts";

export default function JobScreen({ id }: { id: string }) {
  const live = useLive(id);
  const curves = useComputed(() => (live.version.value === 0 ? "loading" : live.points.length ? "there" : "none")).value;
  const [run, error, diagnosis] = [live.run.value, live.error.value, live.diagnosis.value];
  const listed = useLoad(async (abort) => (run && isOver(run) ? (await get("/v1/fine_tuning/jobs/{job_id}/checkpoints", { job_id: id, limit: 100 }, abort)).data : []), [run?.status]);
  if (!run) return <Page title="Job" wide>{error ? <ErrorNote error={error} /> : <Skeleton height={640} />}</Page>;
  const name = run.job.user_provided_suffix ?? run.job.model;
  const checkpoints = listed.data ?? [];
  const empty = isOver(run) ? "The job ended before its first step: there are no curves." : "The curves begin with the first step.";
  return (
    <Page title={name} heading={<>{name} <Badge of={run.status} /></>} actions={<Actions run={run} />} wide>
      <div class="row job-facts muted small">
        <code class="wrap">{run.id}</code> <Copy text={run.id} label="Copy id" />
        <span class="wrap">base model {run.job.model}</span>
        <span>created <Time at={run.job.created_at} /></span>
        <span class="connection" data-state={live.connection.value}>{live.connection.value}</span>
      </div>
      {run.job.error && <ErrorNote error={`${run.job.error.code}: ${run.job.error.message}`} />}
      {error && <ErrorNote error={error} />}
      <Figures live={live} run={run} />
      <Doing live={live} run={run} />
      <div class="job-split">
        <Card class="curves">
          {curves === "loading" ? <Skeleton height={620} /> : curves === "there" ? <Curves live={live} name={name} /> : <p class="unstarted muted">{empty}</p>}
        </Card>
        <Interpretation live={live} run={run} checkpoints={checkpoints} />
      </div>
      {checkpoints.length > 0 && <Checkpoints run={run} checkpoints={checkpoints} use={diagnosis?.checkpoint?.step} />}
      {diagnosis && <Rows run={run} rows={diagnosis.rows} />}
      <div class="job-split even">
        <div class="stack"><Events live={live} /><Files run={run} /></div>
        <Settings run={run} />
      </div>
    </Page>
  );
}

function Figures({ live, run }: { live: LiveJob; run: Run }) {
  live.version.value;
  const now = Date.now() / 1000;
  const [first, last] = [live.points[0], live.points.at(-1)];
  const { base, now: tuned } = gained(live.points, isOver(run) ? run.resolved?.select_by : "last");
  const end = run.job.finished_at ?? (run.status === "running" ? now : last?.created_at);
  const left = (run.job.estimated_finish ?? 0) - now;
  const figures: Record<string, ComponentChildren> = {
    "Full validation loss": <Change from={base?.full_valid_loss} to={tuned?.full_valid_loss} />,
    "Full validation token accuracy": <Change from={base?.full_valid_mean_token_accuracy} to={tuned?.full_valid_mean_token_accuracy} share />,
    Step: last ? `${number(last.data.step)} / ${number(last.data.total_steps)}` : "–",
    Epoch: last ? last.data.epoch.toFixed(2) : "–",
    Tokens: compact(last?.data.tokens_seen),
    "Tokens/s": compact(live.points.findLast(({ data }) => data.tokens_per_second != null)?.data.tokens_per_second),
    Elapsed: duration(first?.created_at && end ? end - first.created_at : null),
    ...(!isOver(run) && { Left: <span title={dateTime(run.job.estimated_finish)}>{left > 0 ? duration(left) : "–"}</span> }),
  };
  return <dl class="figures">{Object.entries(figures).map(([label, value]) => <div key={label}><dt>{label}</dt><dd>{value}</dd></div>)}</dl>;
}

/** What happens now, where the figures do not say it. */
function Doing({ live, run }: { live: LiveJob; run: Run }) {
  const loaded = live.version.value > 0;
  const last = live.points.at(-1)?.data;
  const after = last ? ` after step ${number(last.step)}` : loaded ? " before its first step" : "";
  const place = run.queue_position === 1 ? "It is next." : run.queue_position ? `It is number ${run.queue_position}.` : "";
  const words: Partial<Record<Run["status"], string>> = {
    validating_files: "Every row of its files is being checked. Then the job waits for its turn.",
    queued: `The job waits for a worker. ${place}`,
    running: last || !loaded ? "" : "The model is being loaded. Before the first step the base model is evaluated on the validation data.",
    paused: `Paused${after}. It goes on from there when it is resumed.`,
    cancelled: `Cancelled${after}.`,
  };
  const asked = run.status === "running" && { run: "", pause: "Pausing at the next checkpoint.", cancel: "Being cancelled." }[run.request];
  const said = asked || words[run.status];
  return (
    <>
      {said && <Note severity={asked || run.status === "paused" ? "warning" : "info"}><p>{said}</p></Note>}
      {!isOver(run) && run.status !== "queued" && <Progress label="Steps done" share={last ? last.step / last.total_steps : loaded ? null : 0} />}
    </>
  );
}

function Actions({ run }: { run: Run }) {
  const ask = async (what: "cancel" | "pause" | "resume") => {
    await post(`/v1/fine_tuning/jobs/{job_id}/${what}`, { job_id: run.id }).catch((error: Error) => toast(error.message, true));
  };
  const cancel = async () => {
    const body = "It stops at once and cannot be resumed. To go on later, pause it.";
    if (await confirm({ title: "Cancel this job?", body, action: "Cancel the job", danger: true })) await ask("cancel");
  };
  const { status, job } = run;
  const pausing = status === "running" && run.request === "pause";
  return (
    <>
      {job.fine_tuned_model && <LinkButton to={tryLink(job.model, job.fine_tuned_model)} kind="primary">Try</LinkButton>}
      <LinkButton to={`/compare?jobs=${run.id}`}>Compare</LinkButton>
      {(status === "paused" || pausing) && <Button onClick={() => ask("resume")}>{pausing ? "Do not pause" : "Resume"}</Button>}
      {(status === "running" || status === "queued") && !pausing && <Button onClick={() => ask("pause")}>Pause</Button>}
      {!isOver(run) && <Button kind="danger" onClick={cancel}>Cancel</Button>}
    </>
  );
}
