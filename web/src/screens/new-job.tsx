// A new job: data looked into, hyperparameters resolved with their reasons, and what it would take, before anything runs.
import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import { ApiError, get, post } from "../api/client";
import type { FileOverviewList, HyperparameterInfo, ModelOverview, Resolution } from "../api/client";
import { navigate, query, setQuery, useQuery } from "../router";
import { Button, Card, Code, ErrorNote, Note, Page, Segments, Select, Skeleton, TextField, useLoad } from "../ui";
import type { Loaded } from "../ui";
import { bytes, duration, number, plural } from "../ui/format";
import { FilePicker } from "./new-job/file-picker";
import { Hyperparameter } from "./new-job/hyperparameter";
import { NextRun } from "./new-job/next-run";
import { Preview } from "./new-job/preview";
import { Report, settled, useReport } from "./new-job/report";
import { curl, python, request, validation } from "./new-job/request";
import type { Validation } from "./new-job/request";
import "./new-job/new-job.css";

const USUAL = ["n_epochs", "batch_size", "learning_rate_multiplier"];
/** Asked for beside the hyperparameters. */
const APART = ["training_split", "seed"];
const VALIDATIONS: { value: Validation; label: string }[] = [{ value: "none", label: "None" }, { value: "file", label: "File" }, { value: "split", label: "Split" }];

export default function NewJob() {
  const about = useLoad((signal) => Promise.all([get("/api/hyperparameters", {}, signal), get("/api/models", {}, signal)]), []);
  const files = useLoad((signal) => get("/api/files", { purpose: "fine-tune", limit: 100 }, signal), []);
  const from = useQuery("from");
  return (
    <Page title="New job">
      {from && <NextRun key={from} from={from} />}
      {about.error && <ErrorNote error={about.error} retry={about.reload} />}
      {about.data ? <Form table={about.data[0]} models={about.data[1].data} files={files} /> : !about.error && <Skeleton height={600} />}
    </Page>
  );
}

function Form({ table, models, files }: { table: HyperparameterInfo[]; models: ModelOverview[]; files: Loaded<FileOverviewList> }) {
  const body = request(table, models[0]?.name ?? "");
  const { model, training_file: file, validation_file } = body;
  const asked = JSON.stringify(body);
  const how = validation();
  const length = Math.floor(Number(query.value.get("max_length")));
  const about = { file, model, validation_file, max_length: length >= 8 ? length : undefined };
  const report = useReport(about);
  const tokens = report.data?.tokens;
  const tokens_per_pass = tokens ? Math.round((tokens.total / tokens.of_rows) * tokens.rows) : null;
  const resolve = async (signal: AbortSignal) => (file ? settled().then(() => post("/api/jobs/resolve", { tokens_per_pass }, body, signal)) : null);
  const resolution = useLoad(resolve, [asked, tokens_per_pass]);

  const creating = useRef(false);
  const [refused, setRefused] = useState<{ asked: string; error: Error } | null>(null);
  const create = async () => {
    if (creating.current) return;
    creating.current = true;
    try {
      navigate(`/jobs/${(await post("/v1/fine_tuning/jobs", {}, body)).id}`);
    } catch (error) {
      setRefused({ asked, error: error as Error });
      creating.current = false;
    }
  };

  const wrong = refused?.asked === asked ? refused.error : resolution.error;
  const at = (name: string) => (wrong instanceof ApiError && wrong.param?.split(".").at(-1) === name ? wrong.message : null);
  const setting = (info: HyperparameterInfo) => <Hyperparameter key={info.name} info={info} resolution={resolution.data} error={at(info.name)} />;
  const settings = (...names: string[]) => names.flatMap((name) => table.filter((info) => info.name === name).map(setting));
  const rest = table.filter(({ name }) => ![...USUAL, ...APART].includes(name));
  const changeHow = (value: Validation) => setQuery({ validation: value, ...(value !== "file" && { validation_file: null }), training_split: value === "split" ? 0.9 : null });

  return (
    <div class="split">
      <div class="stack">
        <Card title="Model and data">
          <div class="halves">
            <div class="stack">
              <Select
                label="Model" value={model} error={at("model")} onChange={(value) => setQuery({ model: value })}
                options={[...(models.some(({ name }) => name === model) ? [] : [model]), ...models.map(({ name }) => name)]}
              />
              <FilePicker label="Training file" param="training_file" files={files} error={at("training_file")} />
            </div>
            <div class="stack">
              <div class="field"><span class="label">Validation</span><div><Segments label="Validation" value={how} options={VALIDATIONS} onChange={changeHow} /></div></div>
              {how === "file" && <FilePicker label="Validation file" param="validation_file" files={files} error={at("validation_file")} />}
              {how === "split" && settings("training_split")}
              {how === "none" && <p class="muted">Without validation the run cannot show whether the model learns more than its own rows.</p>}
            </div>
          </div>
        </Card>
        {file && <Report report={report.data} error={report.error} retry={report.reload} />}
        {file && model && <Preview {...about} />}
        <Card title="Hyperparameters">
          <div class="settings">{settings(...USUAL)}</div>
          <More changed={rest.filter(({ name }) => query.value.has(name)).length} hasError={rest.some(({ name }) => at(name))}>{rest.map(setting)}</More>
        </Card>
        <Card title="The same job in code">
          <Code label="Python" text={python(body)} />
          <Code label="curl" text={curl(body)} />
        </Card>
      </div>
      <Card title="Job" class="summary">
        <TextField label="Suffix" value={query.value.get("suffix") ?? ""} maxLength={64} error={at("suffix")} hint="Part of the new model's name." onInput={(suffix) => setQuery({ suffix })} />
        {settings("seed")}
        <Outlook resolution={resolution.data} busy={resolution.busy} />
        {report.data && report.data.num_errors > 0 && <Note severity="critical">The training file has {plural(report.data.num_errors, "error")}: the job would fail.</Note>}
        {wrong && <ErrorNote error={wrong} />}
        <Button kind="primary" disabled={!file} onClick={create}>Create job</Button>
        {!file && <p class="hint">Choose a training file first.</p>}
      </Card>
    </div>
  );
}

function More({ changed, hasError, children }: { changed: number; hasError: boolean; children: ComponentChildren }) {
  const [open, setOpen] = useState(changed > 0);
  return (
    <details class="more" open={open || hasError} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>More{changed > 0 && `, ${changed} changed`}</summary>
      <div class="settings">{children}</div>
    </details>
  );
}

function Outlook({ resolution, busy }: { resolution: Resolution | null; busy: boolean }) {
  const { estimate } = resolution ?? {};
  return (
    <>
      <dl class={busy ? "facts stale" : "facts"}>
        <dt>Rows</dt>
        <dd>{resolution ? `${number(resolution.num_training)} training, ${number(resolution.num_validation)} validation` : "–"}</dd>
        <dt>Steps</dt>
        <dd>{number(resolution?.total_steps)}</dd>
        <dt>Time</dt>
        <dd>{duration(estimate?.seconds)}<div class="muted small">{estimate?.seconds_basis}</div></dd>
        <dt>Memory</dt>
        <dd>{bytes(estimate?.memory_bytes)}<div class="muted small">{estimate?.memory_basis}</div></dd>
      </dl>
      {resolution?.warnings.map((warning) => <Note key={warning} severity="warning">{warning}</Note>)}
    </>
  );
}
