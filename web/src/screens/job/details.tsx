// Below the curves: checkpoints, rows the model does badly on, what the job was told and what it said, its files.
import { useState } from "preact/hooks";
import { ApiError, get, url, type Checkpoint, type Diagnosis, type FileRow, type Run } from "../../api/client";
import type { LiveJob } from "../../api/live";
import { setQuery, useQuery } from "../../router";
import { Badge, Button, Card, Check, ErrorNote, Facts, Fold, Grid, LinkButton, Skeleton, Time, useLoad } from "../../ui";
import { bytes, loss, number, percent, plural } from "../../ui/format";
import { told, tryLink } from "./parts";

const METRICS = { train_loss: "Train loss", valid_loss: "Validation loss", full_valid_loss: "Full validation loss" };

export function Checkpoints({ run, checkpoints, use }: { run: Run; checkpoints: readonly Checkpoint[]; use: number | undefined }) {
  const least = Math.min(...checkpoints.map(({ metrics }) => metrics.full_valid_loss ?? Infinity));
  const best = checkpoints.findLast(({ metrics }) => metrics.full_valid_loss === least)?.step_number;
  const marks = ({ step_number: step, fine_tuned_model_checkpoint: name }: Checkpoint) =>
    [step === use && "to use", step === best && "best", name === run.job.fine_tuned_model && "the model"].filter((mark) => mark !== false);
  return (
    <Card title="Checkpoints">
      <Grid
        label="Table of checkpoints" class="checkpoints" head={["Step", "Model", ...Object.values(METRICS), "Token accuracy", <span class="sr-only">Try</span>]}
        rows={checkpoints.map((one) => [
          <span class="row">{number(one.step_number)} {marks(one).map((mark) => <Badge key={mark} of={mark === "to use" ? "succeeded" : "info"}>{mark}</Badge>)}</span>,
          <code class="wrap">{one.fine_tuned_model_checkpoint}</code>,
          ...Object.keys(METRICS).map((name) => loss(one.metrics[name])),
          percent(one.metrics.full_valid_mean_token_accuracy),
          <LinkButton small to={tryLink(run.job.model, one.fine_tuned_model_checkpoint)}>Try</LinkButton>,
        ])}
      />
    </Card>
  );
}

export function Rows({ run, rows }: { run: Run; rows: Diagnosis["rows"] }) {
  const [training, validation] = [run.training_file.id, (run.validation_file ?? run.training_file).id];
  const lists = [["Worst validation rows", validation, rows.worst_validation], ["Worse than under the base model", validation, rows.worse_than_base], ["Worst training rows", training, rows.worst_training]] as const;
  const found = lists.filter(([, , list]) => list?.length);
  if (!found.length) return null;
  return (
    <Card title="Rows worth a look">
      {rows.num_worse_than_base != null && <p class="muted">{number(rows.num_worse_than_base)} of {plural(rows.num_validation ?? 0, "validation row")} got worse than under the base model.</p>}
      <div class="halves">
        {found.map(([title, file, list]) => (
          <section key={title} class="stack tight">
            <h3>{title}</h3>
            <Grid label={title} class="low-table" head={["Line", "Loss", "Base model's", "Target tokens"]} rows={list!.map((row) => [<Row {...row} file={file} />, loss(row.loss), loss(row.base_loss), number(row.target_tokens)])} />
          </section>
        ))}
      </div>
    </Card>
  );
}

function Row({ file, line }: { file: string; line: number }) {
  const [open, setOpen] = useState(false);
  return <details onToggle={(event) => setOpen(event.currentTarget.open)}><summary>{number(line)}</summary>{open && <Text {...{ file, line }} />}</details>;
}

function Text({ file, line }: { file: string; line: number }) {
  const { data, error } = useLoad((abort) => get("/api/files/{file_id}/rows", { file_id: file, offset: line - 1, limit: 1 }, abort), [file, line]);
  if (error) return <ErrorNote error={error} />;
  if (!data) return <Skeleton height={60} />;
  return <div class="row-text"><Facts of={parts(data.data[0])} /></div>;
}

const text = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));

/** A row as who says what, and what it has beside its messages. */
function parts(row: FileRow | undefined): [string, string][] {
  if (!row?.data) return [["error", row?.error ?? "The file has no such line."]];
  const { messages, ...rest } = row.data as { messages?: unknown };
  const said = Array.isArray(messages) ? messages.map((one): [string, string] => [text(one?.role), text(one?.content)]) : [];
  return [...said, ...Object.entries(rest).map(([name, value]): [string, string] => [name, text(value)])];
}

export function Settings({ run: { asked, resolved, reasons, plan, job } }: { run: Run }) {
  const used = { seed: job.seed, ...resolved } as Record<string, unknown>;
  const names = [...new Set([...Object.keys(used), ...Object.keys(asked)])].filter((name) => name !== "model" && name !== "usual_learning_rate");
  return (
    <Card title="Hyperparameters">
      <Grid
        label="Table of hyperparameters" head={["Name", "Asked", "Used", "Reason"]}
        rows={names.map((name) => [<code>{name}</code>, name in asked ? told(asked[name], name) : "–", name in used ? told(used[name], name) : "not yet", <span class="muted small">{reasons[name]}</span>])}
      />
      {plan && <Fold title="Execution plan"><Facts of={Object.entries(plan).map(([name, value]) => [name, told(value)])} /></Fold>}
    </Card>
  );
}

export function Events({ live }: { live: LiveJob }) {
  const all = useQuery("events") === "all";
  const shown = live.events.value.filter((event) => all || event.type === "message");
  return (
    <Card title="Events" actions={<Check label="Metrics too" checked={all} onChange={(on) => setQuery({ events: on ? "all" : null })} />}>
      <ol class="events" aria-live="off" tabIndex={0} aria-label="Events, newest first">
        {shown.map(({ id, created_at, level, message }) => (
          <li key={id}>
            <Time at={created_at} />
            <p class="wrap">{level !== "info" && <><Badge of={level === "warn" ? "warning" : "critical"}>{level}</Badge> </>}{message}</p>
          </li>
        ))}
      </ol>
      {!shown.length && <p class="muted">{live.events.value.length ? `The newest ${plural(live.events.value.length, "event")} are all metrics.` : "None yet."}</p>}
      {live.moreEvents.value && <div><Button small onClick={() => live.loadMoreEvents()}>Load older</Button></div>}
    </Card>
  );
}

export function Files({ run }: { run: Run }) {
  const [result] = run.job.result_files;
  const { data, error } = useLoad(async (abort) => (result ? get("/v1/files/{file_id}", { file_id: result }, abort) : null), [result]);
  const link = ({ id, filename, bytes: size }: Run["training_file"]) =>
    filename === null ? `${id}, deleted` : <><a href={url("/v1/files/{file_id}/content", { file_id: id })} download={filename}>{filename}</a> <span class="muted nowrap">{bytes(size)}</span></>;
  const files = Object.entries({ Training: run.training_file, Validation: run.validation_file, Result: data ?? (result && error instanceof ApiError && error.status === 404 ? { id: result, filename: null, bytes: null } : null) });
  return <Card title="Files"><Facts of={files.flatMap(([role, file]) => (file ? [[role, link(file)]] : []))} /></Card>;
}
