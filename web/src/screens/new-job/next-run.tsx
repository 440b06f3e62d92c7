// The run that follows a job: its inputs, with the changes that its diagnosis advises.
import { get } from "../../api/client";
import type { ApiError } from "../../api/client";
import { Link, query, setQuery } from "../../router";
import { Button, Card, ErrorNote, Skeleton, useLoad } from "../../ui";

const text = (value: unknown): string => String(value ?? "none");
const texts = (values: object) => Object.fromEntries(Object.entries(values).map(([name, value]) => [name, text(value)]));

async function load(job_id: string, signal: AbortSignal) {
  const { job, asked, resolved } = await get("/api/jobs/{job_id}", { job_id }, signal);
  const none = (error: ApiError) => (error.status === 404 ? null : Promise.reject(error));
  const diagnosis = await get("/api/jobs/{job_id}/diagnosis", { job_id }, signal).catch(none);
  const advised = diagnosis?.findings.flatMap((finding) => finding.changes) ?? [];
  const used: Record<string, unknown> = { ...asked, ...resolved };
  const next = Object.entries(diagnosis?.next_hyperparameters ?? {}).filter(([knob, after]) => after !== used[knob]);
  const changes = next.map(([knob, after]) => ({
    knob, before: text(used[knob]), after: text(after), without: knob in asked ? text(asked[knob]) : null,
    reason: advised.find((change) => change.knob === knob && change.after === after)?.reason,
  }));
  const { model, training_file, validation_file, user_provided_suffix: suffix } = job;
  const filled = { model, training_file, validation_file, suffix, ...texts(asked), ...texts(Object.fromEntries(next)) };
  return { name: suffix ?? job.id, filled, changes, byHand: advised.filter(({ knob }) => knob.endsWith("_data")) };
}

export function NextRun({ from }: { from: string }) {
  const fill = async (signal: AbortSignal) => {
    const found = await load(from, signal);
    const given = query.peek();
    // After a reload the URL has it all, and what was changed since.
    if (!given.has("training_file")) setQuery({ ...found.filled, ...Object.fromEntries(given) });
    return found;
  };
  const { data, error, reload } = useLoad(fill, [from]);
  if (!data) return error ? <ErrorNote error={error} retry={reload} /> : <Skeleton height={120} />;
  return (
    <Card title={<>The run after <Link to={`/jobs/${from}`}>{data.name}</Link></>}>
      {!data.changes.length && <p class="muted">Its hyperparameters as they were: its diagnosis advises no other.</p>}
      <ul class="advised">
        {data.changes.map(({ knob, before, after, reason, without }) => {
          const isOn = query.value.get(knob) === after;
          return (
            <li key={knob} class={isOn ? "" : "muted"}>
              <Button small onClick={() => setQuery({ [knob]: isOn ? without : after })} aria-label={`${isOn ? "Undo" : "Apply"} the change of ${knob}`}>{isOn ? "Undo" : "Apply"}</Button>
              <span><code>{knob}</code> {before} → {after}{reason && `, because ${reason}`}</span>
            </li>
          );
        })}
        {data.byHand.map(({ knob, before, after, reason }) => <li key={knob}>For you: {knob.replace("_", " ")} {text(before)} → {text(after)}, because {reason}</li>)}
      </ul>
    </Card>
  );
}
