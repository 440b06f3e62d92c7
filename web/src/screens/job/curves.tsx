// A job's charts: which points are drawn (finer ones where it is zoomed in), what stands on them, and all full evaluations as a table.
import { useEffect, useMemo, useState } from "preact/hooks";
import { get, type Diagnosis, type Metric, type MetricData } from "../../api/client";
import type { LiveJob } from "../../api/live";
import { Charts } from "../../chart/charts";
import type { Drawing, Line, Panel } from "../../chart/plot";
import { at, AXES, column, places, save, smooth, type Axis } from "../../chart/series";
import { useView } from "../../chart/view";
import { Button, Fold, Grid, toast } from "../../ui";
import { loss, number, percent } from "../../ui/format";
import { best } from "./parts";

const PAGE = 10_000;
const DETAIL_POINTS = 4000;
const DETAIL_WAIT_MS = 200;

export function Curves({ live, name }: { live: LiveJob; name: string }) {
  const view = useView();
  const version = usePaced(live.version.value, live.points.length / 40);
  const diagnosis = live.diagnosis.value;
  const coarse = useMemo(() => ({ points: [...live.points], xs: places(live.points, view.axis) }), [version, view.axis]);
  const seen = view.range?.map((x) => coarse.points[Math.min(coarse.points.length - 1, at(coarse.xs, x))]?.data.step);
  const detail = useDetail(live.id, coarse.points, seen?.[0], seen?.[1]);
  const points = useMemo(() => joined(coarse.points, detail), [coarse, detail]);
  const drawing = useMemo(() => draw(points, diagnosis, view.axis, view.smooth), [points, diagnosis, view.axis, view.smooth]);
  const where = (index: number) => {
    const said = (axis: Axis) => AXES[axis].format(AXES[axis].of(points[index]!, points[0]!));
    return `Step ${said("step")} · epoch ${said("epoch")} · ${said("tokens")} tokens · ${said("time")}`;
  };
  const download = () => whole(live.id, points).then((all) => save(csv(all), `${name}.csv`), (error: Error) => toast(error.message, true));
  const row = (data: MetricData) => [data.step ? number(data.step) : "0, base model", number(data.epoch), loss(data.train_loss), loss(data.full_valid_loss), percent(data.full_valid_mean_token_accuracy)];
  const rows = points.flatMap(({ data }) => (data.full_valid_loss == null ? [] : [row(data)]));
  return (
    <>
      <Charts {...{ drawing, name, where }} actions={<Button small onClick={download}>CSV</Button>} />
      <Fold title={`Full evaluations as a table (${rows.length})`}>
        <Grid label="Full evaluations" class="low-table" head={["Step", "Epoch", "Train loss", "Full validation loss", "Full validation token accuracy"]} rows={rows} />
      </Fold>
    </>
  );
}

/** Every point of the job: those at hand, or where they are thinned out the server's. */
async function whole(job_id: string, points: readonly Metric[]): Promise<readonly Metric[]> {
  if (points.length > points.at(-1)!.data.step - points[0]!.data.step) return points;
  const all: Metric[] = [];
  for (let [after, more] = [0, true]; more; ) {
    const page = await get("/api/jobs/{job_id}/metrics", { job_id, after, limit: PAGE });
    all.push(...page.data);
    [after, more] = [page.next, page.has_more];
  }
  return all;
}

/** `value`, but changing at most every `ms`. */
function usePaced<T>(value: T, ms: number): T {
  const [shown, show] = useState({ value, at: 0 });
  useEffect(() => {
    const wait = window.setTimeout(() => show({ value, at: performance.now() }), Math.max(0, shown.at + ms - performance.now()));
    return () => clearTimeout(wait);
  }, [value]);
  return shown.value;
}

type Detail = { first: number; last: number; points: Metric[] };

/** The points of the steps in view and half as many on each side, where those at hand are thinned out. */
function useDetail(job_id: string, coarse: readonly Metric[], first = 0, last = 0): Detail | null {
  const [detail, setDetail] = useState<Detail | null>(null);
  const width = last - first;
  useEffect(() => {
    const whole = coarse.filter(({ data }) => data.step >= first && data.step <= last).length > width;
    const enough = detail && detail.first <= first && detail.last >= last && (detail.points.length > detail.last - detail.first || detail.last - detail.first < 3 * width);
    if (!width || whole || enough) return;
    const stop = new AbortController();
    const wait = window.setTimeout(async () => {
      const wide = { first_step: Math.max(0, Math.floor(first - width / 2)), last_step: Math.ceil(last + width / 2) };
      const page = await get("/api/jobs/{job_id}/metrics", { job_id, max_points: DETAIL_POINTS, ...wide }, stop.signal).catch(() => null); // the coarse ones stay
      if (page) setDetail({ first: wide.first_step, last: wide.last_step, points: page.data });
    }, DETAIL_WAIT_MS);
    return () => {
      clearTimeout(wait);
      stop.abort();
    };
  }, [first, last]);
  return width ? detail : null;
}

function joined(points: readonly Metric[], detail: Detail | null): readonly Metric[] {
  if (!detail) return points;
  const newest = detail.points.at(-1)?.data.step ?? detail.last;
  return [...points.filter(({ data }) => data.step < detail.first), ...detail.points, ...points.filter(({ data }) => data.step > newest)];
}

const LINES = [["Train", "--train", "train"], ["Validation", "--valid", "valid"], ["Full validation", "--full", "full_valid"]] as const;
const SEVERITY = { info: "--grey", warning: "--amber", critical: "--red" };

function draw(points: readonly Metric[], diagnosis: Diagnosis | null, axis: Axis, strength: number): Drawing {
  const [xs, steps] = [places(points, axis), points.map(({ data }) => data.step)];
  const place = (step: number) => xs[Math.min(xs.length - 1, at(steps, step))] ?? 0;
  const base = steps[0] === 0 ? points[0]!.data : null;
  const panel = (title: string, measure: "loss" | "mean_token_accuracy", about = "Not interpreted yet."): Panel => {
    const lines = LINES.map(([label, color, name]): Line => {
      const raw = column(points, `${name}_${measure}`);
      return { label, color, ...(name === "full_valid" ? { dots: raw } : strength ? { raw, values: smooth(raw, points, strength) } : { values: raw }) };
    });
    const value = base?.[`full_valid_${measure}`];
    return { title, about: `${title}. ${about}`, share: measure !== "loss", lines, level: value == null ? undefined : { label: "Base model", value } };
  };
  const epochs = points.map(({ data }) => Math.floor(data.epoch + 1e-9));
  const [least, use] = [best(points)?.step, diagnosis?.checkpoint?.step];
  const marks = [
    { step: least, label: `best${least === use ? ", to use" : ""}: step ${number(least)}`, color: "--full", dash: [2, 3] },
    { step: least === use ? undefined : use, label: `to use: step ${number(use)}`, color: "--accent", dash: [] },
  ];
  return {
    axis, xs,
    panels: [panel("Loss", "loss", diagnosis?.plots.loss), panel("Token accuracy", "mean_token_accuracy", diagnosis?.plots.token_accuracy)],
    borders: points.flatMap((_, index) => (index && epochs[index]! > epochs[index - 1]! ? [{ x: xs[index]!, epoch: epochs[index]! }] : [])),
    marks: marks.flatMap(({ step, ...mark }) => (step === undefined ? [] : [{ ...mark, x: place(step) }])),
    bands: (diagnosis?.findings ?? []).flatMap(({ code, severity, steps }) => (steps ? [{ code, from: place(steps[0]), to: place(steps[1]), color: SEVERITY[severity] }] : [])),
  };
}

const COLUMNS: (keyof MetricData)[] = [
  "step", "epoch", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy", "full_valid_loss",
  "full_valid_mean_token_accuracy", "learning_rate", "grad_norm", "tokens_seen", "tokens_per_second",
];
const csv = (points: readonly Metric[]): string => `${[COLUMNS, ...points.map(({ data }) => COLUMNS.map((name) => data[name] ?? ""))].join("\n")}\n`;
